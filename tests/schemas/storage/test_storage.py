"""Storage and manifests: readers see whole files only, and a manifest means a complete data set."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from pairloom.schemas.data_set.manifest import (
    Manifest,
    ShardEntry,
    is_complete,
    load_manifest,
    resolve,
    save_manifest,
    set_latest,
)
from pairloom.schemas.data_set.tables import CURATED, check_joined, fold_of, make_uid, read_table, write_table
from pairloom.schemas.errors import InputError, StorageError
from pairloom.schemas.storage import storage


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/root"


def test_a_body_that_raises_leaves_nothing(root: str) -> None:
    target = storage.join(root, "a/file.bin")
    with pytest.raises(ZeroDivisionError), storage.build_locally(target) as path:
        Path(path).write_bytes(b"half")
        raise ZeroDivisionError
    assert not storage.exists(target)
    with storage.build_locally(target) as path:
        Path(path).write_bytes(b"whole")
    assert storage.read_bytes(target) == b"whole"
    assert storage.read_range(target, 1, 3) == b"hol"
    if storage.is_local(root):
        assert [Path(file).name for file in storage.list_files(storage.join(root, "a"))] == ["file.bin"]


def test_put_if_absent_lets_the_first_win(tmp_path: Path) -> None:
    target = str(tmp_path / "marker")
    assert storage.put_if_absent(target, b"first")
    assert not storage.put_if_absent(target, b"second")
    assert storage.read_bytes(target) == b"first"


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(StorageError, match="No space left on device"), storage.build_locally(str(tmp_path / "y")):
        Path("/dev/full").write_bytes(b"more than fits" * 10_000)


def test_manifest_round_trip_and_latest(root: str) -> None:
    folder = storage.join(root, "curated/train/0a1b2c3d")
    manifest = Manifest(
        name="train",
        step="reshard",
        recipe_hash="r",
        parents=["p"],
        shards=[ShardEntry("0000/0000000", 3, 2, 10240, "s"), ShardEntry("0000/0000001", 1, 1, 9, None, "s3://b/x.tar")],
        drop_counts={"timeout": 1},
    )  # fmt: skip
    assert not is_complete(folder)
    with pytest.raises(InputError, match="no complete data set"):
        resolve(storage.join(root, "curated/train"))
    save_manifest(folder, manifest)
    set_latest(folder)
    assert resolve(storage.join(root, "curated/train")) == folder
    loaded = load_manifest(folder)
    assert loaded.hash() == manifest.hash()
    assert (loaded.num_rows, loaded.num_samples) == (4, 3)


def test_a_changed_manifest_is_noticed(tmp_path: Path) -> None:
    folder = str(tmp_path / "d")
    save_manifest(folder, Manifest("a", "raw", "r", [], [ShardEntry("0000/0000000", 1, 1, 5, "s")]))
    changed = Path(folder, "manifest.json").read_text().replace('"recipe_hash": "r"', '"recipe_hash": "q"')
    Path(folder, "manifest.json").write_text(changed)
    with pytest.raises(InputError, match="does not match"):
        load_manifest(folder)


def test_tables_of_other_rows_do_not_join(tmp_path: Path) -> None:
    def table(uids: list[str]) -> pa.Table:
        row = {"key": "k", "caption": "c", "weight": 1.0, "raw_shard": "0", "raw_row": 0, "offset": 0, "num_bytes": 1}
        return pa.Table.from_pylist([{**row, "uid": uid} for uid in uids], schema=CURATED)

    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    write_table(paths[0], table(["1", "2"]))
    write_table(paths[1], table(["2", "1"]))
    check_joined(read_table(paths[0]), read_table(paths[0]), "here")
    with pytest.raises(InputError, match="different rows"):
        check_joined(read_table(paths[0]), read_table(paths[1]), "here")


def test_uid_is_the_documented_hash() -> None:
    assert make_uid("http://a/b.jpg", "a dog") == GOLDEN_UID
    assert make_uid(None, "a dog", "00ff") == make_uid("00ff", "a dog")


def test_folds_are_balanced_and_stable() -> None:
    folds = [fold_of(f"{number:032x}", 2) for number in range(2000)]
    assert 900 < sum(folds) < 1100
    assert folds[:8] == GOLDEN_FOLDS


GOLDEN_UID = "b54e40901ca8643e70d05fd9f567c82e"
GOLDEN_FOLDS = [1, 0, 1, 1, 0, 1, 1, 0]
