"""The tables that prepare_dataset writes, and the meaning of their columns."""

from typing import Any

import pyarrow as pa

from stages.sources.base import Source, SourceImage

IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("path", pa.string()),  # POSIX, relative to the image root, spelled as on disk
        ("split", pa.string()),
        # Pixels of the upright picture; 0 if the header cannot be read. Without a file, if none is needed: the size
        # that the annotations state, or 0.
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the file; empty if it cannot be read or is missing
        ("orientation", pa.int8()),  # EXIF orientation of the file, 1 to 8; 1: it is stored upright
    ]
)
CAPTIONS = pa.schema(
    [("caption_id", pa.int64()), ("image_id", pa.string()), ("split", pa.string()), ("text", pa.string())]
)
BOXES = pa.schema(
    [
        ("image_id", pa.string()),
        *((name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),  # XYXY, pixels of the upright picture
        ("category", pa.string()),
        ("attributes", pa.list_(pa.string())),
    ]
)
REJECTED = pa.schema(
    [
        ("what", pa.string()),  # image, caption, box, boxes (all of an image) or size (of an image that is listed)
        ("where", pa.string()),  # file, and position in the file
        ("reason", pa.string()),
    ]
)


def _table(rows: list[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    return pa.table([pa.array(list(column), kind) for column, kind in zip(columns, schema.types, strict=True)], schema)


def _image_row(image: SourceImage, stated: tuple[float, float] | None) -> tuple[Any, ...]:
    if image.frame is not None:
        width, height, orientation = image.frame
    else:
        width, height = (round(side) if 0 < side < 2**31 else 0 for side in stated or (0, 0))
        orientation = 1
    return image.image_id, image.path, image.split, width, height, image.sha256, orientation


def _caption_ids(source: Source) -> list[int]:
    """The captions' ids in the source if each has a unique one, as COCO's have; else consecutive numbers."""
    own = [caption.number for caption in source.captions]
    whole = [number for number in own if type(number) is int and 0 <= number < 2**63]
    if len(set(whole)) == len(own):
        return whole
    if whole:
        print(f"captions get new numbers: {len(set(whole))} of {len(own)} have an id of their own in the source")
    return list(range(len(own)))


def tables(source: Source) -> dict[str, pa.Table]:
    """The tables to write, by name; `rejected` only if something was rejected."""
    splits = {image.image_id: image.split for image in source.images}
    images = [_image_row(image, source.stated.get(image.image_id)) for image in source.images]
    captions: list[tuple[Any, ...]] = [
        (number, caption.image_id, splits[caption.image_id], " ".join(caption.text.split()))
        for number, caption in zip(_caption_ids(source), source.captions, strict=True)
    ]
    if twice := len(captions) - len({row[1:] for row in captions}):
        print(f"{twice} captions repeat another caption of the same picture; all of them are kept and counted")
    boxes: list[tuple[Any, ...]] = [
        (box.image_id, *box.box, box.category, list(box.attributes)) for box in source.boxes
    ]
    written = {
        "images": _table(images, IMAGES),
        "captions": _table(captions, CAPTIONS),
        "boxes": _table(boxes, BOXES),
    } | source.ground_truth
    return written | ({"rejected": _table(list(source.rejected), REJECTED)} if source.rejected else {})
