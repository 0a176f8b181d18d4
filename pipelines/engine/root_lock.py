"""Who is at work on a root, so that nothing is removed under a running command.

A command puts `<root>/running/<host>-<pid>-<random>.json`, renews it every minute and removes it at its end. One that
was killed leaves its note behind: it no longer counts when its process is gone or the note is old. Writers and the
collector both note themselves first and look for the other after that, so at least one of two sees the other.
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
LOST_S = 600.0  # without a renewal: a command that was killed on another machine

COLLECTOR = "gc"


@contextmanager
def at_work(root: str, command: str) -> Iterator[None]:
    """Note a command for as long as it runs. Raises InputError where it cannot run beside another one.

    Writers run beside writers as they always could; the collector runs alone.
    """
    with work_later(root, command) as begin:
        begin()
        yield


@contextmanager
def work_later(root: str, command: str) -> Iterator[Callable[[], None]]:
    """The same for a command that may find nothing to do: it is noted when it calls what this yields, once or more."""
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.json"
    url = storage.join(root, FOLDER, name)
    stop = threading.Event()
    has_begun = False

    def begin() -> None:
        nonlocal has_begun
        if not has_begun:
            has_begun = True
            _renew(url, command)
            _check_others(root, command, name)
            threading.Thread(target=_keep, args=(url, command, stop), daemon=True).start()

    _check_others(root, command, name)
    try:
        yield begin
    finally:
        stop.set()
        if has_begun:
            storage.remove(url)
            if storage.is_local(root):
                with suppress(OSError):  # others are at work still
                    os.rmdir(storage.local_path(storage.join(root, FOLDER)))


def _check_others(root: str, command: str, name: str) -> None:
    for other in running(root):
        if other["name"] != name and COLLECTOR in (command, other["command"]):
            raise InputError(
                f"{root}: {other['command']} is at work here (process {other['pid']} on {other['host']}); "
                "run this when it is done"
            )


def running(root: str) -> list[dict[str, Any]]:
    """The notes of commands that are at work."""
    notes = []
    for url in storage.list_files(storage.join(root, FOLDER)):
        if not url.endswith(".json") or storage.name_of(url).startswith("."):
            continue
        try:
            note = {"name": storage.name_of(url), **json.loads(storage.read_text(url))}
        except FileNotFoundError:  # it has just ended
            continue
        if _is_alive(note):
            notes.append(note)
    return notes


def _is_alive(note: dict[str, Any]) -> bool:
    if note["host"] == socket.gethostname() and not psutil.pid_exists(note["pid"]):
        return False
    return bool(time.time() - note["time"] < LOST_S)


def _renew(url: str, command: str) -> None:
    note = {"command": command, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
    storage.put_bytes(url, json.dumps(note, sort_keys=True).encode())


def _keep(url: str, command: str, stop: threading.Event) -> None:
    while not stop.wait(RENEW_S):
        _renew(url, command)
