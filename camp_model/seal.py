"""A seal is a checksum of a file, stored inside the file where its format allows it, so that readers detect damage.

Parquet and Arrow files have room before their footer, safetensors in the metadata, JSON objects under a key of their
own, faiss and .npy behind what their readers read. It tells accidents (a flipped byte, a torn write, blocks of zeros),
not forgery. A file without a seal is an older one, or another program's, and is read as it is, except where the seal
is the end of the file: there the damage of an end, which is the most common one, would take the seal away.
"""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

KEY = "camp.seal"
MARK = b"camp.seal/2:"
"""The version of new seals. Those of version 1 are still checked; they do not tell the order of words in a block."""
MARKS = (b"camp.seal/1:", MARK)
ANY_MARK = b"camp.seal/"
LENGTH = 64
"""Bytes of a seal: a multiple of 8, so that what follows it stays aligned."""
BLANK = {KEY: MARK.decode().ljust(LENGTH, "0")}
"""Metadata that a safetensors file must be written with before it is sealed."""
MAGICS = (b"PAR1", b"ARROW1")
"""The last bytes of Parquet and Arrow files; the length of the footer comes before them."""
CHUNK, BLOCK = 1 << 19, 1 << 16
"""Bytes read at a time, and bytes that are summed into one number, which changes with any single byte and, since
version 2, with their order."""
SETTLED = 2.0
"""Seconds after its last change from which a valid file is recorded; earlier, it may change without a new time."""

_valid_files: set[tuple[int, ...]] = set()
_cache_file: Path | None = None
MAX_CACHE_BYTES = 1 << 22
"""Size in bytes above which the record of valid files is deleted."""


def set_seal_cache(path: Path | None) -> None:
    """Record files with valid seals in the file `path`, so that later processes with this cache need not check them.

    A file is identified by device, inode, size and the times of its last changes, so writing to it, copying, moving or
    linking it makes it unknown. With `path` None, nothing is recorded beyond this process.
    """
    global _cache_file  # noqa: PLW0603
    _cache_file = path
    try:
        if path and path.stat().st_size > MAX_CACHE_BYTES:
            path.unlink()
        for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path else ():
            if len(state := line.split()) == 5 and all(map(str.isdecimal, state)):
                _valid_files.add(tuple(map(int, state)))
    except OSError:
        return  # nothing is recorded yet


def _add_valid_file(state: tuple[int, ...]) -> None:
    _valid_files.add(state)
    if _cache_file:
        with contextlib.suppress(OSError):  # on a full disk, the file is only checked again
            _cache_file.parent.mkdir(parents=True, exist_ok=True)
            with _cache_file.open("a", encoding="ascii") as file:
                file.write(" ".join(map(str, (*state, "\n"))))


def seal(path: Path, append: bool = False) -> None:
    """Seal a file that has just been written; equal content then is equal bytes.

    Args:
        path: a Parquet, Arrow or safetensors file.
        append: the file is of another format, whose readers ignore what follows the content.

    Raises:
        ValueError: the file is of no such format, or a safetensors file was written without `BLANK`.
    """
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        at = size if append else _footer(file, size)
        if at is None:
            at = _order_metadata(file, path)
        else:  # make room
            file.seek(at)
            footer = file.read()
            file.seek(at)
            file.write(BLANK[KEY].encode() + footer)
        file.flush()
        digest = _digest(file, at)
        file.seek(at)
        file.write(digest)


def check_seal(path: Path, expected: str = "") -> None:
    """Compare a file with its seal, if it has one. A file that passed the check is not read again until it changes.

    Args:
        path: the file.
        expected: if given, a file without a seal is damaged, as one that was sealed with `append` is; the error says
            that this was expected.

    Raises:
        OSError: the file cannot be read.
        ValueError: the bytes are not those that were written.
    """
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        times = (about.st_mtime_ns, about.st_ctime_ns)
        state = (about.st_dev, about.st_ino, about.st_size, *times)
        if state in _valid_files:
            return
        at = _position(file, about.st_size)
        if at is None and expected:
            raise ValueError(f"{path}: is damaged: the checksum at its end is missing; expected {expected}")
        if at is None:
            return
        file.seek(at)
        written = file.read(LENGTH)
        if written[: len(MARK)] not in MARKS or written != _digest(file, at, written[: len(MARK)]):
            raise ValueError(f"{path}: is damaged: its bytes are not those that were written (its checksum differs)")
    if max(times) < (time.time() - SETTLED) * 1e9:
        _add_valid_file(state)


