"""Rules for robots: robots.txt (RFC 9309) and the X-Robots-Tag header."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TypeAlias

from cachetools import TLRUCache
from protego import Protego

from pairloom.schemas.errors import SampleError

MAX_ROBOTS_BYTES = 512 * 1024  # RFC 9309, section 2.5: at least 500 KiB must be parsed
MAX_ORIGINS = 100_000
CACHE_S = 24 * 3600.0  # RFC 9309, section 2.4: at most 24 hours
FAILURE_CACHE_S = 60.0  # until a robots.txt that could not be fetched is tried again

Rules: TypeAlias = Protego | SampleError
"""The rules of one origin, or why robots.txt could not be fetched: then nothing of it may be fetched for now."""

RobotsText: TypeAlias = bytes | SampleError
"""The body of a robots.txt, or why it could not be fetched; workers share it in this form."""

_VALUED_DIRECTIVES = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")


def parse_rules(body: bytes) -> Protego:
    """Rules of a robots.txt; lines that are not valid are skipped (RFC 9309, section 2.2)."""
    return Protego.parse(body[:MAX_ROBOTS_BYTES].decode("utf-8-sig", "replace"))


def rules_of(text: RobotsText) -> Rules:
    """Rules from a body; an error stays an error."""
    return text if isinstance(text, SampleError) else parse_rules(text) if text else ALLOW_ALL


def request_interval_s(rules: Rules, user_agent: str) -> float:
    """Seconds between two requests: the larger of Crawl-delay and Request-rate."""
    if rules is ALLOW_ALL or isinstance(rules, SampleError):
        return 0.0
    rate = rules.request_rate(user_agent)
    of_rate = rate.seconds / rate.requests if rate is not None and rate.requests else 0.0
    return max(rules.crawl_delay(user_agent) or 0.0, of_rate)


ALLOW_ALL: Protego = parse_rules(b"")


def robots_lifetime_s(value: Rules | RobotsText) -> float:
    """Seconds for which a robots.txt is kept: a day, or a minute if it could not be fetched."""
    return FAILURE_CACHE_S if isinstance(value, SampleError) else CACHE_S


def _expires_at(origin: str, rules: Rules, now: float) -> float:
    return now + robots_lifetime_s(rules)


class RobotsCache:
    """Rules by origin; the least recently used are removed first."""

    def __init__(self) -> None:
        self._rules: TLRUCache[str, Rules] = TLRUCache(MAX_ORIGINS, _expires_at, time.monotonic)

    def get(self, origin: str) -> Rules | None:
        """Rules that have not expired, or None."""
        return self._rules.get(origin)

    def put(self, origin: str, rules: Rules) -> None:
        """Keep rules for a day, failures for a minute."""
        self._rules[origin] = rules

    def forget_failures(self) -> None:
        """Remove the entries of robots.txt files that could not be fetched."""
        for origin in list(self._rules):
            if isinstance(self._rules.get(origin), SampleError):
                self._rules.pop(origin, None)


def refused_directive(header: str, user_agent: str, disallowed: Collection[str]) -> str | None:
    """The first directive of an X-Robots-Tag value that is in `disallowed`, or None.

    `noai, noindex` applies to all, `somebot: noai` only where `somebot` is part of `user_agent`.
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
