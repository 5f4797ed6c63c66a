"""Torchvision's Faster R-CNN: any of its builders, and the small network trained on the embedded scenes."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.models import detection, get_model_weights
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList

from stages.detectors.base import Description
from stages.detectors.scenes import COARSE, build_network
from stages.detectors.two_stage import Sizes, TwoStageExtractor
from stages.detectors.weights import State, calm, fit, load_saved, load_state, locate, save_state
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams


def builders() -> list[str]:
    """Names of torchvision's Faster R-CNN builders."""
    return [name for name in detection.__dict__ if name.startswith("fasterrcnn_")]


class TorchvisionExtractor(TwoStageExtractor):
    """Runs the two stages of a FasterRCNN one by one."""

    size_divisor = 32

    def __init__(
        self, network: FasterRCNN, description: Description, params: RegionsParams, device: str, nms_iou: float
    ) -> None:
        super().__init__(description, params, device, nms_iou)
        self.network = network.to(self.device).eval()
        transform = network.transform
        self.size_divisor = transform.size_divisible
        self.shortest, self.longest = transform.min_size[-1], transform.max_size
        self.mean = torch.tensor(transform.image_mean, device=self.device)[:, None, None]
        self.std = torch.tensor(transform.image_std, device=self.device)[:, None, None]

    def resize(self, image: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        height, width = image.shape[:2]
        scale = min(self.shortest / min(height, width), self.longest / max(height, width))
        size = (max(int(height * scale), 1), max(int(width * scale), 1))
        if size == (height, width):
            return pixels
        resized = torch.nn.functional.interpolate(pixels[None].float(), size=size, mode="bilinear")[0]
        return resized.round_().to(torch.uint8)

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels.float() / 255 - self.mean) / self.std

    def maps(self, images: torch.Tensor) -> Any:
        maps = self.network.backbone(images)
        return {"0": maps} if isinstance(maps, torch.Tensor) else maps

    def proposals(self, images: torch.Tensor, maps: Any, sizes: Sizes) -> list[torch.Tensor]:
        # The scenes' backbone has one map only for describing regions; other networks' RPNs search every map.
        searched = {COARSE: maps[COARSE]} if COARSE in maps else maps
        boxes, _ = self.network.rpn(ImageList(images, sizes), searched)
        return list(boxes)

    def pool(self, maps: Any, boxes: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        heads = self.network.roi_heads
        features: torch.Tensor = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
        return features

    def predict(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, deltas = self.network.roi_heads.box_predictor(features)
        return logits, deltas

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(dim=1)[:, 1:]  # torchvision's class 0 is the background

    def decode(self, deltas: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        of_class = deltas.reshape(len(deltas), -1, 4)[torch.arange(len(deltas), device=self.device), classes + 1]
        moved: torch.Tensor = self.network.roi_heads.box_coder.decode_single(of_class, boxes)
        return moved

    def attribute_probabilities(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor | None:
        if not self.attributes:
            return None
        probabilities: torch.Tensor = self.network.roi_heads.box_predictor.attributes(features).sigmoid()
        return probabilities


def _published_categories(architecture: str, count: int) -> list[str]:
    """Names of the classes except the background: COCO's if their number is right, else numbered."""
    names = get_model_weights(architecture).DEFAULT.meta["categories"][1:]
    return names if len(names) == count else [f"class {i}" for i in range(count)]


def _state(params: DetectorParams) -> tuple[State, str, int]:
    """Return the weights that `params` names, a label for them, and their number of classes with the background."""
    build = getattr(detection, params.architecture)
    if params.weights == "random":
        with torch.random.fork_rng():
            torch.manual_seed(params.train.seed)
            network = build(weights=None, weights_backbone=None)
        calm(network)
        return (
            network.state_dict(),
            f"random, seed {params.train.seed}",
            network.roi_heads.box_predictor.cls_score.out_features,
        )
    source = params.weights
    if source == "default":
        source = get_model_weights(params.architecture).DEFAULT.url
    state = load_state(locate(source))
    name = "roi_heads.box_predictor.cls_score.weight"
    if name not in state:
        raise InputError(f"{source}: {name}: is missing; expected weights of torchvision's {params.architecture}")
    return state, source, len(state[name])


def resolve(params: DetectorParams, out: Path, dataset: Path) -> Description:
    """Write the weights of a torchvision builder to `out`, and describe the detector.

    Raises:
        InputError: there is no such builder, or its weights cannot be obtained or do not fit.
    """
    if params.architecture not in builders():
        raise InputError(
            f"params.yaml: detector.architecture: {shown(params.architecture)} is not one of "
            f"{', '.join(['scenes', *builders()])}" + _scenes_hint(params)
        )
    state, source, num_classes = _state(params)
    network = getattr(detection, params.architecture)(weights=None, weights_backbone=None, num_classes=num_classes)
    fit(network, state, source)
    return Description(
        backend="torchvision",
        architecture=params.architecture,
        weights_source=source,
        weights_sha256=save_state(network.state_dict(), out),
        region_dim=network.roi_heads.box_predictor.cls_score.in_features,
        categories=_published_categories(params.architecture, num_classes - 1),
    )


def _scenes_hint(params: DetectorParams) -> str:
    return " (scenes has no published weights: detector.weights: train)" if params.architecture == "scenes" else ""


def load(
    folder: Path, description: Description, params: RegionsParams, device: str, options: DetectorParams
) -> TorchvisionExtractor:
    """Build the network that `description` describes, with the weights in `folder`."""
    if description.architecture == "scenes":
        network = build_network(description.config, len(description.categories), len(description.attributes))
    else:
        build = getattr(detection, description.architecture)
        network = build(weights=None, weights_backbone=None, num_classes=len(description.categories) + 1)
    fit(network, load_saved(folder, description.weights_sha256), str(folder / "weights.safetensors"))
    return TorchvisionExtractor(network, description, params, device, options.torchvision.nms_iou)
