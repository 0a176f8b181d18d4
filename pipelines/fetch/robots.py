"""What sites ask of robots: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection
from typing import TypeAlias

from protego import Protego

from pairloom.schemas.errors import SampleError

MAX_ROBOTS_BYTES = 512 * 1024  # RFC 9309 asks for at least 500 KiB; what lies beyond is not read
CACHE_ENTRIES = 100_000  # origins
CACHE_S = 24 * 3600.0  # RFC 9309: not longer than a day
FAILURE_CACHE_S = 60.0  # a site that could not be asked is asked again soon

Rules: TypeAlias = Protego | SampleError
"""The rules of one origin, or why they could not be had: then nothing of it may be fetched for now."""

RobotsText: TypeAlias = bytes | SampleError
"""What rules are made of, small enough to be shared between workers."""

_VALUED_DIRECTIVES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def parse_rules(body: bytes) -> Protego:
    """Rules of a robots.txt; whatever is not understood is skipped, as the RFC asks."""
    return Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace"))


def rules_of(text: RobotsText) -> Rules:
    """Rules from what was received, or the reason why nothing was."""
    return text if isinstance(text, SampleError) else parse_rules(text) if text else ALLOW_ALL


def seconds_between(rules: Rules, user_agent: str) -> float:
    """How far apart a site wants our requests: Crawl-delay or Request-rate, the slower of the two."""
    if rules is ALLOW_ALL or isinstance(rules, SampleError):
        return 0.0
    rate = rules.request_rate(user_agent)
    of_rate = rate.seconds / rate.requests if rate is not None and rate.requests else 0.0
    return max(rules.crawl_delay(user_agent) or 0.0, of_rate)


ALLOW_ALL: Protego = parse_rules(b"")


class RobotsCache:
    """Rules by origin, the least recently used leave first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[float, Rules]] = OrderedDict()

    def get(self, origin: str) -> Rules | None:
        """Rules that are still fresh, or None."""
        entry = self._entries.get(origin)
        if entry is None or entry[0] < time.monotonic():
            return None
        self._entries.move_to_end(origin)
        return entry[1]

    def put(self, origin: str, rules: Rules) -> None:
        """Remember rules for a day, failures for a minute."""
        lifetime_s = FAILURE_CACHE_S if isinstance(rules, SampleError) else CACHE_S
        self._entries[origin] = (time.monotonic() + lifetime_s, rules)
        self._entries.move_to_end(origin)
        if len(self._entries) > CACHE_ENTRIES:
            self._entries.popitem(last=False)

    def forget_failures(self) -> None:
        """Ask again where robots.txt could not be had: the network was down."""
        for origin in [origin for origin, (_, rules) in self._entries.items() if isinstance(rules, SampleError)]:
            del self._entries[origin]


def refused_directive(header: str, user_agent: str, disallowed: Collection[str]) -> str | None:
    """The first directive of an X-Robots-Tag value that forbids use, or None.

    `noai, noindex` holds for everyone, `somebot: noai` only where `somebot` is part of our user agent.
    """
    agent, separator, rest = header.partition(":")
    name = agent.strip().lower()
    if separator and "," not in name and name not in _VALUED_DIRECTIVES:
        if name not in user_agent.lower():
            return None
        header = rest
    for directive in header.split(","):
        if directive.strip().lower() in disallowed:
            return directive.strip().lower()
    return None
