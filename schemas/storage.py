"""Storage on any fsspec URL: local paths and `s3://...` alike.

Outputs are built in a local file and then put whole, because `fs.open(url, "wb")` publishes a truncated
object when its body raises. On local disks a put is a rename, so readers see all of a file or nothing.
Remote calls are retried on transient errors; a full disk or a refused access is a `StorageError`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from schemas.errors import InputError, StorageError

T = TypeVar("T")

NUM_ATTEMPTS = 4  # for remote storage; waits 0.5, 1, 2 s between
_PERMANENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
COPY_BYTES = 1 << 22


def is_local(url: str) -> bool:
    """True for plain paths and `file://` URLs."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The path of a local URL."""
    return url.removeprefix("file://")


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended, for local paths and URLs alike."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last part of a path or URL."""
    return url.rstrip("/").rsplit("/", 1)[-1]


@lru_cache(maxsize=64)
def _remote(protocol: str, process_id: int) -> Any:
    """One for each process: a connection does not survive a fork, and fsspec refuses to use it there."""
    return fsspec.filesystem(protocol)


def filesystem(url: str) -> Any:
    """The fsspec file system of `url`; settings (endpoint, keys) come from fsspec's own configuration."""
    protocol = "file" if is_local(url) else url.split("://", 1)[0]
    try:
        return _remote(protocol, os.getpid())
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot use storage {protocol}://: {error}") from error


def _attempt(action: str, url: str, call: Callable[[], T]) -> T:
    """Call, retrying transient failures of remote storage; other OS errors become `StorageError`."""
    num_attempts = 1 if is_local(url) else NUM_ATTEMPTS
    for attempt in range(num_attempts):
        try:
            return call()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _PERMANENT_ERRNOS or attempt == num_attempts - 1:
                raise StorageError(f"cannot {action} {url}: {error.strerror or error}") from error
            time.sleep(0.5 * 2**attempt)
    raise AssertionError("unreachable")


def exists(url: str) -> bool:
    """True when a file or folder is there."""
    if is_local(url):
        return os.path.exists(local_path(url))
    return bool(_attempt("look up", url, lambda: filesystem(url).exists(url)))


def size(url: str) -> int:
    """Size of a file in bytes. Raises FileNotFoundError."""
    return int(_attempt("look up", url, lambda: filesystem(url).info(url)["size"]))


def etag(url: str) -> str:
    """What changes when the content of a file changes: the ETag of an object, size and time of a local file."""
    info = _attempt("look up", url, lambda: filesystem(url).info(url))
    return str(info.get("ETag") or info.get("etag") or f"{info['size']}-{info.get('mtime', '')}")


def read_bytes(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    if is_local(url):
        return _attempt("read", url, lambda: Path(local_path(url)).read_bytes())
    return bytes(_attempt("read", url, lambda: filesystem(url).cat_file(url)))


def read_text(url: str) -> str:
    """The whole file as UTF-8 text."""
    return read_bytes(url).decode("utf-8")


def read_input(url: str) -> str:
    """A text file that a person names. Raises InputError where it is missing or not UTF-8."""
    try:
        return read_text(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{url}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: not UTF-8 text: {error}") from error


def read_range(url: str, offset: int, num_bytes: int) -> bytes:
    """`num_bytes` bytes from `offset`. Raises FileNotFoundError."""
    if is_local(url):

        def pread() -> bytes:
            with open(local_path(url), "rb") as file:
                return os.pread(file.fileno(), num_bytes, offset)

        return _attempt("read", url, pread)
    end = offset + num_bytes
    return bytes(_attempt("read", url, lambda: filesystem(url).cat_file(url, start=offset, end=end)))


def list_files(url: str) -> list[str]:
    """URLs of what lies directly in a folder, sorted; empty where there is no such folder."""
    try:
        if is_local(url):
            base = local_path(url)
            return sorted(join(base, entry) for entry in os.listdir(base))
        fs = filesystem(url)
        fs.invalidate_cache(url)
        names = _attempt("list", url, lambda: fs.ls(url, detail=False))
        return sorted(str(fs.unstrip_protocol(name)) for name in names)
    except (FileNotFoundError, NotADirectoryError):
        return []


def expand(pattern: str) -> list[str]:
    """Files that a path, folder, glob or URL names, sorted (a folder: everything below it)."""
    fs = filesystem(pattern)
    target = local_path(pattern)
    if any(mark in target for mark in "*?["):
        found = fs.glob(target)
    elif fs.isdir(target):
        found = fs.find(target)
    else:
        found = [target] if fs.exists(target) else []
    if is_local(pattern):
        return sorted(str(name) for name in found)
    return sorted(str(fs.unstrip_protocol(name)) for name in found)


def put_bytes(url: str, data: bytes) -> None:
    """Write a whole small file atomically, replacing what is there."""
    if not is_local(url):
        _attempt("write", url, lambda: filesystem(url).pipe_file(url, data))
        return
    with build_locally(url) as path:
        Path(path).write_bytes(data)


def put_if_absent(url: str, data: bytes) -> bool:
    """Write a whole small file unless it exists; False when it was there already."""
    if not is_local(url):
        try:
            _attempt("write", url, lambda: filesystem(url).pipe_file(url, data, mode="create"))
        except FileExistsError:
            return False
        return True
    path = local_path(url)
    scratch = _scratch_path(path)
    try:
        _write_durably(scratch, data, url)
        os.link(scratch, path)  # unlike rename, link refuses an existing name
    except FileExistsError:
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)
    return True


def _scratch_path(path: str) -> str:
    """An attempt-unique name beside `path`, so that the final rename stays within one file system."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")


def _write_durably(path: str, data: bytes, url: str) -> None:
    def write() -> None:
        with open(path, "wb") as file:
            file.write(data)

    _attempt("write", url, write)


@contextmanager
def build_locally(url: str) -> Iterator[str]:
    """Yield a local path to write to; it becomes `url` only when the body ends without an error.

    Local targets are renamed into place, remote ones uploaded. Raises StorageError (disk full, no access).
    """
    if is_local(url):
        try:
            scratch = _scratch_path(local_path(url))
        except OSError as error:
            raise StorageError(f"cannot write {url}: {error.strerror}") from error
    else:
        scratch = os.path.join(tempfile.gettempdir(), f"pairloom-{uuid.uuid4().hex}")
    try:
        yield scratch
        if is_local(url):
            os.replace(scratch, local_path(url))
        else:
            _attempt("write", url, lambda: filesystem(url).put_file(scratch, url))
    except OSError as error:
        raise StorageError(f"cannot write {url}: {error.strerror or error}") from error
    finally:
        Path(scratch).unlink(missing_ok=True)


def remove(url: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    fs = filesystem(url)
    target = local_path(url)
    if fs.exists(target):
        _attempt("remove", url, lambda: fs.rm(target, recursive=True))


def sha256_of(url: str) -> str:
    """Hex sha256 of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with filesystem(url).open(local_path(url), "rb") as file:
        while piece := file.read(COPY_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def fingerprint(url: str) -> str:
    """Content fingerprint of a model folder or a file: sha256 over relative names and contents."""
    files = expand(url)
    if not files:
        raise InputError(f"{url}: no such file or folder")
    digest = hashlib.sha256()
    for file in files:
        relative = file.removeprefix(url.rstrip("/"))
        digest.update(f"{relative}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()
