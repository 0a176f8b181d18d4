"""URLs as they come in tables: cleaned for the wire, and addresses that must not be asked."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

MAX_URL_CHARS = 8192
_SAFE = "/%:@!$&'()*+,;=~-._?[]"  # left alone in a path or query; "%" because most URLs are quoted already
_IN_QUERY = rf"[A-Za-z0-9{re.escape(_SAFE)}]"
_IN_PATH = rf"[A-Za-z0-9{re.escape(_SAFE.replace('?', ''))}]"
_CLEAN = re.compile(rf"https?://[a-z0-9.-]+(?::(?:[1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}))?/{_IN_PATH}*(?:\?{_IN_QUERY}+)?")


def clean_url(text: str | None) -> str | None:
    """The URL as it goes over the wire: http(s), ASCII, without fragment. None where it is not one."""
    if text is None or len(text) > MAX_URL_CHARS:
        return None
    if _CLEAN.fullmatch(text):  # most are: many times as fast, and a recall looks at every URL there is
        return text
    return clean_slowly(text)


def clean_slowly(text: str) -> str | None:
    """As `clean_url`, part by part."""
    try:
        parts = urlsplit(text.strip())
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host or parts.port == 0:
            return None
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError:  # a port that is no number, half an IPv6 address, a label that is too long
        return None
    if any(letter <= " " or letter in '<>"\\^`{|}\x7f' for letter in host):
        return None
    netloc = f"[{host}]" if ":" in host else host
    netloc = f"{netloc}:{parts.port}" if parts.port else netloc
    return urlunsplit((parts.scheme, netloc, quote(parts.path, _SAFE) or "/", quote(parts.query, _SAFE), ""))


def redirect_target(url: str, location: str) -> str | None:
    """Where a redirect leads, cleaned; None where that is no http(s) URL."""
    try:
        return clean_url(urljoin(url, location.strip()))
    except ValueError:
        return None


def origin_of(url: str) -> str:
    """`scheme://host[:port]` of a clean URL: what robots.txt and limits hold for."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def host_name_of(origin: str) -> str:
    """The name or address in an origin, without its port."""
    place = origin.partition("://")[2]
    return place.partition("]")[0] + "]" if place.startswith("[") else place.partition(":")[0]


def is_public(address: str) -> bool:
    """True for addresses on the open internet; not loopback, private, link-local, shared, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or _translated(ip)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a NAT64 one (64:ff9b::/96)."""
    if ip in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None
