"""Files of a path, folder, glob, brace pattern or URL.

Local links are followed, because the files of a Hugging Face snapshot, of git-annex and of DataLad are links. A path
that exists is taken literally, so that brackets and braces in the name of a folder need no escape.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import Any

from braceexpand import braceexpand

from pairloom.schemas.storage import storage

Infos = dict[str, dict[str, Any]]

_GLOB_MARKS = re.compile(r"[*?\[]")
_GLOB_MARKS_OF_HTTP = re.compile(r"[*\[]")  # "?" begins a query
_MANY_NAMES = 16  # more names of one remote folder are looked up by one listing


def expand(pattern: str) -> list[str]:
    """Files of a path, folder, glob, brace pattern or URL, sorted; for a folder, all files below it."""
    return sorted(expand_with_info(pattern))


def expand_with_info(pattern: str) -> Infos:
    """As `expand`, with the fsspec info of each file (`size`, `ETag`, `mtime`).

    A local link whose target is missing is listed with size 0, so that its reader names it.
    """
    if storage.is_local(pattern):
        return storage.attempt("list", pattern, lambda: _local_files(os.path.expanduser(storage.local_path(pattern))))
    names = expand_braces(pattern)
    if len(names) > _MANY_NAMES and not any(_is_glob(name) for name in names):
        return _named_files(names)
    return {url: info for name in names for url, info in _remote_files(name).items()}


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..012}` and `{a,b}` to all names; a name with unbalanced braces is literal."""
    try:
        return list(braceexpand(pattern, escape=False))
    except ValueError:  # unbalanced
        return [pattern]


def _is_glob(pattern: str) -> bool:
    marks = _GLOB_MARKS_OF_HTTP if pattern.startswith(("http://", "https://")) else _GLOB_MARKS
    return marks.search(pattern) is not None


def _local_files(pattern: str) -> Infos:
    if os.path.lexists(pattern):
        return dict(_below(os.path.abspath(pattern), ()))
    files: Infos = {}
    for name in expand_braces(pattern):
        for path in glob.glob(name, recursive=True, include_hidden=True) if _is_glob(name) else [name]:
            if os.path.isdir(path) and name != path:
                continue  # a glob names files; folders that match it are not searched
            if os.path.lexists(path):
                files.update(_below(os.path.abspath(path), ()))
    return files


def _below(path: str, parents: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file, or the files below a folder. A link to a parent folder is not followed again."""
    try:
        status = os.stat(path)
    except FileNotFoundError:  # a link without its target
        yield path, {"name": path, "size": 0, "type": "file", "mtime": os.lstat(path).st_mtime}
        return
    if not os.path.isdir(path):
        yield path, {"name": path, "size": status.st_size, "type": "file", "mtime": status.st_mtime}
        return
    identity = (status.st_dev, status.st_ino)
    if identity not in parents:
        for name in sorted(os.listdir(path)):
            yield from _below(os.path.join(path, name), (*parents, identity))


def _remote_files(pattern: str) -> Infos:
    fs = storage.filesystem(pattern)

    def find() -> Any:
        if _is_glob(pattern) and not fs.exists(pattern):
            return fs.glob(pattern, detail=True)
        return fs.find(pattern, detail=True) if fs.isdir(pattern) else {pattern: fs.info(pattern)}

    try:
        infos = storage.attempt("list", pattern, find)
    except FileNotFoundError:
        return {}
    return {str(fs.unstrip_protocol(name)): info for name, info in infos.items() if info["type"] == "file"}


def _named_files(names: list[str]) -> Infos:
    """The files with these names, by one listing per folder."""
    there: Infos = {}
    for folder in sorted({name.rpartition("/")[0] for name in names}):
        there.update(_remote_files(f"{folder}/"))
    wanted = set(names)
    return {url: info for url, info in there.items() if url in wanted}
