"""All commands in order, on real photographs served over HTTP with some bad rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from pairloom.demo.figures import read_rows
from pairloom.demo.source import png_bomb
from pairloom.schemas.data_set.manifest import resolve
from tests.support.http_server import serve
from tests.support.stories260k import write_stories260k

NUM_PHOTOGRAPHS = 240
COMMAND = Path(sys.executable).parent / "pairloom"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def pairloom(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    done = subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=600)
    assert done.returncode == expect, f"{arguments}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def write_table(path: Path, url: str, pairs: list[dict[str, Any]]) -> Counter[str]:
    """Write a table of photographs and bad rows. Returns the expected counts by reason."""
    rows = [(f"{url}/files/{pair['image']}", pair["captions"][0]) for pair in pairs]
    good = rows[0][1]
    bad = {
        "timeout": [(f"{url}/slow/30/{pairs[0]['image']}", good)],
        "http_not_found": [(f"{url}/files/images/none.jpg", good)],
        "not_an_image": [(f"{url}/files/page.jpg", good)],
        "decode_error": [(f"{url}/files/cut.jpg", good)],
        "too_small": [(f"{url}/files/dot.png", good)],
        "too_many_pixels": [(f"{url}/files/bomb.png", good)],
        "empty_caption": [(rows[0][0], " ")],
        "caption_too_long": [(rows[1][0], "x" * 10_000)],
        "duplicate_row": [rows[2]],
        "invalid_url": [("htp:/nowhere", good)],
    }
    everything = rows + [row for group in bad.values() for row in group]
    table = pa.table({"url": [row[0] for row in everything], "caption": [row[1] for row in everything]})
    pq.write_table(table, path)
    return Counter({reason: len(group) for reason, group in bad.items()})


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, shared_data: Callable[[str], Path]) -> Path:
    """Curated photographs, two models of folds, the filtered selection."""
    folder = tmp_path_factory.mktemp("walk")
    flickr = shared_data("flickr8k")
    pairs = [json.loads(line) for line in (flickr / "pairs.jsonl").read_text().splitlines()[:NUM_PHOTOGRAPHS]]
    whole = (flickr / pairs[5]["image"]).read_bytes()
    pages = {
        "page.jpg": b"<!DOCTYPE html><html>moved</html>",
        "cut.jpg": whole[: len(whole) // 2],
        "dot.png": png_bomb(1),
        "bomb.png": png_bomb(20_000),
    }
    with serve(flickr, pages) as server:
        expected = write_table(folder / "urls.parquet", server.url, pairs)
        curate(folder)
    reasons = Counter(read_rows(resolve(str(folder / "data/raw/main")), ["drop_reason"])["drop_reason"].to_pylist())
    del reasons[None]
    assert reasons == expected
    return folder


def curate(folder: Path, **changes: Any) -> dict[str, Any]:
    """Curate below `folder`/data. Returns the summary."""
    recipe = {
        "root": str(folder / "data"),
        "source": {"kind": "url_table", "path": str(folder / "urls.parquet")},
        "ingest": {
            "samples_per_shard": 50,
            "max_caption_chars": 5000,
            "image": {"size": 128, "min_side": 10},
            "fetch": {"timeout_s": 3, "retries": 0, "allow_private_addresses": True},
        },
        "signals": [{"kind": "captions"}],
        "select": {"name": "basic", "min_words": 3, "languages": ["en"]},
        "reshard": {"name": "basic", "samples_per_shard": 50},
        **changes,
    }
    (folder / "curate.yaml").write_text(yaml.safe_dump(recipe))
    summary: dict[str, Any] = json.loads(pairloom("curate", folder / "curate.yaml", "--json").stdout)
    return summary


def train(folder: Path, name: str, settings: dict[str, Any], *arguments: object) -> Path:
    """Train a small model. Returns its export."""
    recipe = {
        "run": {"dir": str(folder / "runs" / name), "total_samples": 256},
        "task": {"kind": "contrastive", "loss": "siglip"},
        "model": {"preset": "siglip-test-tiny"},
        "tokenizer": {"train": {"vocab_size": 800}},
        "data": {"train": [{"path": str(folder / "data/curated/basic")}], "num_lanes": 4},
        "batch": {"global_batch_size": 32},
        "optimizer": {"learning_rate": 1e-3, "warmup_samples": 64},
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    pairloom("train", path, *arguments)
    return folder / "runs" / name / "export"


def test_self_filter_round(root: Path) -> None:
    """Two models score the other's half; then a new selection, and a further model, exported and evaluated."""
    data = str(root / "data/curated/basic")
    for fold in range(2):
        source = {"path": data, "hold_out_fold": [fold, 2]}
        train(root, f"fold{fold}", {"data": {"train": [source], "num_lanes": 4}})
    signals = [
        {"kind": "captions"},
        {"kind": "clip", "name": "oof", "models": [str(root / f"runs/fold{fold}/export") for fold in range(2)]},
    ]
    select = {"name": "filtered", "min_words": 3, "scores": [{"signal": "oof", "top_fraction": 0.5}]}
    summary = curate(root, signals=signals, select=select, reshard={"name": "filtered", "samples_per_shard": 50})
    steps = {step["name"]: step for step in summary["steps"]}
    assert 100 < steps["select"]["num_kept"] < 140
    scored = read_rows(steps["signals oof"]["folder"], ["uid", "clip_score", "fold"])
    assert scored["clip_score"].null_count == summary["steps"][0]["num_rows"] - summary["steps"][0]["num_kept"]

    filtered = {"train": [{"path": str(root / "data/curated/filtered")}], "num_lanes": 4}
    clip = {"task": {"kind": "contrastive", "loss": "clip"}, "model": {"preset": "clip-test-tiny"}, "data": filtered}
    model = train(root, "clip", clip, "--num-processes", "2")
    measured = json.loads(pairloom("evaluate", model, "--kind", "retrieval", "--data", data, "--json").stdout)
    assert 0 <= measured["image_to_text_recall_at_1"] <= measured["image_to_text_recall_at_10"] <= 1
    pairloom("export", root / "runs/clip", "--format", "open-clip", "--out", root / "open_clip")
    assert (root / "open_clip" / "open_clip_config.json").exists()


