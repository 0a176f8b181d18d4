"""URLs of tables in normal form, and addresses that must not be contacted."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

MAX_URL_CHARS = 8192
_SAFE = "/%:@!$&'()*+,;=~-._?[]"  # not quoted in a path or query; "%" because most URLs are quoted already
_IN_QUERY = rf"[A-Za-z0-9{re.escape(_SAFE)}]"
_IN_PATH = rf"[A-Za-z0-9{re.escape(_SAFE.replace('?', ''))}]"
_CLEAN = re.compile(rf"https?://[a-z0-9.-]+(?::(?:[1-9][0-9]{{0,3}}|[1-5][0-9]{{4}}))?/{_IN_PATH}*(?:\?{_IN_QUERY}+)?")


def clean_url(text: str | None) -> str | None:
    """The URL in normal form: http(s), ASCII, without fragment. None if it is not valid."""
    if text is None or len(text) > MAX_URL_CHARS:
        return None
    if _CLEAN.fullmatch(text):  # a fast path for most URLs; a recall cleans all URLs of a data set
        return text
    return clean_slowly(text)


def clean_slowly(text: str) -> str | None:
    """As `clean_url`, without its fast path."""
    try:
        parts = urlsplit(text.strip())
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host or parts.port == 0:
            return None
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError:  # invalid port, incomplete IPv6 address, label too long
        return None
    if any(letter <= " " or letter in '<>"\\^`{|}\x7f' for letter in host):
        return None
    netloc = f"[{host}]" if ":" in host else host
    netloc = f"{netloc}:{parts.port}" if parts.port else netloc
    return urlunsplit((parts.scheme, netloc, quote(parts.path, _SAFE) or "/", quote(parts.query, _SAFE), ""))


def redirect_target(url: str, location: str) -> str | None:
    """The clean target of a redirect; None if it is not an http(s) URL."""
    try:
        return clean_url(urljoin(url, location.strip()))
    except ValueError:
        return None


def origin_of(url: str) -> str:
    """`scheme://host[:port]` of a clean URL: the unit of robots.txt and of host limits."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def host_name_of(origin: str) -> str:
    """The name or address in an origin, without its port."""
    host = origin.partition("://")[2]
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def is_public(address: str) -> bool:
    """Whether an address is on the public internet: not loopback, private, link-local, shared, reserved, multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or _translated(ip)
        if embedded is not None:
            return is_public(str(embedded))
    return ip.is_global and not ip.is_multicast


def _translated(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a NAT64 address (64:ff9b::/96)."""
    if ip in ipaddress.IPv6Network("64:ff9b::/96"):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return None
