"""DeepSpeed's CPU operator, compiled once a machine and never waited for in vain.

torch guards a build with a lock file. A process that is killed while it compiles leaves the file behind, and every
later one waits for it without end. So pairloom builds in a folder of its own, one process at a time behind a lock that
the system takes back with the process; a lock file that is found there then belongs to nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import sys
from importlib.metadata import version
from pathlib import Path

import torch


def build_ops() -> None:
    """Compile, or load what was compiled before. Nothing happens where there is a GPU: no operator is needed there."""
    if torch.cuda.is_available():
        return
    folder = Path(os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(_own_folder())))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pairloom.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for left_behind in folder.rglob("lock"):
            left_behind.unlink()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for each process
            from deepspeed.comm.torch import build_shm_op

            build_shm_op()


def _own_folder() -> Path:
    """One for each environment: builds for another one's headers would be made again at every change."""
    names = [sys.prefix, sys.version, version("torch"), version("deepspeed")]
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    return cache / "pairloom" / "operators" / digest[:12]
