"""Features of one drawn picture, stored with a model to check that the extractor still computes the same.

A library's version or a line of code may change without changing features. Here the features themselves are compared,
so that harmless changes cause no message, and others one with the size of the difference.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from camp_model.files import replacing

FILE = "sample.npy"
TOLERANCE = 0.01
"""The largest difference, in standard deviations of the features, that is ignored: stored features are rounded to
float16, and processors sum in different orders."""


def sample_picture() -> npt.NDArray[np.uint8]:
    """A picture with gradients, edges, textures and colours, uint8 RGB [240, 320, 3]; the same everywhere."""
    y, x = np.mgrid[:240, :320]
    disc = (x - 210) ** 2 + (y - 90) ** 2 < 60**2
    red = np.where(disc, 220, (x * 3 + y) % 256)
    green = np.where(disc, 40, np.where((x // 16 + y // 16) % 2 == 0, 180, 60 + y // 3))
    blue = np.where((x - 60) ** 2 < 400, 230, (x * y // 7) % 97 + 40)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def difference(features: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """The largest difference of two pictures' features [R, D], in standard deviations; infinite for another shape."""
    if features.shape != expected.shape:
        return float("inf")
    ours, theirs = features.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(ours - theirs).max() / max(theirs.std(), np.finfo(np.float64).tiny))


def write_sample(features: npt.NDArray[np.floating], folder: Path) -> None:
    """Write the features of `sample_picture` to the folder of a model's detector."""
    with replacing(folder / FILE) as temporary, temporary.open("wb") as file:
        np.save(file, features.astype(np.float16), allow_pickle=False)


def read_sample(folder: Path) -> npt.NDArray[np.float16] | None:
    """Read the stored features; None if there are none or they cannot be read."""
    try:
        features: npt.NDArray[np.float16] = np.load(folder / FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and features.dtype == np.float16 else None
