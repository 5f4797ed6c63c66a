"""Detectron2: any two-stage config from its model zoo or a file, and the Visual Genome detector."""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from stages.contracts import read_lines
from stages.detectors import visual_genome
from stages.detectors.base import Description
from stages.detectors.detectron2_weights import matched_names, named_weights
from stages.detectors.two_stage import Sizes, TwoStageExtractor
from stages.detectors.weights import calm, fit, load_saved, save_state
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams
from stages.params.regions import RegionsParams
from stages.workspace import named_path

COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"
INSTALL = (
    "pip install -e '.[pipeline,detectron2]' setuptools wheel && pip install --no-build-isolation --no-deps "
    f"'git+https://github.com/facebookresearch/detectron2.git@{COMMIT}'"
)
NEEDED = ("detectron2.model_zoo", "detectron2.modeling", "detectron2.checkpoint.c2_model_loading", "detectron2.data")


def _require() -> None:
    """Raise an InputError with the installation command if detectron2 or a module that it needs is missing."""
    try:
        for module in NEEDED:
            importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"params.yaml: detector.backend: detectron2 is chosen but not installed, or lacks what it needs "
            f"({str(error)[:200]}; it is on no package index); install it with: {INSTALL}"
        ) from None


def read_config(architecture: str) -> Any:
    """The detectron2 config that `detector.architecture` names.

    Raises:
        InputError: neither `visual_genome`, nor a config of the model zoo, nor a file that detectron2 can read.
    """
    from detectron2.config import get_cfg
    from detectron2.model_zoo import get_config

    config = get_cfg()
    if architecture == visual_genome.NAME:
        config.merge_from_list(visual_genome.OPTIONS)
        return config
    try:
        if named_path(architecture).is_file():
            # By default detectron2 runs code that a config file names.
            config.merge_from_file(str(named_path(architecture)), allow_unsafe=False)
            return config
        config = get_config(architecture)
    except Exception as error:  # any YAML may be merged into a config of any shape
        raise InputError(
            f"params.yaml: detector.architecture: {shown(architecture)} is not {visual_genome.NAME}, a file, or a "
            f"config of detectron2's model zoo such as COCO-Detection/faster_rcnn_R_50_C4_3x.yaml ({str(error)[:300]})"
        ) from None
    if not hasattr(config, "MODEL"):
        raise InputError(
            f"params.yaml: detector.architecture: {shown(architecture)} is a lazy config; expected a YAML one"
        )
    return config


def build(config: Any, architecture: str) -> Any:
    """Build the model on CPU, with its initial parameters.

    Raises:
        InputError: it cannot be built, proposes no regions, or has no second stage that describes one region with one
            vector.
    """
    from detectron2.modeling import build_model
    from detectron2.modeling.proposal_generator.rpn import RPN
    from detectron2.modeling.proposal_generator.rrpn import RRPN

    config = config.clone()
    config.MODEL.DEVICE = "cpu"
    key = f"params.yaml: detector.architecture: {shown(architecture)}"
    try:
        model = build_model(config)
    except Exception as error:  # a config may name anything
        raise InputError(f"{key} cannot be built ({type(error).__name__}: {str(error)[:300]})") from None
    heads = getattr(model, "roi_heads", None)
    if heads is None or not (hasattr(heads, "res5") or isinstance(getattr(heads, "box_head", None), nn.Sequential)):
        raise InputError(f"{key} is no Faster R-CNN or Mask R-CNN with one box head")
    proposals = getattr(model, "proposal_generator", None)
    if not isinstance(proposals, RPN) or isinstance(proposals, RRPN):
        raise InputError(
            f"{key} has no proposals of its own as upright boxes (MODEL.PROPOSAL_GENERATOR.NAME: "
            f"{config.MODEL.PROPOSAL_GENERATOR.NAME}), as a Fast R-CNN; expected a Faster R-CNN or Mask R-CNN with RPN"
        )
    return visual_genome.adapt(model) if architecture == visual_genome.NAME else model


