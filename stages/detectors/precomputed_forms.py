"""The formats in which regions are published: finds the records in their files, and reads one.

- `scan`: SCAN's `{train,dev,test}_ims.npy` [rows, R, D] beside `{train,dev,test}_caps.txt`. They name no images, so an
  image is recognised by its captions. They hold no boxes.
- `tsv`: the tab-separated base64 floats of bottom-up attention (image_id, image_w, image_h, num_boxes, boxes,
  features) and of LXMERT (with ids and confidences of objects and attributes); a file or a folder of them.
- `npz`: a folder with one .npz per image, named like it: features as x, features or feat; boxes as bbox or boxes.
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from stages.contracts import read_lines, read_table
from stages.detectors.precomputed_names import ImageNames
from stages.detectors.precomputed_records import LARGEST_RECORD, BrokenRecord, read_npz, read_tsv
from stages.errors import InputError, shown

PATTERNS = {"scan": "*_ims.npy", "tsv": "*.tsv", "npz": "*.npz"}
MAPPED_ROWS = 256
"""Rows of a .npy that are read through one memory map."""
LONGEST_NAME = 1000
"""Bytes before the first tab of a .tsv line at most; more are not an image's name but a torn record."""


class StoredRecord(NamedTuple):
    """Where one image's regions are stored."""

    image_id: str
    file: str
    """Path below the folder that detector.weights names."""
    position: int
    """Row of a .npy, byte offset of a line of a .tsv, 0 for an .npz."""


def _plain(caption: str) -> str:
    """Only the letters, their marks and the digits: tokenizers differ in spaces, case and punctuation."""
    return "".join(character for character in caption.lower() if unicodedata.category(character)[0] in "LMN")


def _npy(path: Path) -> np.ndarray:
    """Open an array that stays on disk."""
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")  # not np.load, which also opens archives
    except (OSError, ValueError, OverflowError, EOFError) as error:
        raise InputError(f"{path}: cannot be read as .npy ({str(error)[:200]})") from None
    if array.ndim != 3 or array.dtype.kind != "f" or not array.size:
        raise InputError(f"{path}: holds {array.dtype} {list(array.shape)}; expected floats [rows, regions, dim]")
    return array


def _runs(path: Path, rows: int) -> Iterator[tuple[int, int]]:
    """Yield the rows [start, stop) of each image: evaluation splits repeat an image once per caption."""
    start, held = 0, None
    for row in range(rows):
        if row % MAPPED_ROWS == 0:
            # A new map each time: a map keeps all pages in memory that were read through it.
            array = _npy(path)
            firsts = np.array(array[row : row + MAPPED_ROWS, 0])
        first = firsts[row % MAPPED_ROWS]
        # Images may share a region, such as padding: rows whose first regions are equal are compared whole.
        if held is not None and not (
            np.array_equal(first, held, equal_nan=True) and np.array_equal(array[row], array[row - 1], equal_nan=True)
        ):
            yield start, row
            start = row
        held = first
    yield start, rows


def _scan_places(folder: Path, dataset: Path) -> Iterator[StoredRecord]:
    table = read_table(dataset / "captions.parquet", ("image_id", "text"))
    images_with, captions_of = defaultdict(set), defaultdict(set)
    for image_id, text in zip(table["image_id"].to_pylist(), table["text"].to_pylist(), strict=True):
        images_with[_plain(text)].add(image_id)
        captions_of[image_id].add(_plain(text))
    for file in files_of(folder, "scan"):
        rows, texts = len(_npy(file)), file.with_name(file.name.replace("_ims.npy", "_caps.txt"))
        if not texts.is_file():
            raise InputError(f"{texts}: is missing; its captions say which images {file.name} holds")
        captions = read_lines(texts)
        per_row, rest = divmod(len(captions), rows)
        if rest or not per_row:
            raise InputError(f"{texts}: {len(captions)} captions do not divide among the {rows} rows of {file.name}")
        for start, stop in _runs(file, rows):
            lines = [_plain(line) for line in captions[start * per_row : stop * per_row]]
            votes = Counter(image for line in lines for image in images_with.get(line, ()))
            # Images share captions: the image must have most of the row's captions, or the row most of the image's.
            best = [
                (image, count)
                for image, count in votes.most_common()
                if 2 * count > len(lines) or 2 * len(captions_of[image].intersection(lines)) > len(captions_of[image])
            ][:2]
            if len(best) == 2 and best[0][1] == best[1][1]:
                raise InputError(
                    f"{file}: row {start}: its captions fit {shown(best[0][0])} and {shown(best[1][0])} alike"
                )
            if best:
                yield StoredRecord(best[0][0], file.name, start)


