"""Reads one record of a published file, without trusting it."""

import base64
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_RECORD = 2**28
"""Bytes of one image's regions at most, in a .tsv or .npz."""

BUTD_FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_FIELDS = ("image_id", "image_h", "image_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes",
                 "boxes", "features")  # fmt: skip
LARGEST, SMALLEST = 1e9, 1e-6
"""Bounds of features: no magnitude is above the first, and the median of those that are not 0 is not below the second.
If the bytes are numbers of another type, they exceed these bounds."""
SURE_HALVES, SURE_ZEROS = 1024, 64
"""Numbers other than 0 from which the halves of a record's words tell its type."""


class BrokenRecord(Exception):
    """A record that is damaged; the message says where and how."""


def _plausible(values: np.ndarray) -> bool:
    """Whether these may be features: nearly all are finite, and their magnitudes are those of features."""
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    if len(finite) < 0.99 * len(values):
        return False
    sizes = finite[finite > 0]
    return not len(sizes) or bool(sizes.max() <= LARGEST and np.median(sizes) >= SMALLEST)


def _alike(halves: np.ndarray) -> bool:
    """Whether the numbers at every fourth place have the magnitudes of those at the other places.

    Those of float16 do, whatever they are. Of float32 and float64 only the last half of each number has its exponent.
    """
    counts = [np.bincount(own[own > 0] >> 10, minlength=64) for own in (halves[place::4] for place in range(4))]
    shares = [count / max(1, count.sum()) for count in counts]
    return all(np.minimum(share, shares[-1]).sum() > 0.5 for share in shares)


