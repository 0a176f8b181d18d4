"""Fetch many URLs at once: one event loop in one thread over curl's multi interface.

Hundreds of requests are in flight over connections that stay open (HTTP/2 where the server speaks it); connections,
names and TLS sessions are kept for the next shard of the same process. Every URL ends as a body or as a SampleError.

Manners: robots.txt once an origin and before each request, redirects included; X-Robots-Tag before the body;
`per_host` requests at once; 429 and 503 pause the host for as long as it asks. Safety: only http(s); the address that
a name resolved to is checked at every connect; size and time are capped. Proxies of the environment are not used.
"""

from __future__ import annotations

import hashlib
import selectors
import time
from collections.abc import Callable, Generator, Sequence

import pycurl

from pipelines.host_queue import Host, HostQueue, Job
from pipelines.robots import ALLOW_ALL, MAX_ROBOTS_BYTES, RobotsCache, Rules, parse_rules
from pipelines.transfer import DEFAULT_USER_AGENT, Answer, Body, Transfer
from pipelines.web_address import clean_url, redirect_target
from schemas.curate_recipe import FetchRecipe
from schemas.drop_reason import DropReason
from schemas.errors import SampleError

MAX_REDIRECTS = 5
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0
PATIENCE_S = 30.0  # a host that asks to wait longer is left for a later run
NO_ROOM_WAIT_S = 0.01  # until the decoders are asked again whether there is room

Outcome = Body | SampleError


def always() -> bool:
    """The `has_room` of a caller that takes everything at once."""
    return True


