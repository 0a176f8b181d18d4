"""Memory and CPU time of a process and all below it, by kind of process.

CPU time is counted in two ways, and the larger sum is reported. One sums the last seen CPU time of every process, which
misses the last half second of each. The other sums the CPU time of the living processes and of the children that they
waited for, which misses children that were not waited for.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import psutil

from pairloom.pipelines.images import decoder_child

SAMPLE_S = 0.5


Key = tuple[int, float]  # process id and its start: ids are used again


class TreeWatch(threading.Thread):
    """Samples memory and CPU time of a process and all below it, also of those that end."""

    def __init__(self, root: int, log: Path | None = None) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(root)
        self._log = log
        self._done = threading.Event()
        self._own_s: dict[Key, float] = {}  # last seen value, also of processes that have ended
        self._waited_s = 0.0  # of all living processes and the children that they waited for
        self._sample_cpu()
        self._begun = sum(self._own_s.values()), self._waited_s
        self.peaks: dict[str, float] = {}
        self._watching_s = 0.0  # CPU time of this thread

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _sample_cpu(self) -> None:
        self._waited_s = 0.0
        for process in self._processes():
            try:
                times, key = process.cpu_times(), (process.pid, process.create_time())
            except psutil.Error:
                continue
            self._own_s[key] = times.user + times.system
            self._waited_s += self._own_s[key] + times.children_user + times.children_system

    def _sample(self) -> None:
        self._sample_cpu()
        now: dict[str, float] = {}
        for process in self._processes():
            try:
                name, rss = kind_of(process), process.memory_info().rss / 2**20
            except psutil.Error:
                continue
            now[name] = max(now.get(name, 0.0), rss)
            self.peaks[name] = max(self.peaks.get(name, 0.0), rss)
        if self._log is not None:
            line = {"at_s": round(time.time(), 1), **{kind: round(peak) for kind, peak in now.items()}}
            with self._log.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._done.wait(SAMPLE_S if self._log is None else 5.0):
            self._sample()
            self._watching_s = time.thread_time()

    def stop(self) -> float:
        """Seconds of CPU time that the tree has used, without this thread's."""
        self._done.set()
        self.join()
        self._sample()
        spent_s = max(sum(self._own_s.values()) - self._begun[0], self._waited_s - self._begun[1])
        return spent_s - self._watching_s


def kind_of(process: psutil.Process) -> str:
    """Kind of a process of the tree, for the table."""
    line = " ".join(process.cmdline())
    if decoder_child.__name__ in line:
        return "decoder"
    if line.startswith("ray::"):
        return "worker" if "run_one" in line else "idle worker"
    if "raylet" in line or "gcs_server" in line or "/ray/" in line:
        return "ray"
    return "driver" if process.pid == os.getpid() else "process"
