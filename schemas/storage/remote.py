"""Calls on remote storage: connections, retries with back-off, and errors that say what to do.

Settings come from where every other tool has them: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ... or fsspec's own
`FSSPEC_S3_...` variables and files. Processes that Ray starts on this machine inherit them.
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
DEFAULT_ATTEMPTS = 6  # waits 0.5, 1, 2, 4, 8 s between, each more or less: a server that restarts is waited for
PERMANENT_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSYS}
ALREADY_THERE = {"PreconditionFailed", "412"}
_NO_BUCKET = {"NoSuchBucket"}
_PERMANENT_CODES = _NO_BUCKET | ALREADY_THERE | {
    "AuthorizationHeaderMalformed", "EntityTooLarge", "InvalidBucketName", "InvalidRange", "KeyTooLongError",
}  # fmt: skip
_HINTS = {
    "403": "access denied; check the keys and what they may do",
    "AccessDenied": "access denied; check what this key may do",
    "InvalidAccessKeyId": "the storage does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong; check AWS_SECRET_ACCESS_KEY",
    "NoSuchBucket": "there is no such bucket; create it, or check the name and AWS_ENDPOINT_URL",
}


@lru_cache(maxsize=64)
def connect(protocol: str, process_id: int) -> Any:
    """A file system for each process: a connection does not survive a fork, and fsspec refuses to use it there.

    Listings are not cached, for other processes write meanwhile. Of the three layers that would each retry, s3fs and
    `call` do: with botocore's as well, a dead server is asked a hundred times before anybody hears of it.
    """
    options: dict[str, Any] = {} if protocol == "file" else {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **configured}
    return fsspec.filesystem(protocol, **options)


def forget_connections() -> None:
    """Connect anew, for instance after the environment has changed."""
    import s3fs

    connect.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@lru_cache(maxsize=1)
def remote_errors() -> tuple[type[Exception], ...]:
    """What file systems raise: OSError, and the errors of S3's library that s3fs passes on as they are."""
    from botocore.exceptions import BotoCoreError, ClientError
    from s3fs.core import S3_RETRYABLE_ERRORS

    return (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS)


def code_of(error: BaseException) -> str:
    """The storage's own code of an error, such as `NoSuchBucket`; empty where it gave none."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def num_attempts() -> int:
    """How often a call is tried in all: PAIRLOOM_STORAGE_ATTEMPTS, or 6."""
    return max(1, int(os.environ.get("PAIRLOOM_STORAGE_ATTEMPTS", DEFAULT_ATTEMPTS)))


def call(action: str, url: str, work: Callable[[], T]) -> T:
    """`work()`, again after failures that may pass.

    Raises PairloomError, FileNotFoundError (reads), and as it is what says that something is there already.
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
    """Whether a failure is what the caller wanted to know: something is not there, or is there already.

    A write that finds nothing is none: after a lost answer S3 does not know a finished multipart upload any more.
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
    """One line about what failed and what to do."""
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ParamValidationError

    code = code_of(error)
    if isinstance(error, NoCredentialsError):
        return InputError(f"{url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    if code in _NO_BUCKET:
        return InputError(f"{url}: {_HINTS[code]}")
    if isinstance(error, ParamValidationError):
        return InputError(f"{url}: not a valid bucket and name of an object")
    text = _HINTS.get(code) or getattr(error, "strerror", None) or _text_of(error)
    if isinstance(error, EndpointConnectionError):
        text += "; is the storage running, and AWS_ENDPOINT_URL right?"
    return StorageError(f"cannot {action} {url}: {' '.join(text.split())}")


def _text_of(error: Exception) -> str:
    """What an error says, and never nothing: S3 servers leave out messages as they please."""
    text = str(error) if str(error) not in ("", "None", f"[Errno {getattr(error, 'errno', '')}] None") else ""
    return text or code_of(error) or type(error).__name__


@contextmanager
def explained(action: str, url: str) -> Iterator[None]:
    """Turn what the storage raises in the body into a PairloomError; FileNotFoundError stays.

    So do OSErrors that it did not raise: readers of parquet and gzip have them for content that they cannot read.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except remote_errors() as error:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError) and not code_of(error):
            raise
        raise explain(action, url, error) from error
