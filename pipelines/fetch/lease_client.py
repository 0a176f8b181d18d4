"""Keeps one worker's leases of hosts: takes them for a shard, renews them while there is work, gives them back."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pairloom.pipelines.fetch.host_limits import LEASE_S, Grant, HostLimits, Wish
from pairloom.pipelines.fetch.robots import RobotsCache, RobotsText, rules_of
from pairloom.pipelines.fetch.scheduler import Host, HostQueue

FIRST_ANSWER_S = 10.0  # the first leases of a shard are waited for
RENEW_S = 3.0  # well below LEASE_S
SCARCE_S = 0.3  # between questions while a host waits for a slot or for its robots.txt
POLL_S = 0.02


class Leases:
    """Leases of the hosts in a queue."""

    def __init__(self, limits: HostLimits, queue: HostQueue, robots: RobotsCache | None) -> None:
        self._limits = limits
        self._queue = queue
        self._robots = robots  # None: robots.txt is not obeyed
        self._is_asking = False
        self._due = self._renewed_at = self._asked_at = time.monotonic()
        self._has_scarce = False
        self._was_shared = limits.is_shared

    def begin(self) -> None:
        """Take leases for all hosts that are queued, and wait for them."""
        self._ask(self._queue.unleased)
        if self._is_asking:
            self._take(self._limits.answer(FIRST_ANSWER_S))

    def tend(self) -> float | None:
        """Renew what runs out, lease new hosts. Returns the seconds until it wants to be called again."""
        if not self._limits.is_shared and not self._queue.unleased and not self._is_asking and not self._has_scarce:
            return None
        now = time.monotonic()
        if self._limits.is_shared and now - self._renewed_at > LEASE_S:
            self._lose_all()
        if self._is_asking:
            self._take(self._limits.answer(0))
            return POLL_S
        if self._queue.unleased:
            self._ask(self._queue.unleased)
        elif now >= self._due:
            self._ask([host for host in self._queue.hosts.values() if self._needs_word(host, now)])
        elif not self._limits.is_shared:
            return None
        return POLL_S if self._is_asking else self._due - now

    def end(self) -> None:
        """Give everything back."""
        held = {host.origin: Wish(0, 0, host.interval_s, _pause(host)) for host in self._queue.hosts.values()}
        if self._limits.is_shared and held:
            self._limits.ask(held)

    def share_robots(self, host: Host, text: RobotsText) -> None:
        """Hand a robots.txt that this worker asked for to the others."""
        self._limits.share_robots(host.origin, text, host.interval_s)

    def _needs_word(self, host: Host, now: float) -> bool:
        has_work = bool(host.waiting or host.num_in_flight)
        if now < self._renewed_at + RENEW_S:  # only what waits for others
            return _is_scarce(host)
        return has_work or host.is_leased

    def _ask(self, hosts: list[Host]) -> None:
        if hosts is self._queue.unleased:
            self._queue.unleased = []
        elif time.monotonic() >= self._renewed_at + RENEW_S:
            self._asked_at = time.monotonic()
        self._limits.ask({host.origin: self._wish(host) for host in hosts})
        self._is_asking = True
        if not self._limits.is_shared:
            self._take(self._limits.answer(0))
            return
        for host in hosts:
            if not host.is_leased:
                host.slots = 0

    def _wish(self, host: Host) -> Wish:
        needs_robots = self._robots is not None and host.rules is None and self._robots.get(host.origin) is None
        needs_robots &= not host.is_asking_rules or host.is_rules_elsewhere
        wanted = len(host.waiting) + host.num_in_flight
        return Wish(wanted, host.num_in_flight, host.interval_s, _pause(host), needs_robots)

    def _take(self, grants: Mapping[str, Grant] | None) -> None:
        """Put an answer to use, where there is one."""
        if grants is None:
            return
        self._is_asking = False
        self._renewed_at = self._asked_at
        for origin, grant in grants.items():
            self._put(self._queue.hosts[origin], grant)
        now = time.monotonic()
        if self._was_shared and not self._limits.is_shared:
            self._was_shared = False
            self._ask(list(self._queue.hosts.values()))
        self._has_scarce = any(_is_scarce(host) for host in self._queue.hosts.values())
        self._due = min(self._renewed_at + RENEW_S, now + SCARCE_S if self._has_scarce else now + RENEW_S)

    def _put(self, host: Host, grant: Grant) -> None:
        host.is_leased = grant.slots > 0
        if grant.wait_s > _pause(host) + 0.001:
            self._queue.pause(host, grant.wait_s)
        if self._robots is not None and host.rules is None:
            if grant.robots is not None:
                self._robots.put(host.origin, rules_of(grant.robots))
                self._queue.rules_are_known(host)
            elif not grant.asks_robots and not host.is_asking_rules:
                host.is_asking_rules = host.is_rules_elsewhere = True
            elif grant.asks_robots and host.is_rules_elsewhere:
                self._queue.rules_are_known(host)  # which lets the first job find that they are not
        self._queue.set_slots(host, grant.slots)

    def _lose_all(self) -> None:
        """The lease has run out before it was renewed: others may have the slots by now."""
        for host in self._queue.hosts.values():
            host.slots, host.is_leased = 0, False
        self._due = 0.0


def _is_scarce(host: Host) -> bool:
    """A host that waits for a slot, or for a robots.txt that another worker asks for."""
    return bool(host.waiting) and (host.slots == 0 or host.is_rules_elsewhere)


def _pause(host: Host) -> float:
    return max(0.0, host.paused_until - time.monotonic()) if host.paused_until else 0.0
