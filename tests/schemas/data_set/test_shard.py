"""Tar shards: equal content gives equal bytes, other readers open them, tars of other tools are indexed."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
import webdataset

from pairloom.schemas.data_set.json_values import json_bytes
from pairloom.schemas.data_set.shard import ShardReader, ShardWriter, make_key, shard_name
from pairloom.schemas.data_set.tar_members import index_tar
from pairloom.schemas.errors import InputError


def write(path: Path, num_samples: int = 5) -> str:
    with ShardWriter(str(path)) as writer:
        for row in range(num_samples):
            members = {
                "jpg": bytes([row]) * (row * 700),
                "txt": f"naïve {row}".encode(),
                "json": json_bytes({"b": row}),
            }
            places = writer.add(make_key(3, row), members)
            assert places["jpg"].num_bytes == row * 700
    return writer.close()


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    digests = {write(tmp_path / name) for name in ("a.tar", "b.tar")}
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert digests == {hashlib.sha256((tmp_path / "a.tar").read_bytes()).hexdigest()}


def test_webdataset_opens_it(tmp_path: Path) -> None:
    write(tmp_path / "0000003.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "0000003.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [make_key(3, row) for row in range(5)]
    assert [sample["txt"].decode() for sample in samples] == [f"naïve {row}" for row in range(5)]
    assert [len(sample["jpg"]) for sample in samples] == [row * 700 for row in range(5)]


def test_the_index_finds_every_member(tmp_path: Path) -> None:
    write(tmp_path / "a.tar")
    members = index_tar(str(tmp_path / "a.tar"))
    assert [(member.key, member.extension) for member in members[:4]] == [
        (make_key(3, 0), "jpg"), (make_key(3, 0), "txt"), (make_key(3, 0), "json"),
        (make_key(3, 1), "jpg")]  # fmt: skip
    reader = ShardReader(str(tmp_path / "a.tar"))
    assert [reader.read(m.byte_range.offset, m.byte_range.num_bytes) for m in members if m.extension == "jpg"] == [
        bytes([row]) * (row * 700) for row in range(5)
    ]
    with pytest.raises(InputError, match="truncated"):
        reader.read(10**6, 10)
    reader.close()


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_foreign_tars(tmp_path: Path, style: int) -> None:
    path = tmp_path / "foreign.tar"
    names = ["./Photos/IMG 1.JPG", "./Photos/v1.0.jpg", "deep/" * 30 + "x.jpeg", "ünïcode.PNG"]
    with tarfile.open(path, "w", format=style) as tar:
        tar.addfile(tarfile.TarInfo("Photos"))
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()[: len(name)]))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = {(member.key, member.extension): member.byte_range for member in index_tar(str(path)) if member.extension}
    assert set(found) == {("./Photos/IMG 1", "jpg"), ("./Photos/v1", "0.jpg"), ("deep/" * 30 + "x", "jpeg"),
                          ("ünïcode", "png"), ("link", "jpg")}  # fmt: skip
    assert found["link", "jpg"].num_bytes == 0  # a link out of the tar gives a row without an image
    reader = ShardReader(str(path))
    place = found["./Photos/v1", "0.jpg"]
    assert reader.read(place.offset, place.num_bytes) == b"./Photos/v1.0.jpg"
    reader.close()


def test_other_files_are_no_tar(tmp_path: Path) -> None:
    (tmp_path / "page.tar").write_bytes(b"<html>" * 1000)
    with pytest.raises(InputError, match="not a readable tar"):
        index_tar(str(tmp_path / "page.tar"))
    with pytest.raises(InputError, match="no such tar"):
        index_tar(str(tmp_path / "missing.tar"))
    with pytest.raises(InputError, match="no such shard"):
        ShardReader(str(tmp_path / "missing.tar"))


def test_names() -> None:
    assert shard_name(12) == "0000/0000012"
    assert shard_name(1234567) == "1234/1234567"
    assert make_key(12, 34) == "000001200034"
    assert json_bytes({"b": "é", "a": None}) == '{"a":null,"b":"é"}'.encode()
