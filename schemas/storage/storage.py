"""Storage on any fsspec URL: local paths, `s3://...` and others.

Outputs are built in a local file and put as a whole, because `fs.open(url, "wb")` publishes a truncated object when its
body raises. On local disks a put is a rename, so that readers see a whole file or none. Remote calls are retried after
transient errors; a full disk or a denied access is a `StorageError`.
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

COPY_BYTES = 1 << 22  # piece size of copies
ONE_REQUEST_BYTES = 5 << 30  # limit of S3 for one put


def is_local(url: str) -> bool:
    """Whether a URL is a plain path or `file://`."""
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The path of a local URL."""
    return url.removeprefix("file://")


def join(url: str, *parts: str) -> str:
    """`url` with path parts appended, for local paths and URLs."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts)])


def name_of(url: str) -> str:
    """The last component of a path or URL."""
    return url.rstrip("/").rsplit("/", 1)[-1]


def filesystem(url: str) -> Any:
    """The fsspec file system of `url`; endpoint and keys come from the environment or fsspec's configuration."""
    protocol = "file" if is_local(url) else url.split("://", 1)[0]
    try:
        return remote_storage.connect(protocol, os.getpid())
    except (ImportError, ValueError) as error:
        raise InputError(f"cannot use storage {protocol}://: {error}; install its fsspec package") from error


def attempt(action: str, url: str, work: Callable[[], T]) -> T:
    """`work()`; remote calls are retried. Raises PairloomError, or FileNotFoundError."""
    if not is_local(url):
        return remote_storage.call(action, url, work)
    try:
        return work()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"cannot {action} {url}: {error.strerror or error}") from error


def exists(url: str) -> bool:
    """Whether a file or folder exists."""
    if is_local(url):
        return os.path.exists(local_path(url))
    return bool(attempt("look up", url, lambda: filesystem(url).exists(url)))


def size(url: str) -> int:
    """Size of a file in bytes. Raises FileNotFoundError."""
    return int(attempt("look up", url, lambda: filesystem(url).info(url)["size"]))


def etag(url: str) -> str:
    """A value that changes with the content of a file: ETag of an object, size and time of a local file."""
    info = attempt("look up", url, lambda: filesystem(url).info(url))
    return str(info.get("ETag") or info.get("etag") or f"{info['size']}-{info.get('mtime', '')}")


def modified(url: str) -> float:
    """Time of the last write of a file, seconds since 1970. Raises FileNotFoundError."""
    return time_of(attempt("look up", url, lambda: filesystem(url).info(local_path(url))))


def time_of(info: Mapping[str, Any]) -> float:
    """Time of the last write from an fsspec info, seconds since 1970; 0 if unknown."""
    value = info.get("LastModified") or info.get("mtime") or info.get("created") or 0.0
    return float(value.timestamp() if isinstance(value, datetime) else value)


def read_bytes(url: str) -> bytes:
    """The whole file. Raises FileNotFoundError."""
    if is_local(url):
        return attempt("read", url, lambda: Path(local_path(url)).read_bytes())
    return bytes(attempt("read", url, lambda: filesystem(url).cat_file(url)))


def read_text(url: str) -> str:
    """The whole file as UTF-8 text."""
    return read_bytes(url).decode("utf-8")


def read_input(url: str) -> str:
    """The text of a user's file. Raises InputError if it is missing or not UTF-8."""
    try:
        return read_text(url)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{url}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{url}: not UTF-8 text: {error}; convert it") from error


def read_range(url: str, offset: int, num_bytes: int) -> bytes:
    """`num_bytes` bytes from `offset`. Raises FileNotFoundError."""
    if is_local(url):

        def pread() -> bytes:
            with open(local_path(url), "rb") as file:
                return os.pread(file.fileno(), num_bytes, offset)

        return attempt("read", url, pread)
    end = offset + num_bytes
    return bytes(attempt("read", url, lambda: filesystem(url).cat_file(url, start=offset, end=end)))


