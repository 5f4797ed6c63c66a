"""Finds out by name alone which of the dataset's images a published file or record belongs to."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stages.contracts import read_table
from stages.errors import InputError, shown

_PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|p[pgn]m|jp2)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)0*(\d+)")
# COCO's image numbers are unique across all its splits and years.
_COCO = re.compile(r"COCO_(train|val|test)\d{4}_")


def _stem(name: str) -> str:
    """The file's name without a picture's suffix; any other dot belongs to the name."""
    return _PICTURE.sub("", PurePosixPath(name).name)


def _numbered(stem: str) -> tuple[str, str]:
    """The text before a name's final number, and this number without leading zeros; both empty without a number."""
    match = _NUMBERED.fullmatch(stem)
    return (match[1], match[2]) if match else ("", "")


def _same_form(prefix: str, other: str) -> bool:
    """Whether names with one final number can mean one image: by equal form, or because one is only the number."""
    return not prefix or not other or prefix == other or bool(_COCO.fullmatch(prefix) and _COCO.fullmatch(other))


def _endings(name: str) -> list[str]:
    """A path with fewer and fewer of its folders: `a/b/c.jpg`, `b/c.jpg`, `c.jpg`."""
    pieces = PurePosixPath(name).parts
    return ["/".join(pieces[i:]) for i in range(len(pieces))]


class ImageNames:
    """Finds the dataset's images by the names that others gave them.

    A name matches an image's id, its path, or the end of either, with or without the suffix; the more folders agree,
    the better. If nothing matches, the numbers at the ends of names are compared, provided that one of the two names is
    only that number or both have one form.
    """

    def __init__(self, dataset: Path) -> None:
        table = read_table(dataset / "images.parquet", ("image_id", "path"))
        self._exact: defaultdict[str, set[str]] = defaultdict(set)  # by id and by path
        self._endings: defaultdict[str, set[str]] = defaultdict(set)
        self._numbers: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for image_id, path in zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True):
            for key in (image_id, path):
                self._exact[unicodedata.normalize("NFC", key)].add(image_id)
            for ending in _endings(unicodedata.normalize("NFC", path)):
                for key in {ending, _PICTURE.sub("", ending)}:
                    self._endings[key].add(image_id)
            prefix, number = _numbered(_stem(path))
            if number:
                self._numbers[number].append((prefix, image_id))

    def _named(self, name: str) -> tuple[set[str], bool]:
        """The images that a name matches by id or path, and whether nothing else in the name contradicts this."""
        if name in self._exact:
            return self._exact[name], True
        for ending in _endings(name):
            for key in (ending, _PICTURE.sub("", ending)):
                if key in self._endings:
                    return self._endings[key], key == name or (key == ending and key in self._exact)
        return self._exact.get(_stem(name), set()), False

    def _numbered(self, name: str) -> set[str]:
        """The images whose names end with the same number as this name."""
        prefix, number = _numbered(_stem(name))
        return {image_id for other, image_id in self._numbers.get(number, ()) if _same_form(prefix, other)}

    def match(self, names: Iterable[str], source: Path) -> dict[str, str]:
        """Return the image id for each name in `source` that belongs to one of the dataset's images.

        Raises:
            InputError: a name fits two images, two names fit one, or names count from 0 and the pictures' from 1
                or the other way around.
        """
        agreeing: dict[str, set[str]] = {}
        differing: dict[str, set[str]] = {}
        by_number: dict[str, set[str]] = {}
        for name in names:
            key = unicodedata.normalize("NFC", name)
            images, agrees = self._named(key)
            if images:
                (agreeing if agrees else differing)[name] = images
            else:
                by_number[name] = self._numbered(key)
        image_of: dict[str, str] = {}
        name_of: dict[str, str] = {}
        for name, images in (agreeing | differing | by_number).items():
            if len(images) > 1:
                first, second, *_ = sorted(images)
                raise InputError(f"{source}: {shown(name)} fits the images {shown(first)} and {shown(second)} alike")
            for image_id in images:
                other = name_of.setdefault(image_id, name)
                if other == name:
                    image_of[name] = image_id
                elif not (
                    # Another name fits better, and this one indicates another picture.
                    (name in by_number and other not in by_number and self._says_more(name))
                    or (name in differing and other in agreeing and "/" in name)
                ):
                    raise InputError(
                        f"{source}: {shown(other)} and {shown(name)} both fit the image {shown(image_id)}; expected one"
                    )
        self._say_numbers({name: image_of.get(name) for name in by_number}, source)
        return image_of

    def _say_numbers(self, image_of: dict[str, str | None], source: Path) -> None:
        """Print which images were found only by number; reject numbers that begin at 0 if the pictures' begin at 1,
        or the other way around."""
        found = [f"{shown(name)} for {shown(image)}" for name, image in image_of.items() if image]
        if not found:
            return
        bare = {int(number) for prefix, number in map(_numbered, map(_stem, image_of)) if not prefix and number}
        ours = {int(number) for number in self._numbers}
        first, last = min(bare, default=0), max(bare, default=0)
        without_gaps = len(bare) > 1 and bare == set(range(first, last + 1))
        # Some pictures may be missing, but not the last one: then the numbers could be the pictures' own.
        if without_gaps and (first, 0 in ours, max(ours) - last) in ((0, False, 1), (1, True, -1)):
            raise InputError(
                f"{source}: its records are numbered from {first} and the pictures from {1 - first}, so that each "
                "would get another's regions; expected names or numbers of the pictures"
            )
        print(f"{source}: {len(found)} found by the number in their names alone: {', '.join(found[:3])}")

    def _says_more(self, name: str) -> bool:
        """Whether a name has a prefix of its own, other than COCO's, before its number."""
        prefix, _ = _numbered(_stem(name))
        return bool(prefix) and not _COCO.fullmatch(prefix)
