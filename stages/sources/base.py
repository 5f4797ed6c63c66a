"""What a source hands to prepare_dataset, and the reading that every source shares."""

import contextlib
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from stages.errors import InputError, shown
from stages.params.dataset import SPLITS
from stages.sources.frames import Frame

T = TypeVar("T")


class Rejected(NamedTuple):
    """Something that a source brings and that cannot be used: a row of rejected.parquet."""

    what: str
    """image, caption, box, boxes (all of an image) or size (of an image that is listed all the same)."""
    where: str
    """Its record: file, and place in the file."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BadRecord(InputError):
    """One record of many cannot be used. Where nobody sets it aside, it is an error like any other."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class SourceImage(NamedTuple):
    """One picture; `path` is POSIX and relative to the image root, `where` names its record in errors."""

    image_id: str
    path: str
    split: str
    """Empty: a hash decides."""
    where: str
    folder: str = "."
    """Folder below the image root that the params name and that `path` may not leave."""
    group: str = ""
    """Images of one group are in one split where a hash decides; empty: a group of its own."""
    frame: Frame | None = None
    """What the file's header says, once it is read: 0 x 0 where it cannot be; None where there is no file."""
    sha256: str = ""
    """Of the file, once it is read."""


class SourceCaption(NamedTuple):
    """One caption of one picture."""

    image_id: str
    text: str
    where: str
    number: int | None = None
    """The source's own id of it."""


class SourceBox(NamedTuple):
    """One object: XYXY, what it is, and what it is like."""

    image_id: str
    box: tuple[float, float, float, float]
    """In pixels of the frame that `Source.stated` says; of the picture where it says none."""
    category: str
    attributes: tuple[str, ...] = ()


@dataclass
class Source:
    """Everything one dataset brings."""

    images: list[SourceImage]
    captions: list[SourceCaption]
    boxes: list[SourceBox] = field(default_factory=list)
    ground_truth: dict[str, pa.Table] = field(default_factory=dict)
    """Further tables to keep beside the three of the contract: name without suffix -> table."""
    stated: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Width and height of images as their records state them: the frame of their boxes."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Params key -> folder of pictures that it names."""
    rejected: list[Rejected] = field(default_factory=list)
    hashed_splits: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Split that a hash fills -> the share that it is to have, as `params key: value`, and what to do where it stays
    empty."""

    @contextlib.contextmanager
    def setting_aside(self, what: str) -> Iterator[None]:
        """Whatever record the block finds bad goes to `rejected`, and what the block had still to do is left out."""
        try:
            yield
        except BadRecord as error:
            self.rejected.append(Rejected(what, error.where, error.reason))


def image_ids(paths: list[str]) -> list[str]:
    """A readable id for each path: the file's stem, or the whole path where the stem is not its alone.

    That is where several files share the stem, or where it is the path of another file.
    """
    different = set(paths)
    stems = Counter(PurePosixPath(path).stem for path in different)
    return [
        stem if stems[stem := PurePosixPath(path).stem] == 1 and (stem == path or stem not in different) else path
        for path in paths
    ]


def split_named(name: str) -> str:
    """The split that a name means, such as val for Validation; a name that means none as it is."""
    plain = name.strip().lower()
    return {"validation": "val", "valid": "val", "dev": "val"}.get(plain, plain if plain in SPLITS else name)


def join(*parts: str) -> str:
    """Parts of a path as one POSIX path without `.` parts; `..` stays, for the check that forbids it.

    Accents are composed (NFC), so that one name has one spelling whatever the file system does.
    """
    return unicodedata.normalize("NFC", str(PurePosixPath(*[part.replace("\\", "/") for part in parts])))


def check_folder(folder: Path, key: str) -> None:
    """Raises:
    InputError: there is no such folder; `key` is the params key that names it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {key} names it")


KINDS: dict[type, str] = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
"""What a type is called in an error."""


def take(record: Any, key: str, kind: type[T], where: str) -> T:
    """`record[key]`, checked to be a `kind`.

    Raises:
        BadRecord: the record is no mapping, has no such key or holds something else there.
    """
    if not isinstance(record, dict):
        raise BadRecord(where, "is not a JSON object")
    if key not in record:
        raise BadRecord(f"{where}.{key}", "is missing")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRecord(f"{where}.{key}", f"{shown(value)} is not {KINDS.get(kind, kind.__name__)}")
    return value
