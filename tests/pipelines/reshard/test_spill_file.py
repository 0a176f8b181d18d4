"""Spill files of a global shuffle: a bucket is read from its own ranges; a finished file is not written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pairloom.pipelines.reshard import global_shuffle as reshard_global
from pairloom.pipelines.reshard.reshard import reshard
from pairloom.pipelines.reshard.spill_file import INT_BYTES, copy_bucket, read_copied, write_buckets
from pairloom.schemas.errors import InputError
from tests.support.reshard_builder import files_of, prepare, recipe_for

IMAGES = [b"%d" % place * (place + 1) for place in range(9)]
EDGES = np.array([0, 0, 4, 5, 5, 9])


def read_image(sample: dict[str, Any]) -> bytes:
    return IMAGES[sample["number"]]


def test_a_bucket_needs_nothing_of_the_others(tmp_path: Path) -> None:
    """The file has only the two offsets of one bucket and its bytes."""
    url = str(tmp_path / "file.spill")
    rows = pa.table({"number": range(9), "num_bytes": [len(image) for image in IMAGES], "caption": ["é", None, ""] * 3})
    write_buckets(url, rows, EDGES, read_image)
    whole = Path(url).read_bytes()
    starts = np.frombuffer(whole[: len(EDGES) * INT_BYTES], np.int64).tolist()
    assert starts[-1] == len(whole)
    for bucket, (first, last) in enumerate(zip(EDGES[:-1].tolist(), EDGES[1:].tolist(), strict=True)):
        alone = bytearray(len(whole))
        for start, stop in ((bucket * INT_BYTES, (bucket + 2) * INT_BYTES), (starts[bucket], starts[bucket + 1])):
            alone[start:stop] = whole[start:stop]
        Path(url).write_bytes(alone)
        copied = copy_bucket(url, bucket, tmp_path / "copy", copy_bytes=64)
        samples = [] if copied is None else copied.to_pylist()
        assert [sample["number"] for sample in samples] == list(range(first, last))
        assert [sample["caption"] for sample in samples] == rows["caption"].to_pylist()[first:last]
        assert [read_copied(tmp_path, sample) for sample in samples] == IMAGES[first:last]


def test_spill_files_of_a_killed_run_are_kept(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a run that ended between the passes, the next one writes only missing spill files."""
    recipe = recipe_for(tmp_path, shuffle="global")
    raw, selection = prepare(tmp_path, recipe)

    def end_here(*_: object) -> None:
        raise InputError("ended here")

    with monkeypatch.context() as patched:
        patched.setattr(reshard_global, "write_bucket", end_here)
        with pytest.raises(InputError, match="ended here"):
            reshard(recipe, raw, selection)
    spills = sorted(tmp_path.rglob("*.spill"))
    assert len(spills) > 2
    written = {spill: spill.stat().st_mtime_ns for spill in spills[1:]}
    spills[0].unlink()
    monkeypatch.setattr("pairloom.pipelines.reshard.reshard.spill_folder", lambda folder: f"{folder}/keeps-them")
    folder = reshard(recipe, raw, selection)
    assert {spill: spill.stat().st_mtime_ns for spill in spills[1:]} == written
    again = recipe_for(tmp_path / "again", shuffle="global")
    expected = files_of(reshard(again, *prepare(tmp_path / "again", again)))
    assert {name: digest for name, digest in files_of(folder).items() if not name.startswith("spill/")} == {
        name: digest for name, digest in expected.items() if not name.startswith("spill/")
    }