def list_files(url: str) -> list[str]:
    """URLs of the entries of a folder, sorted; empty if the folder does not exist."""
    try:
        if is_local(url):
            base = local_path(url)
            return sorted(join(base, entry) for entry in os.listdir(base))
        fs = filesystem(url)
        names = attempt("list", url, lambda: fs.ls(url, detail=False))
        return sorted(str(fs.unstrip_protocol(name)) for name in names)
    except (FileNotFoundError, NotADirectoryError):
        return []


def get_file(url: str, path: str) -> None:
    """Copy a file to a local path. Raises FileNotFoundError."""
    attempt("read", url, lambda: filesystem(url).get_file(local_path(url), path))


@contextmanager
def open_read(url: str) -> Iterator[Any]:
    """A readable, seekable file. Raises FileNotFoundError, StorageError."""
    if is_local(url):
        with open(local_path(url), "rb") as file:
            yield file
        return
    with remote_storage.explained("read", url), filesystem(url).open(url, "rb") as file:
        yield file


def put_bytes(url: str, data: bytes) -> None:
    """Write a small file atomically; an existing file is replaced."""
    if not is_local(url):
        attempt("write", url, lambda: filesystem(url).pipe_file(url, data))
        return
    with build_locally(url) as path:
        Path(path).write_bytes(data)


def append_local(path: str, data: bytes) -> None:
    """Append to a local file; readers may see an incomplete last line. For logs, not for data."""

    def append() -> None:
        os.makedirs(os.path.dirname(local_path(path)) or ".", exist_ok=True)
        with open(local_path(path), "ab") as file:
            file.write(data)

    attempt("write", path, append)


def put_if_absent(url: str, data: bytes) -> bool:
    """Write a small file unless it exists. Returns False if other content exists."""
    if not is_local(url):
        return _put_if_absent_remotely(url, data)
    path = local_path(url)
    scratch = _scratch_path(path)
    try:
        _write(scratch, data, url)
        os.link(scratch, path)  # unlike rename, link fails for an existing name
    except FileExistsError:
        return False
    finally:
        Path(scratch).unlink(missing_ok=True)
    return True


def _put_if_absent_remotely(url: str, data: bytes) -> bool:
    """One request with `If-None-Match: *`: not all servers check it for multipart uploads.

    A put whose response was lost is repeated and finds its own object, so equal bytes count as written.
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
    """A unique name beside `path`, so that the final rename stays within one file system."""
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:12]}.tmp")


def _write(path: str, data: bytes, url: str) -> None:
    def write() -> None:
        with open(path, "wb") as file:
            file.write(data)

    attempt("write", url, write)


@contextmanager
def build_locally(url: str) -> Iterator[str]:
    """Yield a local path to write; it becomes `url` if the body ends without an error.

    Local files are renamed, remote ones uploaded. Raises StorageError (disk full, no access).
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
            attempt("write", url, lambda: filesystem(url).put_file(scratch, url))
    except OSError as error:
        raise StorageError(f"cannot write {url}: {error.strerror or error}") from error
    finally:
        Path(scratch).unlink(missing_ok=True)


@contextmanager
def local_copy(url: str) -> Iterator[str]:
    """A local path of a file: itself, or a temporary copy. Raises InputError if it does not exist."""
    if is_local(url):
        yield local_path(url)
        return
    with tempfile.TemporaryDirectory(prefix="pairloom-") as folder:
        path = os.path.join(folder, name_of(url))
        try:
            get_file(url, path)
        except FileNotFoundError as error:
            raise InputError(f"{url}: no such file; check the path") from error
        yield path


def remove(url: str) -> None:
    """Remove a file, or a folder with its content; does nothing if it does not exist."""
    if exists(url):
        attempt("remove", url, lambda: filesystem(url).rm(local_path(url), recursive=True))
