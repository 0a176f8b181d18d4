"""Calls of remote storage: connections, retries with exponential backoff, and one-line errors.

Settings come from the usual places: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ... or fsspec's `FSSPEC_S3_...` variables
and files. Ray's processes on this machine inherit them.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import fsspec

from pairloom.schemas.errors import InputError, PairloomError, StorageError

T = TypeVar("T")
logger = logging.getLogger("pairloom")

FIRST_WAIT_S = 0.5
DEFAULT_ATTEMPTS = 6  # waits of about 0.5, 1, 2, 4, 8 s: long enough for a restarting server
PERMANENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSYS}
ALREADY_THERE = {"PreconditionFailed", "412"}
_NO_BUCKET = {"NoSuchBucket"}
_PERMANENT_CODES = _NO_BUCKET | ALREADY_THERE | {
    "AuthorizationHeaderMalformed", "EntityTooLarge", "InvalidBucketName", "InvalidRange", "KeyTooLongError",
}  # fmt: skip
_HINTS = {
    "403": "access denied; check the keys and their permissions",
    "AccessDenied": "access denied; check the permissions of this key",
    "InvalidAccessKeyId": "the storage does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket; create it, or check the name and AWS_ENDPOINT_URL",
}


@lru_cache(maxsize=64)
def connect(protocol: str, process_id: int) -> Any:
    """One file system per process: a connection does not survive a fork, and fsspec refuses to use it there.

    Listings are not cached, because other processes write too. s3fs and `call` retry; botocore's own retries are off,
    because three layers would multiply the attempts.
    """
    options: dict[str, Any] = {} if protocol == "file" else {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **configured}
    return fsspec.filesystem(protocol, **options)


def forget_connections() -> None:
    """Drop all connections, for example after the environment changed."""
    import s3fs

    connect.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@lru_cache(maxsize=1)
def remote_errors() -> tuple[type[Exception], ...]:
    """The exceptions of file systems: OSError, and errors of botocore that s3fs does not translate."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


def code_of(error: BaseException) -> str:
    """The storage's error code, such as `NoSuchBucket`; empty if there is none."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def num_attempts() -> int:
    """Number of attempts per call: PAIRLOOM_STORAGE_ATTEMPTS, or 6."""
    return max(1, int(os.environ.get("PAIRLOOM_STORAGE_ATTEMPTS", DEFAULT_ATTEMPTS)))


def call(action: str, url: str, work: Callable[[], T]) -> T:
    """`work()`, repeated after transient failures.

    Raises PairloomError, FileNotFoundError (reads), and unchanged the errors for an existing target.
    """
    attempts = num_attempts()
    for attempt in range(attempts):
        try:
            return work()
        except remote_errors() as error:
            if _is_answer(action, error):
                raise
            if attempt == attempts - 1 or _is_permanent(error):
                raise explain(action, url, error) from error
            wait_s = FIRST_WAIT_S * 2**attempt * random.uniform(0.75, 1.25)
            if attempt:
                logger.warning("%s; trying again in %.0f s", explain(action, url, error), wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def _is_answer(action: str, error: Exception) -> bool:
    """Whether a failure is an answer to the caller: something does not exist, or exists already.

    FileNotFoundError from a write is no answer: after a lost response, S3 does not find a finished multipart upload.
    """
    if isinstance(error, FileNotFoundError):
        return action != "write"
    return isinstance(error, FileExistsError) or code_of(error) in ALREADY_THERE


def _is_permanent(error: Exception) -> bool:
    from botocore.exceptions import NoCredentialsError, ParamValidationError

    if isinstance(error, PermissionError | NoCredentialsError | ParamValidationError):
        return True
    return getattr(error, "errno", None) in PERMANENT_ERRNOS or code_of(error) in _PERMANENT_CODES


def explain(action: str, url: str, error: Exception) -> PairloomError:
    """A PairloomError with one line: URL, problem, what to do."""
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ParamValidationError

    code = code_of(error)
    if isinstance(error, NoCredentialsError):
        return InputError(f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    if code in _NO_BUCKET:
        return InputError(f"{url}: {_HINTS[code]}")
    if isinstance(error, ParamValidationError):
        return InputError(f"{url}: not a valid bucket and object name; correct the URL")
    text = _HINTS.get(code) or getattr(error, "strerror", None) or _text_of(error)
    if isinstance(error, EndpointConnectionError):
        text += "; check that the storage runs and AWS_ENDPOINT_URL is right"
    return StorageError(f"cannot {action} {url}: {' '.join(text.split())}")


def _text_of(error: Exception) -> str:
    """The text of an error, never empty: S3 servers may omit messages."""
    text = str(error) if str(error) not in ("", "None", f"[Errno {getattr(error, 'errno', '')}] None") else ""
    return text or code_of(error) or type(error).__name__


@contextmanager
def explained(action: str, url: str) -> Iterator[None]:
    """Turn storage errors in the body into a PairloomError, except FileNotFoundError.

    OSErrors of other origin stay too: readers of parquet and gzip raise them for unreadable content.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except remote_errors() as error:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError) and not code_of(error):
            raise
        raise explain(action, url, error) from error
