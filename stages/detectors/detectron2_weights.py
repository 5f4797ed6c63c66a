"""Finds the weights of detectron2's networks that params name, and matches their names to the model's."""

import logging
from pathlib import Path
from typing import Any

import torch

from stages.detectors import visual_genome
from stages.detectors.weights import State, load_state, locate
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams


def named_weights(params: DetectorParams) -> tuple[State | None, str, Path | None]:
    """Return the weights that `params` names (None: random), a label for them, and the file they came from."""
    if params.weights == "random":
        return None, f"random, seed {params.train.seed}", None
    source = params.weights
    if source == "default":
        source = visual_genome.PUBLISHED if params.architecture == visual_genome.NAME else _zoo_url(params)
    elif source.startswith("detectron2://"):
        source = source.replace("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/", 1)
    elif source.endswith(".yaml"):
        source = _zoo_url(params, source)
    path = locate(source)
    return load_state(path), source, path


def _zoo_url(params: DetectorParams, name: str | None = None) -> str:
    from detectron2.model_zoo import get_checkpoint_url

    try:
        url: str = get_checkpoint_url(name or params.architecture)
    except RuntimeError:
        raise InputError(
            f"params.yaml: detector.weights: {params.weights[:300]!r}: detectron2's model zoo has none for "
            f"{shown(name or params.architecture)}; expected random, a file, a URL or a config of the zoo"
        ) from None
    return url


def matched_names(model: Any, state: State, source: str) -> State:
    """Return the parameters under the model's own names; Detectron 1's and Caffe2's are renamed as detectron2 does.

    Raises:
        InputError: detectron2 cannot match the parameters.
    """
    own = model.state_dict()
    buffers = {name: own[name] for name in ("pixel_mean", "pixel_std") if name in own}
    known = {name: tensor for name, tensor in state.items() if name in own}
    if len(known) + len(buffers) < len(own):
        from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

        logging.getLogger("detectron2.checkpoint.c2_model_loading").setLevel(logging.CRITICAL)
        try:
            aligned = align_and_update_state_dicts(own, dict(state), c2_conversion="model" not in state)
        except Exception as error:
            raise InputError(
                f"{source}: its parameters cannot be matched with the architecture's ({str(error)[:300]})"
            ) from None
        known |= {name: tensor for name, tensor in aligned.items() if name in own and name not in known}
    return _identity_statistics(model, known) | buffers | known


def _identity_statistics(model: Any, known: State) -> State:
    """Running statistics that do not change values, for norms of which only weight and bias are known.

    Caffe2 and Detectron 1 folded the statistics into weight and bias; detectron2 fills them in like this.
    """
    from detectron2.layers import FrozenBatchNorm2d

    filled: State = {}
    for prefix, module in model.named_modules():
        statistics = f"{prefix}.running_mean", f"{prefix}.running_var"
        affine = f"{prefix}.weight" in known and f"{prefix}.bias" in known
        if isinstance(module, FrozenBatchNorm2d) and affine and not any(name in known for name in statistics):
            filled[statistics[0]] = torch.zeros_like(module.running_mean)
            filled[statistics[1]] = torch.ones_like(module.running_var)
    return filled
