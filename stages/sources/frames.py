"""The frame that boxes are in: pixels of the picture as it is seen, turned upright by its EXIF orientation.

Programs that annotate or extract may have read the same file without turning it, or a larger or smaller copy of it. The
width and height that they state show which of these it was.
"""

from typing import IO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

# A quarter turn exchanges width and height; afterwards x, y or both are mirrored.
QUARTER_TURNS, MIRRORED_X, MIRRORED_Y = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


class WrongFrame(ValueError):
    """Boxes are in a frame that does not fit the picture; the message says why."""


class Frame(NamedTuple):
    """A picture's frame, from its header: `width`, `height` and `orientation` of images.parquet."""

    width: int
    """Pixels of the upright picture."""
    height: int
    orientation: int
    """EXIF orientation of the file, 1 to 8; 1: it is stored upright."""


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an opened picture, 1 to 8; 1 if it states none or an invalid one.

    Raises:
        Exception: almost any, if the EXIF data is damaged.
    """
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format == "PNG" and "exif" not in image.info and file is not None and (exif := _exif_of_png(file)):
        image.info["exif"] = exif
    # Not image.getexif(): for a PNG it decodes all pixels to look for EXIF data after them.
    value = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_of_png(file: IO[bytes]) -> bytes:
    """The EXIF data of a PNG, empty if it has none; the file's position is restored."""
    place = file.tell()
    try:
        file.seek(8)
        while len(header := file.read(8)) == 8 and header[4:] != b"IEND":
            length = int.from_bytes(header[:4], "big")
            if header[4:] == b"eXIf":
                return b"Exif\0\0" + file.read(length)
            file.seek(length + 4, 1)
        return b""
    finally:
        file.seek(place)


def frame_of(image: Image.Image) -> Frame:
    """The frame of a picture that is opened but not decoded.

    Raises:
        Exception: almost any, if the EXIF data is damaged.
    """
    orientation = orientation_of(image)
    width, height = image.size
    # Pillow reports the size of a turned TIFF upright.
    if orientation in QUARTER_TURNS and image.format != "TIFF":
        width, height = height, width
    return Frame(width, height, orientation)


def turned_boxes(boxes: np.ndarray, width: float, height: float, orientation: int) -> np.ndarray:
    """Convert boxes [k, 4], XYXY, of the stored picture of `width` x `height` to pixels of the upright one."""
    turned = boxes.reshape(-1, 4).astype(np.float64)
    if orientation in QUARTER_TURNS:
        turned, width, height = turned[:, [1, 0, 3, 2]], height, width
    if orientation in MIRRORED_X:
        turned[:, [0, 2]] = width - turned[:, [2, 0]]
    if orientation in MIRRORED_Y:
        turned[:, [1, 3]] = height - turned[:, [3, 1]]
    return turned


def _same_shape(stated: tuple[float, float], size: tuple[float, float]) -> bool:
    """Whether one size is the other, enlarged or shrunk, within one pixel of rounding on a side of the smaller one."""
    return abs(stated[0] * size[1] - stated[1] * size[0]) <= max(*stated, *size)


def fits(stated: tuple[float, float], frame: Frame) -> tuple[bool, bool]:
    """Whether a stated frame is that of the upright picture, and whether that of the stored picture, at any scale."""
    upright = (float(frame.width), float(frame.height))
    stored = upright[::-1] if frame.orientation in QUARTER_TURNS else upright
    # The exact size decides where rounding leaves both possible, as for 100 x 101 pixels.
    exact = (stated == upright, stated == stored)
    return exact if any(exact) else (_same_shape(stated, upright), _same_shape(stated, stored))


def upright_boxes(
    boxes: np.ndarray, stated: tuple[float, float] | None, frame: Frame, unclear_is_stored: bool | None = None
) -> np.ndarray:
    """Convert boxes of a published or annotated picture to the frame of ours.

    Args:
        boxes: [k, 4], XYXY, in pixels of the frame that they were made in.
        stated: width and height of that frame; None if unknown.
        frame: of our picture.
        unclear_is_stored: whether a stated frame that fits both, as after half a turn, is that of the stored picture
            (True) or of the upright one (False); None: an error.

    Returns:
        float64 [k, 4], in pixels of the upright picture: turned if the stated frame is that of the stored file, and
            scaled if its size differs. Boxes are not clipped.

    Raises:
        WrongFrame: the stated frame fits neither the upright nor the stored picture at any scale; or it cannot be
            decided which of the two it is, because both have the same shape or no frame is stated.
    """
    upright = (float(frame.width), float(frame.height))
    if stated is None:
        if frame.orientation != 1:
            raise WrongFrame(
                f"the picture is turned (EXIF orientation {frame.orientation}) and no width and height say whether "
                "its boxes are"
            )
        return boxes.reshape(-1, 4).astype(np.float64)
    if not all(np.isfinite(side) and side > 0 for side in stated):
        raise WrongFrame(
            f"the boxes' frame of {stated[0]:g} x {stated[1]:g} pixels is none; expected a width and a height above 0"
        )
    as_seen, as_stored = fits(stated, frame)
    if not (as_seen or as_stored):
        raise WrongFrame(
            f"the boxes are in a frame of {stated[0]:g} x {stated[1]:g} pixels, the picture has "
            f"{frame.width} x {frame.height}" + (" upright" if frame.orientation != 1 else "")
        )
    if as_seen and as_stored and frame.orientation != 1:
        if unclear_is_stored is None:
            raise WrongFrame(
                f"the boxes' frame of {stated[0]:g} x {stated[1]:g} pixels is that of the picture turned and not "
                f"turned (EXIF orientation {frame.orientation}); expected a file that is stored upright"
            )
        as_seen = not unclear_is_stored
    if not as_seen:
        boxes = turned_boxes(boxes, *stated, frame.orientation)
        stated = stated[::-1] if frame.orientation in QUARTER_TURNS else stated
    scaled: np.ndarray = boxes.reshape(-1, 4) * np.array([upright[0] / stated[0], upright[1] / stated[1]] * 2)
    return scaled
