"""Drops regions and words at random in training: VSE-infinity's size augmentation (Chen et al., CVPR 2021)."""

import torch
from torch import Tensor

from camp_model.vocabulary import END, START


def drop(values: Tensor, mask: Tensor, share: float, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Drop a share of each item's real vectors at random, but never all of those that may be dropped.

    The remaining vectors come first, in their order, followed by padding, as if the others had never existed.

    Args:
        values: [B, L, d].
        mask: bool [B, L], True at real vectors.
        share: mean share of the droppable vectors that is dropped; 0: none.
        keep: bool [B, L], True at vectors that are never dropped; None: all may be.

    Returns:
        Values [B, L, d] and mask [B, L].
    """
    if not share:
        return values, mask
    may_go = mask if keep is None else mask & ~keep
    draws = torch.rand(mask.shape, device=mask.device).masked_fill(~may_go, -1.0)
    remains = may_go & (draws >= share)
    none_remains = may_go.any(1) & ~remains.any(1)
    last = torch.zeros_like(mask).scatter_(1, draws.argmax(1, keepdim=True), True)
    remains = remains | (none_remains[:, None] & last) | (mask & ~may_go)
    order = remains.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order[..., None].expand_as(values)), remains.gather(1, order)


def is_start_or_end(tokens: Tensor) -> Tensor:
    """Where a caption's start and end marks are: int64 [B, N] -> bool [B, N]."""
    return (tokens == START) | (tokens == END)
