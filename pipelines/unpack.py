"""Unpacks pictures and captions that lie in Parquet files (Hugging Face) or in tar files (webdataset, img2dataset).

They become a table and a folder of pictures, which `dataset.source: table` reads.

python -m pipelines.unpack flickr30k/*.parquet --into data/raw
"""

import argparse
import hashlib
import io
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from camp_model.files import is_unicode, replacing, write_csv
from pipelines.packed_tars import CAPTIONS, Packed, read_tar, split_of
from stages.entry import stage_main
from stages.errors import InputError, shown
from stages.params.dataset import SPLITS
from stages.sources.base import normalise_split
from stages.sources.formats import FORMATS, SUFFIXES
from stages.sources.table_files import cells_of
from stages.workspace import argument_path

Image.MAX_IMAGE_PIXELS = None  # only headers are read
TABLE, PICTURES = "captions.csv", "pictures"
NAMES = ("filename", "file_name", "image_name", "filepath")
"""Names of the column with a picture's file name, if the picture itself states none."""
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif",
           "PPM": ".ppm", "JPEG2000": ".jp2", "AVIF": ".avif", "HEIF": ".heic"}  # fmt: skip
"""Formats of pictures -> the ending of a file whose name has none."""
BATCH = 32
"""Rows of Parquet that are read at a time."""


class _Columns(NamedTuple):
    """The names of the columns that are read."""

    image: str
    captions: list[str]
    name: str | None
    split: str | None


