"""Reading pictures that may be damaged, huge or no pictures at all."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Raster formats that Pillow decodes by itself: none that starts another program or renders a page.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# Pillow's own limit only warns up to twice its value; the one of params.yaml is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

CHANGED = "changed since prepare_dataset read it"
MISSING = "the file is missing"
UNOPENED = "the file cannot be opened"
# These say something about the moment, not about the bytes: such an image is tried again in the next run.
PASSING_REASONS = (CHANGED, MISSING, UNOPENED)


class RejectedImage(Exception):
    """An image that cannot be used; the message is the reason."""


def read_image(path: Path, sha256: str, max_pixels: int) -> np.ndarray:
    """The picture as uint8 RGB [H, W, 3], upright as its EXIF orientation says, transparency on white.

    Args:
        path: the file.
        sha256: what images.parquet says of its bytes.
        max_pixels: width times height above which it is not decoded.

    Raises:
        RejectedImage: missing, changed, empty, no image, truncated or too large.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise RejectedImage(MISSING) from None
    except OSError:
        raise RejectedImage(UNOPENED) from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise RejectedImage(CHANGED)
    if not data:
        raise RejectedImage("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise RejectedImage(f"claims {image.width} x {image.height} pixels, above regions.max_pixels")
            if image.width * image.height == 0:
                raise RejectedImage("has no pixels")
            return _pixels(image)
    except UnidentifiedImageError:
        raise RejectedImage("is no image of a known format") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, OverflowError, TypeError, MemoryError) as error:
        # Pillow's decoders report damage with any of these.
        raise RejectedImage(f"cannot be decoded: {str(error) or type(error).__name__}") from None


def _pixels(image: Image.Image) -> np.ndarray:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        # Grey of more than 8 bits: 16 bits are scaled down, where plain conversion would cut at 255.
        values = np.asarray(upright, dtype=np.float32)
        grey = values / (257 if values.max() > 255 else 1)
        return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
    return np.array(upright.convert("RGB"))