class Fetcher:
    """The event loop with its open connections; keep one a process and use it from one thread."""

    def __init__(self, recipe: FetchRecipe) -> None:
        self._recipe = recipe
        self._user_agent = recipe.user_agent or DEFAULT_USER_AGENT
        self._robots = RobotsCache()
        self._idle: list[Transfer] = []
        self._active: dict[pycurl.Curl, tuple[Transfer, Job]] = {}
        self._selector = selectors.DefaultSelector()
        self._curl_due: float | None = None  # when curl wants to be called, time.monotonic()
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_SOCKETFUNCTION, self._watch_socket)
        self._multi.setopt(pycurl.M_TIMERFUNCTION, self._set_timer)
        self._multi.setopt(pycurl.M_PIPELINING, pycurl.PIPE_MULTIPLEX)
        self._multi.setopt(pycurl.M_MAXCONNECTS, 2 * recipe.concurrency)

    def fetch(
        self, requests: Sequence[tuple[int, str | None]], has_room: Callable[[], bool] = always
    ) -> Generator[tuple[int, Outcome], None, None]:
        """Fetch `(row, url)` pairs; yields (row, body or error) as they end, one for each.

        The caller owns and closes the bodies. No request starts while `has_room()` is false; those in flight go on.
        """
        self._queue = HostQueue(self._recipe.per_host)
        self._outcomes: list[tuple[int, Outcome]] = []
        for row, text in requests:
            url = clean_url(text)
            if url is None:
                self._outcomes.append((row, SampleError(DropReason.INVALID_URL, "not an http(s) URL")))
            else:
                self._queue.add(Job(row, url, url, self._queue.host_of(url), self._recipe.timeout_s))
        num_left = len(requests)
        try:
            while num_left:
                ended, self._outcomes = self._outcomes, []
                num_left -= len(ended)
                yield from ended
                if num_left:
                    self._wait(self._start_jobs(has_room))
        finally:
            self._abandon()

    def _start_jobs(self, has_room: Callable[[], bool]) -> bool:
        """Start what may start; False when only room for more was missing."""
        while len(self._active) < self._recipe.concurrency:
            if not has_room():
                return False
            job = self._queue.take()
            if job is None:
                return True
            if self._may_start(job):
                self._start(job)
        return True

    def _may_start(self, job: Job) -> bool:
        """Whether robots.txt lets a job go on; where that is not known yet, the job waits for it."""
        if job.is_robots or not self._recipe.obey_robots_txt:
            return True
        host = job.host
        host.rules = host.rules or self._robots.get(host.origin)
        if host.rules is None:
            host.is_asking_rules = True
            self._queue.put_back(job)
            url = f"{host.origin}/robots.txt"
            self._queue.add(Job(-1, url, url, host, self._recipe.timeout_s, is_robots=True))
            return False
        if isinstance(host.rules, SampleError):
            self._end(job, host.rules)
        elif not host.rules.can_fetch(job.url, self._user_agent):
            self._end(job, SampleError(DropReason.ROBOTS_TXT, f"robots.txt of {host.origin} forbids it"))
        else:
            return True
        self._queue.release(host)
        return False

    def _start(self, job: Job) -> None:
        transfer = self._idle.pop() if self._idle else Transfer(self._recipe)
        max_bytes = MAX_ROBOTS_BYTES if job.is_robots else self._recipe.max_bytes
        transfer.start(job.url, job.seconds_left, max_bytes, job.is_robots)
        self._active[transfer.curl] = (transfer, job)
        self._multi.add_handle(transfer.curl)

    def _watch_socket(self, event: int, descriptor: int, multi: object, data: object) -> None:
        """curl says what to wait for on one of its sockets."""
        known = descriptor in self._selector.get_map()
        if event == pycurl.POLL_REMOVE:
            if known:
                self._selector.unregister(descriptor)
            return
        flags = 0
        flags |= selectors.EVENT_READ if event in (pycurl.POLL_IN, pycurl.POLL_INOUT) else 0
        flags |= selectors.EVENT_WRITE if event in (pycurl.POLL_OUT, pycurl.POLL_INOUT) else 0
        if known:
            self._selector.modify(descriptor, flags)
        else:
            self._selector.register(descriptor, flags)

    def _set_timer(self, milliseconds: int) -> None:
        self._curl_due = None if milliseconds < 0 else time.monotonic() + milliseconds / 1000

    def _wait(self, has_room: bool) -> None:
        """Sleep until a socket, curl or a sleeping job is due, and let curl work."""
        waits = [1.0, self._queue.seconds_to_wake()]
        waits.append(None if self._curl_due is None else max(0.0, self._curl_due - time.monotonic()))
        waits.append(None if has_room else NO_ROOM_WAIT_S)
        timeout_s = 0.0 if self._outcomes else min(wait for wait in waits if wait is not None)
        if self._selector.get_map():
            events = self._selector.select(timeout_s)
        else:  # epoll without sockets would return at once on some systems
            time.sleep(timeout_s)
            events = []
        for key, mask in events:
            flags = pycurl.CSELECT_IN if mask & selectors.EVENT_READ else 0
            flags |= pycurl.CSELECT_OUT if mask & selectors.EVENT_WRITE else 0
            self._multi.socket_action(key.fd, flags)
        if self._curl_due is not None and self._curl_due <= time.monotonic():
            self._curl_due = None
            self._multi.socket_action(pycurl.SOCKET_TIMEOUT, 0)
        self._collect()

    def _collect(self) -> None:
        """Take the exchanges that have ended off the multi handle."""
        num_left = 1
        while num_left:
            num_left, succeeded, failed = self._multi.info_read()
            for curl in succeeded:
                self._finish(curl, 0, "")
            for curl, code, message in failed:
                self._finish(curl, code, message)

    def _finish(self, curl: pycurl.Curl, code: int, message: str) -> None:
        self._multi.remove_handle(curl)
        transfer, job = self._active.pop(curl)
        answer = transfer.finish(code, message)
        job.seconds_left -= time.monotonic() - transfer.started_at
        self._idle.append(transfer)
        host = job.host
        if answer.location is not None:
            self._redirect(job, answer.location)
        elif answer.error is not None and self._will_retry(job, answer):
            pass
        elif job.is_robots:
            self._learn_rules(job.host, answer)
        else:
            self._end(job, answer.body or answer.error or SampleError(DropReason.NOT_AN_IMAGE, "empty body"))
        self._queue.release(host)

    def _redirect(self, job: Job, location: str) -> None:
        """Send a job where its answer points; robots.txt itself may move to another host."""
        target = redirect_target(job.url, location)
        job.num_redirects += 1
        if target is None or job.num_redirects > MAX_REDIRECTS:
            reason = DropReason.INVALID_URL if target is None else DropReason.TOO_MANY_REDIRECTS
            self._end(job, SampleError(reason, f"redirect to {location[:200]}"))
        elif job.seconds_left <= 0:
            self._end(job, SampleError(DropReason.TIMEOUT, "redirects took too long"))
        else:
            job.url = target
            if not job.is_robots:
                job.host = self._queue.host_of(target)
            self._queue.add(job)

    def _will_retry(self, job: Job, answer: Answer) -> bool:
        """Queue another attempt where it may heal; a host that asks for time gets it."""
        if not answer.may_heal:
            return False
        job.num_failures += 1
        delay_s = _backoff_s(job)
        if answer.retry_after_s is not None:
            delay_s = max(delay_s, answer.retry_after_s)
            self._queue.pause(job.host, min(answer.retry_after_s, PATIENCE_S))
            if answer.retry_after_s > PATIENCE_S and answer.error is not None and not job.is_robots:
                self._give_up(job.host, answer.error)
        if job.num_failures > self._recipe.retries or delay_s > PATIENCE_S:
            return False
        job.url, job.num_redirects, job.seconds_left = job.first_url, 0, self._recipe.timeout_s
        if not job.is_robots:
            job.host = self._queue.host_of(job.url)
        self._queue.add(job, delay_s)
        return True

    def _give_up(self, host: Host, error: SampleError) -> None:
        """End all that waits for a host which asks for more time than we have."""
        for job in self._queue.drain(host):
            self._end(job, SampleError(error.drop_reason, f"{error}; the host asks to wait"))

    def _learn_rules(self, host: Host, answer: Answer) -> None:
        """RFC 9309: no robots.txt (4xx) allows all; one that cannot be had (5xx, no connection) forbids for now."""
        rules: Rules = ALLOW_ALL
        if answer.body is not None:
            with answer.body as body:
                rules = parse_rules(body.read())
        elif answer.error is not None and not 200 <= answer.status < 500:
            rules = SampleError(answer.error.drop_reason, f"robots.txt of {host.origin}: {answer.error}")
        elif answer.status == 429:
            rules = SampleError(DropReason.HTTP_RATE_LIMITED, f"robots.txt of {host.origin}: HTTP status 429")
        self._robots.put(host.origin, rules)
        host.rules = rules
        self._queue.rules_are_known(host)

    def _end(self, job: Job, outcome: Outcome) -> None:
        if not job.is_robots:
            self._outcomes.append((job.row, outcome))
        elif isinstance(outcome, SampleError):
            self._learn_rules(job.host, Answer(error=outcome, status=404))  # lost in redirects: there is none

    def _abandon(self) -> None:
        """Stop what is still in flight: the caller went away."""
        for curl, (transfer, _) in list(self._active.items()):
            self._multi.remove_handle(curl)
            transfer.finish(pycurl.E_ABORTED_BY_CALLBACK, "")
            self._idle.append(transfer)
        self._active.clear()
        for _, outcome in self._outcomes:
            if not isinstance(outcome, SampleError):
                outcome.close()


def _backoff_s(job: Job) -> float:
    """Doubling waits with a jitter that is a function of the URL and the attempt."""
    digest = hashlib.blake2b(f"{job.num_failures}\0{job.first_url}".encode(), digest_size=4).digest()
    jitter = int.from_bytes(digest, "big") / 2**32
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (job.num_failures - 1)) * (0.5 + jitter)
