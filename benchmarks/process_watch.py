"""Memory and CPU time of a process and all below it, by kind of process."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import psutil

SAMPLE_S = 0.5


class TreeWatch(threading.Thread):
    """Samples memory and CPU time of a process and all below it, also of those that end."""

    def __init__(self, root: int, log: Path | None = None) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(root)
        self._log = log
        self._done = threading.Event()
        self._begun_s = self._cpu_of_all()
        self._last_s = dict(self._begun_s)
        self.peaks: dict[str, float] = {}

    def _processes(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]

    def _cpu_of_all(self) -> dict[tuple[int, float], float]:
        cpu = {}
        for process in self._processes():
            try:
                times = process.cpu_times()
                cpu[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return cpu

    def _sample(self) -> None:
        self._last_s.update(self._cpu_of_all())
        now: dict[str, float] = {}
        for process in self._processes():
            try:
                name, rss = kind_of(process), process.memory_info().rss / 2**20
            except psutil.Error:
                continue
            now[name] = max(now.get(name, 0.0), rss)
            self.peaks[name] = max(self.peaks.get(name, 0.0), rss)
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(json.dumps({"at_s": round(time.time(), 1), **{k: round(v) for k, v in now.items()}}) + "\n")

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._done.wait(SAMPLE_S if self._log is None else 5.0):
            self._sample()

    def stop(self) -> float:
        """Seconds of CPU time that the tree has used."""
        self._done.set()
        self.join()
        self._sample()
        return sum(self._last_s.values()) - sum(self._begun_s.values())


def kind_of(process: psutil.Process) -> str:
    """What a process of the tree is, for the table."""
    line = " ".join(process.cmdline())
    if "image_child" in line:
        return "decoder"
    if line.startswith("ray::"):
        return "worker" if "run_one" in line else "idle worker"
    if "raylet" in line or "gcs_server" in line or "/ray/" in line:
        return "ray"
    return "driver" if process.pid == os.getpid() else "process"
