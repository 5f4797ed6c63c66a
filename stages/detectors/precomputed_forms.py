"""The forms in which regions are published: which image lies where in the files, and what is said of it there.

- `scan`: SCAN's `{train,dev,test}_ims.npy` [rows, R, D] beside `{train,dev,test}_caps.txt`. They name no images, so an
  image is recognised by its captions. They hold no boxes.
- `tsv`: the tab-separated base64 float32 of bottom-up attention (image_id, image_w, image_h, num_boxes, boxes,
  features) and of LXMERT (with ids and confidences of objects and attributes); a file or a folder of them.
- `npz`: a folder of one .npz per image, named like it: features as x, features or feat; boxes as bbox or boxes.
"""

import base64
import re
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from stages.detectors.base import read_table
from stages.errors import InputError

PATTERNS = {"scan": "*_ims.npy", "tsv": "*.tsv", "npz": "*.npz"}
MAPPED_ROWS = 256
"""Rows of a .npy that are looked at through one map of it."""
BUTD_FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_FIELDS = ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes",
                 "boxes", "features")  # fmt: skip


class Place(NamedTuple):
    """Where one image's regions lie."""

    image_id: str
    file: str
    """Below the folder that detector.weights names."""
    position: int
    """Row of a .npy, byte offset of a line of a .tsv, 0 for an .npz."""


class ImageNames:
    """Finds the dataset's image for a name that others gave it: its id, its file's stem, or the number in that."""

    def __init__(self, dataset: Path) -> None:
        table = read_table(dataset / "images.parquet", ("image_id", "path"))
        self.image_of: dict[str, str] = {}
        numbers: dict[str, set[str]] = defaultdict(set)
        for image_id, path in zip(table["image_id"].to_pylist(), table["path"].to_pylist(), strict=True):
            stem = PurePosixPath(path).stem
            self.image_of.setdefault(stem, image_id)
            if number := re.search(r"(\d+)$", stem):
                numbers[str(int(number[1]))].add(image_id)
        for number_text, images in numbers.items():
            if len(images) == 1:
                self.image_of.setdefault(number_text, next(iter(images)))
        self.image_of |= {image_id: image_id for image_id in table["image_id"].to_pylist()}

    def find(self, name: str) -> str | None:
        """The image id, or None."""
        stem = PurePosixPath(name).stem
        number = re.search(r"(\d+)$", stem)
        keys = (name, stem, str(int(number[1])) if number else name)
        return next((self.image_of[key] for key in keys if key in self.image_of), None)


def _plain(caption: str) -> str:
    """Letters and digits alone: tokenizers differ in spaces, case and punctuation."""
    return "".join(filter(str.isalnum, caption.lower()))


