"""The demo's own parts: what it plants, what its server does, how it counts."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from pairloom.demo import figures
from pairloom.demo.charts import loss_chart, score_chart
from pairloom.demo.server import choose_port, serve
from pairloom.demo.source import build_source

NUM_PICTURES = 200


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    build_source(folder, "http://127.0.0.1:1", NUM_PICTURES)
    return folder


def test_every_row_has_its_truth(source: Path) -> None:
    truth = figures.load_truth(source / "truth.jsonl")
    rows = (source / "pairs.csv").read_text().splitlines()[1:]
    assert len(truth) == len(rows)
    plants = [row["plant"] for row in truth.values()]
    assert plants.count("original") == NUM_PICTURES
    assert min(plants.count(kind) for kind in ("exact_copy", "resized_copy", "recompressed_copy", "broken")) > 0
    originals = [row for row in truth.values() if row["plant"] == "original"]
    assert 0.25 < sum(row["mismatched"] for row in originals) / len(originals) <= 0.30


def test_copies_share_caption_and_image(source: Path) -> None:
    by_picture: dict[int, set[str]] = {}
    for row in figures.load_truth(source / "truth.jsonl").values():
        if row["picture"] is not None:
            by_picture.setdefault(row["picture"], set()).add(row["caption"])
    assert all(len(captions) == 1 for captions in by_picture.values())


def test_a_second_build_writes_the_same(source: Path, tmp_path: Path) -> None:
    build_source(tmp_path, "http://127.0.0.1:1", NUM_PICTURES)
    for name in ("pairs.csv", "truth.jsonl", "conversations.json", "images/000007.jpg"):
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()


def test_server_serves_files_and_failures(source: Path, tmp_path: Path) -> None:
    port = choose_port(tmp_path)
    assert choose_port(tmp_path) == port
    with serve(source, port):
        url = f"http://127.0.0.1:{port}"
        body = urllib.request.urlopen(f"{url}/images/000003.jpg").read()
        assert body == (source / "images/000003.jpg").read_bytes()
        for path, status in (("/images/none.jpg", 404), ("/status/500?1", 500)):
            with pytest.raises(urllib.error.HTTPError) as raised:
                urllib.request.urlopen(url + path)
            assert raised.value.code == status


def test_auc_counts_ties_as_half() -> None:
    assert figures.auc(np.array([1.0, 2.0]), np.array([0.0, 0.5])) == 1.0
    assert figures.auc(np.array([1.0, 1.0]), np.array([1.0, 1.0])) == 0.5


def test_charts_are_whole_svg() -> None:
    curve = loss_chart({"a": [(1, 3.0), (2, 2.0)], "b": [(1, 1.0), (2, 0.5)]})
    histogram = score_chart({"x": np.linspace(0, 1, 50), "y": np.linspace(-1, 0, 50)}, threshold=0.1)
    for svg in (curve, histogram):
        assert svg.startswith("<svg")
        assert svg.endswith("</svg>")
        assert "nan" not in svg
    json.dumps(curve)