def _float_types(raw: bytes, boxes_type: str) -> list[str]:
    """The possible types of the floats in `raw`, the likeliest first."""
    if boxes_type == "<f2":
        return ["<f2", "<f4", "<f8"]
    words = np.frombuffer(raw, "<u4") if len(raw) % 4 == 0 else np.zeros(0, "<u4")
    # float64 made from float32 or from whole numbers: of every second word only the upper 3 bits are used, or none.
    lower, upper = words[: len(words) // 2 * 2].reshape(-1, 2).T
    sure = lower.any() or boxes_type == "<f8" or np.count_nonzero(upper) >= SURE_ZEROS
    if sure and upper.any() and not (lower & 0x1FFFFFFF).any():
        return ["<f8", "<f4"]
    # Halves of many true float32 include some that are not finite as float16, unless they were made from float16 or
    # are few different numbers, such as multiples of 0.1: then the magnitudes of lower and upper halves differ.
    halves = np.frombuffer(raw, "<u2") if len(raw) % 2 == 0 else np.zeros(0, "<u2")
    finite = np.isfinite(halves.view("<f2")).all()
    if np.count_nonzero(halves) >= SURE_HALVES and finite and (words & 0x1FFF).any() and _alike(halves):
        return ["<f2", "<f4", "<f8"]
    return ["<f4", "<f8", "<f2"]


def _float_type(raw: bytes, boxes_type: str) -> str:
    """Determine the type of the floats in `raw`, which no form states: float32 as published, or float64 or float16.

    Raises:
        ValueError: the numbers are plausible in none of these types.
    """
    for kind in _float_types(raw, boxes_type):
        if len(raw) % int(kind[-1]) == 0 and _plausible(np.frombuffer(raw, kind)):
            return kind
    raise ValueError("features are no plausible float32, float64 or float16")


def _bytes(values: dict[str, bytes], name: str) -> bytes:
    return base64.b64decode(values[name], validate=True)


def _row(values: dict[str, bytes], name: str, count: int, kind: str) -> np.ndarray:
    """Decode one number per box: `kind` f or i, of 4 or 8 bytes."""
    raw = _bytes(values, name)
    size, rest = divmod(len(raw), count)
    if rest or size not in (4, 8):
        raise ValueError(f"{name}: {len(raw)} bytes for {count} boxes; expected 4 or 8 for each")
    row = np.frombuffer(raw, f"<{kind}{size}")
    if kind == "i" and (np.abs(row.astype(np.float64)) >= 2**31).any():
        raise ValueError(f"{name}: holds {row[np.abs(row.astype(np.float64)).argmax()]}; expected numbers below 2^31")
    return row


def read_tsv(path: Path, offset: int) -> dict[str, Any]:
    """Read the record of a .tsv that begins at `offset`: features, boxes, `frame` (width, height), and LXMERT's labels.

    Raises:
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        file.seek(offset)
        cells = file.readline().rstrip(b"\r\n").split(b"\t")
    fields = {len(BUTD_FIELDS): BUTD_FIELDS, len(LXMERT_FIELDS): LXMERT_FIELDS}.get(len(cells))
    if fields is None:
        raise ValueError(f"{len(cells)} columns; expected {len(BUTD_FIELDS)} or {len(LXMERT_FIELDS)}")
    values = dict(zip(fields, cells, strict=True))
    count = int(values["num_boxes"][:20])
    frame = float(values["image_w"][:20]), float(values["image_h"][:20])
    if count <= 0:
        return {"features": np.zeros((0, 0), np.float32), "frame": frame}
    boxes, features = _bytes(values, "boxes"), _bytes(values, "features")
    boxes_type = {8: "<f2", 16: "<f4", 32: "<f8"}.get(len(boxes) // count if len(boxes) % count == 0 else 0)
    if boxes_type is None:
        raise ValueError(f"boxes: {len(boxes)} bytes for {count} boxes; expected 16 (float32) or 32 (float64) for each")
    if len(features) % count or not features:
        raise ValueError(f"features: {len(features)} bytes do not divide among {count} boxes")
    kind = _float_type(features, boxes_type)
    regions: dict[str, Any] = {
        "features": np.frombuffer(features, kind).reshape(count, -1),
        "boxes": np.frombuffer(boxes, boxes_type).reshape(count, 4),
        "frame": frame,
    }
    for name, field, kind in (
        ("classes", "objects_id", "i"),
        ("scores", "objects_conf", "f"),
        ("attributes", "attrs_id", "i"),
        ("attribute_scores", "attrs_conf", "f"),
    ):
        if field in values:
            regions[name] = _row(values, field, count, kind)
    return regions


def without_padding(values: dict[str, Any]) -> dict[str, Any]:
    """Cut the rows at the end of a record whose features, and boxes if it has any, are all 0: they are no regions."""
    features, boxes = values["features"], values.get("boxes")
    real = features.any(axis=1)
    if boxes is not None:
        if boxes.shape != (len(real), 4):  # refused later
            return values
        real = real | boxes.any(axis=1)
    count = len(real) - int(np.argmax(real[::-1])) if real.any() else len(real)
    return {name: value if name == "frame" else value[:count] for name, value in values.items()}


def _check_form(features: np.ndarray, boxes: np.ndarray | None, count: int) -> None:
    """Raise a ValueError unless `count` regions can be the first rows of `features`, and of `boxes` if there are any.

    Both may be padded. Unchecked, features [dim, regions] cut to `count` would pass for features of another width.
    """
    rows = count if boxes is None else len(boxes)
    if rows != len(features) and (rows != count or features.shape[1] == count):
        beside = "" if boxes is None else f" beside boxes {list(boxes.shape)}"
        raise ValueError(
            f"features are {list(features.shape)}{beside} with num_bbox {count}; expected features [regions, dim] and "
            "boxes [regions, 4], of num_bbox regions or padded"
        )


def read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of one .npz: features, and boxes and `frame` (width, height) if it has them.

    Raises:
        ValueError: it lacks features, or they are not a table of floats.
        Exception: almost any, if the file is damaged.
    """
    names = {
        "features": ("x", "features", "feat"),
        "boxes": ("bbox", "boxes"),
        "width": ("image_w", "image_width", "width"),
        "height": ("image_h", "image_height", "height"),
    }
    with np.load(path, allow_pickle=False) as arrays:  # members that need unpickling are never opened
        unpacked = sum(member.file_size for member in arrays.zip.infolist())
        if unpacked > LARGEST_RECORD:
            raise ValueError(f"unpacks to {unpacked:,} bytes; expected one image's regions, at most {LARGEST_RECORD:,}")
        keys = {name: next((key for key in known if key in arrays), None) for name, known in names.items()}
        if keys["features"] is None:
            raise ValueError(
                f"holds {', '.join(list(arrays)[:10])}; expected the features as one of {', '.join(names['features'])}"
            )
        values: dict[str, Any] = {name: arrays[key] for name, key in keys.items() if key is not None}
        number = float(arrays["num_bbox"].item()) if "num_bbox" in arrays else None
    if number is not None and not number.is_integer():
        raise ValueError(f"num_bbox is {number:g}; expected a whole number")
    count = None if number is None else int(number)
    features = values["features"]
    if features.ndim != 2 or 0 in features.shape[1:]:
        raise ValueError(f"features are {list(features.shape)}; expected [regions, dim]")
    if features.dtype.kind != "f":
        raise ValueError(f"features are {features.dtype}; expected floats")
    if "boxes" in values and values["boxes"].dtype.kind not in "fiu":
        raise ValueError(f"boxes are {str(values['boxes'].dtype)[:80]}; expected numbers")
    regions: dict[str, Any] = {name: values[name] for name in ("features", "boxes") if name in values}
    if count is not None:
        if not 0 <= count <= len(features):
            raise ValueError(f"num_bbox is {count}; features are {list(features.shape)}")
        _check_form(features, regions.get("boxes"), count)
        regions = {name: array[:count] for name, array in regions.items()}
    if "width" in values and "height" in values:
        regions["frame"] = float(values["width"].item()), float(values["height"].item())
    return regions
