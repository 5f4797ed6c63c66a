"""Grid features of timm's networks: against timm's own forward, plain loops and torchvision's RoIAlign."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm as library
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.ops import roi_align

from stages.detectors.base import Description, extract, load_detector
from stages.detectors.grid import cell_boxes, cell_shares
from stages.errors import InputError
from stages.params.regions import RegionsParams
from tests.stages.detectors.timm_detectors import GRID, detector, loaded, own_network, picture, shipped

__all__ = ["shipped"]  # a fixture
FAMILIES = {
    "resnet18": 64,
    "tf_efficientnet_lite0": 64,
    "convnext_atto": 64,
    "swin_tiny_patch4_window7_224": 64,
    "vit_tiny_patch16_224": 96,
    "vit_small_patch14_dinov2": 70,
    "deit_tiny_distilled_patch16_224": 64,
    "vit_xsmall_patch16_clip_224": 64,
    "resnet50_clip": 64,
    "vit_base_patch16_siglip_224": 64,
}
"""Model -> side of its input: a class token, two, none, tokens, maps of either layout."""


def own_map(folder: Path, image: np.ndarray) -> torch.Tensor:
    """timm's own answer, [C, h, w]: its transform without the crop, its forward, its own way to a map."""
    description, network = Description.load(folder), own_network(folder)
    config = description.config
    transform = library.data.create_transform(
        (3, *config["input_size"]), mean=config["mean"], std=config["std"], interpolation=config["interpolation"],
        crop_pct=1.0, crop_mode="squash",
    )  # fmt: skip
    pixels = transform(Image.fromarray(image))[None]
    with torch.inference_mode():
        output = network.forward_features(pixels)
        if output.ndim == 3:
            maps = network.forward_intermediates(pixels, indices=1, norm=True, intermediates_only=True)[0]
            prefix = network.num_prefix_tokens
            side = math.isqrt(output.shape[1] - prefix)
            tokens = output[0, prefix:].reshape(side, side, -1).permute(2, 0, 1)
            if maps.shape[1:] == tokens.shape:
                torch.testing.assert_close(tokens, maps[0], atol=1e-5, rtol=1e-4)
            return tokens
    nhwc = "swin" in description.architecture
    return output[0].permute(2, 0, 1) if nhwc else output[0]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_cells_are_means_of_timms_own_map(architecture: str, tmp_path: Path) -> None:
    description = detector(tmp_path, architecture, image_size=FAMILIES[architecture])
    extractor, image = loaded(tmp_path), picture(200, 120)
    (regions,) = extract(extractor, [image])
    wanted = own_map(tmp_path, image)
    channels, height, width = wanted.shape
    assert description.region_dim == channels == regions.features.shape[1]
    cells = [wanted.mean(dim=(1, 2))]
    for row in range(3):
        for column in range(3):
            rows = slice(row * height // 3, -(-(row + 1) * height // 3))
            columns = slice(column * width // 3, -(-(column + 1) * width // 3))
            cells.append(wanted[:, rows, columns].mean(dim=(1, 2)))
    assert wanted.std() > 0
    scale = float(wanted.abs().max())
    np.testing.assert_allclose(regions.features, torch.stack(cells).numpy(), atol=2e-4 * scale)


@pytest.mark.parametrize("architecture", ["resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_earlier_maps_stand_behind_the_last_one(architecture: str, tmp_path: Path) -> None:
    """In the order in which they are asked for, each averaged over the same cells; boxes and classes stay."""
    image, size = picture(200, 120), FAMILIES[architecture]
    detector(tmp_path / "last", architecture, image_size=size)
    detector(tmp_path / "more", architecture, image_size=size, earlier=(2, 1))
    shutil.copy(tmp_path / "last" / "weights.safetensors", tmp_path / "more")
    alone = loaded(tmp_path / "last")
    description = Description.load(tmp_path / "more")
    description = replace(description, weights_sha256=alone.description.weights_sha256)
    description.save(tmp_path / "more")
    extractor = loaded(tmp_path / "more")
    (last,), (regions,) = extract(alone, [image]), extract(extractor, [image])
    pixels = extractor.prepare(image).pixels[None]
    images = (pixels / 255 - extractor.mean) / extractor.std
    with torch.inference_mode():
        maps = own_network(tmp_path / "more").forward_intermediates(
            images, indices=[1, 2], intermediates_only=True, output_fmt="NCHW"
        )
    wanted = [last.features]
    for one in (maps[1], maps[0]):
        cells = [adaptive_avg_pool2d(one, side).flatten(2)[0].T for side in GRID.grids]
        wanted.append(torch.cat(cells).numpy())
    wanted_features = np.concatenate(wanted, axis=1)
    assert regions.features.shape == wanted_features.shape == (10, description.region_dim)
    np.testing.assert_allclose(regions.features, wanted_features, atol=2e-4 * float(np.abs(wanted_features).max()))
    np.testing.assert_array_equal(regions.boxes, last.boxes)
    np.testing.assert_array_equal(regions.classes, last.classes)
    np.testing.assert_allclose(extractor.box_logits(regions.features), alone.box_logits(last.features), atol=1e-4)
    boxes = np.array([[20.0, 10.0, 90.0, 100.0]], np.float32)
    aligned = extract(extractor, [image], [boxes])[0]
    assert aligned.features.shape == (1, description.region_dim)
    np.testing.assert_allclose(
        aligned.features[0, : last.features.shape[1]], extract(alone, [image], [boxes])[0].features[0], atol=1e-4
    )


def test_networks_that_stop_behind_the_last_map_asked_for_go_on_to_their_own(tmp_path: Path) -> None:
    description = detector(tmp_path, "hiera_tiny_224", earlier=(0,))
    assert description.region_dim == 768 + 96


def test_an_earlier_map_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"detector\.timm\.earlier_maps: 'resnet18' has 5 maps, counted from 0.*asks for 7"
    ):
        detector(tmp_path, "resnet18", image_size=64, earlier=(7,))


def test_memory_that_is_too_small_for_the_size_is_not_the_earlier_maps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 120000000000 bytes")

    monkeypatch.setattr("stages.detectors.timm.all_maps", refuse)
    with pytest.raises(InputError, match=r"detector\.timm\.image_size: 'resnet18' .*tried to allocate"):
        detector(tmp_path, "resnet18", image_size=64, earlier=(1,))


@pytest.mark.parametrize("architecture", ["resnet18", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_what_is_in_a_corner_of_the_picture_is_in_its_cell(architecture: str, tmp_path: Path) -> None:
    """Rows and columns are not exchanged on the way: a change in a corner is strongest in the cell of that corner."""
    detector(tmp_path, architecture)
    extractor = loaded(tmp_path, RegionsParams(boxes="grid", grids=(3,), per_image=9, min_per_image=9))
    plain = np.full((90, 150, 3), 128, np.uint8)
    changed = plain.copy()
    changed[66:, :30] = picture(30, 24, 3)
    before, after = extract(extractor, [plain, changed])
    moved = np.linalg.norm(after.features - before.features, axis=1)
    assert moved.argmax() == 6, "the cell of the lower left corner"
    assert before.boxes[6].tolist() == [0, 60, 50, 90]


def test_given_boxes_are_what_roi_align_says(tmp_path: Path) -> None:
    detector(tmp_path, "resnet18", image_size=96)
    extractor, image = loaded(tmp_path, GRID.replace(boxes="given")), picture(200, 120)
    boxes = np.array([[0, 0, 200, 120], [10, 20, 90, 100], [150, 5, 199, 60]], np.float32)
    (regions,) = extract(extractor, [image], [boxes])
    wanted = own_map(tmp_path, image)
    scaled = torch.from_numpy(boxes * np.array([96 / 200, 96 / 120] * 2, np.float32))
    aligned = roi_align(wanted[None], [scaled], 7, spatial_scale=3 / 96, aligned=True).mean(dim=(2, 3))
    np.testing.assert_allclose(regions.features, aligned.numpy(), atol=1e-4 * float(aligned.abs().max()))
    np.testing.assert_array_equal(regions.boxes, boxes)
    two = extract(extractor, [image, picture(60, 70)], [boxes[:1], np.array([[-9, -9, 30, 90]], np.float32)])
    np.testing.assert_allclose(two[0].features, regions.features[:1], atol=1e-4 * float(aligned.abs().max()))
    assert two[1].boxes.tolist() == [[0, 0, 30, 70]], "clipped to the picture"


@pytest.mark.parametrize(("grids", "size"), [((6,), (9, 9)), ((1, 2, 6), (7, 7)), ((3,), (2, 2)), ((4, 1), (5, 8))])
def test_shares_are_adaptive_average_pooling(grids: tuple[int, ...], size: tuple[int, int]) -> None:
    places = torch.rand(3, *size)
    wanted = [torch.nn.functional.adaptive_avg_pool2d(places, side).flatten(1) for side in grids]
    torch.testing.assert_close(cell_shares(grids, *size) @ places.flatten(1).T, torch.cat(wanted, dim=1).T)


def test_boxes_of_cells_cover_the_picture_once() -> None:
    boxes = cell_boxes((1, 2), 301, 200)
    assert boxes.tolist() == [
        [0, 0, 301, 200], [0, 0, 150.5, 100], [150.5, 0, 301, 100], [0, 100, 150.5, 200], [150.5, 100, 301, 200],
    ]  # fmt: skip
    six = cell_boxes((6,), 500, 375)
    sides = six[:, 2:] - six[:, :2]
    assert len(six) == 36 and six.max(axis=0).tolist() == [six[35][0], six[35][1], 500, 375]
    np.testing.assert_allclose(sides.prod(axis=1).sum(), 500 * 375, rtol=1e-6)


def test_what_a_backend_cannot_give_is_an_error_that_names_the_key(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"params\.yaml: regions\.boxes: detected .* expected grid or given"):
        load_detector(shipped, RegionsParams())
    replace(Description.load(shipped), backend="torchvision").save(tmp_path)
    with pytest.raises(InputError, match=r"regions\.boxes: grid needs .* not torchvision; expected detected or given"):
        load_detector(tmp_path, GRID)


def test_cells_fit_the_numbers_of_regions() -> None:
    for values, says in (
        ({"grids": [1, 2, 6]}, r"regions\.per_image: 36 does not fit the 41 cells"),
        ({"grids": [2]}, r"regions\.min_per_image: 36 does not fit the 4 cells"),
        ({"grids": []}, r"grids: is empty"),
        ({"grids": [0]}, r"grids\[0\]: 0 is below 1"),
        ({"grids": [2.5]}, r"grids\[0\]: 2\.5 is not a whole number"),
    ):
        with pytest.raises(InputError, match=says):
            RegionsParams.from_dict({"boxes": "grid"} | values)
    assert RegionsParams.from_dict({"grids": [2]}).boxes == "detected", "only what is read is held against each other"
    assert RegionsParams.from_dict({"boxes": "grid", "grids": [1, 2, 6], "per_image": 41}).cells == 41
