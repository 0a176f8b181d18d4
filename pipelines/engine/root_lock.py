"""Locks of a root: shared by commands that write, exclusive for `gc`, which removes files.

A lock is a file `<root>/running/<host>-<pid>-<random>.json`. Its holder renews it every minute and removes it at the
end. The lock of a killed command does not count when its process is gone or the file is old. Writers and gc both put
their own lock first and look for others after that, so that at least one of two sees the other.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from pairloom.schemas.errors import InputError
from pairloom.schemas.storage import storage

FOLDER = "running"
RENEW_S = 60.0
LOST_S = 600.0  # lock lifetime without renewal, for a command that was killed on another machine

EXCLUSIVE_COMMAND = "gc"


@contextmanager
def shared_lock(root: str, command: str) -> Iterator[None]:
    """Hold a lock that other writers may hold too. Raises InputError while gc runs."""
    with lazy_shared_lock(root, command) as acquire:
        acquire()
        yield


@contextmanager
def exclusive_lock(root: str) -> Iterator[None]:
    """Hold the only lock, for gc. Raises InputError while another command runs."""
    with lazy_shared_lock(root, EXCLUSIVE_COMMAND) as acquire:
        acquire()
        yield


@contextmanager
def lazy_shared_lock(root: str, command: str) -> Iterator[Callable[[], None]]:
    """A shared lock for a command that may find nothing to do.

    Yields a function that acquires the lock; further calls do nothing. Raises InputError while gc runs.
    """
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
    url = storage.join(root, FOLDER, name)
    stop = threading.Event()
    is_held = False

    def acquire() -> None:
        nonlocal is_held
        if not is_held:
            is_held = True
            _renew(url, command)
            _check_others(root, command, name)
            threading.Thread(target=_keep_renewing, args=(url, command, stop), daemon=True).start()

    _check_others(root, command, name)
    try:
        yield acquire
    finally:
        stop.set()
        if is_held:
            storage.remove(url)
            if storage.is_local(root):
                with suppress(OSError):  # other commands hold locks
                    os.rmdir(storage.local_path(storage.join(root, FOLDER)))


def _check_others(root: str, command: str, name: str) -> None:
    for other in running(root):
        if other["name"] != name and EXCLUSIVE_COMMAND in (command, other["command"]):
            raise InputError(
                f"{root}: {other['command']} runs here (process {other['pid']} on {other['host']}); "
                f"run {command} when it is done"
            )


def running(root: str) -> list[dict[str, Any]]:
    """The locks of running commands: `name`, `command`, `host`, `pid`, `time`."""
    locks = []
    for url in storage.list_files(storage.join(root, FOLDER)):
        if not url.endswith(".json") or storage.name_of(url).startswith("."):
            continue
        try:
            lock = {"name": storage.name_of(url), **json.loads(storage.read_text(url))}
        except FileNotFoundError:  # the command has just ended
            continue
        if _is_alive(lock):
            locks.append(lock)
    return locks


def _is_alive(lock: dict[str, Any]) -> bool:
    if lock["host"] == socket.gethostname() and not psutil.pid_exists(lock["pid"]):
        return False
    return bool(time.time() - lock["time"] < LOST_S)


def _renew(url: str, command: str) -> None:
    lock = {"command": command, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    storage.put_bytes(url, json.dumps(lock, sort_keys=True).encode())


def _keep_renewing(url: str, command: str, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        _renew(url, command)
