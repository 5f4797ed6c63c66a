"""Pictures as data URIs, made small enough for one page."""

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageOps

from stages.errors import InputError

LONGEST_SIDE = 420
SHORTEST_SIDE = 48
"""Where a picture is as small as this it is not shrunk further."""


def _encode(path: Path, side: int) -> tuple[str, tuple[int, int]]:
    """The picture upright, as a JPEG of at most `side` pixels on its longest side, and its original size.

    Raises:
        InputError: the picture cannot be read.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); expected the one that has regions") from None
    size = picture.size
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=84, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode("ascii"), size


def data_uris(paths: Mapping[str, Path], budget: int) -> dict[str, tuple[str, tuple[int, int]]]:
    """The pictures of `paths` (id -> file) as data URIs of at most `budget` characters together, and their sizes.

    Raises:
        InputError: a picture cannot be read, or they do not fit even when small.
    """
    side = LONGEST_SIDE
    while True:
        uris = {image_id: _encode(path, side) for image_id, path in paths.items()}
        total = sum(len(uri) for uri, _ in uris.values())
        if total <= budget:
            return uris
        if side <= SHORTEST_SIDE:
            raise InputError(
                f"report.queries, report.top_k: need {len(paths)} pictures, more than a page of 15 MB holds; "
                "expected fewer"
            )
        side = max(SHORTEST_SIDE, math.floor(side * min(0.9, math.sqrt(budget / total))))
