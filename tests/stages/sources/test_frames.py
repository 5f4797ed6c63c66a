"""Boxes of other frames come to lie where the same pixels lie in the upright picture, or are refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from stages.sources.frames import Frame, WrongFrame, frame_of, turned_boxes, upright_boxes

WIDTH, HEIGHT = 40, 24
BOX = (5, 3, 17, 9)


def turned_file(folder: Path, orientation: int, name: str = "x.png", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    """A black picture with a white box, stored unturned."""
    image = Image.new("L", size)
    image.paste(255, BOX)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(folder / name, exif=exif)
    return folder / name


def white_box(path: Path) -> list[int]:
    """Where the white box lies in the upright picture, by looking."""
    # From memory: Pillow 13 maps an uncompressed TIFF in the wrong shape when it is turned.
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        rows, columns = np.nonzero(np.asarray(ImageOps.exif_transpose(image)) > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_frame_and_the_turned_box_are_those_of_the_upright_pixels(
    tmp_path: Path, orientation: int, name: str
) -> None:
    path = turned_file(tmp_path, orientation, name)
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        frame = frame_of(image)
        upright = ImageOps.exif_transpose(image).size
    assert frame == (*upright, orientation)
    np.testing.assert_array_equal(turned_boxes(np.array([BOX]), WIDTH, HEIGHT, orientation), [white_box(path)])


@pytest.mark.parametrize("orientation", range(5, 9))
@pytest.mark.parametrize("scale", [1, 2, 0.5])
def test_the_stated_frame_says_whether_boxes_are_turned_and_scaled(
    tmp_path: Path, orientation: int, scale: float
) -> None:
    expected = white_box(turned_file(tmp_path, orientation))
    frame = Frame(HEIGHT, WIDTH, orientation)
    stored = upright_boxes(np.array([BOX]) * scale, (WIDTH * scale, HEIGHT * scale), frame)
    np.testing.assert_allclose(stored, [expected])
    seen = upright_boxes(np.array([expected]) * scale, (HEIGHT * scale, WIDTH * scale), frame)
    np.testing.assert_allclose(seen, [expected])


def test_a_shrunk_picture_may_be_rounded_to_a_pixel() -> None:
    boxes = np.array([[0.0, 0.0, 640.0, 427.0]])
    np.testing.assert_allclose(upright_boxes(boxes, (640, 427), Frame(224, 149, 1)), [[0, 0, 224, 149]])
    np.testing.assert_allclose(upright_boxes(boxes, (640, 427), Frame(1000, 668, 1)), [[0, 0, 1000, 668]])
    np.testing.assert_allclose(
        upright_boxes(np.array([[0.0, 0.0, 1.0, 2.0]]), (101, 100), Frame(100, 101, 6)), [[98, 0, 100, 1]]
    )


@pytest.mark.parametrize(
    ("stated", "frame", "message"),
    [
        ((640, 480), Frame(640, 427, 1), "frame of 640 x 480 pixels, the picture has 640 x 427"),
        ((480, 640), Frame(640, 480, 1), "frame of 480 x 640 pixels"),
        ((480, 640), Frame(640, 480, 3), "frame of 480 x 640 pixels"),
        ((640, 480), Frame(640, 480, 3), "turned and not turned"),
        ((320, 240), Frame(640, 480, 2), "turned and not turned"),
        ((100, 100), Frame(100, 100, 6), "turned and not turned"),
        (None, Frame(640, 480, 6), "no width and height say"),
        ((0, 480), Frame(640, 480, 1), "0 x 480 pixels is none"),
        ((float("nan"), 480), Frame(640, 480, 1), "pixels is none"),
    ],
)
def test_a_frame_that_fits_neither_or_both_is_refused(
    stated: tuple[float, float] | None, frame: Frame, message: str
) -> None:
    with pytest.raises(WrongFrame, match=message):
        upright_boxes(np.array([BOX]), stated, frame)


def test_boxes_without_a_stated_frame_of_an_upright_file_stay() -> None:
    np.testing.assert_array_equal(upright_boxes(np.array([BOX]), None, Frame(WIDTH, HEIGHT, 1)), [BOX])


def test_an_orientation_that_does_not_exist_is_none(tmp_path: Path) -> None:
    with Image.open(turned_file(tmp_path, 9)) as image:
        assert frame_of(image) == (WIDTH, HEIGHT, 1)


def test_exif_behind_the_pixels_of_a_png_is_found_without_decoding(tmp_path: Path) -> None:
    data = turned_file(tmp_path, 6).read_bytes()
    start = data.index(b"eXIf") - 4
    length = int.from_bytes(data[start : start + 4], "big") + 12
    moved = data[:start] + data[start + length : -12] + data[start : start + length] + data[-12:]
    for content in (data, moved):
        with Image.open(io.BytesIO(content)) as image:
            assert frame_of(image) == (HEIGHT, WIDTH, 6)
            assert image.tile, "nothing was decoded"
            assert np.asarray(image).max() == 255, "it can still be decoded"
