"""The section `evaluate`: what is measured."""

import os
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from camp_model.config import CampConfig
from stages.params.section import TRAINED_MODEL, Device, Section, Split, check_no_output
from stages.workspace import named_path

COCO_FOLDS = {"coco_1k": (1000, 5), "coco_5k": (5000, 1), "coco": (5000, 1)}
"""Protocol -> images per fold, and number of folds; for `coco`, those of its 5K part."""


class EvaluateParams(Section):
    """What is measured."""

    splits: tuple[Split, ...] = Field(default=("test",), min_length=1)
    """Splits to evaluate: train, val, test."""
    protocol: Literal["full", "coco_1k", "coco_5k", "coco"] = "full"
    """full, coco_1k (mean of five folds of 1,000 images), coco_5k (the first 5,000 images) or coco (both: coco_5k under
    the split's name, coco_1k beside it)."""
    eccv: bool = False
    """Also measure ECCV Caption and CxC on COCO's test split; captions must have COCO's own ids."""
    ensemble: tuple[str, ...] = ()
    """Checkpoint folders whose scores are averaged with the trained model's: cosines if all of them score by cosine, as
    in SCAN's ensemble, otherwise probabilities."""
    gate_pairs: int = Field(default=2000, ge=1)
    """Number of pairs of each kind (matching, random, hardest) over which gate means are taken."""
    gates: Literal["trained", "open", "another"] = "trained"
    """Which scalar gates are applied. trained: the pair's own; open: every message is fused whole; another: the gates
    that words have with the first split's first picture, and regions with its first caption. open and another separate
    what gates do in a trained model from what training with them did; gate metrics always are of the pair's own."""
    foils: int = Field(default=3000, ge=0)
    """Largest number of foils scored, shared equally among their kinds where possible; 0: none."""
    precision: Literal["trained", "fp32", "tf32", "bf16", "fp16"] = "trained"
    """trained (as the model was trained and validated), fp32, tf32, bf16 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    @model_validator(mode="after")
    def _check_splits(self) -> Self:
        if twice := [split for split in self.splits if self.splits.count(split) > 1]:
            raise ValueError(f"evaluate.splits: {twice[0]} is there twice; expected each split once")
        return self

    @model_validator(mode="after")
    def _check_ensemble(self) -> Self:
        for folder in self.ensemble:
            # models/camp is the model that the others are added to.
            check_no_output("evaluate.ensemble", folder, TRAINED_MODEL, "data/evaluation")
        paths = [os.path.realpath(named_path(folder)) for folder in self.ensemble]
        if twice := [folder for folder, path in zip(self.ensemble, paths, strict=True) if paths.count(path) > 1]:
            raise ValueError(f"evaluate.ensemble: {twice[0]} is there twice; expected each model once")
        return self

    @model_validator(mode="after")
    def _check_eccv(self) -> Self:
        if self.eccv and (self.protocol == "coco_1k" or "test" not in self.splits):
            raise ValueError(
                f"evaluate.eccv: true needs the whole test split, but evaluate.protocol is {self.protocol} and "
                f"evaluate.splits are {', '.join(self.splits)}; expected full, coco_5k or coco, and test"
            )
        return self


def check_sizes(params: EvaluateParams, images: Mapping[str, int]) -> None:
    """Raise ValueError if a split (name -> number of images) is too small to be trained on or evaluated."""
    for split in ("train", "val", *params.splits):
        if images[split] < 2:
            raise ValueError(f"the split {split} has too few images, {images[split]}; expected 2 or more")
    size, count = COCO_FOLDS.get(params.protocol, (2, 1))
    for split in params.splits:
        if images[split] < size * count:
            raise ValueError(
                f"evaluate.protocol: {params.protocol} needs {size * count:,} images, but the split {split} has "
                f"{images[split]:,}; expected full"
            )


def check_gates(gates: str, config: CampConfig) -> None:
    """Raise ValueError if the params ask for other than the trained gates of a model whose gates cannot be replaced."""
    why = None if gates == "trained" else config.no_gates_reason()
    if gates != "trained" and why is None:
        if config.gate != "scalar":
            why = f"model.gate is {config.gate}"
        elif config.gate_evidence:
            why = "model.gate_evidence is true, whose evidence is in the score, too"
    if why:
        raise ValueError(f"evaluate.gates: {gates} acts on scalar gates, but {why}; expected trained")
