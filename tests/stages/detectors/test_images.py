"""Pictures that are damaged, huge, turned or no pictures."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from stages.detectors.images import CHANGED, MISSING, RejectedImage, decode, read_image
from stages.sources.frames import frame_of


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


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "HEIF":  # without registering it: what is tested reads by another library
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(top: float, dtype: str) -> np.ndarray:
    """From nothing to `top` in 16 columns."""
    return np.tile(np.linspace(0, top, 16), (4, 1)).astype(dtype)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_grey_of_any_depth_keeps_its_range(kind: str, bits: int) -> None:
    pixels = decode(encoded(Image.fromarray(ramp(2**bits - 1, "uint16")), kind), 1000)
    np.testing.assert_allclose(pixels[:, :, 1], ramp(255, "float32"), atol=1)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_are_scaled_from_one_or_from_255(top: float) -> None:
    pixels = decode(encoded(Image.fromarray(ramp(top, "float32")), "TIFF"), 1000)
    np.testing.assert_allclose(pixels[:, :, 0], ramp(255, "float32"), atol=1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (ramp(1.3, "float32"), "holds floats up to 1.3; expected 0 to 1 or 0 to 255"),
        (ramp(4095, "float32"), "holds floats up to 4095"),
        (ramp(1, "float32") - 0.5, "negative or not finite"),
        (np.full((4, 4), np.nan, "float32"), "negative or not finite"),
        (ramp(2**31 - 1, "int32"), "holds values up to 2.14748e\\+09; expected at most 16 bits"),
        (-ramp(100, "int32"), "negative"),
    ],
)
def test_a_range_that_cannot_be_told_is_rejected(values: np.ndarray, message: str) -> None:
    with pytest.raises(RejectedImage, match=message):
        decode(encoded(Image.fromarray(values), "TIFF"), 1000)


def test_the_depth_that_a_format_states_is_its_range() -> None:
    dark = (ramp(65535, "uint16") // 300).astype(">u2")
    pgm = b"P5 16 4 65535\n" + dark.tobytes()
    assert decode(pgm, 1000).max() == 1, "218 of 65535, not of 255"
    assert decode(b"P5 16 4 4095\n" + ramp(4095, "uint16").astype(">u2").tobytes(), 1000).max() == 255


def test_white_is_zero_in_a_deep_tiff_too() -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[ExifTags.Base.PhotometricInterpretation] = 0
    data = encoded(Image.fromarray(ramp(65535, "uint16")), "TIFF")
    entry = struct.pack("<HHL", ExifTags.Base.PhotometricInterpretation, 3, 1)
    place = data.index(entry) + len(entry)
    pixels = decode(data[:place] + b"\0\0" + data[place + 2 :], 1000)
    np.testing.assert_allclose(pixels[:, :, 0], ramp(255, "float32")[:, ::-1], atol=1)


def png_of_16_bits(colour: int, values: np.ndarray, *extra: bytes, bits: int = 16) -> bytes:
    """A PNG with 16 bits in a channel, which Pillow does not write; values [H, W, channels]. Of grey with fewer bits,
    each value holds all pixels of 16 bits."""

    def chunk(content: bytes) -> bytes:
        return (len(content) - 4).to_bytes(4) + content + zlib.crc32(content).to_bytes(4)

    height, width = values.shape[:2]
    header = b"IHDR" + (width * 16 // bits).to_bytes(4) + height.to_bytes(4) + bytes([bits, colour, 0, 0, 0])
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = (header, *extra, b"IDAT" + zlib.compress(rows), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, chunks))


def test_16_bit_colour_that_is_nearly_black_is_rejected() -> None:
    full = np.repeat(ramp(65535, "uint16")[:, :, None], 3, axis=2)
    np.testing.assert_allclose(decode(png_of_16_bits(2, full), 1000)[:, :, 2], ramp(255, "float32"), atol=1)
    for bits in (8, 12, 14):
        with pytest.raises(RejectedImage, match="uses only its lower bits"):
            decode(png_of_16_bits(2, full >> (16 - bits)), 1000)


def test_transparent_pixels_of_deep_grey_become_white() -> None:
    data = png_of_16_bits(0, ramp(65535, "uint16")[:, :, None], b"tRNS" + (0).to_bytes(2))
    pixels = decode(data, 1000)
    assert (pixels[:, 0] == 255).all() and (pixels[:, 1] == 17).all()


@pytest.mark.parametrize(
    ("bits", "packed", "hidden", "shown"),
    [
        (2, 0b00_01_10_11_00_01_10_11, 1, [0, 255, 170, 255] * 2),
        (4, 0x5AF0, 5, [255, 170, 255, 0]),
        (8, 0x050F, 5, [255, 15]),
    ],
)
def test_transparent_pixels_of_shallow_grey_become_white(bits: int, packed: int, hidden: int, shown: list[int]) -> None:
    data = png_of_16_bits(0, np.array([[[packed]]]), b"tRNS" + hidden.to_bytes(2), bits=bits)
    assert decode(data, 100)[0, :, 0].tolist() == shown


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "LA", "RGBA"])
def test_transparency_of_every_kind_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 255))
    image.putpixel((1, 1), (0, 0, 0, 0))
    if mode in ("P", "L", "RGB"):
        flat = image.convert("RGB").convert(mode)
        hidden = flat.getpixel((1, 1))
        data = encoded(flat, "PNG", transparency=hidden)
    else:
        data = encoded(image.convert(mode), "PNG")
    pixels = decode(data, 100)
    assert pixels[1, 1].tolist() == [255, 255, 255]
    assert pixels[0, 0].max() < 210


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_pictures_of_phones_are_read_as_what_they_show(kind: str) -> None:
    image = Image.new("RGBA", (64, 48), (220, 30, 20, 255))
    image.paste((30, 40, 200, 0), (0, 0, 32, 48))
    data = encoded(image, kind, quality=95)
    pixels = decode(data, 64 * 48).astype(int)
    assert pixels.shape == (48, 64, 3)
    assert np.abs(pixels[:, :24] - 255).max() < 30, "what is transparent is white"
    assert np.abs(pixels[:, 40:] - (220, 30, 20)).max() < 30
    with pytest.raises(RejectedImage, match=r"claims 64 x 48 pixels, above regions\.max_pixels"):
        decode(data, 64 * 48 - 1)
    for share in (0.3, 0.9):
        with pytest.raises(RejectedImage, match=r"cannot be decoded|no image"):
            decode(data[: int(len(data) * share)], 10_000)


def test_the_first_of_several_frames_is_the_picture() -> None:
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "TIFF", "WEBP", "PNG", "AVIF"):
        pixels = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), 100)
        assert pixels.shape == (4, 5, 3) and pixels[0, 0, 0] > 240 and pixels[0, 0, 2] < 15, kind


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP", "AVIF", "HEIF"])
def test_every_orientation_of_every_format_is_turned_once(kind: str, orientation: int) -> None:
    image = Image.new("L", (48, 32))
    image.paste(255, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))) as turned:
        expected = np.asarray(ImageOps.exif_transpose(turned))
    data = encoded(image, kind, exif=exif.tobytes())  # AVIF takes the orientation out of the object
    pixels = decode(data, 10_000)
    assert pixels.shape[:2] == expected.shape
    with Image.open(io.BytesIO(data)) as opened:
        assert (frame := frame_of(opened))[:2] == pixels.shape[1::-1]
    assert frame.orientation == (1 if kind == "HEIF" else orientation), "HEIC is turned by its own decoder"
    assert np.abs(pixels[:, :, 0].astype(int) - expected).max() < 60


def exif_with_a_wrong_type() -> bytes:
    """Orientation 6, and a number of samples too large for the type that it is written with."""
    entries = struct.pack("<HHLHH", 274, 3, 1, 6, 0) + struct.pack("<HHLL", 277, 4, 1, 70_000)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + entries + struct.pack("<L", 0)


def test_orientation_is_applied_where_the_exif_cannot_be_written_anew() -> None:
    data = encoded(Image.new("RGB", (40, 20), "red"), "JPEG", exif=exif_with_a_wrong_type())
    with Image.open(io.BytesIO(data)) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)
    assert decode(data, 1000).shape == (40, 20, 3)


@pytest.mark.parametrize(
    "error", [struct.error("x"), SyntaxError("x" * 10_000), MemoryError(), RuntimeError(), KeyError(1)]
)
def test_whatever_decoding_raises_rejects_the_picture(
    photograph: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: object) -> None:
        raise error

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", fail)
    with pytest.raises(RejectedImage, match="cannot be decoded") as rejected:
        read(photograph)
    assert len(str(rejected.value)) < 300