def _columns(file: Path, schema: pa.Schema) -> _Columns:
    """Choose the columns of a Parquet file.

    Raises:
        InputError: none holds pictures or captions, or several hold bytes and none of them is `image`.
    """
    pictures = [field.name for field in schema if _holds_bytes(field.type)]
    image = "image" if "image" in pictures else pictures[0] if len(pictures) == 1 else None
    numbered = sorted(name for name in schema.names if re.fullmatch(r"(caption|text)_\d+", name))
    captions = [name for name in CAPTIONS if name in schema.names][:1] + numbered
    if image is None or not captions:
        columns = ", ".join(f"{field.name} ({field.type!s:.40})" for field in schema)
        raise InputError(
            f"{file}: expected a column of pictures (bytes, or a struct with bytes) and one of captions, such as image "
            f"and caption, found {columns[:400]}"
        )
    name = next((name for name in NAMES if name in schema.names), None)
    return _Columns(image, captions, name, "split" if "split" in schema.names else None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _read_parquet(file: Path) -> Iterator[Packed]:
    """The pictures of a Parquet file, in its order.

    Raises:
        InputError: it is damaged, or lacks a column.
    """
    try:
        with pq.ParquetFile(file) as parquet:
            columns = _columns(file, parquet.schema_arrow)
            read = [*filter(None, (columns.image, *columns.captions, columns.name, columns.split))]
            numbers = itertools.count(1)
            for batch in parquet.iter_batches(BATCH, columns=read):
                cells = [cells_of(pa.chunked_array([batch.column(column)])) for column in read]
                for row in zip(*cells, strict=True):
                    yield _packed(f"{file}: row {next(numbers)}", dict(zip(read, row, strict=True)), columns, file)
    except (pa.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # the last: a column is there twice
        raise InputError(f"{file}: cannot be read as Parquet: {str(error)[:200]}") from None


def _packed(where: str, row: dict[str, Any], columns: _Columns, file: Path) -> Packed:
    image = row[columns.image] if isinstance(row[columns.image], dict) else {"bytes": row[columns.image]}
    cells = [row[column] for column in columns.captions]
    captions = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    split = normalise_split(str(row[columns.split] or "")) if columns.split else None
    name = image.get("path") or (row[columns.name] if columns.name else "") or ""
    return Packed(
        where=where,
        name=str(name),
        content=image["bytes"],
        # A struct: as in Karpathy's files, with the text in `raw`.
        captions=[text.get("raw") if isinstance(text, dict) else text for text in captions],
        # restval: of COCO, which all train on
        split="train" if split == "restval" else split or split_of(file) or split,
    )


def _file_name(packed: Packed, used: dict[str, str]) -> str:
    """A name for a picture's file: its own without folders, or a hash where it has none or another picture has it."""
    digest = hashlib.sha256(packed.content).hexdigest()
    own = re.split(r"[/\\]", packed.name)[-1]
    stem, ending = Path(own).stem, Path(own).suffix
    if ending.lower() not in SUFFIXES:
        stem, ending = own, _ending_of(packed.content)
    name = f"{stem}{ending}"
    if not stem.strip(" .") or not (name.isprintable() and is_unicode(name)) or len(name.encode()) > 200:
        name = f"{digest[:32]}{ending}"
    elif used.get(_folded(name), digest) != digest:
        name = f"{stem}-{digest[:16]}{ending}"
    used[_folded(name)] = digest
    return name


def _ending_of(content: bytes) -> str:
    """The ending of a picture's file by its format; .jpg for what is no picture, which extraction will reject."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            return ENDINGS.get(picture.format or "", ".jpg")
    except Exception:  # a broken header can raise almost anything from the decoders
        return ".jpg"


def _folded(name: str) -> str:
    """The same for names that are one file on some disks: they may differ in case and in how accents are composed."""
    return unicodedata.normalize("NFC", name).lower()


def unpack(files: Sequence[Path], into: Path) -> tuple[int, int, list[str]]:
    """Write the pictures of all files below `into`/pictures, then the table `into`/captions.csv.

    Records without a picture or a caption, with several pictures, or with an unknown split, are set aside, and so are
    captions that are empty or not text. If interrupted, run it again: the table is written last.

    Returns:
        The numbers of pictures and captions, and a line for each record and caption that was set aside.

    Raises:
        InputError: the table is there already, a file is of another kind or damaged, only some records state a split,
            or no record can be used.
    """
    table = into / TABLE
    if table.exists():
        raise InputError(f"{table}: is there already; move it away, or name another folder with --into")
    readers = {".parquet": _read_parquet, ".tar": read_tar}
    for file in files:
        if file.suffix.lower() not in readers or not file.is_file():
            raise InputError(f"{file}: is not a file that ends in {' or '.join(readers)}")
    (into / PICTURES).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    rejected: list[str] = []
    used: dict[str, str] = {}
    packed = (one for file in files for one in readers[file.suffix.lower()](file))
    for one in tqdm(packed, desc="unpack", unit="picture"):
        captions = [text for text in one.captions if isinstance(text, str) and text.strip() and is_unicode(text)]
        rejected += [f"{one.where}: {shown(text)} is not a caption" for text in one.captions if text not in captions]
        if one.split is not None and one.split not in SPLITS:
            rejected.append(f"{one.where}: split {shown(one.split)} is not one of {', '.join(SPLITS)}")
        elif not isinstance(one.content, bytes) or not one.content:
            rejected.append(f"{one.where}: {one.fault or 'has no picture'}")
        elif not captions:
            rejected.append(f"{one.where}: has no caption")
        elif rows and ("split" in rows[0]) != bool(one.split):
            raise InputError(
                f"{one.where}: states {'a' if one.split else 'no'} split, unlike {files[0]}; expected one for all or "
                "for none, in a column split or at the beginning of the file's name"
            )
        else:
            name = _file_name(one, used)
            with replacing(into / PICTURES / name) as temporary:
                temporary.write_bytes(one.content)
            split = {"split": one.split} if one.split else {}
            rows += [{"image": f"{PICTURES}/{name}", "caption": text, **split} for text in captions]
    if not rows:
        raise InputError(f"{files[0]}: holds no picture with a caption; {'; '.join(rejected[:1]) or 'it is empty'}")
    write_csv(table, tuple(rows[0]), rows)
    return len({row["image"] for row in rows}), len(rows), rejected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a .parquet or a .tar")
    parser.add_argument("--into", type=Path, help="a folder (default: data/raw)")
    arguments = parser.parse_args()
    into = argument_path(arguments.into) if arguments.into else Path("data/raw")
    pictures, captions, rejected = unpack([argument_path(file) for file in arguments.files], into)
    for line in rejected[:10]:
        print(line)
    print(f"{into / TABLE}: {captions} captions of {pictures} pictures, {len(rejected)} set aside")


if __name__ == "__main__":
    stage_main(main, arguments=True)
