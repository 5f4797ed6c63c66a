"""Folds batch normalisation into the preceding convolutions: the same maps, with one pass over memory less per norm."""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Exactly these classes: others, such as those that standardise weights, compute something else from the same names.
_CONVOLUTIONS, _NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)


class _Reads(TorchFunctionMode):
    """Counts how often each tensor is read, except by the module that it belongs to, in this thread only."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()
        self.held: list[torch.Tensor] = []
        """Tensors that were read; they are kept so that no other tensor gets the same id."""
        self.inside: list[torch.Tensor] = []
        """The weight of the convolution, or the input of the norm, that is running."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.read((args, kwargs))
        return func(*args, **(kwargs or {}))

    def read(self, values: object) -> None:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
        self.held += tensors
        self.count.update(id(one) for one in tensors if not any(one is own for own in self.inside))


def _foldable(
    network: nn.Module, run: Callable[[Any, torch.Tensor], object], images: torch.Tensor
) -> list[tuple[str, str]]:
    """Names of convolutions, each with its norm, that `run` uses once and whose output only this norm reads."""
    names = {module: name for name, module in network.named_modules()}
    calls: Counter[nn.Module] = Counter()
    made: dict[int, nn.Module] = {}
    pairs: list[tuple[nn.Module, nn.Module, torch.Tensor]] = []
    reads = _Reads()

    def before_convolution(module: Any, _: object) -> None:
        reads.inside.append(module.weight)

    def after_convolution(module: nn.Module, _: object, output: torch.Tensor) -> None:
        reads.inside.pop()
        reads.held.append(output)
        calls[module] += 1
        made[id(output)] = module

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        reads.inside.append(inputs[0])
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module, inputs[0]))

    def after_norm(module: nn.Module, *_: object) -> None:
        reads.inside.pop()
        calls[module] += 1

    for module in names:
        if type(module) in _CONVOLUTIONS:
            module.register_forward_pre_hook(before_convolution)
            module.register_forward_hook(after_convolution)
        elif type(module) in _NORMS:
            module.register_forward_pre_hook(before_norm)
            module.register_forward_hook(after_norm)
    with torch.inference_mode(), reads:
        reads.read(run(network, images))
    return [
        (names[conv], names[norm])
        for conv, norm, between in pairs
        if calls[conv] == calls[norm] == 1 and not reads.count[id(between)] + reads.count[id(conv.weight)]
    ]


def fold_norms(network: nn.Module, run: Callable[[Any, torch.Tensor], object], size: tuple[int, int]) -> int:
    """Fold each batch norm, in place, into a convolution that feeds only this norm; return the number of folded norms.

    Args:
        network: in eval mode; afterwards it may only be used for `run(network, images)`.
        run: how the network is used. If it fails on meta tensors, nothing is folded.
        size: height and width of the images.
    """
    if not any(type(module) in _NORMS for module in network.modules()):
        return 0
    try:
        pairs = _foldable(copy.deepcopy(network).to("meta"), run, torch.zeros(2, 3, *size, device="meta"))
    except Exception:  # timm's networks fail in many ways
        return 0
    folded = 0
    for conv_name, norm_name in pairs:
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        if norm.running_mean is None:  # it normalises by the batch's own statistics
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        for name in [name for name, module in network.named_modules(remove_duplicate=False) if module is norm]:
            network.set_submodule(name, rest)
        folded += 1
    return folded
