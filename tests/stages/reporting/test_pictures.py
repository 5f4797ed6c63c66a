"""The pictures of the report: within their budget, the pixels that the detector saw."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from camp_model.files import sha256_of
from stages.detectors.images import decode
from stages.errors import InputError
from stages.reporting.pictures import ReportedPicture, ShownPicture, show_pictures


def show(paths, budget, size=(0, 0), max_pixels=10**6):
    hashes = {name: sha256_of(path) if path.is_file() else "" for name, path in paths.items()}
    pictures = {name: ReportedPicture(path, hashes[name]) for name, path in paths.items()}
    return show_pictures(pictures, budget, sizes=dict.fromkeys(paths, size), max_pixels=max_pixels)


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


def test_what_extraction_rejects_is_grey(tmp_path):
    """Precomputed regions are used without a look at the picture, so it may be one that cannot be decoded."""
    Image.new("RGB", (60, 20), "red").save(tmp_path / "large.png")
    Image.new("RGB", (60, 20), "red").save(tmp_path / "page.eps")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "whole.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    expected = {
        "large.png": "claims 60 x 20 pixels, above regions.max_pixels",
        "page.eps": "is no image of a known format",
        "torn.png": "cannot be decoded: ",
    }
    shown = show({name: tmp_path / name for name in expected}, 100_000, size=(90, 30), max_pixels=1000)
    for name, problem in expected.items():
        assert shown[name].problem.startswith(problem) and shown[name].size == (90, 30)
        assert np.ptp(pixels(shown[name])) < 12


def test_a_picture_without_a_file_is_grey_and_of_its_size(tmp_path):
    shown = show({"a": tmp_path / "none.jpg"}, 100_000, size=(900, 300))["a"]
    assert shown.problem and shown.size == (900, 300)
    grey = pixels(shown)
    assert grey.shape == (140, 420, 3) and np.ptp(grey) < 12


def test_a_picture_that_has_changed_since_is_not_shown_under_the_old_boxes(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 20), "red").save(path)
    known = ReportedPicture(path, sha256_of(path))
    options = {"sizes": {"a": (60, 20)}, "max_pixels": 10**6}
    Image.new("RGB", (60, 20), "blue").save(path)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as a picture \(changed since prepare_dataset"):
        show_pictures({"a": known}, 100_000, **options)
    assert not show_pictures({"a": known._replace(sha256="")}, 100_000, **options)["a"].problem  # it came later
    path.unlink()
    assert show_pictures({"a": known}, 100_000, **options)["a"].problem
