"""What a source returns to prepare_dataset, and code that all sources share."""

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
    """A record of a source that cannot be used: a row of rejected.parquet."""

    what: str
    """image, caption, box, boxes (all of an image) or size (of an image that stays in the dataset)."""
    where: str
    """The record: file, and position in the file."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BadRecord(InputError):
    """One of many records cannot be used. Unless it is set aside, it is an error like any other."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason


class SourceImage(NamedTuple):
    """One picture. `path` is POSIX and relative to the image root; `where` names its record in errors."""

    image_id: str
    path: str
    split: str
    """Empty: decided by a hash."""
    where: str
    folder: str = "."
    """The folder below the image root that the params name; `path` may not leave it."""
    group: str = ""
    """Images of one group get the same split if a hash decides. Empty: the image is its own group."""
    frame: Frame | None = None
    """From the file's header, once it is read: 0 x 0 if it cannot be read; None if there is no file."""
    sha256: str = ""
    """Of the file, once it is read."""


class SourceCaption(NamedTuple):
    """One caption of one picture."""

    image_id: str
    text: str
    where: str
    number: int | None = None
    """The caption's own id in the source."""


class SourceBox(NamedTuple):
    """One object: its box (XYXY), category and attributes."""

    image_id: str
    box: tuple[float, float, float, float]
    """In pixels of the frame in `Source.stated`; of the picture if none is stated."""
    category: str
    attributes: tuple[str, ...] = ()


@dataclass
class Source:
    """Everything that one dataset provides."""

    images: list[SourceImage]
    captions: list[SourceCaption]
    boxes: list[SourceBox] = field(default_factory=list)
    ground_truth: dict[str, pa.Table] = field(default_factory=dict)
    """Further tables to write beside images, captions and boxes: name without suffix -> table."""
    stated: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Image id -> width and height in its record: the frame of its boxes."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Params key -> the folder of pictures that it names."""
    rejected: list[Rejected] = field(default_factory=list)
    hashed_splits: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Split that is filled by a hash -> its share, as `params key: value`, and what to do if it stays empty."""

    def reject(self, what: str, where: str, reason: str) -> None:
        """Add a record to `rejected`."""
        self.rejected.append(Rejected(what, where, reason))

    @contextlib.contextmanager
    def reject_errors(self, what: str) -> Iterator[None]:
        """Reject a record that the block finds bad, and skip the rest of the block."""
        try:
            yield
        except BadRecord as error:
            self.reject(what, error.where, error.reason)


def image_ids(paths: list[str]) -> list[str]:
    """A readable id for each path: the file's stem, or the whole path if the stem is not unique.

    A stem is not unique if several files have it, or if it is the path of another file.
    """
    different = set(paths)
    stems = Counter(PurePosixPath(path).stem for path in different)
    return [
        stem if stems[stem := PurePosixPath(path).stem] == 1 and (stem == path or stem not in different) else path
        for path in paths
    ]


def shorten_ids(source: Source, files: dict[str, Path]) -> dict[str, Path]:
    """Give the images that are left the ids that they would have alone; return `files`, by id, with these ids.

    A row that names a picture that is not there must not change the id of one that is. All captions and boxes must be
    of images that are left: an id may have been that of another image.
    """
    paths = {image.image_id: join_path(image.path) for image in source.images}
    alone = dict(zip(paths, image_ids(list(paths.values())), strict=True))
    new = {image_id: alone[image_id] if image_id == path else image_id for image_id, path in paths.items()}
    source.images = [image._replace(image_id=new[image.image_id]) for image in source.images]
    source.captions = [caption._replace(image_id=new[caption.image_id]) for caption in source.captions]
    source.boxes = [box._replace(image_id=new[box.image_id]) for box in source.boxes]
    source.stated = {new[image_id]: size for image_id, size in source.stated.items() if image_id in new}
    return {new[image_id]: file for image_id, file in files.items() if image_id in new}


def normalise_split(name: str) -> str:
    """The split that a name means, such as val for Validation; an unknown name is returned unchanged."""
    plain = name.strip().lower()
    return {"validation": "val", "valid": "val", "dev": "val"}.get(plain, plain if plain in SPLITS else name)


def join_path(*parts: str) -> str:
    """Join parts of a path to one POSIX path without `.` parts. `..` is kept, for the check that forbids it.

    Accents are composed (NFC), so that a name is spelled the same on every file system.
    """
    return unicodedata.normalize("NFC", str(PurePosixPath(*[part.replace("\\", "/") for part in parts])))


def check_folder(folder: Path, key: str) -> None:
    """Check that a folder exists.

    Raises:
        InputError: there is no such folder; `key` is the params key that names it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {key} names it")


KINDS: dict[type, str] = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}
"""How error messages name a type."""


def require_field(record: Any, key: str, kind: type[T], where: str) -> T:
    """Return `record[key]`, checked to be of type `kind`.

    Raises:
        BadRecord: the record is not a mapping, has no such key, or has a value of another type there.
    """
    if not isinstance(record, dict):
        raise BadRecord(where, "is not a JSON object")
    if key not in record:
        raise BadRecord(f"{where}.{key}", "is missing")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BadRecord(f"{where}.{key}", f"{shown(value)} is not {KINDS.get(kind, kind.__name__)}")
    return value
