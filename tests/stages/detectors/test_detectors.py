"""What every detector that runs must do, whichever library it comes from."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.detectors import detectron2, timm, torchvision
from stages.detectors.base import Description, RegionExtractor, extract, load_detector
from stages.detectors.boxes import append_geometry, given_boxes
from stages.detectors.scenes import build_network
from stages.detectors.selection import select
from stages.detectors.two_stage import TwoStageExtractor
from stages.detectors.weights import save_state
from stages.errors import InputError
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams

PARAMS = RegionsParams(per_image=8, min_per_image=3, min_score=0.0, batch_size=2)
GRID = PARAMS.replace(boxes="grid", grids=[1, 2])
CONFIG = {"image_size": 96, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def scenes(folder: Path) -> None:
    torch.manual_seed(0)
    network = build_network(CONFIG, 3, 4)
    description = Description(
        "torchvision",
        "scenes",
        "test",
        save_state(network.state_dict(), folder),
        256,
        ["a", "b", "c"],
        list("wxyz"),
        CONFIG,
    )
    description.save(folder)


def mobilenet(folder: Path) -> None:
    params = DetectorParams(
        backend="torchvision", architecture="fasterrcnn_mobilenet_v3_large_320_fpn", weights="random"
    )
    torchvision.resolve(params, folder, folder).save(folder)


def shrink(folder: Path, architecture: str) -> None:
    """A detectron2 detector with random weights, at a size at which a CPU is quick."""
    if importlib.util.find_spec("detectron2") is None:
        pytest.skip(f"detectron2 is not installed; to run this: {detectron2.INSTALL}")
    params = DetectorParams(backend="detectron2", architecture=architecture, weights="random")
    description = detectron2.resolve(params, folder, folder)
    yaml = description.config["yaml"]
    for old, new in (
        ("MIN_SIZE_TEST: 800", "MIN_SIZE_TEST: 96"),
        ("MIN_SIZE_TEST: 600", "MIN_SIZE_TEST: 96"),
        ("POST_NMS_TOPK_TEST: 1000", "POST_NMS_TOPK_TEST: 12"),
        ("POST_NMS_TOPK_TEST: 300", "POST_NMS_TOPK_TEST: 12"),
    ):
        yaml = yaml.replace(old, new)
    replace(description, config={"yaml": yaml}).save(folder)


def grid_of(folder: Path, architecture: str) -> None:
    """One of timm's networks with random weights, at a size at which a CPU is quick."""
    options = {"image_size": 96 if "patch" not in architecture else 64}
    params = DetectorParams.from_dict({
        "backend": "timm", "architecture": architecture, "weights": "random", "timm": options,
    })  # fmt: skip
    timm.resolve(params, folder, folder).save(folder)


BACKENDS: dict[str, Callable[[Path], None]] = {
    "torchvision-scenes": scenes,
    "torchvision-mobilenet": mobilenet,
    "detectron2-c4": lambda folder: shrink(folder, "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml"),
    "detectron2-fpn": lambda folder: shrink(folder, "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"),
    "detectron2-visual-genome": lambda folder: shrink(folder, "visual_genome"),
    "timm-efficientnet": lambda folder: grid_of(folder, "tf_efficientnet_lite0"),
    "timm-vit": lambda folder: grid_of(folder, "vit_tiny_patch16_224"),
}


@pytest.fixture(scope="module", params=BACKENDS)
def extractor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RegionExtractor:
    folder = tmp_path_factory.mktemp("detector")
    BACKENDS[request.param](folder)
    loaded = load_detector(folder, GRID if request.param.startswith("timm") else PARAMS)
    assert isinstance(loaded, TwoStageExtractor | timm.TimmExtractor)
    return loaded


@pytest.fixture
def two_stage(extractor: RegionExtractor) -> TwoStageExtractor:
    """The extractor, where it finds boxes: what follows is of the two stages."""
    if not isinstance(extractor, TwoStageExtractor):
        pytest.skip("a grid is not found: tests/stages/detectors/test_timm.py has what holds for it")
    return extractor


