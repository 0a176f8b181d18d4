"""The page of `inspect --html`: its content, and that a browser shows it offline, also at the width of a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pairloom.pipelines.curate import curate
from pairloom.pipelines.inspect.html_report import write_report
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.tiny_models import write_siglip

PHONE = 390  # px


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, shared_data: Callable[[str], Path], ray_session: None) -> Path:
    """A root with 40 photographs, copies of three of them, and two files that are not images."""
    out = tmp_path_factory.mktemp("report")
    lines = (shared_data("flickr8k") / "pairs.jsonl").read_text().splitlines()[:40]
    pairs = [json.loads(line) for line in lines]
    (out / "images").mkdir()
    rows = [{"image": Path(pair["image"]).name, "caption": pair["captions"][0]} for pair in pairs]
    for row in rows:
        shutil.copy(shared_data("flickr8k") / "images" / row["image"], out / "images" / row["image"])
    rows += [{"image": rows[place]["image"], "caption": rows[place]["caption"].upper()} for place in range(3)]
    for name in ("page.jpg", "empty.jpg"):
        (out / "images" / name).write_bytes(b"<html><script>alert(1)</script>" if name == "page.jpg" else b"")
        rows.append({"image": name, "caption": '<script>alert("caption")</script> & more words'})
    rows = [{**row, "image": f"images/{row['image']}"} for row in rows]
    (out / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "root": str(out / "data"),
        "source": {"kind": "folder", "path": str(out / "pairs.jsonl"), "caption_column": "caption"},
        "ingest": {"samples_per_shard": 20},
        "signals": [
            {"kind": "captions"},
            {"kind": "quality"},
            {"kind": "clip", "name": "tiny", "model": str(write_siglip(out / "model"))},
            {"kind": "clusters", "name": "tree", "features": "tiny", "num_clusters": [4, 2]},
        ],
        "select": {"min_words": 11, "scores": [{"signal": "quality", "column": "sharpness", "top_fraction": 0.6}]},
    }
    curate(CurateRecipe.model_validate(settings), lambda: None)
    return out / "data"


def test_the_page_tells_the_whole_story(curated: Path, tmp_path: Path) -> None:
    write_report(str(curated), str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    for heading in ("Funnel", "Drop reasons", "Measurements", "Origin", "Duplicates", "Clusters",
                    "Random samples"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    for text in (
        "not_an_image",
        "exact_duplicate",
        "few_words",
        "low_score",
        "quality.sharpness",
        "captions.num_words",
    ):
        assert text in page
    assert "tree.cluster" not in page, "a number of a cluster counts nothing"
    assert "4 clusters hold samples" in page
    assert page.count('class="mark"') == 2, "the two thresholds are drawn in"
    assert page.count("data:image/jpeg;base64,") >= 20
    assert "<script" not in page, "captions are text, whatever they hold"
    assert not re.search(r'(src|href)="(?!data:)', page), "one file, nothing beside it"


def test_a_selection_can_be_named_and_others_are_one_line(curated: Path, tmp_path: Path) -> None:
    write_report(str(curated / "selections" / "default"), str(tmp_path / "report.html"))
    assert "selection default" in (tmp_path / "report.html").read_text()
    with pytest.raises(InputError):
        write_report(str(tmp_path), str(tmp_path / "none.html"))


@pytest.mark.parametrize("width", [PHONE, 1200])
def test_a_browser_shows_it(curated: Path, tmp_path: Path, width: int) -> None:
    """No element is wider than the window, and every image is decoded."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine to open the page with")
    write_report(str(curated), str(tmp_path / "report.html"))
    probe = (
        "<script>const width = Math.max(...[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll'))"
        ".map(e => e.getBoundingClientRect().right)); const broken = [...document.images].filter(i => !i.naturalWidth);"
        "document.title = JSON.stringify([Math.round(width), broken.length, document.images.length]);</script>"
    )
    framed = tmp_path / "frame.html"  # an old headless window is never narrower than 500 px; a frame is
    inner = (tmp_path / "report.html").read_text().replace("</body>", probe + "</body>")
    (tmp_path / "inner.html").write_text(inner)
    framed.write_text(
        f'<iframe id="page" src="inner.html" width="{width}" height="900"></iframe><script>onload = () => '
        "document.body.dataset.found = document.getElementById('page').contentDocument.title</script>"
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
               "--window-size=1400,1000", "--virtual-time-budget=10000", "--dump-dom", framed.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'data-found="\[(\d+),(\d+),(\d+)\]"', dom)
    assert found is not None, dom[-500:]
    rightmost, num_broken, num_images = (int(group) for group in found.groups())
    assert rightmost <= width
    assert num_broken == 0
    assert num_images >= 20
