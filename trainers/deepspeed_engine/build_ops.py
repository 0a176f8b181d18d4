"""DeepSpeed's CPU operator, compiled once per machine.

torch guards a build with a lock file. A process that is killed while it compiles leaves the file behind, and every
later process waits for it forever. So pairloom builds in a folder of its own, behind a lock that the system releases
with the process; a lock file that is found there is stale.
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
    """Compile the operator, or load the compiled one. With a GPU nothing happens: no operator is needed."""
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
    """One folder per environment: a shared one would be rebuilt whenever the environment changes."""
    names = [sys.prefix, sys.version, version("torch"), version("deepspeed")]
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    return cache / "pairloom" / "operators" / digest[:12]
