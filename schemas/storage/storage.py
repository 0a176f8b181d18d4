"""Storage on any fsspec URL: local paths and `s3://...` alike.

Outputs are built in a local file and then put whole, because `fs.open(url, "wb")` publishes a truncated
object when its body raises. On local disks a put is a rename, so readers see all of a file or nothing.
Remote calls are retried on transient errors; a full disk or a refused access is a `StorageError`.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pairloom.schemas.errors import InputError, StorageError
from pairloom.schemas.storage import remote as remote_storage

T = TypeVar("T")

COPY_BYTES = 1 << 22  # a piece of what is read and written in pieces
ONE_REQUEST_BYTES = 5 << 30  # what S3 takes in one put


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


def filesystem(url: str) -> Any:
    """The fsspec file system of `url`; endpoint and keys come from the environment or fsspec's configuration."""
    protocol = "file" if is_local(url) else url.split("://", 1)[0]
    try:
        return remote_storage.connect(protocol, os.getpid())
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot use storage {protocol}://: {error}") from error


def _attempt(action: str, url: str, work: Callable[[], T]) -> T:
    """`work()`; remote calls are retried. What goes wrong is a PairloomError, or FileNotFoundError from reads."""
    if not is_local(url):
        return remote_storage.call(action, url, work)
    try:
        return work()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {action} {url}: {error.strerror or error}") from error


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


def modified(url: str) -> float:
    """When a file was written last, in seconds since 1970. Raises FileNotFoundError."""
    return time_of(_attempt("look up", url, lambda: filesystem(url).info(local_path(url))))


def time_of(info: Mapping[str, Any]) -> float:
    """The same from what the storage knows of a file; 0 where it does not know."""
    value = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
    return float(value.timestamp() if isinstance(value, datetime) else value)


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
        names = _attempt("list", url, lambda: fs.ls(url, detail=False))
        return sorted(str(fs.unstrip_protocol(name)) for name in names)
    except (FileNotFoundError, NotADirectoryError):
        return []


def expand(pattern: str) -> list[str]:
    """Files that a path, folder, glob or URL names, sorted (a folder: everything below it)."""
    return sorted(expand_with_info(pattern))


def expand_with_info(pattern: str) -> dict[str, dict[str, Any]]:
    """Files that a path, folder, glob or URL names, with what the storage knows of each (`size`, `ETag`, `mtime`)."""
    fs = filesystem(pattern)
    target = local_path(pattern)

    def find() -> Any:
        if any(mark in target for mark in "*?["):
            return fs.glob(target, detail=True)
        return fs.find(target, detail=True) if fs.isdir(target) else {target: fs.info(target)}

    try:
        infos = _attempt("list", pattern, find)
    except FileNotFoundError:
        return {}
    full_name = fs._strip_protocol if is_local(pattern) else fs.unstrip_protocol
    return {str(full_name(name)): info for name, info in infos.items() if info["type"] == "file"}


def get_file(url: str, path: str) -> None:
    """Copy a file to a local path. Raises FileNotFoundError."""
    _attempt("read", url, lambda: filesystem(url).get_file(local_path(url), path))


@contextmanager
def open_read(url: str) -> Iterator[Any]:
    """A file to read from and seek in. Raises FileNotFoundError, StorageError."""
    if is_local(url):
        with open(local_path(url), "rb") as file:
            yield file
        return
    with remote_storage.explained("read", url), filesystem(url).open(url, "rb") as file:
        yield file


def put_bytes(url: str, data: bytes) -> None:
    """Write a whole small file atomically, replacing what is there."""
    if not is_local(url):
        _attempt("write", url, lambda: filesystem(url).pipe_file(url, data))
        return
    with build_locally(url) as path:
        Path(path).write_bytes(data)


def append_local(path: str, data: bytes) -> None:
    """Append to a local file; readers may see a last line that is cut. For logs, not for data."""

    def append() -> None:
        os.makedirs(os.path.dirname(local_path(path)) or ".", exist_ok=True)
        with open(local_path(path), "ab") as file:
            file.write(data)

    _attempt("write", path, append)


def put_if_absent(url: str, data: bytes) -> bool:
    """Write a whole small file unless it exists; False when something else was there already."""
    if not is_local(url):
        return _put_if_absent_remotely(url, data)
    path = local_path(url)
    scratch = _scratch_path(path)
    try:
        _write(scratch, data, url)
        os.link(scratch, path)  # unlike rename, link refuses an existing name
    except FileExistsError:
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)
    return True


def _put_if_absent_remotely(url: str, data: bytes) -> bool:
    """One request with `If-None-Match: *`: servers check it atomically there, but not all of them on multipart.

    A put whose answer was lost is repeated and finds its own object: equal bytes count as written.
    """

    def put() -> None:
        filesystem(url).pipe_file(url, data, mode="create", chunksize=ONE_REQUEST_BYTES)

    try:
        remote_storage.call("write", url, put)
    except remote_storage.remote_errors() as error:
        if isinstance(error, FileExistsError) or remote_storage.code_of(error) in remote_storage.ALREADY_THERE:
            return read_bytes(url) == data
        raise
    return True


def _scratch_path(path: str) -> str:
    """An attempt-unique name beside `path`, so that the final rename stays within one file system."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")


def _write(path: str, data: bytes, url: str) -> None:
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


@contextmanager
def local_copy(url: str) -> Iterator[str]:
    """The file on a local disk for as long as it is read: itself, or a copy. Raises InputError where there is none."""
    if is_local(url):
        yield local_path(url)
        return
    with tempfile.TemporaryDirectory(prefix="pairloom-") as folder:
        path = os.path.join(folder, name_of(url))
        try:
            get_file(url, path)
        except FileNotFoundError as error:
            raise InputError(f"{url}: no such file") from error
        yield path


def remove(url: str) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    if exists(url):
        _attempt("remove", url, lambda: filesystem(url).rm(local_path(url), recursive=True))
