"""Bad files of a source: the others are ingested, the error names all bad ones, and a mended file is accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pairloom.pipelines.curate import curate
from pairloom.pipelines.ingest.ingest import ingest
from pairloom.schemas.data_set.manifest import load_manifest
from pairloom.schemas.errors import InputError
from tests.support.http_server import TestServer
from tests.support.image_files import encoded, photo
from tests.support.ingest_builder import make_recipe, read_rows, url_rows, url_source, write_csv, write_tar


def tar_of(path: Path, first: int, num_samples: int = 3) -> Path:
    """A tar of photographs."""
    members: list[tuple[str, bytes]] = []
    for index in range(first, first + num_samples):
        members.append((f"{index:03d}.jpg", encoded(photo(80, 80, index))))
        members.append((f"{index:03d}.txt", f"caption {index}".encode()))
    path.parent.mkdir(exist_ok=True)
    return write_tar(path, members)


def truncate(path: Path) -> bytes:
    """Cut a file in half; returns its whole content."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return whole


def test_bad_tars_are_named_together_and_mended_ones_accepted(tmp_path: Path, ray_session: None) -> None:
    """Also one that is removed. The result goes through all steps."""
    tars = [tar_of(tmp_path / "tars" / f"{index}.tar", 10 * index) for index in range(4)]
    whole = truncate(tars[0])
    tars[2].write_bytes(b"")
    recipe = make_recipe(tmp_path / "out", {"kind": "webdataset", "path": str(tmp_path / "tars")})
    with pytest.raises(InputError, match=r"2 files cannot be used: .*/0\.tar: .*; .*/2\.tar: .*empty"):
        ingest(recipe)
    [raw] = (path for path in (tmp_path / "out/raw/main").iterdir() if path.is_dir())
    assert sorted(path.name for path in raw.glob("0000/*.parquet")) == ["0000001.parquet", "0000003.parquet"]
    tars[0].write_bytes(whole)
    tars[2].unlink()
    folder = ingest(recipe)
    assert sorted(row["caption"] for row in read_rows(folder)) == sorted(
        f"caption {10 * tar + index}" for tar in (0, 1, 3) for index in range(3)
    )
    assert [shard.name[-1] for shard in load_manifest(folder).shards] == ["1", "3", "4"]
    assert ingest(recipe) == folder
    summary = curate(recipe, start_ray=lambda: None)
    assert summary["steps"][-1]["num_kept"] == 9


def test_ingested_tar_may_not_change(tmp_path: Path, ray_session: None) -> None:
    tars = [tar_of(tmp_path / "tars" / f"{index}.tar", 10 * index) for index in range(2)]
    truncate(tars[1])
    recipe = make_recipe(tmp_path / "out", {"kind": "webdataset", "path": str(tmp_path / "tars")})
    with pytest.raises(InputError, match=r"1\.tar"):
        ingest(recipe)
    tar_of(tars[0], 50)
    with pytest.raises(InputError, match=r"0\.tar: has changed since it was ingested"):
        ingest(recipe)


def test_parquet_page_that_is_damaged_can_be_mended(
    tmp_path: Path, image_server: TestServer, ray_session: None
) -> None:
    """The footer is whole, so that the segment is frozen; reading the rows fails."""
    rows = url_rows(image_server, [f"{index}.jpg" for index in range(12)])
    (tmp_path / "t").mkdir()
    write_csv(tmp_path / "t/a.csv", rows[:6])
    pq.write_table(pa.Table.from_pylist(rows[6:]), tmp_path / "t/b.parquet", use_dictionary=False, compression="zstd")
    whole = bytearray((tmp_path / "t/b.parquet").read_bytes())
    damaged = bytes(whole[:20]) + bytes(60) + bytes(whole[80:])
    (tmp_path / "t/b.parquet").write_bytes(damaged)
    recipe = make_recipe(tmp_path / "out", url_source(tmp_path / "t"))
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/t/b.parquet")):
        ingest(recipe)
    (tmp_path / "t/b.parquet").write_bytes(whole)
    assert [row["status"] for row in read_rows(ingest(recipe))] == ["success"] * 12