def _tsv_lines(folder: Path, files: list[Path]) -> Iterator[tuple[str, str, int]]:
    """The name, file and offset of every record."""
    for file in files:
        with (
            file.open("rb") as lines,
            tqdm(total=file.stat().st_size, unit="B", unit_scale=True, desc=file.name, mininterval=2) as bar,
        ):
            offset = 0
            while line := lines.readline(LARGEST_RECORD):
                if len(line) == LARGEST_RECORD:
                    raise InputError(
                        f"{file}: byte {offset:,}: a line of more than {LARGEST_RECORD:,} bytes; expected a record"
                    )
                name = line.split(b"\t", 1)[0].strip()
                if 0 < len(name) <= LONGEST_NAME:
                    yield name.decode("utf-8", "replace"), str(file.relative_to(folder)), offset
                offset += len(line)
                bar.update(len(line))


def files_of(source: Path, form: str) -> list[Path]:
    """The files of a form, sorted by name. InputError if there are none."""
    try:
        files = [source] if source.is_file() else sorted(source.glob(PATTERNS[form]))
    except OSError as error:
        raise InputError(
            f"params.yaml: detector.weights: {str(source)[:300]!r} cannot be read ({error.strerror})"
        ) from None
    if not files:
        raise InputError(
            f"params.yaml: detector.weights: {str(source)[:300]!r} holds no {PATTERNS[form]}; expected a folder of them"
        )
    return files


def places(form: str, source: Path, dataset: Path) -> list[StoredRecord]:
    """Find the records of the dataset's images in `source`; an image may have several, some of them damaged.

    Raises:
        InputError: there is no file of the form, one cannot be read, or it is unclear which image a name means.
    """
    if form == "scan":
        return list(_scan_places(source, dataset))
    files = files_of(source, form)
    if form == "tsv":
        records = list(_tsv_lines(folder_of(source), files))
    else:
        records = [(file.stem, file.name, 0) for file in files]
    image_of = ImageNames(dataset).match([name for name, *_ in records], source)
    return [StoredRecord(image_of[name], file, position) for name, file, position in records if name in image_of]


def names_in(vocabulary: Path) -> list[str]:
    """The names in a vocabulary of bottom-up attention, one per line; none if it is not there."""
    return [line.split(",")[0].strip() for line in read_lines(vocabulary)] if vocabulary.is_file() else []


def folder_of(source: Path) -> Path:
    """The folder that `StoredRecord.file` is relative to."""
    return source.parent if source.is_file() else source


def read_place(form: str, folder: Path, place: StoredRecord) -> dict[str, Any]:
    """Read one image's record: `features` [k, D] and what else its form holds (see `precomputed_records`).

    Raises:
        BrokenRecord: the record is damaged or contradicts itself.
        InputError: the file itself cannot be read.
    """
    path = folder / place.file
    try:
        if form == "scan":
            return {"features": np.array(_npy(path)[place.position])}
        return read_tsv(path, place.position) if form == "tsv" else read_npz(path)
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise almost any exception
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        raise BrokenRecord(
            f"{place.file}: {place.image_id[:100]}, at {place.position}: cannot be read "
            f"({str(error)[:200] or type(error).__name__})"
        ) from None


def width_of(form: str, folder: Path, index: dict[str, StoredRecord]) -> int:
    """The width of the features in the first undamaged record with regions. InputError if there is none."""
    reason = ""
    for place in index.values():
        try:
            features = read_place(form, folder, place)["features"]
            if len(features):
                width = int(features.shape[1])
                if form == "tsv" and features.dtype != np.float32:  # a .tsv does not state it
                    print(f"features are read as {features.dtype}, D = {width}")
                return width
        except BrokenRecord as error:
            reason = reason or f" ({error})"
    raise InputError(f"{folder}: no record of the dataset's {len(index)} images holds regions{reason}")
