"""The section `detector`: what finds the regions, and where its weights come from."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Section, Share

Backend = Literal["torchvision", "detectron2", "precomputed"]
"""A module of stages/detectors each, and what it alone needs to know a section of the same name below."""


class DetectorTrainParams(Section):
    """How the small detector of the embedded scenes is trained."""

    steps: int = Field(default=1500, ge=1)
    """Number of optimizer steps."""
    batch_size: int = Field(default=8, ge=1)
    """Images per optimizer step."""
    learning_rate: float = Field(default=0.002, ge=0)
    """Highest learning rate of its schedule."""
    seed: int = Field(default=0, ge=0)
    """Seed of the first weights and of the order of the images."""


class TorchvisionParams(Section):
    """How torchvision's networks give boxes."""

    nms_iou: Share = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""


class Detectron2Params(Section):
    """How detectron2's networks give boxes."""

    nms_iou: Share = 0.5
    """Overlap (intersection over union) above which the lower-scoring box of a class is dropped."""


class DetectorParams(Section):
    """Which detector finds the regions and where its weights come from."""

    backend: Backend = "torchvision"
    """torchvision, detectron2 or precomputed."""
    architecture: str = "scenes"
    """`scenes` (small, trained here), a builder of torchvision.models.detection, a detectron2 config (a name of
    its model zoo, `visual_genome`, or a file), or the form of precomputed features (scan, tsv, npz)."""
    weights: str = "train"
    """train (only `scenes`), default (what the architecture's own library publishes), random, a file or a URL;
    for `precomputed`, the folder or file that holds the features."""
    train: DetectorTrainParams = DetectorTrainParams()
    torchvision: TorchvisionParams = TorchvisionParams()
    detectron2: Detectron2Params = Detectron2Params()

    def options(self, backend: str) -> dict[str, Any]:
        """What a backend alone needs to know, as plain values; empty where it needs nothing."""
        return getattr(self, backend).to_dict() if backend in type(self).model_fields else {}

    @model_validator(mode="after")
    def _trainable(self) -> Self:
        if self.weights == "train" and (self.backend, self.architecture) != ("torchvision", "scenes"):
            raise ValueError(
                "detector.weights: train is only for detector.architecture scenes with detector.backend torchvision; "
                "expected default, random, a file or a URL"
            )
        return self
