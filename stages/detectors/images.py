"""Reads pictures that may be damaged, huge or not pictures at all: one decoder for the detectors and the report."""

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from stages.sources.formats import FORMATS
from stages.sources.frames import orientation_of

# Pillow's own limit only warns up to twice its value; that of params.yaml is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

CHANGED = "changed since prepare_dataset read it"
MISSING = "the file is missing"
UNOPENED = "the file cannot be opened"
# Reasons that depend on the moment, not on the bytes: such an image is tried again in the next run.
PASSING_REASONS = (CHANGED, MISSING, UNOPENED)

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Largest values of the bit depths that cameras and scanners have: nothing else tells a 16- or 32-bit file's depth.
DEPTHS = (2**8 - 1, 2**10 - 1, 2**12 - 1, 2**14 - 1, 2**16 - 1)
DARK_16_BIT = 64
"""Pillow returns the upper bytes of 16-bit colour; all below this means 14 bits or fewer, or a nearly black picture."""


MOST_SCANS = 100
"""Scans of a JPEG at most; programs write about ten. Each takes as long as the whole picture, however short it is."""
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")
"""A JPEG marker that is followed by a segment of stated length; none occurs in the data of a scan."""


class RejectedImage(Exception):
    """An image that cannot be used; the message is the reason."""


def read_image(path: Path, sha256: str, max_pixels: int) -> np.ndarray:
    """Read and decode a picture file.

    Args:
        path: the file.
        sha256: of the file, as images.parquet has it.
        max_pixels: width times height above which it is not decoded.

    Raises:
        RejectedImage: the file is missing, cannot be opened or has changed, or `decode` rejects it.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RejectedImage(MISSING) from None
    except (OSError, ValueError):
        raise RejectedImage(UNOPENED) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RejectedImage(CHANGED)
    return decode(data, max_pixels)


def decode(data: bytes, max_pixels: int) -> np.ndarray:
    """Decode a picture to uint8 RGB [H, W, 3]: its first frame, upright by its EXIF orientation, transparency on white.

    Grey of more than 8 bits is scaled from the smallest of 8, 10, 12, 14 and 16 bits that holds its largest value,
    unless the format states the depth; floats are scaled from 0..1 or 0..255.

    Raises:
        RejectedImage: empty, not an image, truncated, too large, with too many scans, or of an unclear range of values.
    """
    if not data:
        raise RejectedImage("the file is empty")
    try:
        # From memory: when it maps a file, Pillow 13 garbles an uncompressed TIFF that has to be turned.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise RejectedImage(f"claims {image.width} x {image.height} pixels, above regions.max_pixels")
            if image.width * image.height == 0:
                raise RejectedImage("has no pixels")
            tile_width, tile_height = (getattr(image, "tag_v2", {}).get(tag, 0) for tag in (322, 323))
            if tile_width * tile_height > max_pixels:  # a TIFF decodes whole tiles, however small it is
                raise RejectedImage(f"has a tile of {tile_width} x {tile_height} pixels, above regions.max_pixels")
            if data.startswith(b"\xff\xd8") and (scans := _scans(data)) > MOST_SCANS:
                raise RejectedImage(f"has {scans} scans; expected at most {MOST_SCANS}")
            return _pixels(image)
    except RejectedImage:
        raise
    except UnidentifiedImageError:
        raise RejectedImage("is no image of a known format") from None
    except Exception as error:  # Pillow's decoders report damage with almost any exception
        raise RejectedImage(f"cannot be decoded: {str(error)[:200] or type(error).__name__}") from None


def _scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG."""
    scans, at = 0, 2
    while marker := _SEGMENT.search(jpeg, at):
        kind, length = jpeg[marker.start() + 1], int.from_bytes(jpeg[marker.end() : marker.end() + 2])
        if kind == 0xD9:  # the end, after which a phone's second picture may follow
            break
        scans += kind == 0xDA
        at = marker.end() + max(2, length)
    return scans


def _pixels(image: Image.Image) -> np.ndarray:
    # Read first: loading an image discards them, and reading a PNG's EXIF data loads it.
    tags, raw_mode = dict(getattr(image, "tag_v2", {})), str(getattr(image, "tile", ""))
    # Pillow itself turns a TIFF upright on loading.
    orientation = 1 if image.format == "TIFF" else orientation_of(image)
    image.load()
    # Pillow scales grey of 2 and 4 bits to 8, but not the value that is transparent.
    few, hidden = re.search(r"'L;([24])'", raw_mode), image.info.get("transparency")
    if few and isinstance(hidden, int):
        image.info["transparency"] = hidden * 255 // (2 ** int(few[1]) - 1)
    if orientation in TURNS:
        # Not exif_transpose: it writes the EXIF data anew, and fails on data that it could read.
        image = image.transpose(TURNS[orientation])
    if image.mode.startswith("I") or image.mode == "F":
        return np.repeat(_grey(image, tags)[:, :, None], 3, axis=2)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    upright = image if image.mode == mode else image.convert(mode)
    if re.search(";16[BLN]", raw_mode) and np.asarray(upright)[:, :, :3].max() < DARK_16_BIT:
        raise RejectedImage("is 16-bit colour that uses only its lower bits; expected values up to 65535")
    if upright.mode == "RGBA":
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return np.array(upright)


def _grey(image: Image.Image, tags: dict[int, Any]) -> np.ndarray:
    """Convert grey of more than 8 bits to uint8 [H, W]."""
    values = np.asarray(image).astype(np.float32)
    if not np.isfinite(values).all() or values.min() < 0:
        raise RejectedImage("holds values that are negative or not finite; expected grey from 0 up")
    highest = values.max()
    if image.mode == "F":
        if highest > 255 or 1 < highest < 16:
            raise RejectedImage(f"holds floats up to {highest:g}; expected 0 to 1 or 0 to 255")
        top = 1 if highest <= 1 else 255
    elif highest > DEPTHS[-1]:
        raise RejectedImage(f"holds values up to {highest:g}; expected at most 16 bits of grey")
    else:
        top = _stated_top(image, tags) or next(depth for depth in DEPTHS if highest <= depth)
    transparent = image.info.get("transparency")
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # zero is white, which Pillow heeds only up to 8 bits
        values = top - values
    if isinstance(transparent, int):
        values[values == transparent] = top
    grey: np.ndarray = np.rint(values * (255 / top)).clip(0, 255).astype(np.uint8)
    return grey


def _stated_top(image: Image.Image, tags: dict[int, Any]) -> int | None:
    """The largest value that the format can hold, if the file states it."""
    if image.format in ("PPM", "JPEG2000"):  # Pillow scales these to 16 bits
        return DEPTHS[-1]
    bits = tags.get(ExifTags.Base.BitsPerSample)
    return 2 ** bits[0] - 1 if isinstance(bits, tuple) and bits[0] < 16 else None
