"""One worker's leases: requests slots for a shard, renews them while rows are left, gives them back."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pairloom.pipelines.fetch.host_limits import HostLimits, LeaseTimes, SlotGrant, SlotRequest
from pairloom.pipelines.fetch.robots import RobotsCache, RobotsText, rules_of
from pairloom.pipelines.fetch.scheduler import Host, HostQueue

FIRST_GRANT_S = 10.0  # longest wait for the first leases of a shard
SCARCE_S = 0.3  # between two requests while a host waits for a slot or for its robots.txt
POLL_S = 0.02
SHARE_ANSWER_S = 1.0  # between two hosts that answered and are shared


class LeaseClient:
    """Leases of the hosts in a queue."""

    def __init__(self, limits: HostLimits, queue: HostQueue, robots: RobotsCache | None, times: LeaseTimes) -> None:
        self._limits = limits
        self._queue = queue
        self._robots = robots  # None: robots.txt is not obeyed
        self._times = times
        self._is_waiting = False  # for grants
        self._due = self._renewed_at = self._requested_at = time.monotonic()
        self._has_scarce = False
        self._was_shared = limits.is_shared
        self._shared_answer_at = -SHARE_ANSWER_S

    def begin(self) -> None:
        """Request leases for all queued hosts, and wait for them."""
        self._request(self._queue.unleased)
        if self._is_waiting:
            self._take(self._limits.poll(FIRST_GRANT_S))

    def renew(self) -> float | None:
        """Renew leases that expire soon, lease new hosts. Returns the seconds until the next call is due."""
        if not self._limits.is_shared and not self._queue.unleased and not self._is_waiting and not self._has_scarce:
            return None
        now = time.monotonic()
        if self._limits.is_shared and now - self._renewed_at > self._times.lease_s:
            self._drop_all()
        if self._is_waiting:
            self._take(self._limits.poll(0))
            return POLL_S
        if self._queue.unleased:
            self._request(self._queue.unleased)
        elif now >= self._due:
            self._request([host for host in self._queue.hosts.values() if self._needs_exchange(host, now)])
        elif not self._limits.is_shared:
            return None
        return POLL_S if self._is_waiting else self._due - now

    def end(self) -> None:
        """Give all leases back."""
        held = {host.origin: SlotRequest(0, 0, host.interval_s, _pause_s(host)) for host in self._queue.hosts.values()}
        if self._limits.is_shared and held:
            self._limits.request(held)

    def share_robots(self, host: Host, text: RobotsText) -> None:
        """Share a robots.txt that this worker fetched."""
        self._limits.share_robots(host.origin, text, host.interval_s)

    def share_answer(self, host: Host) -> None:
        """Tell the other workers now and then that a host answered: they probe it if nothing answers them."""
        now = time.monotonic()
        if now - self._shared_answer_at >= SHARE_ANSWER_S:
            self._shared_answer_at = now
            self._limits.share_answer(host.origin)

    def _needs_exchange(self, host: Host, now: float) -> bool:
        has_work = bool(host.waiting or host.num_in_flight)
        if now < self._renewed_at + self._times.renew_s:
            return _is_scarce(host)
        return has_work or host.is_leased

    def _request(self, hosts: list[Host]) -> None:
        if hosts is self._queue.unleased:
            self._queue.unleased = []
        elif time.monotonic() >= self._renewed_at + self._times.renew_s:
            self._requested_at = time.monotonic()
        self._limits.request({host.origin: self._slot_request(host) for host in hosts})
        self._is_waiting = True
        if not self._limits.is_shared:
            self._take(self._limits.poll(0))
            return
        for host in hosts:
            if not host.is_leased:
                host.slots = 0

    def _slot_request(self, host: Host) -> SlotRequest:
        needs_robots = self._robots is not None and host.rules is None and self._robots.get(host.origin) is None
        needs_robots &= not host.is_fetching_robots or host.is_robots_elsewhere
        wanted = len(host.waiting) + host.num_in_flight
        return SlotRequest(wanted, host.num_in_flight, host.interval_s, _pause_s(host), needs_robots)

    def _take(self, grants: Mapping[str, SlotGrant] | None) -> None:
        """Apply grants; None: they have not arrived."""
        if grants is None:
            return
        self._is_waiting = False
        self._renewed_at = self._requested_at
        for origin, grant in grants.items():
            self._apply(self._queue.hosts[origin], grant)
        now = time.monotonic()
        if self._was_shared and not self._limits.is_shared:
            self._was_shared = False
            self._request(list(self._queue.hosts.values()))
        self._has_scarce = any(_is_scarce(host) for host in self._queue.hosts.values())
        renew_s = self._times.renew_s
        self._due = min(self._renewed_at + renew_s, now + SCARCE_S if self._has_scarce else now + renew_s)

    def _apply(self, host: Host, grant: SlotGrant) -> None:
        host.is_leased = grant.slots > 0
        if grant.wait_s > _pause_s(host) + 0.001:
            self._queue.pause(host, grant.wait_s)
        if self._robots is not None and host.rules is None:
            if grant.robots is not None:
                self._robots.put(host.origin, rules_of(grant.robots))
                self._queue.resume_after_robots(host)
            elif not grant.fetches_robots and not host.is_fetching_robots:
                host.is_fetching_robots = host.is_robots_elsewhere = True
            elif grant.fetches_robots and host.is_robots_elsewhere:
                self._queue.resume_after_robots(host)  # its first job then fetches robots.txt
        self._queue.set_slots(host, grant.slots)

    def _drop_all(self) -> None:
        """The leases expired before they were renewed: other workers may hold the slots."""
        for host in self._queue.hosts.values():
            host.slots, host.is_leased = 0, False
        self._due = 0.0


def _is_scarce(host: Host) -> bool:
    """Whether a host waits for a slot, or for a robots.txt that another worker fetches."""
    return bool(host.waiting) and (host.slots == 0 or host.is_robots_elsewhere)


def _pause_s(host: Host) -> float:
    return max(0.0, host.paused_until - time.monotonic()) if host.paused_until else 0.0