def _npy(path: Path) -> np.ndarray:
    """An array that stays on disk."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as .npy ({error})") from None
    if array.ndim != 3 or array.dtype.kind != "f" or not array.size:
        raise InputError(f"{path}: holds {array.dtype} {list(array.shape)}; expected floats [rows, regions, dim]")
    return array


def _runs(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    """Rows [start, stop) that hold one image: evaluation splits repeat it once per caption."""
    start, held = 0, None
    for row in range(rows):
        if row % MAPPED_ROWS == 0:
            # Mapped anew: a map holds on to the pages around all that it was asked for.
            firsts = np.array(_npy(path)[row : row + MAPPED_ROWS, 0])
        first = firsts[row % MAPPED_ROWS]
        if held is not None and not np.array_equal(first, held):
            yield start, row
            start = row
        held = first
    yield start, rows


def _scan_places(folder: Path, dataset: Path) -> Iterator[Place]:
    table = read_table(dataset / "captions.parquet", ("image_id", "text"))
    images_with = defaultdict(set)
    for image_id, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        images_with[_plain(text)].add(image_id)
    for file in files_of(folder, "scan"):
        rows, texts = len(_npy(file)), file.with_name(file.name.replace("_ims.npy", "_caps.txt"))
        if not texts.is_file():
            raise InputError(f"{texts}: is missing; its captions say which images {file.name} holds")
        captions = texts.read_text(encoding="utf-8").splitlines()
        per_row, rest = divmod(len(captions), rows)
        if rest or not per_row:
            raise InputError(f"{texts}: {len(captions)} captions do not divide among the {rows} rows of {file.name}")
        for start, stop in _runs(file, rows):
            votes = Counter(
                image for line in captions[start * per_row : stop * per_row] for image in images_with[_plain(line)]
            )
            best = votes.most_common(2)
            if len(best) == 2 and best[0][1] == best[1][1]:
                raise InputError(f"{file}: row {start}: its captions fit {best[0][0]!r} and {best[1][0]!r} alike")
            if best:
                yield Place(best[0][0], file.name, start)


def _tsv_places(folder: Path, files: list[Path], names: ImageNames) -> Iterator[Place]:
    for file in files:
        with (
            file.open("rb") as lines,
            tqdm(total=file.stat().st_size, unit="B", unit_scale=True, desc=file.name, mininterval=2) as bar,
        ):
            offset = 0
            for line in lines:
                image_id = names.find(line.split(b"\t", 1)[0].decode("utf-8", "replace"))
                if image_id is not None:
                    yield Place(image_id, str(file.relative_to(folder)), offset)
                offset += len(line)
                bar.update(len(line))


def files_of(source: Path, form: str) -> list[Path]:
    """The files of a form, sorted by name. InputError if there are none."""
    files = [source] if source.is_file() else sorted(source.glob(PATTERNS[form]))
    if not files:
        raise InputError(
            f"params.yaml: detector.weights: {str(source)!r} holds no {PATTERNS[form]}; expected a folder of them"
        )
    return files


def places(form: str, source: Path, dataset: Path) -> Iterator[Place]:
    """Where the dataset's images lie in `source`; an image may come more than once.

    Raises:
        InputError: no file of the form is there, or one cannot be read.
    """
    if form == "scan":
        yield from _scan_places(source, dataset)
        return
    names = ImageNames(dataset)
    if form == "tsv":
        yield from _tsv_places(folder_of(source), files_of(source, form), names)
        return
    for file in files_of(source, form):
        if (image_id := names.find(file.stem)) is not None:
            yield Place(image_id, file.name, 0)


def folder_of(source: Path) -> Path:
    """What `Place.file` lies below."""
    return source.parent if source.is_file() else source


def _decoded(values: dict[str, bytes], name: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(values[name]), dtype=dtype)


def _read_tsv(path: Path, offset: int) -> dict[str, Any]:
    with path.open("rb") as file:
        file.seek(offset)
        cells = file.readline().rstrip(b"\r\n").split(b"\t")
    fields = {len(BUTD_FIELDS): BUTD_FIELDS, len(LXMERT_FIELDS): LXMERT_FIELDS}.get(len(cells))
    if fields is None:
        raise ValueError(f"{len(cells)} columns; expected {len(BUTD_FIELDS)} or {len(LXMERT_FIELDS)}")
    values = dict(zip(fields, cells, strict=True))
    count = int(values["num_boxes"])
    regions: dict[str, Any] = {
        "features": _decoded(values, "features", "<f4").reshape(count, -1),
        "boxes": _decoded(values, "boxes", "<f4").reshape(count, 4),
        "width": int(values["image_w"]),
        "height": int(values["image_h"]),
    }
    for name, field, dtype in (
        ("classes", "objects_id", "<i8"),
        ("scores", "objects_conf", "<f4"),
        ("attributes", "attrs_id", "<i8"),
        ("attribute_scores", "attrs_conf", "<f4"),
    ):
        if field in values:
            regions[name] = _decoded(values, field, dtype)
    return regions


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path) as arrays:  # members that need unpickling are never opened
        names = {
            "features": ("x", "features", "feat"),
            "boxes": ("bbox", "boxes"),
            "width": ("image_w", "image_width", "width"),
            "height": ("image_h", "image_height", "height"),
        }
        found = {name: next((key for key in keys if key in arrays), None) for name, keys in names.items()}
        if found["features"] is None:
            raise ValueError(
                f"holds {', '.join(arrays)}; expected the features as one of {', '.join(names['features'])}"
            )
        regions: dict[str, Any] = {name: arrays[key] for name, key in found.items() if key is not None}
        if "num_bbox" in arrays:
            count = int(arrays["num_bbox"])
            regions |= {name: regions[name][:count] for name in ("features", "boxes") if name in regions}
    return regions | {name: int(regions[name]) for name in ("width", "height") if name in regions}


def read_place(form: str, folder: Path, place: Place) -> dict[str, Any]:
    """What the file knows of one image. InputError if it is damaged."""
    path = folder / place.file
    try:
        if form == "scan":
            return {"features": np.array(_npy(path)[place.position])}
        return _read_tsv(path, place.position) if form == "tsv" else _read_npz(path)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: {place.image_id}, at {place.position}: cannot be read ({error})") from None
