"""Transfers in flight on the event loop, and idle transfers whose curl handles are reused."""

from __future__ import annotations

import time

import pycurl

from pairloom.pipelines.fetch.event_loop import CurlLoop
from pairloom.pipelines.fetch.robots import MAX_ROBOTS_BYTES
from pairloom.pipelines.fetch.scheduler import Job
from pairloom.pipelines.fetch.transfer import Response, Transfer
from pairloom.schemas.recipes.curate import FetchRecipe


class TransferPool:
    """Sends jobs and returns their responses. Keep one per process: it keeps connections and TLS sessions open."""

    def __init__(self, recipe: FetchRecipe) -> None:
        self._recipe = recipe
        self._loop = CurlLoop(2 * recipe.concurrency, recipe.first_byte_timeout_s)
        self._idle: list[Transfer] = []
        self._active: dict[Transfer, Job] = {}

    @property
    def num_active(self) -> int:
        """Transfers in flight, with probes."""
        return len(self._active)

    def start(self, job: Job) -> None:
        """Send a job. A probe gets a transfer of its own, which opens a new connection."""
        if job.is_probe:
            transfer = Transfer(self._recipe, is_probe=True)
        else:
            transfer = self._idle.pop() if self._idle else Transfer(self._recipe)
        is_text = job.is_robots or job.is_probe
        transfer.start(job.url, job.seconds_left, MAX_ROBOTS_BYTES if is_text else self._recipe.max_bytes, is_text)
        self._active[transfer] = job
        self._loop.add(transfer)

    def silent_jobs(self, seconds: float) -> list[Job]:
        """Jobs in flight without a first byte for so many seconds."""
        since = time.monotonic() - seconds
        return [job for transfer, job in self._active.items() if not transfer.status and transfer.started_at < since]

    def wait(self, timeout_s: float) -> list[tuple[Job, Response]]:
        """Wait up to `timeout_s` seconds. Returns the jobs that ended meanwhile, with their responses."""
        return [self._end(transfer, code, message) for transfer, code, message in self._loop.wait(timeout_s)]

    def _end(self, transfer: Transfer, code: int, message: str) -> tuple[Job, Response]:
        job = self._active.pop(transfer)
        response = transfer.finish(code, message)
        job.seconds_left -= time.monotonic() - transfer.started_at
        if not job.is_probe:
            self._idle.append(transfer)
        return job, response

    def abort_all(self) -> None:
        """Stop all transfers in flight."""
        for transfer in list(self._active):
            self._loop.remove(transfer)
            _, response = self._end(transfer, pycurl.E_ABORTED_BY_CALLBACK, "")
            if response.body is not None:
                response.body.close()
