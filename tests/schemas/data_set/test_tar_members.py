"""Reading the members of tars: damage is an error, never the end of the archive."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from pairloom.schemas.data_set.shard import BLOCK, ShardReader
from pairloom.schemas.data_set.tar_members import index_tar
from pairloom.schemas.errors import InputError

NAMES = [f"{index:03d}.{extension}" for index in range(4) for extension in ("jpg", "txt")]


def tar_bytes(names: list[str]) -> bytes:
    """A tar whose members hold their own names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, errors="surrogateescape") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode("utf-8", "surrogateescape")))
    return file.getvalue()


def names_in(path: Path) -> list[str]:
    """The names that the indexed bodies hold."""
    reader = ShardReader(str(path))
    ranges = [member.byte_range for member in index_tar(str(path))]
    return [reader.read(one.offset, one.num_bytes).decode("utf-8", "replace") for one in ranges]


def test_every_flipped_bit_of_a_header_is_an_error(tmp_path: Path) -> None:
    """A damaged header never ends the archive early. (Bits of the first 512 bytes of the fifth member.)"""
    whole, path = tar_bytes(NAMES), tmp_path / "a.tar"
    for offset in range(4 * 2 * BLOCK, 4 * 2 * BLOCK + BLOCK, 7):
        data = bytearray(whole)
        data[offset] ^= 1
        path.write_bytes(data)
        with pytest.raises(InputError, match="not a readable tar"):
            index_tar(str(path))


@pytest.mark.parametrize("num_bytes", [0, 100, BLOCK, 2 * BLOCK, 5 * BLOCK - 1, 16 * BLOCK])
def test_truncated_tar_is_an_error(tmp_path: Path, num_bytes: int) -> None:
    """Also where the cut is between two members, and behind the last one."""
    (tmp_path / "a.tar").write_bytes(tar_bytes(NAMES)[:num_bytes])
    with pytest.raises(InputError, match=r"a\.tar: not a readable tar"):
        index_tar(str(tmp_path / "a.tar"))


def test_concatenated_tars_have_all_members(tmp_path: Path) -> None:
    """`cat a.tar b.tar`, as `tar --ignore-zeros` reads it."""
    (tmp_path / "a.tar").write_bytes(tar_bytes(NAMES[:4]) + tar_bytes([]) + tar_bytes(NAMES[4:]))
    assert names_in(tmp_path / "a.tar") == NAMES


@pytest.mark.parametrize("rest", [b"x", b"x" * BLOCK, b"\0" * 3 * BLOCK + b"x" * BLOCK])
def test_other_bytes_after_the_last_member_are_an_error(tmp_path: Path, rest: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(NAMES) + rest)
    with pytest.raises(InputError, match=r"a\.tar: not a readable tar"):
        index_tar(str(tmp_path / "a.tar"))


def test_archive_without_members_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes([]))
    assert index_tar(str(tmp_path / "a.tar")) == []


def test_compressed_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(tar_bytes(NAMES)))
    with pytest.raises(InputError, match="compressed with gzip; decompress it"):
        index_tar(str(tmp_path / "a.tar"))


def test_links_have_the_bytes_of_their_target(tmp_path: Path) -> None:
    """`tar` stores the second name of a file as a hard link."""
    for name in ("a.jpg", "a.txt"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b.jpg").hardlink_to(tmp_path / "a.jpg")
    (tmp_path / "c.jpg").symlink_to("a.jpg")
    (tmp_path / "d.jpg").symlink_to("absent.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("a.jpg", "a.txt", "b.jpg", "c.jpg", "d.jpg"):
            tar.add(tmp_path / name, name)
    assert names_in(tmp_path / "x.tar") == ["a.jpg", "a.txt", "a.jpg", "a.jpg", ""]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar_bytes(["caf\udce9.jpg", "caf\udcea.jpg", "é.jpg"]))
    assert [member.key for member in index_tar(str(tmp_path / "a.tar"))] == ["caf\\xe9", "caf\\xea", "é"]
