"""What a source hands to prepare_dataset, and the checks that every source shares."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from stages.errors import InputError

T = TypeVar("T")


class SourceImage(NamedTuple):
    """One picture; `path` is POSIX and relative to the image root, `where` names its record in errors."""

    image_id: str
    path: str
    split: str
    where: str


class SourceCaption(NamedTuple):
    """One caption of one picture."""

    image_id: str
    text: str
    where: str


class SourceBox(NamedTuple):
    """One object: XYXY in pixels of the original image, what it is, and what it is like."""

    image_id: str
    box: tuple[float, float, float, float]
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


def image_ids(paths: list[str]) -> list[str]:
    """A readable id for each path: the file's stem, or the whole path where several files share a stem."""
    stems = Counter(PurePosixPath(path).stem for path in set(paths))
    return [stem if stems[stem := PurePosixPath(path).stem] == 1 else path for path in paths]


def join(*parts: str) -> str:
    """Parts of a path as one POSIX path without `.` parts; `..` stays, for the check that forbids it."""
    return str(PurePosixPath(*[part.replace("\\", "/") for part in parts]))


def check_folder(folder: Path, key: str) -> None:
    """Raises:
    InputError: there is no such folder; `key` is the params key that names it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {key} names it")


def take(record: Any, key: str, kind: type[T], where: str) -> T:
    """`record[key]`, checked to be a `kind`.

    Raises:
        InputError: the record is no mapping, has no such key or holds something else there.
    """
    if not isinstance(record, dict):
        raise InputError(f"{where}: is not a JSON object")
    if key not in record:
        raise InputError(f"{where}.{key}: is missing")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}.{key}: {value!r} is not a {kind.__name__}")
    return value
