"""The moving average of a model's weights."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """Exponential moving average of the trained weights.

    Step t (0 is the first) moves it by 1 - min(decay, (1 + t) / (10 + t)) towards the weights: by more in the first
    steps, which a large decay would otherwise remember for long.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: value.detach().clone() for name, value in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Update the average with the weights after optimizer step `step`."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in _trained(model).items():
            self.weights[name].lerp_(value, share)

    @contextlib.contextmanager
    def apply_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights for the body; its own are restored exactly afterwards."""
        weights = {name: value.detach().clone() for name, value in _trained(model).items()}
        _copy_weights(model, self.weights)
        try:
            yield
        finally:
            _copy_weights(model, weights)


@torch.no_grad()
def _copy_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, value in _trained(model).items():
        value.copy_(weights[name])


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}