def picture(width: int, height: int, seed: int) -> np.ndarray:
    """Coloured rectangles on a gradient."""
    rng = np.random.default_rng(seed)
    image = np.linspace(0, 120, width, dtype=np.float32)[None, :, None] * np.ones((height, 1, 3), dtype=np.float32)
    for _ in range(6):
        x, y = int(rng.integers(width * 3 // 4)), int(rng.integers(height * 3 // 4))
        image[y : y + height // 4, x : x + width // 4] = rng.integers(0, 255, 3)
    return image.astype(np.uint8)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return [
        picture(400, 300, 0),
        picture(300, 400, 1),
        picture(400, 300, 2),
        picture(401, 299, 3),
        picture(400, 300, 4),
    ]


def test_boxes_lie_inside_the_original_image(extractor: RegionExtractor, pictures: list[np.ndarray]) -> None:
    found = extract(extractor, pictures)
    for image, regions in zip(pictures, found, strict=True):
        height, width = image.shape[:2]
        assert (regions.width, regions.height) == (width, height)
        assert PARAMS.min_per_image <= len(regions.boxes) <= PARAMS.per_image
        assert (regions.boxes >= 0).all() and (regions.boxes <= [width, height, width, height]).all()
        assert (regions.boxes[:, 2:] > regions.boxes[:, :2]).all()
        if isinstance(extractor, TwoStageExtractor):
            assert (np.diff(regions.scores) <= 0).all(), "most confident first"
    furthest = max(float(regions.boxes.max()) for regions in found)
    assert furthest > 200, "boxes are in pixels of the original image, not of the network's input"


def test_boxes_follow_the_size_of_the_picture(extractor: RegionExtractor) -> None:
    small = picture(200, 150, 5)
    large = np.repeat(np.repeat(small, 2, axis=0), 2, axis=1)
    box = np.array([[20, 30, 120, 110]], dtype=np.float32)
    one, two = (extract(extractor, [image], [box * scale])[0] for image, scale in ((small, 1), (large, 2)))
    np.testing.assert_allclose(two.boxes, 2 * one.boxes, rtol=1e-4)
    # The same place of the same picture: nearly the same feature, were it not for resizing.
    cosine = (one.features * two.features).sum() / np.linalg.norm(one.features) / np.linalg.norm(two.features)
    assert cosine > 0.95


def test_stored_features_are_what_the_predictor_saw(two_stage: TwoStageExtractor, pictures: list[np.ndarray]) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    predict = two_stage.predict

    def spy(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, deltas = predict(features)
        seen.append((features, logits))
        return logits, deltas

    two_stage.predict = spy  # type: ignore[method-assign]
    try:
        (regions,) = extract(two_stage, pictures[:1])
    finally:
        two_stage.predict = predict  # type: ignore[method-assign]
    features, logits = seen[-1]
    rows = [int((features == torch.from_numpy(row)).all(dim=1).nonzero()[0, 0]) for row in regions.features]
    stored = regions.features.astype(np.float16).astype(np.float32)
    assert np.isfinite(stored).all() and stored.shape[1] == two_stage.region_dim
    np.testing.assert_allclose(two_stage.box_logits(stored), logits[rows], atol=2e-3 * max(float(logits.std()), 1))
    own = two_stage.probabilities(logits[rows])
    np.testing.assert_allclose(own.max(dim=1).values, regions.scores, atol=1e-6)
    assert own.argmax(dim=1).tolist() == regions.classes.tolist()
    if two_stage.attributes:
        assert (regions.attributes >= 0).all() and (regions.attributes < len(two_stage.attributes)).all()
        assert (regions.attribute_scores > 0).all()


def test_features_are_those_of_the_final_boxes(two_stage: TwoStageExtractor, pictures: list[np.ndarray]) -> None:
    (found,) = extract(two_stage, pictures[:1])
    (again,) = extract(two_stage, pictures[:1], [found.boxes])
    np.testing.assert_allclose(again.boxes, found.boxes, atol=1e-2)
    scale = np.abs(found.features).max()
    np.testing.assert_allclose(again.features, found.features, atol=2e-3 * scale)


def test_the_batch_changes_nothing_beyond_float16(extractor: RegionExtractor, pictures: list[np.ndarray]) -> None:
    alone = [extract(extractor, [image])[0] for image in pictures]
    together = extract(extractor, pictures, batch_size=4)
    for one, other in zip(alone, together, strict=True):
        scale = np.abs(one.features).max()
        np.testing.assert_allclose(other.features, one.features, atol=scale * 2**-11)
        np.testing.assert_allclose(other.boxes, one.boxes, atol=0.1)
        assert other.classes.tolist() == one.classes.tolist()


def test_extraction_is_deterministic(extractor: RegionExtractor, pictures: list[np.ndarray]) -> None:
    for one, other in zip(extract(extractor, pictures[:3]), extract(extractor, pictures[:3]), strict=True):
        np.testing.assert_array_equal(one.features, other.features)
        np.testing.assert_array_equal(one.boxes, other.boxes)


def test_given_boxes_keep_their_order(extractor: RegionExtractor, pictures: list[np.ndarray]) -> None:
    boxes = np.array([[10, 10, 60, 90], [100, 50, 390, 290], [5, 200, 50, 260]], dtype=np.float32)
    forth, back = (extract(extractor, pictures[:1], [order])[0] for order in (boxes, boxes[::-1]))
    np.testing.assert_allclose(forth.boxes, boxes, atol=1e-3)
    np.testing.assert_allclose(back.features[::-1], forth.features, atol=np.abs(forth.features).max() * 2**-11)


def test_real_photographs_and_the_boxes_people_drew(extractor: RegionExtractor, coco_mini: Path) -> None:
    annotations = json.loads((coco_mini / "annotations/instances_val2017.json").read_text())
    drawn: dict[int, list[list[float]]] = {}
    for annotation in annotations["annotations"]:
        x, y, width, height = annotation["bbox"]
        drawn.setdefault(annotation["image_id"], []).append([x, y, x + width, y + height])
    chosen = [image for image in annotations["images"] if image["id"] in drawn][:3]
    photographs = [
        np.asarray(Image.open(coco_mini / "val2017" / image["file_name"]).convert("RGB")) for image in chosen
    ]
    boxes = [
        given_boxes(np.array(drawn[image["id"]], dtype=np.float32), image["width"], image["height"], 8)
        for image in chosen
    ]
    for regions, own, photograph in zip(extract(extractor, photographs, boxes), boxes, photographs, strict=True):
        np.testing.assert_allclose(regions.boxes, own, atol=0.01)
        assert (regions.height, regions.width) == photograph.shape[:2]
        assert np.isfinite(regions.features.astype(np.float16)).all()
    for regions in extract(extractor, photographs):
        assert (regions.boxes[:, 2:] > regions.boxes[:, :2]).all()
        assert (regions.boxes <= [regions.width, regions.height] * 2).all()


def test_selection_is_fixed_or_adaptive_and_suppresses_within_a_class() -> None:
    corners = [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9.5], [20, 20, 30, 30], [40, 40, 50, 50], [0, 0, 9, 10]]
    boxes, scores = torch.tensor(corners).float(), torch.tensor([0.9, 0.8, 0.7, 0.25, 0.1, 0.85])
    classes = torch.tensor([0, 0, 1, 1, 2, 0])

    def kept(low: int, high: int) -> list[int]:
        params = RegionsParams(per_image=high, min_per_image=low, min_score=0.25)
        return select(boxes, scores, classes, params, 0.5).tolist()

    assert kept(1, 6) == [0, 2, 3], "boxes 1 and 5 are of box 0's class, box 4 is not confident"
    assert kept(1, 2) == [0, 2]
    assert kept(4, 6) == [0, 2, 3, 4]
    assert kept(5, 5) == [0, 5, 2, 3, 4], "the best that NMS suppressed fills up, in its place by confidence"
    assert kept(9, 9) == [0, 5, 1, 2, 3, 4], "never more than there are"


def test_given_boxes_of_a_dataset_are_made_fit() -> None:
    boxes = np.array([[-5, -5, 20, 20], [30, 30, 30.5, 60], [0, 0, 500, 500], [10, 10, 15, 15]], dtype=np.float32)
    assert given_boxes(boxes, 100, 80, 9).tolist() == [[0, 0, 20, 20], [0, 0, 100, 80], [10, 10, 15, 15]]
    assert given_boxes(boxes, 100, 80, 2).tolist() == [[0, 0, 20, 20], [0, 0, 100, 80]], "the largest, in their order"
    assert given_boxes(np.zeros((0, 4)), 100, 80, 2).tolist() == [[0, 0, 100, 80]]
    thin = np.array([[50, 50, 51, 60], [99.5, 0, 120, 80]], dtype=np.float32)
    assert given_boxes(thin, 100, 80, 2).tolist() == [[50, 50, 51, 60]], "a pixel is enough, once clipped"


def test_geometry_is_the_box_as_shares_of_the_image(extractor: RegionExtractor, pictures: list[np.ndarray]) -> None:
    box = np.array([[100, 30, 300, 225]], dtype=np.float32)  # of 400 by 300
    (regions,) = extract(extractor, pictures[:1], [box])
    with_box = append_geometry(regions).features[0]
    np.testing.assert_array_equal(with_box[:-5], regions.features[0])
    np.testing.assert_allclose(with_box[-5:], 4 * np.array([-0.5, -0.8, 0.5, 0.5, 0.5 * 0.65]), rtol=1e-4)


def test_other_weights_or_a_damaged_description_are_refused(tmp_path: Path) -> None:
    scenes(tmp_path)
    description = Description.load(tmp_path)
    assert description.fingerprint != replace(description, weights_sha256="0").fingerprint
    assert description.fingerprint == replace(description, weights_source="elsewhere").fingerprint
    replace(description, weights_sha256="0" * 64).save(tmp_path)
    with pytest.raises(InputError, match=r"weights\.safetensors: is not the file that .*detector\.json describes"):
        load_detector(tmp_path, PARAMS)
    for content, says in (("{", "is not JSON"), ("{}", "is no description"), ("[]", "holds list")):
        (tmp_path / "detector.json").write_text(content)
        with pytest.raises(InputError, match=rf"detector\.json: {says}"):
            load_detector(tmp_path, PARAMS)
    with pytest.raises(InputError, match=r"detector\.json: cannot be read"):
        load_detector(tmp_path / "nowhere", PARAMS)


def test_an_unknown_builder_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"detector\.architecture: 'resnet' .*fasterrcnn_resnet50_fpn_v2"):
        torchvision.resolve(
            DetectorParams(backend="torchvision", architecture="resnet", weights="random"), tmp_path, tmp_path
        )
