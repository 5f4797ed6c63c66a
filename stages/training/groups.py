"""The optimizer's parameter groups: parts of the model with a learning rate of their own."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from camp_model.checkpoint import current_name
from stages.errors import InputError


def parameter_groups(model: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters that are trained, in groups {"params": [...], "factor": what multiplies their learning rate}.

    Args:
        factors: of `train.learning_rates`, by the beginning of parameter names; the longest that fits counts.

    Raises:
        InputError: no parameter that is trained begins like one of them.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    by_prefix = {current_name(prefix): factor for prefix, factor in factors.items()}
    for prefix in by_prefix:
        if not any(name.startswith(prefix) for name, _ in named):
            names = ", ".join(name for name, _ in named)
            raise InputError(f"train.learning_rates: no trained parameter begins with {prefix!r}; there are {names}")
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in named:
        prefix = max((prefix for prefix in by_prefix if name.startswith(prefix)), key=len, default="")
        group = groups.setdefault(prefix, {"params": [], "factor": by_prefix.get(prefix, 1.0)})
        group["params"].append(parameter)
    return list(groups.values())
