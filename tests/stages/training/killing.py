"""A training that dies at a step."""

from collections.abc import Callable

EVERYTHING = {
    "epochs": 3, "dropout": 0.2, "random_negative_steps": 4, "warmup_steps": 3, "schedule": "cosine",
    "weight_decay": 0.01, "checkpoint_steps": 2,
}  # fmt: skip
"""Params of `train` that bring random numbers and a schedule of their own into every step."""


class Killed(Exception):
    """The process dies here; nothing after it happens."""


def kill_after(steps: int) -> Callable[[], bool]:
    """What a training asks after each step whether to stop: it dies there after `steps` more."""
    calls = []

    def stop() -> bool:
        calls.append(1)
        if len(calls) > steps:
            raise Killed
        return False

    return stop
