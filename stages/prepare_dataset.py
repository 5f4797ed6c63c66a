"""Stage prepare_dataset: a source's pictures, captions and boxes, checked and written as Parquet."""

import hashlib
import importlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from PIL import Image
from tqdm import tqdm

from camp_model.files import replacing_folder, write_table
from stages.entry import stage_main
from stages.errors import InputError
from stages.params.dataset import SPLITS, DatasetParams
from stages.params.pipeline import load_params
from stages.sources import SOURCES
from stages.sources.base import Source, SourceImage, check_folder

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),  # POSIX, relative to the image root
        ("split", pa.string()),
        ("width", pa.int32()),  # pixels; 0 where the header cannot be read
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the file; empty where it cannot be read
    ]
)
CAPTIONS = pa.schema(
    [("caption_id", pa.int64()), ("image_id", pa.string()), ("split", pa.string()), ("text", pa.string())]
)
BOXES = pa.schema(
    [
        ("image_id", pa.string()),
        *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),  # XYXY, pixels of the original image
        ("category", pa.string()),
        ("attributes", pa.list_(pa.string())),
    ]
)
_THREADS = 8


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_images(images: list[SourceImage]) -> dict[str, str]:
    """Where each image id stands."""
    seen: dict[str, str] = {}
    for image in images:
        if image.split not in SPLITS:
            raise InputError(f"{image.where}: split {image.split!r} is not one of {', '.join(SPLITS)}")
        if image.image_id in seen:
            raise InputError(
                f"{image.where}: image id {image.image_id!r} is there twice, first at {seen[image.image_id]}"
            )
        seen[image.image_id] = image.where
    return seen


def check_source(source: Source) -> None:
    """What must hold of every source, whatever it was read from.

    Raises:
        InputError: a wrong split name or an empty split, an image id twice, a caption or box of no image, an
            empty caption, or an image without a caption.
    """
    seen = _check_images(source.images)
    for caption in source.captions:
        if caption.image_id not in seen:
            raise InputError(f"{caption.where}: the caption names image {caption.image_id!r}, which is not listed")
        if not caption.text.strip():
            raise InputError(f"{caption.where}: the caption of image {caption.image_id!r} is empty")
        if not _is_unicode(caption.text):
            raise InputError(f"{caption.where}: the caption {caption.text!r} holds half a character (a lone surrogate)")
    captioned = {caption.image_id for caption in source.captions}
    for image_id, where in seen.items():
        if image_id not in captioned:
            raise InputError(f"{where}: image {image_id!r} has no caption; expected at least one")
    for box in source.boxes:
        if box.image_id not in seen:
            raise InputError(f"a box names image {box.image_id!r}, which is not listed")
    used = {image.split for image in source.images}
    for split in SPLITS:
        if split not in used:
            raise InputError(f"dataset: the split {split} holds no image; expected some in each of {', '.join(SPLITS)}")


def check_path(image: SourceImage, root: Path, resolved_root: Path) -> Path:
    """The file of an image, certain to lie below the image root.

    Raises:
        InputError: the path is absolute or leaves the root, by `..` or through a link, or names no file.
    """
    pure = PurePosixPath(image.path)
    if "\0" in image.path or not _is_unicode(image.path):
        raise InputError(f"{image.where}: {image.path!r} is not a path")
    file = root / pure
    if pure.is_absolute() or ".." in pure.parts or not file.resolve().is_relative_to(resolved_root):
        raise InputError(f"{image.where}: path {image.path!r} leaves the image root {root}")
    if not file.is_file():
        raise InputError(f"{image.where}: no image file {file}")
    return file


def measure(file: Path) -> tuple[int, int, str]:
    """Width and height in pixels from the header, and the SHA-256; nothing is decoded.

    A file that is no picture comes back as 0 x 0: extract_regions rejects it and says why.
    """
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return 0, 0, ""
    try:
        with Image.open(file) as picture:
            width, height = picture.size
    except Exception:  # a broken header can raise almost anything from the decoders
        return 0, 0, digest
    return (width, height, digest) if max(width, height) < 2**31 else (0, 0, digest)


def measure_all(files: list[Path]) -> list[tuple[int, int, str]]:
    """`measure` of every file, in order."""
    # Only headers are read, so a picture that claims a vast size does no harm here and must not raise.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(measure, files)
            return list(tqdm(found, total=len(files), desc="hash images", mininterval=2, dynamic_ncols=True))
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    return pa.table([pa.array(list(column), kind) for column, kind in zip(columns, schema.types, strict=True)], schema)


def tables(source: Source, sizes: list[tuple[int, int, str]]) -> dict[str, pa.Table]:
    """The tables to write, by name."""
    splits = {image.image_id: image.split for image in source.images}
    images: list[tuple[Any, ...]] = [
        (image.image_id, image.path, image.split, *size) for image, size in zip(source.images, sizes, strict=True)
    ]
    captions: list[tuple[Any, ...]] = [
        (number, caption.image_id, splits[caption.image_id], " ".join(caption.text.split()))
        for number, caption in enumerate(source.captions)
    ]
    boxes: list[tuple[Any, ...]] = [
        (box.image_id, *box.box, box.category, list(box.attributes)) for box in source.boxes
    ]
    named = {
        name: _table(rows, schema)
        for name, rows, schema in (
            ("images", images, IMAGES),
            ("captions", captions, CAPTIONS),
            ("boxes", boxes, BOXES),
        )
    }
    return named | source.ground_truth


def prepare_dataset(params: DatasetParams, out: Path) -> None:
    """Read the source, check everything, and only then let the folder `out` appear.

    Raises:
        InputError: what the source holds is wrong; `out` is left as it was.
    """
    if params.source != "scenes":
        check_folder(params.image_root(out), "dataset.root")
    with replacing_folder(out) as building:
        source: Source = importlib.import_module(SOURCES[params.source]).read_source(params, building / "images")
        check_source(source)
        root = params.image_root(building)
        resolved_root = root.resolve()
        sizes = measure_all([check_path(image, root, resolved_root) for image in source.images])
        for name, table in tables(source, sizes).items():
            metadata = {"camp.format": f"dataset.{name}", "camp.version": "1"}
            write_table(building / f"{name}.parquet", table.replace_schema_metadata(metadata))
    count = Counter(image.split for image in source.images)
    print(
        f"{len(source.images)} images ({', '.join(f'{split} {count[split]}' for split in SPLITS)}), "
        f"{len(source.captions)} captions, {len(source.boxes)} boxes"
    )


def main() -> None:
    prepare_dataset(load_params().dataset, Path("data/dataset"))


if __name__ == "__main__":
    stage_main(main)
