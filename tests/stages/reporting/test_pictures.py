"""The pictures of the report: within their budget, upright."""

import numpy as np
import pytest
from PIL import Image

from stages.errors import InputError
from stages.reporting.pictures import data_uris


def test_pictures_shrink_until_they_fit_and_are_refused_when_they_cannot(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    paths = {str(i): tmp_path / "noise.png" for i in range(4)}
    roomy, tight = data_uris(paths, 10_000_000), data_uris(paths, 40_000)
    assert sum(len(uri) for uri, _ in tight.values()) <= 40_000 < sum(len(uri) for uri, _ in roomy.values())
    assert tight["0"][1] == (600, 400)
    with pytest.raises(InputError, match=r"report.queries.*15 MB"):
        data_uris(paths, 1000)


def test_a_turned_photograph_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (60, 20), "red").save(tmp_path / "turned.jpg", exif=exif)
    assert data_uris({"a": tmp_path / "turned.jpg"}, 100_000)["a"][1] == (20, 60)
