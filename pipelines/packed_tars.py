"""Reads the records of tar files (webdataset, img2dataset): pictures with their captions."""

import json
import lzma
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stages.errors import InputError
from stages.params.dataset import SPLITS
from stages.sources.base import normalise_split
from stages.sources.formats import SUFFIXES

CAPTIONS = ("caption", "captions", "text", "txt", "title", "comment", "alt_text", "sentences", "raw")
"""Names of the column of captions, the first that is there; numbered ones, caption_0 to caption_4, are read too."""


class Packed(NamedTuple):
    """One picture with its captions."""

    where: str
    name: str
    """The name of its file, empty if it has none."""
    content: Any
    """The bytes of the picture."""
    captions: list[Any]
    split: str | None
    """None: neither a column nor the name of the packed file states one."""
    fault: str = ""
    """Why there is no picture, if more can be said than that."""


def split_of(file: Path) -> str | None:
    """The split that a file's name begins with, as in train-00000-of-00009.parquet; None if it states none."""
    begins = normalise_split(re.split(r"[-_.]", file.name)[0])
    return begins if begins in SPLITS else None


def _records(file: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The records of a webdataset: neighbouring members whose names are the same up to the first point.

    Yields:
        That part of the names, and the contents of the members by the rest of their names, such as .jpg.
    """
    key, parts = "", dict[str, bytes]()
    with tarfile.open(file) as tar:
        for member in tar:
            own = member.name.rpartition("/")[2]
            rest = own[len(own.partition(".")[0]) :]
            if not member.isfile() or not rest or own.startswith("._"):  # ._a.jpg: what macOS adds to a.jpg
                continue
            stem, ending = member.name.removesuffix(rest), rest.lower()
            if parts and (stem != key or ending in parts):
                yield key, parts
                parts = {}
            opened = tar.extractfile(member)  # in the file's order: a compressed one would begin anew for a step back
            key, parts[ending] = stem, opened.read() if opened else b""
        # tarfile takes a damaged header for the end, which consists of zeros or is that of the file.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"a header is damaged at byte {tar.offset:,}")
    if parts:
        yield key, parts


def _ending(parts: dict[str, bytes], endings: Collection[str]) -> str:
    """The one of a record's endings that is meant: .jpg beside .mask.png, or else the only one; empty without one."""
    found = [part for part in parts if Path(f"_{part}").suffix in endings]
    plain = [part for part in found if part in endings]
    return plain[0] if plain else found[0] if len(found) == 1 else ""


def read_tar(file: Path) -> Iterator[Packed]:
    """The pictures of a webdataset.

    Raises:
        InputError: it is damaged.
    """
    unread = 0
    try:
        for key, parts in _records(file):
            image, several = _ending(parts, SUFFIXES), [ending for ending in parts if ending in SUFFIXES]
            # Which of them is meant? A .png beside a .jpg may be a mask.
            fault = f"has {len(several)} pictures, {', '.join(several)}; expected one" if len(several) > 1 else ""
            text, record = (parts.get(_ending(parts, [ending])) for ending in (".txt", ".json"))
            captions = _json_captions(record)
            if text is not None:
                said = text.decode("utf-8-sig", errors="surrogateescape")
                unread += sum(not isinstance(other, str) or other.strip() != said.strip() for other in captions)
                captions = [said]
            content = None if fault else parts.get(image)
            yield Packed(f"{file}: {key}", f"{key}{image}", content, captions, split_of(file), fault)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{file}: cannot be read as a tar file: {str(error)[:200]}") from None
    if unread:
        print(f"{file}: {unread} captions in .json files are not read, because a .txt beside them goes first")


def _json_captions(record: bytes | None) -> list[Any]:
    """The caption or captions in the JSON of a webdataset's record."""
    try:
        values = json.loads(record or b"{}")
    except (ValueError, RecursionError):
        return []
    captions: Any = next((values[name] for name in CAPTIONS if name in values), []) if isinstance(values, dict) else []
    return captions if isinstance(captions, list) else [captions]
