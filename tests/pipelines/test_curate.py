"""All steps: complete steps are not run again, `only` runs one step, every sample can be explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pairloom.pipelines.curate import curate
from pairloom.pipelines.engine.step_folder import nothing
from pairloom.pipelines.inspect.inspect import explain, inspect
from pairloom.schemas.data_set.manifest import load_manifest, resolve, table_url
from pairloom.schemas.data_set.tables import read_table
from pairloom.schemas.errors import InputError, RecipeError
from pairloom.schemas.recipes.curate import CurateRecipe
from tests.support.provenance_builder import write_provenance
from tests.support.raw_builder import encoded, photograph
from tests.support.tiny_models import write_siglip

NUM_PICTURES = 12


def refuse() -> None:
    raise AssertionError("Ray was started for work that is done already")


def recipe_for(tmp_path: Path, **parts: Any) -> CurateRecipe:
    settings = {
        "root": str(tmp_path / "out"),
        "source": {"kind": "folder", "path": str(tmp_path / "pictures")},
        "ingest": {"samples_per_shard": 5},
        "signals": [{"kind": "captions"}, {"kind": "clip", "name": "tiny", "model": str(tmp_path / "model")}],
        "select": {"min_words": 3, "scores": [{"signal": "tiny", "min": -1.0}]},
        "reshard": {"samples_per_shard": 4},
    }
    return CurateRecipe.model_validate({**settings, **parts})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images with captions: the last is a copy of the first, and one caption has a single word."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(NUM_PICTURES):
        (folder / f"{seed:02d}.jpg").write_bytes(encoded(photograph(seed)))
        (folder / f"{seed:02d}.txt").write_text("blobs" if seed == 5 else f"a picture of blobs {seed}")
    (folder / "99.jpg").write_bytes(encoded(photograph(0), quality=50))
    (folder / "99.txt").write_text("a copy of a picture")
    write_siglip(tmp_path / "model")
    return folder


def folder_of(summary: dict[str, Any], step: str) -> str:
    return str(next(row["folder"] for row in summary["steps"] if row["name"] == step))


def rows_of(folder: str) -> list[dict[str, Any]]:
    tables = [read_table(table_url(folder, shard.name)) for shard in load_manifest(folder).shards]
    return [row for table in tables for row in table.to_pylist()]


def snapshot(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (root / "out").rglob("*") if path.is_file()}


def test_the_whole_walk_then_nothing_is_left_to_do(tmp_path: Path, pictures: Path, ray_session: None) -> None:
    summary = curate(recipe_for(tmp_path), nothing)
    assert [row["name"] for row in summary["steps"]] == [
        "ingest", "signals captions", "signals tiny", "dedupe", "select", "reshard"]  # fmt: skip
    select = summary["steps"][4]
    assert (select["num_rows"], select["num_kept"]) == (NUM_PICTURES + 1, NUM_PICTURES - 1)
    assert select["drop_counts"] == {"few_words": 1, "perceptual_duplicate": 1}
    assert summary["steps"][5]["num_kept"] == NUM_PICTURES - 1
    before = snapshot(tmp_path)
    assert curate(recipe_for(tmp_path), refuse)["steps"] == summary["steps"]
    assert snapshot(tmp_path) == before


def test_new_threshold_needs_no_ray_and_reports_the_difference(
    tmp_path: Path, pictures: Path, ray_session: None
) -> None:
    first = curate(recipe_for(tmp_path), nothing)
    scores = [row["clip_score"] for row in rows_of(folder_of(first, "signals tiny"))]
    stricter = {"min_words": 0, "scores": [{"signal": "tiny", "min": sorted(scores)[6]}]}
    summary = curate(recipe_for(tmp_path, select=stricter), refuse, only="select")
    assert [row["name"] for row in summary["steps"]][-1] == "select"
    told = summary["difference"]
    kept = [row["uid"] for row in rows_of(folder_of(summary, "select")) if row["kept"]]
    kept_before = [row["uid"] for row in rows_of(folder_of(first, "select")) if row["kept"]]
    assert told["kept_before"] == len(kept_before)
    assert told["kept_after"] == len(kept)
    assert told["kept_by_both"] == len(set(kept) & set(kept_before))


def test_only_one_step_needs_the_steps_before_it(tmp_path: Path, pictures: Path, ray_session: None) -> None:
    with pytest.raises(InputError, match="--only ingest` first"):
        curate(recipe_for(tmp_path), refuse, only="select")
    summary = curate(recipe_for(tmp_path), nothing, only="ingest")
    assert [row["name"] for row in summary["steps"]] == ["ingest"]
    with pytest.raises(InputError, match="--only signals` first"):
        curate(recipe_for(tmp_path), refuse, only="dedupe")
    curate(recipe_for(tmp_path), nothing, only="signals")
    with pytest.raises(InputError, match="--only dedupe` first"):
        curate(recipe_for(tmp_path), refuse, only="select")
    curate(recipe_for(tmp_path), nothing, only="dedupe")
    with pytest.raises(InputError, match="--only select` first"):
        curate(recipe_for(tmp_path), refuse, only="reshard")
    curate(recipe_for(tmp_path), refuse, only="select")
    assert curate(recipe_for(tmp_path), nothing, only="reshard")["steps"][-1]["num_kept"] == NUM_PICTURES - 1
    with pytest.raises(RecipeError, match="--only selekt: no such step"):
        curate(recipe_for(tmp_path), refuse, only="selekt")


@pytest.mark.slow
def test_out_of_fold_signals_come_after_dedupe(tmp_path: Path, pictures: Path, ray_session: None) -> None:
    models = [str(tmp_path / f"fold{fold}") for fold in range(2)]
    for fold, model in enumerate(models):
        write_provenance(write_siglip(Path(model)), [fold, 2])
    signals = [{"kind": "captions"}, {"kind": "clip", "name": "folded", "models": models}]
    rules = {"scores": [{"signal": "folded", "top_fraction": 0.5}]}
    summary = curate(recipe_for(tmp_path, signals=signals, select=rules), nothing)
    assert [row["name"] for row in summary["steps"]] == [
        "ingest", "signals captions", "dedupe", "signals folded", "select", "reshard"]  # fmt: skip
    assert summary["steps"][4]["drop_counts"]["low_score"] == NUM_PICTURES // 2 - 1
    bad = {"keep": "highest_score", "score_signal": "folded"}
    with pytest.raises(RecipeError, match="measured after dedupe"):
        curate(recipe_for(tmp_path, signals=signals, select=rules, dedupe=bad), refuse)


@pytest.mark.slow
def test_every_sample_can_be_explained(tmp_path: Path, pictures: Path, ray_session: None) -> None:
    summary = curate(recipe_for(tmp_path), nothing)
    root = str(tmp_path / "out")
    selection = rows_of(folder_of(summary, "select"))
    verdicts = {row["uid"]: explain(root, row["uid"]) for row in selection}
    for row in selection:
        told = verdicts[row["uid"]]
        assert told["selections/default"]["drop_reason"] == row["drop_reason"]
        assert ("curated/train" in told) == row["kept"]
        assert told["signals/captions"]["num_words"] == row["num_words"]
        assert (row["drop_reason"] or "in curated/train") in told["verdict"]
    copy = next(row for row in selection if row["drop_reason"] == "perceptual_duplicate")
    assert f"{copy['duplicate_of']} is kept instead" in verdicts[copy["uid"]]["verdict"]
    with pytest.raises(InputError, match="no sample has the uid"):
        explain(root, "0" * 32)


@pytest.mark.slow
def test_inspect_shows_the_funnel_and_each_data_set(tmp_path: Path, pictures: Path, ray_session: None) -> None:
    summary = curate(recipe_for(tmp_path), nothing)
    root = str(tmp_path / "out")
    funnel = list(inspect(root)["funnel"].values())
    assert funnel == [NUM_PICTURES + 1, NUM_PICTURES + 1, NUM_PICTURES, NUM_PICTURES - 1, NUM_PICTURES - 1]
    for step in ("raw/main", "signals/tiny", "dedupe/default", "selections/default", "curated/train"):
        shown = inspect(f"{root}/{step}")
        assert shown["path"] == resolve(f"{root}/{step}")
        assert shown["num_rows"] > 0
        assert 0 < len(shown["samples"]) <= 5
    assert inspect(folder_of(summary, "select"))["drop_counts"] == {"few_words": 1, "perceptual_duplicate": 1}
    with pytest.raises(InputError, match="no complete data set"):
        inspect(str(tmp_path / "pictures"))
