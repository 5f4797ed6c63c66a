"""The learning rate of every step, and params that do not fit a short training."""

import math
from collections.abc import Iterator

from stages.params.train import TrainParams

WARMUP_SHARE = 4
"""The warm-up is at most one step in this many: that of a preset for tens of thousands of captions would otherwise
take the whole of a training on a few thousand."""


def learning_rate(params: TrainParams, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step` (0 is the first).

    It rises linearly during the warm-up (`warmup_steps`, at most the `WARMUP_SHARE`th part of all steps). Then it is
    constant, falls to a tenth every `step_epochs` epochs, or follows a half cosine to 0 at the last step of `epochs`.
    """
    total = params.epochs * steps_per_epoch
    warmup = min(params.warmup_steps, total // WARMUP_SHARE)
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    if params.schedule == "step":
        return params.learning_rate * 0.1 ** (step // steps_per_epoch // params.step_epochs)
    if params.schedule == "cosine":
        done = (step - warmup + 1) / (total - warmup) if total - warmup > 1 else 0.0  # a single step has the full rate
        return params.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return params.learning_rate


def schedule_warnings(params: TrainParams, steps_per_epoch: int) -> Iterator[str]:
    """A line for each param whose steps the training is too short for, or does not use."""
    total = params.epochs * steps_per_epoch
    if params.warmup_steps > (most := total // WARMUP_SHARE):
        yield f"train.warmup_steps: {params.warmup_steps} of {total} steps in all; the warm-up takes {most}, a quarter"
    begin = params.random_negative_steps + params.curriculum_steps
    names = [name for name in ("random_negative_steps", "curriculum_steps") if getattr(params, name)]
    named = f"train.{' and train.'.join(names)}: {begin}"
    if begin and params.loss == "bce":
        yield f"{named} steps do nothing: train.loss bce has all negatives in every step"
    elif begin >= total:
        yield f"{named} of {total} steps in all; the hardest of all negatives is never looked for"
    if params.all_negatives_epochs >= params.epochs:
        yield (
            f"train.all_negatives_epochs: {params.all_negatives_epochs} of {params.epochs} epochs in all; the hardest "
            "negative is never looked for"
        )
