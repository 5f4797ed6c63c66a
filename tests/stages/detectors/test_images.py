"""Pictures that are damaged, huge, turned or no pictures."""

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.detectors.images import CHANGED, MISSING, RejectedImage, read_image


def read(path: Path, max_pixels: int = 1_000_000) -> np.ndarray:
    return read_image(path, hashlib.sha256(path.read_bytes()).hexdigest(), max_pixels)


def png_claiming(width: int, height: int) -> bytes:
    """The start of a PNG whose header promises more pixels than follow."""
    header = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = (len(part) - 4 for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        length.to_bytes(4) + part + zlib.crc32(part).to_bytes(4)
        for length, part in zip(chunks, (header, data), strict=True)
    )


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=95)
    return path


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image of a known format"),
        (b"just some text that is no picture at all", "is no image of a known format"),
        (png_claiming(60_000, 60_000), "claims 60000 x 60000 pixels, above regions.max_pixels"),
        (png_claiming(100, 100), "cannot be decoded"),
    ],
)
def test_what_is_no_usable_picture_is_rejected_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(RejectedImage, match=reason):
        read(path)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_truncated_photograph_is_rejected(photograph: Path, share: float) -> None:
    data = photograph.read_bytes()
    photograph.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(RejectedImage, match=r"cannot be decoded|no image"):
        read(photograph)


def test_missing_and_changed_files_are_told_apart(photograph: Path) -> None:
    with pytest.raises(RejectedImage, match=MISSING):
        read_image(photograph.with_name("none.jpg"), "", 100)
    with pytest.raises(RejectedImage, match=CHANGED):
        read_image(photograph, "0" * 64, 1_000_000)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = read(tmp_path / "turned.png")
    assert pixels.shape == (40, 20, 3)
    assert pixels[5, 10].tolist() == [0, 0, 255] and pixels[35, 10].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.full((10, 12), 200, dtype=np.uint8))
    path = tmp_path / "x.tif"
    if mode == "I;16":
        Image.fromarray(np.full((10, 12), 200 * 257, dtype=np.uint16)).save(path)
    else:
        grey.convert(mode).save(path)
    pixels = read(path)
    assert pixels.shape == (10, 12, 3) and pixels.dtype == np.uint8
    expected = 255 if mode == "1" else 200
    assert mode == "1" or np.abs(pixels.astype(int) - expected).max() <= 3


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png") == 255).all()
