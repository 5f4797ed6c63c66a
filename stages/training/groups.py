"""The optimizer's parameter groups, which give parts of the model their own learning rates."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from camp_model.checkpoint import current_name
from stages.errors import InputError


def parameter_groups(model: nn.Module, factors: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trained parameters, in groups {"params": [...], "factor": multiplier of the learning rate}.

    Args:
        factors: `train.learning_rates`, by prefix of parameter names; the longest matching prefix counts.

    Raises:
        InputError: a prefix matches no trained parameter.
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
