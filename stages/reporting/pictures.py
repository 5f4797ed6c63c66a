"""Pictures as data URIs, reduced to fit into one page; they are decoded as for the detector."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from stages.detectors.images import RejectedImage, decode
from stages.errors import InputError

LONGEST_SIDE = 420
SHORTEST_SIDE = 48
"""Pictures are not reduced below this longest side."""
GREY = (176, 178, 182)


@dataclass(frozen=True)
class ShownPicture:
    """A picture on the page."""

    uri: str
    size: tuple[int, int]
    """Width and height of the original, upright, in pixels."""
    missing: bool
    """Whether the file is missing; the picture is then plain grey."""


def _picture(path: Path, size: tuple[int, int], max_pixels: int) -> tuple[Image.Image, bool]:
    """Return the picture, or a grey one of `size` if its file is missing; and whether it is missing.

    Raises:
        InputError: the picture cannot be read, or extraction would reject it.
    """
    try:
        return Image.fromarray(decode(path.read_bytes(), max_pixels)), False
    except FileNotFoundError:
        width, height = (max(1, side) for side in size)
        shrink = min(1.0, LONGEST_SIDE / max(width, height))
        return Image.new("RGB", (math.ceil(width * shrink), math.ceil(height * shrink)), GREY), True
    except (OSError, RejectedImage) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); expected the one that has regions") from None


def jpeg(picture: Image.Image, side: int) -> bytes:
    """Encode a picture as a JPEG of at most `side` pixels on its longest side."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=84, optimize=True)
    return out.getvalue()


def _shown(path: Path, side: int, size: tuple[int, int], max_pixels: int) -> ShownPicture:
    """Encode a picture, upright, as a JPEG of at most `side` pixels on its longest side."""
    picture, missing = _picture(path, size, max_pixels)
    original = size if missing else picture.size
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(picture, side)).decode("ascii")
    return ShownPicture(uri, original, missing)


def show_pictures(
    paths: Mapping[str, Path], budget: int, *, sizes: Mapping[str, tuple[int, int]], max_pixels: int
) -> dict[str, ShownPicture]:
    """Encode pictures as data URIs of at most `budget` characters together, decoded as extraction decodes them.

    Args:
        paths: id -> file. If a file is missing, its picture is plain grey: precomputed features need no pictures.
        sizes: width and height of each, for the grey ones.
        max_pixels: regions.max_pixels.

    Raises:
        InputError: a picture cannot be read, or they do not fit even at the smallest size.
    """
    side = LONGEST_SIDE
    while True:
        shown = {image_id: _shown(path, side, sizes[image_id], max_pixels) for image_id, path in paths.items()}
        total = sum(len(picture.uri) for picture in shown.values())
        if total <= budget:
            return shown
        if side <= SHORTEST_SIDE:
            raise InputError(
                f"report.queries, report.top_k: need {len(paths)} pictures, more than a page of 15 MB holds; "
                "expected fewer"
            )
        side = max(SHORTEST_SIDE, math.floor(side * min(0.9, math.sqrt(budget / total))))
