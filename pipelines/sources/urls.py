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

_USERINFO = re.compile(r"((?:[^:/?#]*:)?[\t\r\n]*/[\t\r\n]*/)[^/?#]*@")
_DOT = re.compile("%2e", re.IGNORECASE)
_UNRESERVED = re.compile("%(2[de]|3[0-9]|4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9ae])", re.IGNORECASE)  # A-Z a-z 0-9 - . _ ~


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


def without_userinfo(url: str) -> str:
    """The URL without user and password, otherwise unchanged: they are never sent and must not be stored."""
    found = _USERINFO.match(url) if "@" in url else None
    return found[1] + url[found.end() :] if found is not None else url


def requested_url(url: str) -> str:
    """A clean URL as it is sent: without dot segments (RFC 3986, section 5.2.4), also percent-encoded ones.

    Uids are made of the URL before this step, so that those of existing data sets stay valid.
    """
    if "/." not in url and "%2e" not in url and "%2E" not in url:
        return url
    parts = urlsplit(url)
    *segments, last = (_DOT.sub(".", segment) for segment in parts.path.split("/")[1:])
    path: list[str] = []
    for segment in (*segments, last):
        if segment == "..":
            del path[-1:]
        elif segment != ".":
            path.append(segment)
    if last in (".", ".."):
        path.append("")
    return urlunsplit((parts.scheme, parts.netloc, "/" + "/".join(path), parts.query, ""))


def robots_url(url: str) -> str:
    """The URL for a comparison with robots.txt: unreserved characters are decoded (RFC 9309, section 2.2.2)."""
    return _UNRESERVED.sub(lambda found: chr(int(found[1], 16)), url) if "%" in url else url


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


def is_ip_address(host: str) -> bool:
    """Whether a host name is a numeric address."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an address leads to this machine itself."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


_NOT_PUBLIC_V4 = [
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/3",
    )
]  # fmt: skip
_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = [  # within 2000::/3
    ipaddress.IPv6Network(block)
    for block in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # with Teredo, ORCHID; 6to4
]
_WITH_IPV4 = [ipaddress.IPv6Network(block) for block in ("::ffff:0:0/96", "64:ff9b::/96")]  # mapped; NAT64


def is_public(address: str) -> bool:
    """Whether an address is on the public internet.

    Not public: loopback, private, link-local, site-local, shared, reserved and multicast addresses, and IPv6 addresses
    that lead through a translator or tunnel to any IPv4 address: only mapped addresses and the well-known NAT64 prefix
    are judged by their IPv4 address. The tables of the `ipaddress` module differ between versions of Python.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if not any(ip in block for block in _WITH_IPV4):
            return ip in _GLOBAL_UNICAST_V6 and not any(ip in block for block in _NOT_PUBLIC_V6)
        ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return not any(ip in block for block in _NOT_PUBLIC_V4)
