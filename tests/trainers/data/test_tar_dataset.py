"""What can be trained on besides curated data sets: tars that anyone has written, views, and tars at a URL."""

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pairloom.schemas.data_set.manifest import Manifest, ShardEntry, load_manifest, save_manifest, set_latest, table_url
from pairloom.schemas.data_set.tables import SELECTION, read_table, write_table
from pairloom.schemas.drop_reason import DropReason
from pairloom.schemas.errors import InputError
from pairloom.schemas.recipes.train import DataSource
from pairloom.schemas.storage.listing import expand_braces
from pairloom.trainers.data.dataset import CuratedDataset, open_pairs
from pairloom.trainers.data.shard_cache import Part, PartsReader, ShardCache, plan_parts
from tests.support.curated_builder import build_curated, colour_pairs
from tests.support.raw_builder import Pair, build_raw, photographs

PAIRS = colour_pairs(12)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAIRLOOM_CACHE", str(tmp_path / "cache"))


def everything(dataset: CuratedDataset) -> list[tuple[str, bytes]]:
    samples = [dataset.read(shard, row) for shard, size in enumerate(dataset.shard_sizes) for row in range(size)]
    return [(sample.caption, bytes(sample.image or b"")) for sample in samples]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three tars of four samples as WebDataset writes them, one of them without a caption, one with it in its JSON."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in range(3):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for row, (image, caption) in enumerate(PAIRS[4 * shard : 4 * shard + 4]):
                sample = {"__key__": f"{shard}/{row}", "JPG": image, "txt": caption}
                if (shard, row) == (1, 0):
                    del sample["txt"]
                if (shard, row) == (1, 1):
                    sample["json"] = json.dumps({"caption": sample.pop("txt"), "uid": "a" * 32}).encode()
                writer.write(sample)
    return folder


@pytest.mark.parametrize("name", ["", "/*.tar", "/{00000..00002}.tar"])
def test_tars_are_trained_on_as_they_are(tars: Path, name: str) -> None:
    dataset = open_pairs(DataSource(path=f"{tars}{name}"))
    assert dataset.shard_sizes == [4, 3, 4]
    assert everything(dataset) == [(caption, image) for index, (image, caption) in enumerate(PAIRS) if index != 4]
    assert dataset.read(1, 0).uid == "a" * 32
    assert dataset.read(0, 1).key == "0/1"


def test_an_index_is_made_once_and_again_for_other_tars(tars: Path) -> None:
    first = open_pairs(DataSource(path=str(tars)))
    (index,) = (tars / "pairloom-index").iterdir()
    before = {path: path.stat().st_mtime_ns for path in index.rglob("*")}
    assert open_pairs(DataSource(path=str(tars))).manifest_hash == first.manifest_hash
    assert {path: path.stat().st_mtime_ns for path in index.rglob("*")} == before
    (tars / "00002.tar").unlink()
    fewer = open_pairs(DataSource(path=str(tars)))
    assert fewer.shard_sizes == [4, 3]
    assert fewer.manifest_hash != first.manifest_hash


def test_an_index_lies_in_the_cache_where_nothing_can_be_written(tars: Path, tmp_path: Path) -> None:
    (tars / "pairloom-index").write_text("in the way")  # as root may write everywhere
    assert sum(open_pairs(DataSource(path=str(tars))).shard_sizes) == 11
    assert list((tmp_path / "cache" / "indexes").iterdir())


def test_missing_tars_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither manifest.json nor LATEST.*, nor tars"):
        open_pairs(DataSource(path=str(tmp_path)))
    raw = build_raw(tmp_path, photographs(3))
    with pytest.raises(InputError, match="is a raw folder; train on curated"):
        open_pairs(DataSource(path=raw))


def test_braces() -> None:
    assert expand_braces("s3://a/{08..10}-{x,y}.tar") == [
        f"s3://a/{n}-{c}.tar" for n in ("08", "09", "10") for c in "xy"
    ]


def build_selection(root: Path, raw: str, keeps: Sequence[bool]) -> str:
    """A selection of a raw folder, as select writes it."""
    folder = root / "selections" / "default" / "00000000"
    entries = []
    rows = iter(keeps)
    for shard in load_manifest(raw).shards:
        table = read_table(table_url(raw, shard.name))
        kept = [next(rows) and key is not None for key in table["key"].to_pylist()]
        decided = [
            {"uid": uid, "kept": keep, "weight": 1.0, "duplicate_group": uid}
            for uid, keep in zip(table["uid"].to_pylist(), kept, strict=True)
        ]
        write_table(table_url(str(folder), shard.name), pa.Table.from_pylist(decided, schema=SELECTION))
        entries.append(ShardEntry(shard.name, len(kept), sum(kept), 0))
    save_manifest(str(folder), Manifest("default", "selections", "x", [load_manifest(raw).hash()], entries))
    set_latest(str(folder))
    return str(folder.parent)


