"""Listing of source files: links, braces, brackets and globs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pairloom.schemas.storage.listing import expand, expand_braces, expand_with_info


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files in `blobs`."""
    (tmp_path / "blobs").mkdir()
    for name in ("0", "1"):
        (tmp_path / "blobs" / name).write_bytes(b"x" * (1 + int(name)))
    return tmp_path


def names_of(pattern: Path | str) -> list[str]:
    """Names of the files of a pattern."""
    return [Path(path).name for path in expand(str(pattern))]


def test_links_to_files_and_folders_are_followed(folder: Path) -> None:
    """The files of a Hugging Face snapshot are links; a linked folder is searched."""
    snapshot = folder / "snapshots/revision"
    snapshot.mkdir(parents=True)
    (snapshot / "a.parquet").symlink_to("../../blobs/1")
    (snapshot / "more").symlink_to("../../blobs")
    infos = expand_with_info(str(snapshot))
    assert [os.path.relpath(path, snapshot) for path in infos] == ["a.parquet", "more/0", "more/1"]
    assert [info["size"] for info in infos.values()] == [2, 1, 2]
    assert names_of(snapshot / "*.parquet") == ["a.parquet"]


def test_link_to_a_parent_folder_ends(folder: Path) -> None:
    """A loop of links gives every file once."""
    (folder / "blobs" / "up").symlink_to("..")
    assert names_of(folder / "blobs") == ["0", "1"]


def test_link_without_its_target_is_listed(folder: Path) -> None:
    """git-annex: a file whose content was not fetched is named, not left out."""
    (folder / "blobs" / "2").symlink_to("absent")
    assert names_of(folder / "blobs") == ["0", "1", "2"]
    assert names_of(folder / "blobs/*") == ["0", "1", "2"]


def test_braces_expand_to_all_names(folder: Path) -> None:
    """Names of webdataset, open_clip and img2dataset users."""
    assert names_of(f"{folder}/blobs/{{0..1}}") == ["0", "1"]
    assert names_of(f"{folder}/{{blobs,absent}}/*") == ["0", "1"]
    assert expand_braces("s3://a/{08..10}-{x,y}.tar")[:3] == ["s3://a/08-x.tar", "s3://a/08-y.tar", "s3://a/09-x.tar"]
    assert expand_braces("a{b") == ["a{b"]


@pytest.mark.parametrize("name", ["set [v1]", "set {a,b}", "set?", "a*b"])
def test_existing_path_is_literal(folder: Path, name: str) -> None:
    """Marks of globs and braces in the name of a folder need no escape."""
    (folder / name).mkdir()
    (folder / name / "x.tar").write_bytes(b"x")
    assert names_of(folder / name) == ["x.tar"]
    assert names_of(folder / name / "x.tar") == ["x.tar"]