def with_seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a JSON object with their seal."""
    return {**values, KEY: digest_of_values(values)}


def without_seal(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Check the seal of a JSON object, and return its values without it.

    Raises:
        ValueError: there is a seal, and the values differ from those that were written.
    """
    names = [name for name in values if len(name) == len(KEY) and sum(map(str.__ne__, name, KEY)) <= 1]
    if not names:
        return values
    rest = {name: value for name, value in values.items() if name not in names}
    if names != [KEY] or values[KEY] != digest_of_values(rest):
        raise ValueError(f"{path}: is damaged: its values are not those that were written ({KEY} differs)")
    return rest


def digest_of_values(values: Any) -> str:
    """Hex sha256 of JSON-able values, independent of the order of keys and of layout."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _footer(file: IO[bytes], size: int) -> int | None:
    """The position of the footer of a Parquet or Arrow file; None for other files."""
    file.seek(max(size - 16, 0))
    end = file.read()
    magic = next((magic for magic in MAGICS if end.endswith(magic)), None)
    if magic is None or size < 16:
        return None
    before = len(magic) + 4
    at = size - before - int.from_bytes(end[-before : -len(magic)], "little")
    return at if 0 < at < size else None


def _position(file: IO[bytes], size: int) -> int | None:
    """The position of a file's seal; None if it has none."""
    footer = _footer(file, size)
    if footer is not None:
        at = footer - LENGTH
        if at < 0:
            return None
        file.seek(at)
        return at if file.read(len(ANY_MARK)) == ANY_MARK else None
    file.seek(max(size - LENGTH, 0))
    if file.read(len(ANY_MARK)) == ANY_MARK:
        return size - LENGTH
    file.seek(0)
    header = file.read(min(int.from_bytes(file.read(8), "little"), size))
    at = header.find(f'"{KEY}":"'.encode() + ANY_MARK)
    return None if at < 0 else 8 + at + len(f'"{KEY}":"')


def _order_metadata(file: IO[bytes], path: Path) -> int:
    """Sort the metadata of a safetensors file, whose order is random, by name; return the position of the seal."""
    file.seek(0)
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    if KEY not in header["__metadata__"] or len(text) != size:
        raise ValueError(f"{path}: {KEY}: no room for it; expected Parquet, Arrow, or safetensors with {KEY}")
    file.seek(8)
    file.write(text)
    return 8 + text.index(f'"{KEY}":"'.encode()) + len(f'"{KEY}":"')


def _digest(file: IO[bytes], at: int, mark: bytes = MARK) -> bytes:
    """Compute the seal that a file should have at the position `at`, from all bytes before and after it.

    Of a block of 64-bit words x_i, version 2 takes sum_i w_i (x_i ^ x_i >> 32) modulo 2^64, with w_i odd: a change of
    one word always changes it, and of several or of their order by all chance. The shift mixes the upper bits into the
    lower ones: numbers often have zeros there, of which a product keeps as many.
    """
    import numpy as np  # here: whoever reads only texts need not wait for it

    digest = hashlib.sha256()
    ordered = mark != MARKS[0]
    weights = _weights()
    mixed = np.empty((CHUNK // BLOCK, BLOCK // 8), dtype="<u8")
    size = file.seek(0, os.SEEK_END)
    buffer = bytearray(CHUNK)
    blocks = np.frombuffer(buffer, dtype="<u8").reshape(-1, BLOCK // 8)
    for start, stop in ((0, at), (at + LENGTH, size)):
        digest.update(f"{stop - start} ".encode())
        file.seek(start)
        remaining = stop - start
        while remaining > 0:
            count = file.readinto(memoryview(buffer)[: min(CHUNK, remaining)])  # type: ignore[attr-defined]
            if not count:
                break  # it has become shorter
            filled = -(-count // BLOCK)
            buffer[count : filled * BLOCK] = bytes(filled * BLOCK - count)
            if ordered:
                words = np.right_shift(blocks[:filled], np.uint64(32), out=mixed[:filled])
                np.bitwise_xor(words, blocks[:filled], out=words)
                sums = np.einsum("bw,w->b", words, weights)
            else:
                sums = blocks[:filled].sum(axis=1, dtype=np.uint64)
            digest.update(sums.astype("<u8").tobytes())
            remaining -= count
    return mark + digest.hexdigest()[: LENGTH - len(MARK)].encode()


@functools.cache
def _weights() -> "npt.NDArray[np.uint64]":
    """Odd 64-bit numbers without a pattern, one for each word of a block: the first outputs of splitmix64 (Steele, Lea
    and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014), for seed 0."""
    import numpy as np

    state = np.arange(1, BLOCK // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)