def test_a_view_is_the_kept_rows_of_the_raw_shards(tmp_path: Path) -> None:
    pairs = [*photographs(24), Pair(DropReason.TIMEOUT, "nothing", "http://a.test/none")]
    keeps = [index % 3 == 1 or index == 24 for index in range(25)]
    view = build_selection(tmp_path, build_raw(tmp_path, pairs), keeps)
    dataset = open_pairs(DataSource(path=view))
    expected = [(pair.caption, pair.image) for pair, keep in zip(pairs[:24], keeps, strict=False) if keep]
    assert everything(dataset) == expected
    halves = [open_pairs(DataSource(path=view, hold_out_fold=(fold, 2))) for fold in (0, 1)]
    assert Counter(itertools.chain.from_iterable(everything(half) for half in halves)) == Counter(expected)


def at_url(folder: str | Path) -> str:
    """The same folder as remote storage."""
    fsspec.config.conf["local"] = {"auto_mkdir": True}
    return f"local://{folder}"


def wait_for(cache: ShardCache) -> None:
    for fetch in list(cache._fetches.values()):
        fetch.exception()


def test_remote_tars_are_fetched_ahead_and_kept(tmp_path: Path) -> None:
    data = build_curated(tmp_path, PAIRS, samples_per_shard=4)
    remote = open_pairs(DataSource(path=at_url(data)))
    expected = everything(open_pairs(DataSource(path=data)))
    assert everything(remote) == expected  # by ranges, while the tars are fetched
    remote.read_ahead(0)
    wait_for(remote._cache)
    kept = sorted((tmp_path / "cache" / "tars").glob("*.tar"))
    assert len(kept) == 3
    for path in Path(data).rglob("*.tar"):
        path.unlink()
    again = open_pairs(DataSource(path=at_url(data)))
    assert everything(again) == expected


def test_view_of_a_url_fetches_its_rows_only(tmp_path: Path) -> None:
    pairs = photographs(30)
    keeps = [index % 10 == 3 for index in range(30)]
    view = build_selection(tmp_path, build_raw(tmp_path, pairs, samples_per_shard=15), keeps)
    dataset = open_pairs(DataSource(path=at_url(view)))
    for shard in range(2):
        dataset.read_ahead(shard)
    wait_for(dataset._cache)
    expected = [(pair.caption, pair.image) for pair, keep in zip(pairs, keeps, strict=True) if keep]
    assert everything(dataset) == expected
    kept = sum(path.stat().st_size for path in (tmp_path / "cache" / "tars").glob("*.tar"))
    tars = sum(path.stat().st_size for path in tmp_path.glob("raw/main/*/0000/*.tar"))
    assert kept < tars


def test_cache_is_bounded_and_a_failed_fetch_is_an_error(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 1000)
    cache = ShardCache(tmp_path / "kept", 2500)
    whole = [Part(0, 1000)]
    for number in range(5):
        cache.begin(at_url(tmp_path / f"{number}.tar"), whole)
        wait_for(cache)
        found = cache.find(at_url(tmp_path / f"{number}.tar"), whole)
        assert found is not None
        assert found.view(10, 2) == bytes([number]) * 2
        os.utime(next(iter((tmp_path / "kept").glob("*.tar"))))
    assert len(list((tmp_path / "kept").glob("*.tar"))) == 2
    shutil.rmtree(tmp_path / "kept")
    missing = at_url(tmp_path / "none.tar")
    assert cache.find(missing, whole) is None
    wait_for(cache)
    with pytest.raises(InputError, match=r"none\.tar: no such shard"):
        cache.find(missing, whole)


@given(st.lists(st.tuples(st.integers(0, 3 << 20), st.integers(1, 5000)), min_size=1, max_size=30), st.integers(0, 9))
def test_every_member_can_be_read_from_the_parts(gaps: list[tuple[int, int]], extra: int) -> None:
    offsets, end = [], 0
    for gap, size in gaps:
        offsets.append(end + gap)
        end += gap + size
    sizes = np.array([size for _, size in gaps])
    parts = plan_parts(np.array(offsets)[::-1], sizes[::-1], end + extra)
    assert all(a.offset + a.num_bytes <= b.offset for a, b in itertools.pairwise(parts))
    for offset, size in zip(offsets, sizes, strict=True):
        assert sum(p.offset <= offset and offset + size <= p.offset + p.num_bytes for p in parts) == 1


def test_unknown_field_of_a_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").write_bytes(b"abcdef")
    reader = PartsReader(tmp_path / "parts", [Part(10, 4), Part(100, 2)])
    assert (reader.view(11, 3), reader.view(100, 2)) == (b"bcd", b"ef")
    for offset, size in ((12, 4), (0, 1), (101, 2)):
        with pytest.raises(InputError, match="truncated"):
            reader.view(offset, size)
