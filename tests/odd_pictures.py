"""Pictures that viewers show although they are odd, and files that only pretend to be pictures."""

import struct
import zlib

import pytest
from PIL import EpsImagePlugin


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
BROKEN_EXIF = b"Exif\x00\x00broken"


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bomb(width, height):
    """Return a small PNG that claims to have this many pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


# Files that every reader refuses, and what it says.
REFUSED = {
    "eps": (EPS, "it is damaged, or in none of the formats AVIF"),
    "bomb": (bomb(20_000, 9500), "it has 190000000 pixels, and the limit is 89478485"),
    "smaller bomb": (bomb(10_000, 9500), "it has 95000000 pixels, and the limit is 89478485"),
}


def forbid_ghostscript(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: pytest.fail("Ghostscript is started"))