def test_llava_on_a_real_language_model(root: Path, shared_data: Callable[[str], Path]) -> None:
    """Align on the captions, instruct on medical questions, with a trained 260K Llama."""
    vision = train(root, "vision", {})
    shared_data("stories260K")
    language = write_stories260k(root / "stories")
    common = {"tokenizer": {}, "batch": {"global_batch_size": 16, "micro_batch_size": 8}, "zero": {"stage": 2}}
    parts = {"vision": str(vision), "language": str(language), "feature_layer": -1}
    task: dict[str, str] = {"kind": "llava", "mode": "align"}
    align = train(root, "align", {**common, "task": task, "model": {"llava": parts}}, "--num-processes", "2")
    rad = shared_data("vqa_rad")
    records = [json.loads(line) for line in (rad / "qa.jsonl").read_text().splitlines()[:80]]
    dialogues = [
        {"id": str(index), "image": record["image"], "conversations": [
            {"from": "human", "value": f"<image>\n{record['question']}"}, {"from": "gpt", "value": record["answer"]}]}
        for index, record in enumerate(records)
    ]  # fmt: skip
    (root / "dialogues.json").write_text(json.dumps(dialogues))
    data = {"train": [{"path": str(root / "dialogues.json"), "images": str(rad)}], "num_lanes": 4}
    task = {"kind": "llava", "mode": "instruct"}
    instruct = train(root, "instruct", {**common, "task": task, "model": {"path": str(align)}, "data": data})
    (root / "images").symlink_to(rad / "images")
    (root / "qa.jsonl").write_text("\n".join(map(json.dumps, records[:8])))
    for mode in ("real", "none"):
        arguments = ("--kind", "vqa", "--data", root / "qa.jsonl", "--image", mode, "--json")
        measured = json.loads(pairloom("evaluate", instruct, *arguments).stdout)
        assert measured["num_questions"] == 8


def test_explain_returns_the_history(root: Path) -> None:
    raw = read_rows(resolve(str(root / "data/raw/main")), ["uid", "drop_reason"]).to_pylist()
    dropped = next(row for row in raw if row["drop_reason"] == "decode_error")
    told = json.loads(pairloom("explain", root / "data", dropped["uid"], "--json").stdout)
    assert "decode_error" in json.dumps(told)
    seen = json.loads(pairloom("inspect", root / "data", "--json").stdout)
    assert str(NUM_PHOTOGRAPHS) in json.dumps(seen)


def test_a_users_mistakes_are_one_line(root: Path) -> None:
    recipe = root / "curate.yaml"
    for arguments, words in (
        (("curate", recipe, "source.url_column=link"), "link"),
        (("curate", recipe, "source.path=nowhere.csv"), "nowhere.csv"),
        (("curate", recipe, "selct.min_words=3"), "did you mean select"),
        (("train", recipe), "give a train recipe"),
        (("evaluate", root, "--kind", "vqa", "--data", root), str(root)),
        (("export", root, "--format", "hf", "--out", root / "x"), str(root)),
        (("inspect", root / "none"), "none"),
        (("recipes", "none"), "no built-in recipe"),
    ):
        done = pairloom(*arguments, expect=2)
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert lines[-1].startswith("pairloom: ")
        assert words in lines[-1]
