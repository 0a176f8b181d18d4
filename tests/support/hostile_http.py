"""Hostile HTTP: connections, headers, lengths, encodings, redirects, statuses and robots.txt."""

from __future__ import annotations

import gzip
import socket
import zlib

from tests.support.hostile_server import GOOD_HOST, STEP_S, Hostile, endless, head, raw, redirect, reset, stall, whole


def redirect_deeper(connection: socket.socket, request: str) -> None:
    """Endless redirects, each to a new URL."""
    connection.sendall(head("302 Found", location=f"/x{request.split()[1]}", content_length=0))


def gzip_bomb(num_layers: int = 1) -> bytes:
    """256 MiB of zeros, compressed once and twice."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    for _ in range(num_layers - 1):
        data = gzip.compress(data)
    return data


def http_cases(image: bytes) -> list[Hostile]:
    """Cases of connections, headers, lengths, encodings and redirects."""
    return [*_slow(image), *_lengths(image), *_headers(image), *_encodings(image), *_redirects(), *_statuses(image),
            *_robots(image)]  # fmt: skip


def _slow(image: bytes) -> list[Hostile]:
    begun = head(content_length=len(image))
    return [
        Hostile("silent", "accepts the connection and says nothing", "timeout", stall(b"")),
        Hostile("slow headers", "sends a header line now and then, for ever", "timeout",
                endless(b"HTTP/1.1 200 OK\r\n", b"X-Wait: a little\r\n", STEP_S)),
        Hostile("slow drip", "sends a byte now and then", "timeout",
                endless(head(content_length=10**6), b"\xff", STEP_S)),
        Hostile("stalled body", "half of the image, then nothing", "timeout", stall(begun + image[: len(image) // 2])),
        Hostile("endless 100 Continue", "informational answers without end", "timeout",
                endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", STEP_S)),
        Hostile("hang up", "closes the connection without an answer", "connection_error", raw(b"")),
        Hostile("reset at once", "resets the connection without an answer", "connection_error", reset(b"")),
        Hostile("reset in the body", "resets the connection after half of the image", "connection_error",
                reset(begun + image[: len(image) // 2])),
        Hostile("not HTTP", "binary noise", "connection_error", raw(bytes(range(256)) * 20)),
        Hostile("another protocol", "the banner of an SSH server", "connection_error",
                stall(b"SSH-2.0-OpenSSH_9.9\r\n")),
        Hostile("HTTP/0.9", "an image without status line and headers", "connection_error", raw(image)),
        Hostile("no TLS", "plain text on an https address", "connection_error", raw(b"hello\r\n" * 10), scheme="https"),
        Hostile("half a header", "closes the connection inside a header", "truncated_body",
                raw(b"HTTP/1.1 200 OK\r\nCont")),
    ]  # fmt: skip


def _lengths(image: bytes) -> list[Hostile]:
    half = len(image) // 2
    chunk = b"%x\r\n%b\r\n" % (len(image), image)
    chunked = head(transfer_encoding="chunked")
    return [
        Hostile("endless body", "bytes without end, without a length", "too_many_bytes", endless(head(), bytes(65536))),
        Hostile("endless chunks", "chunks without end", "too_many_bytes",
                endless(chunked, b"10000\r\n" + bytes(65536) + b"\r\n")),
        Hostile("announced terabyte", "Content-Length of a terabyte", "too_many_bytes",
                stall(head(content_length=10**12))),
        Hostile("length too long", "fewer bytes than Content-Length, then the end", "truncated_body",
                raw(head(content_length=len(image) + 10) + image)),
        Hostile("length too short", "Content-Length of half of the image", "decode_error",
                raw(head(content_length=half) + image)),
        Hostile("negative length", "Content-Length: -1", "connection_error", raw(head(content_length=-1) + image)),
        Hostile("length that overflows", "Content-Length of 40 digits", "too_many_bytes",
                raw(head(content_length="9" * 40) + image)),
        Hostile("two lengths", "two Content-Lengths that differ", "connection_error",
                raw(head(content_length=half, Content_Length=len(image)) + image)),
        Hostile("length and chunks", "Content-Length beside chunks: the chunks count", None,
                raw(head(content_length=5, transfer_encoding="chunked") + chunk + b"0\r\n\r\n")),
        Hostile("chunks cut off", "closes the connection before the last chunk", "truncated_body",
                raw(chunked + chunk)),
        Hostile("chunk of bad size", "a chunk size that is no number", "connection_error",
                raw(chunked + b"zz\r\n" + image)),
        Hostile("chunk that overflows", "a chunk size of 40 digits", "connection_error",
                raw(chunked + b"f" * 40 + b"\r\n" + image)),
        Hostile("endless trailer", "trailers behind the chunks without end", "connection_error",
                endless(chunked + chunk + b"0\r\n", b"X-More: " + b"x" * 8000 + b"\r\n")),
        Hostile("empty body", "200 and no byte", "not_an_image", whole(b"")),
    ]  # fmt: skip


def _headers(image: bytes) -> list[Hostile]:
    return [
        Hostile("endless headers", "header lines without end, fast", "connection_error",
                endless(b"HTTP/1.1 200 OK\r\n", b"X-Much: " + b"x" * 8000 + b"\r\n")),
        Hostile("endless header line", "a header line without end", "connection_error",
                endless(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 65536)),
        Hostile("NUL in a header", "a NUL inside a header value", "connection_error",
                raw(b"HTTP/1.1 200 OK\r\nX-Odd: a\0b\r\nContent-Length: %d\r\n\r\n" % len(image) + image)),
        Hostile("header that is no text", "bytes above 127 in a header value", None,
                raw(b"HTTP/1.1 200 OK\r\nX-Odd: \xff\xfe\x80\r\nContent-Length: %d\r\n\r\n" % len(image) + image)),
        Hostile("image called a page", "an image with Content-Type: text/html", None,
                whole(image, content_type="text/html; charset=utf-8")),
        Hostile("page called an image", "a page with Content-Type: image/jpeg", "not_an_image",
                whole(b"<!DOCTYPE html><html>sorry</html>", content_type="image/jpeg")),
        Hostile("script called an image", "JavaScript with Content-Type: image/png", "not_an_image",
                whole(b"alert(document.cookie)", content_type="image/png")),
        Hostile("noai", "X-Robots-Tag: noai", "robots_directive", whole(image, x_robots_tag="noai")),
        Hostile("noai for us", "X-Robots-Tag: pairloom: noindex, nofollow", "robots_directive",
                whole(image, x_robots_tag="pairloom: noindex, nofollow")),
        Hostile("noai after many", "noimageai behind other directives, and an endless body", "robots_directive",
                endless(head(x_robots_tag="max-snippet: 20, NOIMAGEAI"), bytes(65536))),
    ]  # fmt: skip


def _encodings(image: bytes) -> list[Hostile]:
    layers = "gzip, " * 49 + "gzip"
    return [
        Hostile("gzip bomb", "256 MiB of zeros as 260 kB", "too_many_bytes",
                whole(gzip_bomb(), content_encoding="gzip")),
        Hostile("gzip bomb in gzip", "256 MiB of zeros, packed twice", "too_many_bytes",
                whole(gzip_bomb(2), content_encoding="gzip, gzip")),
        Hostile("fifty encodings", "Content-Encoding: gzip, fifty times", "connection_error",
                whole(image, content_encoding=layers)),
        Hostile("not the encoding", "an image with Content-Encoding: gzip", "connection_error",
                whole(image, content_encoding="gzip")),
        Hostile("cut gzip", "the first half of a gzip stream", "decode_error",
                whole(gzip.compress(image)[: len(image) // 2], content_encoding="gzip")),
        Hostile("unknown encoding", "Content-Encoding: rot13", "connection_error",
                whole(image, content_encoding="rot13")),
        Hostile("unasked gzip", "a gzip stream that nobody asked for", None,
                whole(gzip.compress(image), content_encoding="gzip")),
    ]  # fmt: skip


def _redirects() -> list[Hostile]:
    return [
        Hostile("redirect to itself", "302 to the same address", "too_many_redirects", redirect("/")),
        Hostile("redirect loop", "302 to and fro", "too_many_redirects", redirect("?again")),
        Hostile("endless redirects", "302 to an address that is new each time", "too_many_redirects", redirect_deeper),
        Hostile("redirect to metadata", "302 to 169.254.169.254, where clouds keep secrets", "private_address",
                redirect("http://169.254.169.254/latest/meta-data/")),
        Hostile("redirect to a private name", "302 to localhost", "private_address",
                redirect("http://localhost:{port}/")),
        Hostile("redirect to loopback", "302 to 127.0.0.1", "private_address", redirect("http://127.0.0.1:{port}/")),
        Hostile("redirect to a number", "302 to 2130706433, which is 127.0.0.1", "private_address",
                redirect("http://2130706433:{port}/")),
        Hostile("redirect to IPv6", "302 to ::ffff:10.0.0.1", "private_address", redirect("http://[::ffff:10.0.0.1]/")),
        Hostile("redirect to a private net", "302 to 192.168.0.1", "private_address", redirect("//192.168.0.1/")),
        Hostile("redirect to a file", "302 to file:///etc/passwd", "invalid_url", redirect("file:///etc/passwd")),
        Hostile("redirect to data", "302 to a data: address", "invalid_url",
                redirect("data:image/png;base64,iVBORw0KGgo=")),
        Hostile("redirect to nowhere", "302 to a name that does not resolve", "dns_error",
                redirect("http://gone.invalid/")),
        Hostile("redirect to a closed port", "302 to a port where nobody listens", "connection_error",
                redirect(f"http://{GOOD_HOST}:1/")),
        Hostile("redirect without Location", "302 and no Location", "http_client_error", whole(b"", "302 Found")),
        Hostile("redirect to 60 kB", "302 to an address of 60 kB", "invalid_url", redirect("/" + "x" * 60_000)),
        Hostile("redirect to half an address", "302 to http://[", "invalid_url", redirect("http://[")),
    ]  # fmt: skip


def _statuses(image: bytes) -> list[Hostile]:
    return [
        Hostile("404 with an image", "404 with a picture for it", "http_not_found", whole(image, "404 Not Found")),
        Hostile("410", "gone for good", "http_not_found", whole(b"", "410 Gone")),
        Hostile("451", "unavailable for legal reasons", "http_client_error", whole(b"", "451 Unavailable")),
        Hostile("429 for ages", "429 with Retry-After of 30 years", "http_rate_limited",
                whole(b"", "429 Too Many Requests", retry_after=10**9)),
        Hostile("503 with nonsense", "503 with a Retry-After that is no time", "http_server_error",
                whole(b"", "503 Unavailable", retry_after="when it suits me")),
        Hostile("500 without end", "500 with an endless page", "http_server_error",
                endless(head("500 Oops"), b"<p>sorry</p>" * 5000)),
        Hostile("status 999", "a status that does not exist", "http_server_error", whole(b"", "999 Request Denied")),
        Hostile("204", "no content", "not_an_image", raw(head("204 No Content"))),
        Hostile("206 unasked", "a part of the image that nobody asked for", "decode_error",
                whole(image[: len(image) // 2], "206 Partial Content", content_range=f"bytes 0-9/{len(image)}")),
    ]  # fmt: skip


def _robots(image: bytes) -> list[Hostile]:
    forbids = b"User-agent: *\nDisallow: /\n"
    return [
        Hostile("robots.txt forbids", "Disallow: /", "robots_txt", whole(image), whole(forbids)),
        Hostile("robots.txt without end", "rules that forbid, then lines without end", "robots_txt", whole(image),
                endless(head() + forbids, b"# more\n" * 5000)),
        Hostile("robots.txt of noise", "a robots.txt of binary noise", None,
                whole(image), whole(bytes(range(256)) * 400)),
        Hostile("robots.txt in a circle", "a robots.txt that redirects to itself", None,
                whole(image), redirect("/robots.txt")),
        Hostile("robots.txt fails", "500 for robots.txt", "http_server_error", whole(image), whole(b"", "500 Oops")),
        Hostile("robots.txt is silent", "no answer for robots.txt", "timeout", whole(image), stall(b"")),
        Hostile("robots.txt as a bomb", "256 MiB of packed zeros as robots.txt", None, whole(image),
                whole(gzip_bomb(), content_encoding="gzip")),
    ]  # fmt: skip
