"""Which of the dataset's images a published file or record is about, told by its name alone."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stages.contracts import read_table
from stages.errors import InputError, shown

_PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?|p[pgn]m|jp2)$", re.IGNORECASE)
_NUMBERED = re.compile(r"(.*?)0*(\d+)")
# COCO numbers its images through all its splits and years.
_COCO = re.compile(r"COCO_(train|val|test)\d{4}_")


def _stem(name: str) -> str:
    """The file's name without the suffix of a picture; any other dot belongs to the name."""
    return _PICTURE.sub("", PurePosixPath(name).name)


def _numbered(stem: str) -> tuple[str, str]:
    """What stands before the number at the end of a name, and the number without leading zeros; empty if none."""
    match = _NUMBERED.fullmatch(stem)
    return (match[1], match[2]) if match else ("", "")


def _same_form(prefix: str, other: str) -> bool:
    """Whether names with one number at their ends name one image: both are of one form, or one is the bare number."""
    return not prefix or not other or prefix == other or bool(_COCO.fullmatch(prefix) and _COCO.fullmatch(other))


def _endings(name: str) -> list[str]:
    """A path without more and more of its folders: `a/b/c.jpg`, `b/c.jpg`, `c.jpg`."""
    pieces = PurePosixPath(name).parts
    return ["/".join(pieces[i:]) for i in range(len(pieces))]


class ImageNames:
    """Finds the dataset's images for names that others gave them.

    A name is an image's id, its path, or the end of either's path, with or without the suffix; the more folders agree,
    the better. Where it is none of these, the number at its end counts, if one of the two names is nothing but that
    number or both have one form.
    """

    def __init__(self, dataset: Path) -> None:
        table = read_table(dataset / "images.parquet", ("image_id", "path"))
        self._exact: defaultdict[str, set[str]] = defaultdict(set)  # by id, and by path
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
        """The images whose id or file a name is, and whether none of its folders and no suffix speaks against it."""
        if name in self._exact:
            return self._exact[name], True
        for ending in _endings(name):
            for key in (ending, _PICTURE.sub("", ending)):
                if key in self._endings:
                    return self._endings[key], key == name or (key == ending and key in self._exact)
        return self._exact.get(_stem(name), set()), False

    def _numbered(self, name: str) -> set[str]:
        """The images that bear the number of a name."""
        prefix, number = _numbered(_stem(name))
        return {image_id for other, image_id in self._numbers.get(number, ()) if _same_form(prefix, other)}

    def match(self, names: Iterable[str], source: Path) -> dict[str, str]:
        """The image id for each of the names in `source` that is one of the dataset's images.

        Raises:
            InputError: a name fits two images, or two names fit one.
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
                    # A better name is there, and this one says that it is of another picture.
                    (name in by_number and other not in by_number and self._says_more(name))
                    or (name in differing and other in agreeing and "/" in name)
                ):
                    raise InputError(
                        f"{source}: {shown(other)} and {shown(name)} both fit the image {shown(image_id)}; expected one"
                    )
        self._say_numbers({name: image_of.get(name) for name in by_number}, source)
        return image_of

    def _say_numbers(self, image_of: dict[str, str | None], source: Path) -> None:
        """Say which images were found by a number alone, and refuse numbers that count from 0 where ours do from 1."""
        found = [f"{shown(name)} for {shown(image)}" for name, image in image_of.items() if image]
        if not found:
            return
        bare = {int(number) for prefix, number in map(_numbered, map(_stem, image_of)) if not prefix and number}
        ours = {int(number) for number in self._numbers}
        if bare == set(range(len(bare))) and ours == set(range(1, len(ours) + 1)) and len(bare) == len(ours) > 1:
            raise InputError(
                f"{source}: its records are numbered from 0 and the pictures from 1, so that each would get another's "
                "regions; expected names or numbers of the pictures"
            )
        print(f"{source}: {len(found)} found by the number in their names alone: {', '.join(found[:3])}")

    def _says_more(self, name: str) -> bool:
        """Whether a name has a prefix of its own before its number: it is not just the number written otherwise."""
        prefix, _ = _numbered(_stem(name))
        return bool(prefix) and not _COCO.fullmatch(prefix)
