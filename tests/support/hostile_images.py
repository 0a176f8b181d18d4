"""Hostile images: broken files, decompression bombs, polyglots."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.support.hostile_server import Hostile, whole
from tests.support.image_files import encoded, photo, png_header


def _png(width: int, height: int, data: bytes, extra: bytes = b"", depth: int = 8, kind: int = 2) -> bytes:
    """A PNG with any claimed header and any content."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _zeros(num_megabytes: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(num_megabytes)) + packer.flush()


def _tiff(width: int, height: int, strip: bytes = b"x" * 100, offset: int = 8) -> bytes:
    """A grey TIFF with one strip and the directory after it; `offset` may point elsewhere."""
    entries = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, offset),
               (277, 3, 1), (278, 4, height), (279, 4, len(strip))]  # fmt: skip
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


def _circular_tiff() -> bytes:
    """A TIFF whose directory links to itself."""
    data = bytearray(_tiff(8, 8, bytes(64)))
    data[-4:] = struct.pack("<I", 8 + 64)
    return bytes(data)


def _jpeg_of(width: int, height: int, image: bytes) -> bytes:
    """A JPEG whose frame header claims another size."""
    data = bytearray(image)
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def _gif(width: int, height: int) -> bytes:
    """A GIF with a screen of any size and one pixel."""
    return (b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
            + b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02D\x01\0;")  # fmt: skip


def _long_animation() -> bytes:
    frames = [Image.fromarray(np.full((4, 4), index % 256, np.uint8)) for index in range(2000)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def _zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x" * 1000)
    return file.getvalue()


def image_cases(image: bytes) -> list[Hostile]:
    """Responses that are valid HTTP."""
    bodies = [*_bombs(image), *_broken(image), *_polyglots(image), *_others()]
    return [Hostile(name, what, reason, whole(body)) for name, what, reason, body in bodies]


Body = tuple[str, str, str | None, bytes]


def _bombs(image: bytes) -> list[Body]:
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    webp = bytearray(encoded(photo(16, 16), "WEBP"))
    place = webp.index(b"\x9d\x01\x2a") + 3
    webp[place : place + 4] = struct.pack("<HH", 16383, 16383)
    return [
        ("pixel bomb", "a PNG header of 20,000 x 20,000", "too_many_pixels", png_header(20_000, 20_000)),
        ("PNG of two billion", "a PNG header of 2,147,483,647 x 2,147,483,647", "too_many_pixels",
         png_header(2**31 - 1, 2**31 - 1)),
        ("JPEG bomb", "a JPEG that claims 65,500 x 65,500", "too_many_pixels", _jpeg_of(65500, 65500, image)),
        ("GIF bomb", "a GIF screen of 65,535 x 65,535 with one pixel", "too_many_pixels", _gif(65535, 65535)),
        ("WebP bomb", "a WebP that claims 16,383 x 16,383", "too_many_pixels", bytes(webp)),
        ("TIFF bomb", "a TIFF that claims 100,000 x 100,000 in 100 bytes", "too_many_pixels", _tiff(100_000, 100_000)),
        ("BMP bomb", "a BMP that claims 60,000 x 60,000", "too_many_pixels",
         b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)),
        ("IDAT bomb", "4 x 4 pixels with 64 MiB of zeros behind them", None, _png(4, 4, _zeros(64))),
        ("text bomb", "a PNG text chunk that unpacks to 256 MiB", "decode_error",
         _png(4, 4, zlib.compress(bytes(4 * 13)), _chunk(b"zTXt", b"Comment\0\0" + _zeros(256)))),
        ("profile bomb", "a PNG colour profile that unpacks to 256 MiB", "decode_error",
         _png(4, 4, zlib.compress(bytes(4 * 13)), _chunk(b"iCCP", b"icc\0\0" + _zeros(256)))),
        ("long animation", "a GIF of 2,000 frames: the first one counts", None, _long_animation()),
        ("circular TIFF", "a TIFF directory that follows itself", None, _circular_tiff()),
        ("SVG", "a drawing", "unsupported_format", b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
        ("SVG of a billion laughs", "entities that grow tenfold nine times", "unsupported_format",
         f'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY l0 "ha">{entities}]><svg>&l9;</svg>'.encode()),
        ("SVG with an outside entity", "an entity that reads /etc/passwd", "unsupported_format",
         b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>'),
    ]  # fmt: skip


def _broken(image: bytes) -> list[Body]:
    png = encoded(photo(64, 64), "PNG")
    return [
        ("truncated JPEG", "the first half of a JPEG", "decode_error", image[: len(image) // 2]),
        ("truncated PNG", "the first half of a PNG", "decode_error", png[: len(png) // 2]),
        ("truncated GIF", "a GIF without its pixels", "not_an_image", _gif(10, 10)[:22]),
        ("only a signature", "the eight bytes of a PNG", "not_an_image", png[:8]),
        ("two bytes of a JPEG", "the two bytes that a JPEG begins with", "not_an_image", image[:2]),
        ("no pixels", "a PNG of 0 x 0", "not_an_image", _png(0, 0, zlib.compress(b""))),
        ("bad checksum", "a PNG whose header has a wrong checksum", "not_an_image",
         png[:29] + bytes(4) + png[33:]),
        ("chunk beyond the end", "a PNG chunk of 2 GiB that is not there", "decode_error",
         png[:33] + b"\x7f\xff\xff\xffIDAT" + png[41:200]),
        ("unknown depth", "a PNG of 77 bits a pixel", "not_an_image", _png(4, 4, zlib.compress(bytes(99)), depth=77)),
        ("strip beyond the end", "a TIFF strip that is not in the file", "decode_error",
         _tiff(64, 64, bytes(64), 10**9)),
        ("RLE that runs over", "a BMP with too many RLE pixels", "decode_error",
         b"BM" + struct.pack("<IHHIIiiHHIIiiII", 1100, 0, 0, 1078, 40, 8, 8, 1, 8, 1, 0, 0, 0, 0, 0)
         + bytes(1024) + b"\xff\xff" * 10),
    ]  # fmt: skip


def _polyglots(image: bytes) -> list[Body]:
    return [
        ("polyglot JPEG and zip", "an archive behind a JPEG: stored as received, the image is one", None,
         image + _zip("evil.class")),
        ("polyglot GIF and JavaScript", "GIF89a=1; as a script", "not_an_image", b"GIF89a=1;alert(1)//" + b" " * 40),
        ("polyglot page and JPEG", "a page with a JPEG inside", "not_an_image", b"<html><!--" + image + b"--></html>"),
        ("polyglot PDF and JPEG", "a PDF with a JPEG inside", "unsupported_format", b"%PDF-1.7\n" + image),
        ("script in a JPEG comment", "a JPEG with <script> in its comment", None,
         image[:2] + b"\xff\xfe\x00\x1b<script>alert(1)</script>" + image[2:]),
    ]  # fmt: skip


def _others() -> list[Body]:
    return [
        ("PDF", "a document", "unsupported_format", b"%PDF-1.7\n" + b"x" * 500),
        ("PSD", "a Photoshop file", "unsupported_format", b"8BPS\0\1" + bytes(100)),
        ("ICO", "an icon", "unsupported_format", b"\0\0\1\0\1\0" + bytes(100)),
        ("MP4", "a film", "unsupported_format", b"\0\0\0\x20ftypisom" + bytes(100)),
        ("zip", "an archive", "not_an_image", _zip("a.txt")),
        ("gzip", "a gzip file, not announced as packed", "not_an_image", gzip.compress(b"x" * 500)),
        ("ELF", "a program", "not_an_image", b"\x7fELF\2\1\1" + bytes(500)),
        ("zeros", "a megabyte of zeros", "not_an_image", bytes(1 << 20)),
        ("EPS", "PostScript, which is a program", "unsupported_format",
         b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ]  # fmt: skip
