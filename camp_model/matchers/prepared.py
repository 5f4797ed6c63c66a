"""Prepared images and captions, and the layouts in which they are matched; letters of shapes as in `camp_model`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camp_model.tensors import take_rows


@dataclass(frozen=True)
class Layout:
    """How images and captions are paired: the einsum of each product, and the axis along which a side is repeated."""

    products: str
    """Regions [B, R, d], words [B, N, d] -> inner products [..., R, N]."""
    to_regions: str
    """Weights [..., R, N], words [B, N, d] -> messages to regions [..., R, d]."""
    to_words: str
    """Weights [..., N, R], regions [B, R, d] -> messages to words [..., N, d]."""
    region_axis: int | None
    """Axis that is added to values per image; None: no axis."""
    word_axis: int | None
    """Axis that is added to values per caption; None: no axis."""

    def regions(self, values: Tensor) -> Tensor:
        """Make values per image broadcast with values per pair: [I, ...] -> [I, 1, ...]; [P, ...] stays."""
        return values if self.region_axis is None else values.unsqueeze(self.region_axis)

    def words(self, values: Tensor) -> Tensor:
        """Make values per caption broadcast with values per pair: [C, ...] -> [1, C, ...]; [P, ...] stays."""
        return values if self.word_axis is None else values.unsqueeze(self.word_axis)


PAIRS = Layout("prd,pnd->prn", "prn,pnd->prd", "pnr,prd->pnd", None, None)
"""Image p with caption p."""
TILES = Layout("ird,cnd->icrn", "icrn,cnd->icrd", "icnr,ird->icnd", 1, 0)
"""Every image with every caption."""


def check_mask(name: str, values: Tensor, mask: Tensor) -> None:
    """Raise ValueError unless values are [B, L, d] with a mask [B, L]."""
    if values.ndim != 3 or mask.shape != values.shape[:2]:
        raise ValueError(f"{name}: shape {list(values.shape)}, mask {list(mask.shape)}; expected [B, L, d], [B, L]")


@dataclass(frozen=True)
class Prepared:
    """Everything about images that needs no caption, or about captions that needs no image; L is R or N.

    A matcher fills the fields that it needs; a subclass may add tensors [B, L, ...] of its own.
    """

    features: Tensor
    """[B, L, d]"""
    mask: Tensor | None
    """bool [B, L], True at real regions or words; None: all are real."""
    keys: tuple[Tensor, ...] = ()
    """Captions only. [B, L, d] for each hop; their inner products with region features are the affinities."""
    own: Tensor | None = None
    """[B, L, d], the features times this side's fusion weights (`Receiver.own_weight`)."""
    message: Tensor | None = None
    """[B, L, d], the features times the other side's fusion weights for messages (`Receiver.message_weight`)."""
    hop: Tensor | None = None
    """[B, L, L], affinities of the second hop, between features that are sent to the other side."""
    gram: Tensor | None = None
    """[B, L, L], inner products of the features, which give the lengths of messages."""
    hidden: Tensor | None = None
    """[B, L, outputs], the hidden layer of this side's pooling before its ReLU, computed from the features."""
    evidence: Tensor | None = None
    """[B, L, ...], for `camp_model.matchers.evidence`: the locations of regions, or the evidence that words expect."""
    same: Tensor | None = None
    """Images only. [B, L, L], from 0 to 1, whether two regions show the same object."""
    arguments: Tensor | None = None
    """Captions only. [B, L, 2, L], each word's weights over words for its two arguments."""
    pooled: Tensor | None = None
    """[B, d], if this side receives no messages."""
    pooling: Tensor | None = None
    """[B, L], the weights of `pooled`."""
    gates: Tensor | None = None
    """[B, L], scalar gates that are applied in every pair; its own are still measured. None: its own are applied."""
    vector: Tensor | None = None
    """[B, d], the unit-length mean of the encoder's output, if the score has a term of it (`joint_score`)."""

    @property
    def real(self) -> Tensor:
        """bool [B, L], `mask`, or all True if that is None."""
        ones = torch.ones(self.features.shape[:2], dtype=torch.bool, device=self.features.device)
        return ones if self.mask is None else self.mask

    def _map(self, change: Callable[[Tensor, str], Tensor]) -> "Prepared":
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple):
                values[field.name] = tuple(change(item, field.name) for item in value)
            else:
                values[field.name] = None if value is None else change(value, field.name)
        return dataclasses.replace(self, **values)

    def take(self, rows: Tensor | slice) -> "Prepared":
        """Select images or captions by row."""
        return self._map(lambda value, _: take_rows(value, rows))

    def contiguous(self) -> "Prepared":
        """Make all tensors contiguous."""
        return self._map(lambda value, _: value.contiguous())

    def cut(self, rows: slice, counts: Tensor) -> "Prepared":
        """Take some items, trimmed to the longest of them; if all are as long as that, without a mask.

        Args:
            rows: the items.
            counts: int64 [B], number of real vectors of each item, which come first.
        """
        chosen = counts[rows]
        size = max(1, int(chosen.max()))

        def trimmed(value: Tensor, name: str) -> Tensor:
            if name in ("pooled", "vector"):
                return value
            if name == "arguments":
                return value[:, :size, :, :size]
            return value[:, :size, :size] if name in ("hop", "gram", "same") else value[:, :size]

        some = self.take(rows)
        if size < self.features.shape[1]:
            some = some._map(trimmed)
        return some if bool(chosen.min() < size) else dataclasses.replace(some, mask=None)
