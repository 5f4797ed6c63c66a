"""The learning rate of every step."""

import math

from stages.params.train import TrainParams


def learning_rate(params: TrainParams, step: int, steps_per_epoch: int) -> float:
    """The rate of optimizer step `step` (0 is the first).

    It rises linearly over `warmup_steps`; then it stays, falls to a tenth every `step_epochs` epochs, or follows a
    half cosine to 0 at the last step of `epochs`.
    """
    if step < params.warmup_steps:
        return params.learning_rate * (step + 1) / params.warmup_steps
    if params.schedule == "step":
        return params.learning_rate * 0.1 ** (step // steps_per_epoch // params.step_epochs)
    if params.schedule == "cosine":
        total = params.epochs * steps_per_epoch - params.warmup_steps
        done = (step - params.warmup_steps + 1) / max(1, total)
        return params.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return params.learning_rate
