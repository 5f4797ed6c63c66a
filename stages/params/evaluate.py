"""The section `evaluate`: what is measured."""

from typing import Literal

from pydantic import Field

from stages.params.section import Device, Section, Split


class EvaluateParams(Section):
    """What is measured."""

    splits: tuple[Split, ...] = Field(default=("test",), min_length=1)
    """Splits to evaluate: train, val, test."""
    protocol: Literal["full", "coco_1k", "coco_5k"] = "full"
    """full, coco_1k (mean of five folds of 1,000 images) or coco_5k (the first 5,000 images)."""
    ensemble: tuple[str, ...] = ()
    """Checkpoint folders whose scores are averaged with the trained model's."""
    gate_pairs: int = Field(default=2000, ge=1)
    """Pairs of each kind that the gate means are taken over."""
    foils: int = Field(default=3000, ge=0)
    """Foils scored at most, as many of each kind as can be; 0: none."""
    precision: Literal["trained", "fp32", "tf32", "bf16", "fp16"] = "trained"
    """trained (that in which the model was trained and validated), fp32, tf32, bf16 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
