"""Batch normalisation folded into the convolutions before it: the same maps with one pass over memory less each."""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

# Exactly these classes: others, such as those that standardise their weights, compute something else of the same names.
_CONVOLUTIONS, _NORMS = (nn.Conv2d, Conv2dSame), (nn.BatchNorm2d, BatchNormAct2d)


class _Run(nn.Module):
    """What is run of a network, as a module that can be traced."""

    def __init__(self, network: nn.Module, run: Callable[[Any, torch.Tensor], object]) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self, images: torch.Tensor) -> object:
        return self.run(self.network, images)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in _CONVOLUTIONS + _NORMS or super().is_leaf_module(m, module_qualified_name)


def fold_norms(network: nn.Module, run: Callable[[Any, torch.Tensor], object]) -> int:
    """Fold each batch norm into the convolution that feeds it and nothing else, in place; count those folded.

    The network must be in eval mode, and may afterwards be used for `run(network, images)` alone, the computation that
    is traced. Where control flow depends on values, so that there is no trace, nothing is folded.
    """
    if not any(type(module) in _NORMS for module in network.modules()):
        return 0
    try:
        graph = _Tracer().trace(_Run(copy.deepcopy(network), run))  # a copy: what a module caches would be a proxy
    except Exception:  # each of a thousand networks has its own
        return 0
    whole, folded = _Run(network, run), 0
    modules = dict(whole.named_modules())
    calls = Counter(id(modules[str(node.target)]) for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        conv: Any = modules[str(source.target)]
        norm: Any = modules[str(node.target)]
        if type(conv) not in _CONVOLUTIONS or type(norm) not in _NORMS or calls[id(conv)] > 1 or calls[id(norm)] > 1:
            continue
        if norm.running_mean is None:  # it normalises by the batch
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else nn.Identity()
        whole.set_submodule(str(node.target), rest)
        folded += 1
    return folded
