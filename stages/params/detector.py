"""The section `detector`: what finds the regions, and where its weights come from."""

from dataclasses import dataclass, field

from stages.errors import InputError
from stages.params.checks import at_least, choose


@dataclass(frozen=True)
class DetectorTrainParams:
    """How the small detector of the embedded scenes is trained."""

    steps: int = 1500
    """Number of optimizer steps."""
    batch_size: int = 8
    """Images per optimizer step."""
    learning_rate: float = 0.002
    """Highest learning rate of its schedule."""
    seed: int = 0
    """Seed of the first weights and of the order of the images."""

    def __post_init__(self) -> None:
        at_least("detector.train", self, steps=1, batch_size=1, learning_rate=0, seed=0)


@dataclass(frozen=True)
class DetectorParams:
    """Which detector finds the regions and where its weights come from."""

    backend: str = "torchvision"
    """torchvision, detectron2 or precomputed."""
    architecture: str = "scenes"
    """`scenes` (small, trained here), a builder of torchvision.models.detection, a detectron2 config (a name of
    its model zoo, `visual_genome`, or a file), or the form of precomputed features (scan, tsv, npz)."""
    weights: str = "train"
    """train (only `scenes`), default (what the architecture's own library publishes), random, a file or a URL;
    for `precomputed`, the folder or file that holds the features."""
    train: DetectorTrainParams = field(default_factory=DetectorTrainParams)

    def __post_init__(self) -> None:
        from stages.detectors import DETECTORS

        choose("detector", "backend", self.backend, tuple(DETECTORS))
        if self.weights == "train" and (self.backend, self.architecture) != ("torchvision", "scenes"):
            raise InputError(
                "detector.weights: train is only for detector.architecture scenes with detector.backend "
                "torchvision; expected default, random, a file or a URL"
            )
