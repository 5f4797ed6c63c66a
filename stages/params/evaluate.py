"""The section `evaluate`: what is measured."""

from typing import Literal, Self

from pydantic import Field, model_validator

from stages.params.section import Device, Section, Split, check_no_output


class EvaluateParams(Section):
    """What is measured."""

    splits: tuple[Split, ...] = Field(default=("test",), min_length=1)
    """Splits to evaluate: train, val, test."""
    protocol: Literal["full", "coco_1k", "coco_5k", "coco"] = "full"
    """full, coco_1k (mean of five folds of 1,000 images), coco_5k (the first 5,000 images) or coco (both: coco_5k under
    the split's name, coco_1k beside it)."""
    eccv: bool = False
    """ECCV Caption and CxC beside the recalls of COCO's test split, whose captions must bear COCO's own ids."""
    ensemble: tuple[str, ...] = ()
    """Checkpoint folders whose scores are averaged with the trained model's: cosines where all of them are, as SCAN's
    ensemble, else probabilities."""
    gate_pairs: int = Field(default=2000, ge=1)
    """Pairs of each kind that the gate means are taken over."""
    gates: Literal["trained", "open", "another"] = "trained"
    """Which scalar gates are applied: trained; open: every message is fused whole; another: those that words have with
    the first split's first picture, and regions with its first caption. Trained ones are measured all the same, so that
    what gates do for a trained model can be told from what training with them did."""
    foils: int = Field(default=3000, ge=0)
    """Foils scored at most, as many of each kind as can be; 0: none."""
    precision: Literal["trained", "fp32", "tf32", "bf16", "fp16"] = "trained"
    """trained (that in which the model was trained and validated), fp32, tf32, bf16 or fp16."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:N or mps."""

    @model_validator(mode="after")
    def _other_models(self) -> Self:
        for folder in self.ensemble:
            check_no_output("evaluate.ensemble", folder)
        if twice := [folder for folder in self.ensemble if self.ensemble.count(folder) > 1]:
            raise ValueError(f"evaluate.ensemble: {twice[0]} is there twice; expected each model once")
        return self

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.eccv and (self.protocol == "coco_1k" or "test" not in self.splits):
            raise ValueError(
                f"evaluate.eccv: ranks all of the test split at once, but evaluate.protocol is {self.protocol} and "
                f"evaluate.splits are {', '.join(self.splits)}; expected full, coco_5k or coco, and test"
            )
        return self
