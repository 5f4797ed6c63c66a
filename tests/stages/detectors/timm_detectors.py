"""Detectors of timm, and a picture, for the tests of their features and of their weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from stages.detectors import timm
from stages.detectors.base import Description, load_detector
from stages.detectors.timm_weights import build
from stages.params.detector import TIMM_ARCHITECTURE, TIMM_WEIGHTS, DetectorParams
from stages.params.regions import RegionsParams

GRID = RegionsParams(boxes="grid", grids=(1, 3), per_image=10, min_per_image=10)


def detector(
    folder: Path, architecture: str, weights: str = "random", image_size: int | None = None, earlier: tuple = ()
) -> Description:
    """What train_detector does."""
    folder.mkdir(parents=True, exist_ok=True)
    params = DetectorParams.from_dict({
        "backend": "timm", "architecture": architecture, "weights": weights,
        "timm": {"image_size": image_size, "earlier_maps": list(earlier)},
    })  # fmt: skip
    description = timm.resolve(params, folder, folder)
    description.save(folder)
    return description


def loaded(folder: Path, params: RegionsParams = GRID) -> timm.TimmExtractor:
    extractor = load_detector(folder, params)
    assert isinstance(extractor, timm.TimmExtractor)
    return extractor


def own_network(folder: Path) -> Any:
    """The network as timm has it, with the weights that train_detector has kept."""
    description = Description.load(folder)
    network = build(description.architecture, description.config["num_classes"], description.config["image_size"])
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return network


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default: the weights that the package ships."""
    folder = tmp_path_factory.mktemp("shipped")
    params = DetectorParams(backend="timm")
    assert (params.architecture, params.weights) == (TIMM_ARCHITECTURE, TIMM_WEIGHTS)
    timm.resolve(params, folder, folder).save(folder)
    return folder
