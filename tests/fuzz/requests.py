"""Requests and pictures of all kinds, right ones and what nobody should send, by a seed."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote_from_bytes

import numpy as np
import pillow_heif
from PIL import Image

from stages.sources.formats import FORMATS
from tests.fuzz.damage import BYTES, VALUES, damaged_bytes

SENTENCES = ["a dog", "two red circles left of a blue square", "\u72ac\u304c\u8d70\u308b", "a " * 499, "zyzzyva",
             "<b>a</b> 'dog'",
             "a\u0301 \u200bdog\u202e", "\U0001f600 a cat", "dog" * 300, "A DOG.", "1 2 3"]  # fmt: skip
METHODS = ["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get"]
PATHS = ["", "/", "//", "/static/", "/static/../../../etc/passwd", "/static/%2e%2e/%2e%2e/app.py", "/static/search.js",
         "/api", "/api/search/", "/api/%00", "/image/../api/health", "/api/openapi.json", "/docs", "/\u00e9",
         "/a" * 500]  # fmt: skip
HEADERS: list[dict[str, str]] = [
    {}, {}, {}, {"Range": "bytes=0-9999999999"}, {"If-None-Match": '"x"'}, {"Accept-Encoding": "br, gzip;q=0"},
    {"Content-Type": "multipart/form-data"}, {"Content-Type": "application/json; charset=utf-7"}, {"Host": "evil.org"},
    {"Origin": "http://evil.org"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "localhost:x"}, {"Origin": "null"},
    {"Content-Length": "-1"}, {"Content-Length": "9" * 400}, {"If-None-Match": "*"}, {"Cookie": "a" * 5000},
]  # fmt: skip


@dataclass(frozen=True)
class Request:
    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""


@dataclass
class Route:
    """What a path answers to: methods, and the names of its query's values."""

    methods: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)


def made_request(seed: int, routes: dict[str, Route], ids: Sequence[str]) -> Request:
    """A request to one of the routes, by path, with one of its methods, mostly; of any values."""
    choice = random.Random(seed)
    path = choice.choice(list(routes)) if choice.random() < 0.9 else choice.choice(PATHS)
    route = routes.get(path, Route())
    # Sorted: a set's own order is another one in each process, and a seed must say the same request.
    names = [name for name in sorted(route.names) if choice.random() < 0.9]
    method = choice.choice(sorted(route.methods) if route.methods and choice.random() < 0.8 else METHODS)
    if choice.random() < 0.1:
        names = [*names, choice.choice([*names, "x", "", "q[]", "top"])]
    query = "&".join(f"{name}={_value(name, ids, choice)}" for name in names)
    url = path.replace("{name}", choice.choice(["search.js", "..", "%2e%2e%2fapp.py", "\0", "x" * 300]))
    url = quote_from_bytes(url.encode(), safe="/%") + (f"?{query}" if query or choice.random() < 0.1 else "")
    content = choice.choice([b"", b"", b"x", b"{}", b"\xff" * 1000])
    return Request(method, url, dict(choice.choice(HEADERS)), content)


def _value(name: str, ids: Sequence[str], choice: random.Random) -> str:
    """A value as it stands in an address, seldom a wrong one, so that the others are looked at, too."""
    if choice.random() < 0.25:
        odd = choice.choice([*VALUES, *BYTES, *SENTENCES])
        raw = odd if isinstance(odd, bytes) else str(odd).encode("utf-8", "surrogatepass")
        return quote_from_bytes(raw * choice.choice((1, 1, 1, 30)))
    right: dict[str, Sequence[object]] = {
        "q": SENTENCES, "id": ids, "like": ids, "side": ("small", "large"), "top": (1, 5, 1000), "count": (1, 24, 200),
        "offset": (0, 1, 10_000_000), "captions": (0, 1, 100), "at": (0, 1, 2),
    }  # fmt: skip
    return quote_from_bytes(str(choice.choice(right.get(name, ("1", "a")))).encode())


def picture_of(kind: str, width: int = 40, height: int = 30, **options: object) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(out)
    else:
        Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], depth: int = 8, colour: int = 2) -> bytes:
    """A PNG file of any header and chunks, its checksums right."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    every = ((b"IHDR", header), *chunks, (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in every
    )


ZEROS = zlib.compress(bytes(1 << 28), 9)
"""256 MB in 260 kB."""
BOMBS: dict[str, Callable[[], bytes]] = {
    "a header of 60,000 x 60,000": lambda: png(60_000, 60_000, (b"IDAT", ZEROS)),
    "a header of 2^31 x 1": lambda: png(2**31 - 1, 1, (b"IDAT", ZEROS)),
    "no width": lambda: png(0, 5, (b"IDAT", ZEROS)),
    "more bytes than its header says": lambda: png(3, 3, (b"IDAT", ZEROS)),
    "a text that is a bomb": lambda: png(3, 3, (b"zTXt", b"a\0\0" + ZEROS), (b"IDAT", zlib.compress(bytes(30)))),
    "a profile that is a bomb": lambda: png(3, 3, (b"iCCP", b"a\0\0" + ZEROS), (b"IDAT", zlib.compress(bytes(30)))),
    "a depth that is none": lambda: png(3, 3, (b"IDAT", zlib.compress(bytes(30))), depth=7),
    "a GIF of 65,535 x 65,535": lambda: (
        b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\0\0\0\0\xff\xff\xff\xff\0\x08" + b"\xff" * 99
    ),
    "a GIF of many frames": lambda: picture_of(
        "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), (i, 0, 0)) for i in range(200)]
    ),
    "a TIFF whose tags lead outside": lambda: (
        b"II*\0\x08\0\0\0\xff\xff" + b"\0\x01\x04\0\xff\xff\xff\x7f\xf0\xff\xff\xff" * 40
    ),
    "a JPEG of 65,500 x 65,500": lambda: picture_of("JPEG").replace(b"\x00\x1e\x00\x28", b"\xff\xdc\xff\xdc", 1),
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "the start of a HEIC": lambda: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200,
    "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "a zip": lambda: b"PK\x03\x04" + b"\0" * 200,
    "text": lambda: b"a red dog\n" * 100,
    "nothing": lambda: b"",
}  # fmt: skip
DECODED = ("a GIF of many frames", "more bytes than its header says")
"""Those that are pictures all the same."""


def uploads() -> list[tuple[str, bytes, bool]]:
    """Name, bytes, and whether it is a right picture."""
    right = [(kind, picture_of(kind), True) for kind in FORMATS]
    return [*right, *((name, make(), name in DECODED) for name, make in BOMBS.items())]


def made_upload(seed: int, samples: Sequence[tuple[str, bytes, bool]]) -> Request:
    """A picture that is damaged, in the body of a request."""
    choice = random.Random(seed)
    _, content, _ = choice.choice(samples)
    query = f"?top={choice.choice((1, 20, 1000))}&captions={choice.choice((0, 3))}"
    content = content if choice.random() < 0.1 else damaged_bytes(content, choice)
    return Request("POST", f"/api/similar{query}", dict(choice.choice(HEADERS[:8])), content)