class Detectron2Extractor(TwoStageExtractor):
    """Runs the two stages of a GeneralizedRCNN one by one: C4 (res5, mean-pooled) or FPN (fc of the box head)."""

    def __init__(
        self, model: Any, config: Any, description: Description, params: RegionsParams, device: str, nms_iou: float
    ) -> None:
        from detectron2.data.transforms import ResizeShortestEdge

        super().__init__(description, params, device, nms_iou)
        self.model = model.to(self.device).eval()
        self.heads = model.roi_heads
        self.predictor = self.heads.box_predictor
        self.size_divisor = model.backbone.size_divisibility or 1
        self.output_size = partial(
            ResizeShortestEdge.get_output_shape,
            short_edge_length=config.INPUT.MIN_SIZE_TEST,
            max_size=config.INPUT.MAX_SIZE_TEST,
        )
        self.bgr = config.INPUT.FORMAT == "BGR"

    def resize(self, image: np.ndarray) -> torch.Tensor:
        height, width = self.output_size(*image.shape[:2])
        resized = Image.fromarray(image).resize((max(width, 1), max(height, 1)), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        ordered = pixels.flip(0) if self.bgr else pixels
        scaled: torch.Tensor = (ordered.float() - self.model.pixel_mean) / self.model.pixel_std
        return scaled

    def maps(self, images: torch.Tensor) -> Any:
        return self.model.backbone(images)

    def proposals(self, images: torch.Tensor, maps: Any, sizes: Sizes) -> list[torch.Tensor]:
        from detectron2.structures import ImageList

        proposals, _ = self.model.proposal_generator(ImageList(images, sizes), maps, None)
        return [item.proposal_boxes.tensor for item in proposals]

    def pool(self, maps: Any, boxes: list[torch.Tensor], sizes: Sizes) -> torch.Tensor:
        from detectron2.structures import Boxes

        inputs = [maps[name] for name in self.heads.in_features]
        regions = [Boxes(item) for item in boxes]
        if hasattr(self.heads, "res5"):
            features: torch.Tensor = self.heads.res5(self.heads.pooler(inputs, regions)).mean(dim=(2, 3))
        else:
            features = self.heads.box_head(self.heads.box_pooler(inputs, regions))
        return features

    def predict(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits, deltas = self.predictor(features)
        return logits, deltas

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        # detectron2's last class is the background
        return (logits.sigmoid() if self.predictor.use_sigmoid_ce else logits.softmax(dim=1))[:, :-1]

    def decode(self, deltas: torch.Tensor, boxes: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        per_class = deltas.reshape(len(deltas), -1, 4)
        column = classes if per_class.shape[1] > 1 else torch.zeros_like(classes)
        of_class = per_class[torch.arange(len(deltas), device=self.device), column]
        moved: torch.Tensor = self.predictor.box2box_transform.apply_deltas(of_class, boxes)
        return moved

    def attribute_probabilities(self, features: torch.Tensor, classes: torch.Tensor) -> torch.Tensor | None:
        if not self.attributes:
            return None
        return visual_genome.attribute_probabilities(self.predictor, features, classes)


def _names(path: Path | None, file: str, count: int, kind: str) -> list[str]:
    """Names of classes or attributes from a vocabulary beside the weights (one per line); numbered if there is none."""
    vocabulary = path.parent / file if path is not None else None
    if vocabulary is None or not vocabulary.is_file():
        return [f"{kind} {i}" for i in range(count)]
    names = [line.split(",")[0].strip() for line in read_lines(vocabulary)]
    if len(names) != count:
        raise InputError(f"{vocabulary}: names {len(names)} things; the detector knows {count}")
    return names


def _categories(config: Any, architecture: str, path: Path | None) -> list[str]:
    from detectron2.data import MetadataCatalog

    count: int = config.MODEL.ROI_HEADS.NUM_CLASSES
    if architecture != visual_genome.NAME and config.DATASETS.TEST:
        names = list(MetadataCatalog.get(config.DATASETS.TEST[0]).get("thing_classes", []))
        if len(names) == count:
            return names
    return _names(path, "objects_vocab.txt", count, "class")


def resolve(params: DetectorParams, out: Path, dataset: Path) -> Description:
    """Write the weights that `params` names to `out`, and describe the detector.

    Raises:
        InputError: detectron2 is not installed, or the config or the weights cannot be obtained or do not fit.
    """
    _require()
    config = read_config(params.architecture)
    state, source, path = named_weights(params)
    with torch.random.fork_rng():
        torch.manual_seed(params.train.seed)
        model = build(config, params.architecture)
    if state is None:
        calm(model)
    else:
        fit(model, matched_names(model, state, source), source)
    attributes = []
    if params.architecture == visual_genome.NAME:
        attributes = _names(path, "attributes_vocab.txt", visual_genome.NUM_ATTRIBUTES, "attribute")
    return Description(
        backend="detectron2",
        architecture=params.architecture,
        weights_source=source,
        weights_sha256=save_state(model.state_dict(), out),
        region_dim=model.roi_heads.box_predictor.cls_score.in_features,
        categories=_categories(config, params.architecture, path),
        attributes=attributes,
        config={"yaml": config.dump()},
    )


def load(
    folder: Path, description: Description, params: RegionsParams, device: str, options: DetectorParams
) -> Detectron2Extractor:
    """Build the model that `description` describes, with the weights in `folder`."""
    _require()
    from detectron2.config import CfgNode, get_cfg

    config = get_cfg()
    config.merge_from_other_cfg(CfgNode.load_cfg(description.config["yaml"]))
    model = build(config, description.architecture)
    fit(model, load_saved(folder, description.weights_sha256), str(folder / "weights.safetensors"))
    return Detectron2Extractor(model, config, description, params, device, options.detectron2.nms_iou)
