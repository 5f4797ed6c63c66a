"""Pictures as data URIs, reduced to fit into one page; they are decoded as for the detector."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from camp_model.files import sha256_of
from stages.detectors.images import CHANGED, UNOPENED, RejectedImage, read_image
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
    problem: str
    """Why the picture is plain grey instead; empty if it is shown."""


class ReportedPicture(NamedTuple):
    """What images.parquet says of a picture."""

    path: Path
    sha256: str
    """Empty: there was no file, and the regions are precomputed."""


def _picture(
    picture: ReportedPicture, size: tuple[int, int], max_pixels: int
) -> tuple[Image.Image, tuple[int, int], str]:
    """Return the picture and its size; or a grey one, `size`, and why it cannot be shown.

    Regions that are precomputed need no picture, so there may be no file, or one that extraction would reject.

    Raises:
        InputError: the file has changed since prepare_dataset read it, or cannot be opened.
    """
    path, sha256 = picture
    try:
        sha256 = sha256 or (sha256_of(path) if path.is_file() else "")
        shown = Image.fromarray(read_image(path, sha256, max_pixels))
        return shown, shown.size, ""
    except (OSError, RejectedImage) as error:
        problem = str(error)
        if isinstance(error, OSError) or problem in (CHANGED, UNOPENED):
            raise InputError(
                f"{path}: cannot be read as a picture ({problem}); expected the one that has regions"
            ) from None
    width, height = (max(1, side) for side in size)
    shrink = min(1.0, LONGEST_SIDE / max(width, height))
    return Image.new("RGB", (math.ceil(width * shrink), math.ceil(height * shrink)), GREY), size, problem


def jpeg(picture: Image.Image, side: int) -> bytes:
    """Encode a picture as a JPEG of at most `side` pixels on its longest side."""
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=84, optimize=True)
    return out.getvalue()


def _shown(facts: ReportedPicture, side: int, size: tuple[int, int], max_pixels: int) -> ShownPicture:
    """Encode a picture, upright, as a JPEG of at most `side` pixels on its longest side."""
    picture, original, problem = _picture(facts, size, max_pixels)
    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(picture, side)).decode("ascii")
    return ShownPicture(uri, original, problem)


def show_pictures(
    pictures: Mapping[str, ReportedPicture], budget: int, *, sizes: Mapping[str, tuple[int, int]], max_pixels: int
) -> dict[str, ShownPicture]:
    """Encode pictures as data URIs of at most `budget` characters together, decoded as extraction decodes them.

    Args:
        pictures: id -> file. If it is missing or extraction would reject it, its picture is plain grey.
        sizes: width and height of each, for the grey ones.
        max_pixels: regions.max_pixels.

    Raises:
        InputError: a picture has changed or cannot be opened, or they do not fit even at the smallest size.
    """
    side = LONGEST_SIDE
    while True:
        shown = {image_id: _shown(facts, side, sizes[image_id], max_pixels) for image_id, facts in pictures.items()}
        total = sum(len(picture.uri) for picture in shown.values())
        if total <= budget:
            return shown
        if side <= SHORTEST_SIDE:
            raise InputError(
                f"report.queries, report.top_k: need {len(pictures)} pictures, more than a page of 15 MB holds; "
                "expected fewer"
            )
        side = max(SHORTEST_SIDE, math.floor(side * min(0.9, math.sqrt(budget / total))))
