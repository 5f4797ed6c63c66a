"""Outputs of timm's networks as maps [B, C, h, w] of B images, C channels and h x w places."""

import math
from collections.abc import Sequence
from typing import Any

import torch


def as_map(output: Any, network: Any, size: tuple[int, int]) -> torch.Tensor:
    """Convert the output of `forward_features` for inputs of `size` (height, width) to a map [B, C, h, w].

    Raises:
        ValueError: it is not a map, and its tokens are not a grid of patches over the whole input.
    """
    channels = network.num_features
    if isinstance(output, torch.Tensor) and output.ndim == 4:
        if getattr(network, "output_fmt", "NCHW") == "NHWC" and output.shape[3] == channels:
            return output.permute(0, 3, 1, 2)
        if output.shape[1] == channels:
            return output
    if isinstance(output, torch.Tensor) and output.ndim == 3 and output.shape[2] == channels:
        patches = output[:, getattr(network, "num_prefix_tokens", None) or 0 :]
        count = patches.shape[1]
        _check_patches(network, size)
        rows = max(round(math.sqrt(count * size[0] / size[1])), 1)
        if count > 1 and count % rows == 0 and (count // rows) * size[0] == rows * size[1]:
            return patches.transpose(1, 2).reshape(len(output), channels, rows, count // rows)
    form = list(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    raise ValueError(f"gives {form} for an input of {list(size)}, which is no map of {channels} features or patches")


def outputs(network: Any, images: torch.Tensor, earlier: Sequence[int]) -> tuple[Any, dict[int, torch.Tensor]]:
    """Run the network's body on normalised images [B, 3, H, W]; return its output and the earlier maps by their index.

    Raises:
        ValueError: it has no such earlier map.
    """
    if not earlier:
        return network.forward_features(images), {}
    if not hasattr(network, "forward_intermediates"):
        raise ValueError("gives no earlier maps")
    count = len(network.feature_info)
    if max(earlier) >= count:
        raise ValueError(f"has {count} maps, counted from 0, but detector.timm.earlier_maps asks for {max(earlier)}")
    indices = sorted({*earlier, count - 1})  # with the last: some networks stop after the largest
    last, maps = network.forward_intermediates(images, indices=indices, output_fmt="NCHW")
    return last, dict(zip(indices, maps, strict=True))


def all_maps(network: Any, images: torch.Tensor, earlier: Sequence[int], size: tuple[int, int]) -> list[torch.Tensor]:
    """The network's last map and the `earlier` ones for normalised images [B, 3, H, W].

    Raises:
        ValueError: as `as_map`, or as `outputs`.
    """
    last, maps = outputs(network, images, earlier)
    return [as_map(last, network, size), *(maps[index] for index in earlier)]


def _check_patches(network: Any, size: tuple[int, int]) -> None:
    """Raise a ValueError if patches do not cover the input: the margin would count for no cell."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if isinstance(patch, tuple) and len(patch) == 2 and (size[0] % patch[0] or size[1] % patch[1]):
        raise ValueError(f"has patches of {list(patch)} pixels, which do not cover an input of {list(size)}")
