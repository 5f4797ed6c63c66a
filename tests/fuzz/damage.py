"""Damage by a seed: bytes cut, repeated, moved, flipped or written over; values taken out, put in, or made others."""

import math
import random
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**80, 0.5, -0.0, 1e308, math.inf, math.nan, "", "a", "../../etc",
    "/", "\0", "\ud800", "\u2028", "nan", "1e999", "a" * 300, "\u00e9" * 200, [], {}, [[]], [None], {"": None},
    {"a": {"a": []}},
]  # fmt: skip
BYTES = [b"", b"\0", b"\xff", b"\xc3\x28", b"\n", b"\r\n", b'"', b"{", b"]", b",", b": ", b"\t", b"*a", b"&a ", b"!!a",
         b"1e999", b"-", b"\xef\xbb\xbf", b"\0" * 64, b"\xff" * 8, b"99999999999", b"\\ud800", b"NaN"]  # fmt: skip


def damaged_bytes(content: bytes, choice: random.Random) -> bytes:
    """A few slices of the content cut, repeated, moved, flipped, or written over."""
    data = bytearray(content)
    for _ in range(choice.randint(1, 4)):
        start = choice.randrange(len(data) + 1)
        stop = min(len(data), start + choice.choice((0, 1, 1, 2, 4, 8, 40, len(data))))
        how = choice.randrange(6)
        if how == 0 and start < len(data):
            data[start] ^= 1 << choice.randrange(8)
        elif how == 1:
            del data[start:stop]
        elif how == 2:
            data[start:start] = data[start:stop][:2000]
        elif how == 3:
            data[start:stop] = choice.choice(BYTES)
        elif how == 4:
            data[start:stop] = choice.randbytes(choice.choice((1, 2, 4, 8, 100)))
        else:
            del data[start:]
    return bytes(data[:100_000])


def damaged_values(value: Any, choice: random.Random) -> Any:
    """The same values with one of them, somewhere, taken out, put in, or made another."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner: list[tuple[Any, Any]] = list(items)
    if not inner or choice.random() < 0.15:
        return choice.choice(VALUES)
    key, item = choice.choice(inner)
    how = choice.random()
    rest = dict(value) if isinstance(value, dict) else list(value)
    if how < 0.1:
        del rest[key]
    elif how < 0.2 and isinstance(rest, dict):
        rest[choice.choice(["", "a", "a" * 300, "\ud800"])] = item
    else:
        rest[key] = damaged_values(item, choice)
    return rest
