"""The pictures of the report: within their budget, the pixels that the detector saw."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from stages.detectors.images import decode
from stages.errors import InputError
from stages.reporting.pictures import ShownPicture, show_pictures


def show(paths, budget, size=(0, 0), max_pixels=10**6):
    return show_pictures(paths, budget, sizes=dict.fromkeys(paths, size), max_pixels=max_pixels)


def pixels(shown: ShownPicture) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(shown.uri.partition(",")[2]))) as picture:
        return np.asarray(picture).astype(int)


def test_pictures_shrink_until_they_fit_and_are_refused_when_they_cannot(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    paths = {str(i): tmp_path / "noise.png" for i in range(4)}
    roomy, tight = show(paths, 10_000_000), show(paths, 40_000)
    small, large = (sum(len(picture.uri) for picture in some.values()) for some in (tight, roomy))
    assert small <= 40_000 < large
    assert tight["0"].size == (600, 400)
    with pytest.raises(InputError, match=r"report.queries.*15 MB"):
        show(paths, 1000)


def test_a_turned_photograph_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (60, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert show({"a": tmp_path / "turned.jpg"}, 100_000)["a"].size == (20, 60)


def _grey_16_bit(path):
    Image.fromarray(np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)).save(path)


def _transparent(path):
    values = np.zeros((48, 64, 4), dtype=np.uint8)
    values[:, 32:] = (200, 30, 40, 255)  # the left half is black, and not to be seen
    Image.fromarray(values).save(path)


def _grey_of_floats(path):
    Image.fromarray(np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)).save(path)


@pytest.mark.parametrize(
    ("name", "draw"), [("a.png", _grey_16_bit), ("a.png", _transparent), ("a.tif", _grey_of_floats)]
)
def test_a_picture_is_shown_as_the_detector_saw_it(tmp_path, name, draw):
    path = tmp_path / name
    draw(path)
    seen = decode(path.read_bytes(), 10**6).astype(int)
    shown = pixels(show({"a": path}, 100_000)["a"])
    assert shown.shape == seen.shape and seen.max() - seen.min() > 150
    assert np.abs(shown - seen).mean() < 4, "but for what JPEG changes"


def test_what_extraction_rejects_is_not_shown(tmp_path):
    Image.new("RGB", (60, 20), "red").save(tmp_path / "large.png")
    with pytest.raises(InputError, match=r"large\.png: cannot be read as a picture \(claims 60 x 20 pixels"):
        show({"a": tmp_path / "large.png"}, 100_000, max_pixels=1000)
    Image.new("RGB", (60, 20), "red").save(tmp_path / "page.eps")
    with pytest.raises(InputError, match=r"page\.eps: cannot be read as a picture \(is no image of a known format"):
        show({"a": tmp_path / "page.eps"}, 100_000)


def test_a_picture_without_a_file_is_grey_and_of_its_size(tmp_path):
    shown = show({"a": tmp_path / "none.jpg"}, 100_000, size=(900, 300))["a"]
    assert shown.missing and shown.size == (900, 300)
    grey = pixels(shown)
    assert grey.shape == (140, 420, 3) and np.ptp(grey) < 12
