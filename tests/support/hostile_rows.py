"""Hostile rows in real csv, jsonl and parquet files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class HostileRow:
    """One row: its cells as bytes, or a line of a jsonl file."""

    name: str
    what: str
    reason: str | None
    url: bytes = b""  # b"{good}" stands for the address of an image that is fine
    caption: bytes = b""
    line: bytes | None = None  # jsonl only
    found: str | None = None  # the caption as it must come out


CSV_ROWS = [
    HostileRow("caption that is no UTF-8", "Latin-1 bytes in a csv", None,
               b"{good}?c1", b"caf\xe9 \xff\xfe", found="caf� ��"),
    HostileRow("NUL in a caption", "a NUL inside a csv cell", None, b"{good}?c2", b"be\0fore", found="before"),
    HostileRow("caption of NULs", "only NULs", "empty_caption", b"{good}?c3", b"\0\0\0"),
    HostileRow("NUL in a URL", "a NUL inside an address, which is left out", None, b"{good}\0?c4", b"nul"),
    HostileRow("URL of 8 KB", "the longest address that is asked", None, b"{good}?" + b"x" * 8100, b"long"),
    HostileRow("URL of 9 KB", "longer than the limit", "invalid_url", b"{good}?" + b"x" * 9000, b"longer"),
    HostileRow("URL of 2 MB", "much longer", "invalid_url", b"{good}?" + b"x" * 2_000_000, b"longest"),
    HostileRow("caption of 2 MB", "a caption without end", "caption_too_long", b"{good}?c5", b"word " * 400_000),
    HostileRow("line breaks in a URL", "CR LF and a header behind the address: no second header is sent", None,
               b"{good}/x\r\nHost: evil.example\r\n", b"smuggled"),
    HostileRow("IDN host", "a name with an umlaut that does not exist", "dns_error",
               "http://bücher.invalid/a.jpg".encode(), b"idn"),
    HostileRow("IDN host of another script", "a name in Chinese that does not exist", "dns_error",
               "http://例え.invalid/a.jpg".encode(), b"idn"),
    HostileRow("host that is no UTF-8", "Latin-1 bytes in a name", "invalid_url", b"http://b\xfccher.invalid/", b"idn"),
    HostileRow("label of 70 letters", "a name with a part that DNS does not know", "invalid_url",
               ("http://" + "ü" * 70 + ".invalid/").encode(), b"idn"),
    HostileRow("name of 300 letters", "a name longer than DNS allows", "dns_error",
               b"http://" + b"abcdefgh." * 33 + b"invalid/", b"long name"),
    HostileRow("port that is no port", "port 99999", "invalid_url", b"http://example.org:99999/", b"port"),
    HostileRow("half an IPv6 address", "http://[::1", "invalid_url", b"http://[::1", b"bracket"),
    HostileRow("file address", "file:///etc/passwd", "invalid_url", b"file:///etc/passwd", b"file"),
    HostileRow("javascript address", "javascript:alert(1)", "invalid_url", b"javascript:alert(1)", b"script"),
    HostileRow("metadata address", "the metadata service of a cloud", "private_address",
               b"http://169.254.169.254/latest/meta-data/", b"metadata"),
    HostileRow("private name", "localhost", "private_address", b"http://localhost:{port}/", b"localhost"),
    HostileRow("octal address", "0177.0.0.1, which is 127.0.0.1", "private_address",
               b"http://0177.0.0.1:{port}/", b"octal"),
    HostileRow("private IPv6 address", "fd00::1", "private_address", b"http://[fd00::1]/", b"ula"),
    HostileRow("NAT64 address", "64:ff9b::7f00:1, which is 127.0.0.1", "private_address",
               b"http://[64:ff9b::7f00:1]/", b"nat64"),
    HostileRow("no URL", "an empty cell", "invalid_url", b"", b"nothing"),
]  # fmt: skip

JSON_ROWS = [
    HostileRow("lone surrogate", "half of a surrogate pair in JSON", None,
               line=b'{"url": "{good}?j1", "caption": "x\\ud800y"}',
               found="x?y"),
    HostileRow("NUL escape", "\\u0000 in JSON", None, line=b'{"url": "{good}?j2", "caption": "a\\u0000b"}', found="ab"),
    HostileRow("not JSON", "half an object", "invalid_url", line=b'{"url": "{good}?j3", "caption'),
    HostileRow("not an object", "a list", "invalid_url", line=b'["{good}"]'),
    HostileRow("deep JSON", "ten thousand brackets", "invalid_url", line=b"[" * 10_000),
    HostileRow("URL that is a number", "a number of 400 digits", "invalid_url",
               line=b'{"url": ' + b"9" * 400 + b', "caption": "number"}'),
    HostileRow("URL that is an object", "an object in the place of the address", "invalid_url",
               line=b'{"url": {"a": ["{good}"]}, "caption": "object"}'),
    HostileRow("no caption", "null", "empty_caption", line=b'{"url": "{good}?j4", "caption": null}'),
    HostileRow("JSON that is no UTF-8", "Latin-1 bytes in a string", None,
               line=b'{"url": "{good}?j5", "caption": "na\xefve"}', found="na�ve"),
]  # fmt: skip

PARQUET_ROWS = [
    HostileRow("bytes for a caption", "a binary column that is no UTF-8", None,
               b"{good}?p1", b"\xc3\x28 \xa0\xa1", found="�( ��"),
    HostileRow("bytes with NULs", "a binary column with NULs", None, b"{good}?p2", b"\0x\0", found="x"),
    HostileRow("bytes for a URL", "an address of bytes that is no UTF-8", "invalid_url", b"\xff\xfe\xfd", b"bytes"),
]  # fmt: skip

ALL_ROWS = [*CSV_ROWS, *JSON_ROWS, *PARQUET_ROWS]


def write_tables(folder: Path, good_url: str, urls: list[str]) -> list[str]:
    """Write three tables: server cases with a good row after each, then the hostile rows. Returns their paths."""
    port = good_url.rpartition("/")[0].rpartition(":")[2]

    def fill(text: bytes) -> bytes:
        return text.replace(b"{good}", good_url.encode()).replace(b"{port}", port.encode())

    lines = [b"url,caption\n"]
    for index, url in enumerate(urls):
        lines.append(f"{url},case {index}\n{good_url}?around={index},good {index}\n".encode())
    lines += [b'"%b","%b"\n' % (fill(row.url), row.caption) for row in CSV_ROWS]
    (folder / "a.csv").write_bytes(b"".join(lines))
    (folder / "b.jsonl").write_bytes(b"".join(fill(row.line or b"") + b"\n" for row in JSON_ROWS))
    columns = {"url": [fill(row.url) for row in PARQUET_ROWS], "caption": [row.caption for row in PARQUET_ROWS]}
    pq.write_table(pa.table(columns), folder / "c.parquet")
    return [str(folder / name) for name in ("a.csv", "b.jsonl", "c.parquet")]
