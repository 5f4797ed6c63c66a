"""The section `evaluate`: what is measured."""

from dataclasses import dataclass

from stages.errors import InputError
from stages.params.checks import at_least, choose
from stages.params.dataset import SPLITS


@dataclass(frozen=True)
class EvaluateParams:
    """What is measured."""

    splits: tuple[str, ...] = ("test",)
    """Splits to evaluate: val, test."""
    protocol: str = "full"
    """full, coco_1k (mean of five folds of 1,000 images) or coco_5k (the first 5,000 images)."""
    ensemble: tuple[str, ...] = ()
    """Checkpoint folders whose scores are averaged with the trained model's."""
    gate_pairs: int = 2000
    """Pairs of each kind that the gate means are taken over."""
    foils: int = 3000
    """Foils scored at most, as many of each kind as can be; 0: none."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""

    def __post_init__(self) -> None:
        for split in self.splits:
            choose("evaluate", "splits", split, SPLITS)
        if not self.splits:
            raise InputError("evaluate.splits: is empty; expected some of train, val, test")
        choose("evaluate", "protocol", self.protocol, ("full", "coco_1k", "coco_5k"))
        at_least("evaluate", self, gate_pairs=1, foils=0)
