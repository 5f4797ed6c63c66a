"""Message aggregation, gates and fusion (paper sections 3.2 and 3.3, equations 1 to 9).

A message is a weighted sum of the other modality's vectors. A product with a message is therefore the weighted sum of
products with these vectors, which are taken once per image or caption; only the sum is left for each pair:

    gate      <x_i, m_i>  = sum_j a_ij <x_i, y_j>
    fusion    W_m m_i     = sum_j a_ij (W_m y_j)
    2nd hop   <W_q m_i, W_k m_k> = sum_jl a_ij <W_q y_j, W_k y_l> a_kl

All are exact. Only the elementwise gate needs the messages themselves.

`gate_context` c (beyond the paper) lets the gates of a pair's N words open and close together, with z_j = <t_j, m_j>:

    gate      sigmoid(z_j + c / N sum_l z_l)

and `gate_evidence` adds to z_j what `camp_model.matchers.evidence` says of counts and locations.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from camp_model.config import CampConfig
from camp_model.matchers.base import Received
from camp_model.matchers.evidence import GateEvidence
from camp_model.matchers.prepared import Layout, Prepared
from camp_model.matchers.receiver import Receiver, Side, square

INNER_PRODUCT = ("scalar", "unapplied")
"""Gates whose logits are inner products."""


class MessagePassing(nn.Module):
    """Cross-modal attention, and the receivers of the sides that `message_passing` names."""

    def __init__(self, config: CampConfig) -> None:
        super().__init__()
        self.config = config
        self.region_key, self.word_key = square(config.dim), square(config.dim)
        if config.hops == 2:
            self.region_query, self.word_query = square(config.dim), square(config.dim)
        passing = config.message_passing
        self.to_regions = Receiver(config) if passing in ("both", "text_to_image") else None
        self.to_words = Receiver(config, config.gate_context) if passing in ("both", "image_to_text") else None
        self.evidence = GateEvidence(config.dim) if config.gate_evidence else None

    def _prepare(self, values: Tensor, mask: Tensor, own: Receiver | None, other: Receiver | None) -> Prepared:
        """Compute what the messages to and from one side need of it: [B, L, d], bool [B, L].

        Args:
            own: the receiver of this side; None if it receives no messages.
            other: the receiver of the other side, whose messages are made of these values.
        """
        values = _narrowed(values)
        prepared = Prepared(values, mask)
        if self.config.fusion != "message" and self.config.gate != "elementwise":
            prepared = replace(
                prepared,
                own=None if own is None else linear(values, own.own_weight),  # [B, L, d]
                message=None if other is None else linear(values, other.message_weight),  # [B, L, d]
            )
        if self.config.hops == 2 and other is not None:
            prepared = replace(prepared, hop=other.hop_products(values), gram=values @ values.mT)  # [B, L, L]
        return prepared

    def prepare_regions(self, regions: Tensor, mask: Tensor, encoded: Tensor) -> Prepared:
        """Compute what pairs need of images.

        Args:
            regions: [I, R, d].
            mask: bool [I, R].
            encoded: [I, R, d], the regions before `feature_norm`, which would scale the locations at their end.
        """
        prepared = self._prepare(regions, mask, self.to_regions, self.to_words)
        if self.evidence is None:
            return prepared
        locations, same = self.evidence.of_regions(encoded, mask)
        return replace(prepared, evidence=locations, same=same)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """Compute what pairs need of captions: [C, N, d], bool [C, N]."""
        # (V W_v)(T W_t)^T = V (T W_t W_v^T)^T: all products with weights are taken once per caption, none per image.
        scale = 1 / math.sqrt(self.config.dim)
        if self.config.hops == 1:
            keys: tuple[Tensor, ...] = (self.word_key(words) @ self.region_key.weight * scale,)  # [C, N, d]
        else:
            keys = (
                self.word_key(words) @ self.region_query.weight * scale,  # [C, N, d]
                self.word_query(words) @ self.region_key.weight * scale,  # [C, N, d]
            )
        prepared = replace(self._prepare(words, mask, self.to_words, self.to_regions), keys=keys)
        if self.evidence is None:
            return prepared
        evidence, arguments = self.evidence.of_words(words, mask)
        return replace(prepared, evidence=evidence, arguments=arguments)

    def forward(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Received | None, Received | None]:
        """Pass messages both ways, or one.

        Returns:
            What regions and words have received; None for a side that receives nothing.
        """
        products = None
        if self.config.gate in INNER_PRODUCT:
            products = torch.einsum(layout.products, images.features, captions.features)  # [..., R, N]
        regions, words = _sides(images, captions, layout)
        received_regions = received_words = None
        affinity = _affinity(images, captions, layout, 0)  # [..., R, N]
        if self.to_regions is not None:
            received_regions = self.to_regions(regions, words, affinity, products)
        if self.to_words is not None:
            by_word = affinity if self.config.hops == 1 else _affinity(images, captions, layout, 1)
            by_word, turned = by_word.mT, None if products is None else products.mT  # [..., N, R]
            evidence, in_score = self.gate_evidence(layout, images, captions, by_word)  # [..., N], [...]
            received_words = replace(self.to_words(words, regions, by_word, turned, evidence), evidence=in_score)
        return received_regions, received_words

    def gate_evidence(
        self, layout: Layout, images: Prepared, captions: Prepared, affinity: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Evidence from the affinities [..., N, R] of words.

        Returns:
            What is added to the gate logits of words, [..., N], and to the pair's logit, [...]; None: nothing.
        """
        return (None, None) if self.evidence is None else self.evidence(images, captions, layout, affinity)

    def gate_logits(self, images: Prepared, captions: Prepared, layout: Layout) -> Tensor | None:
        """Gate logits of words [..., N], or of regions [..., R] if words receive no messages; None without gates.

        Logits of scalar gates are computed alone, so no vector of length d is formed for a pair.
        """
        if self.config.gate not in INNER_PRODUCT:
            received_regions, received_words = self(images, captions, layout)
            received = received_words or received_regions
            return None if received is None else received.gate_logits
        products = torch.einsum(layout.products, images.features, captions.features)  # [..., R, N]
        regions, words = _sides(images, captions, layout)
        if self.to_words is not None:
            affinity = _affinity(images, captions, layout, self.config.hops - 1).mT  # [..., N, R]
            weights = self.to_words.attend(words, regions, affinity)[1]
            evidence, _ = self.gate_evidence(layout, images, captions, affinity)
            return self.to_words.scalar_logits(weights, products.mT, words.mask, evidence)
        assert self.to_regions is not None
        weights = self.to_regions.attend(regions, words, _affinity(images, captions, layout, 0))[1]
        return self.to_regions.scalar_logits(weights, products, regions.mask)


def _narrowed(values: Tensor) -> Tensor:
    """`values` in the type in which autocast multiplies, so that vectors of pairs stay in it."""
    kind = values.device.type
    if torch.is_autocast_enabled(kind) and values.dtype == torch.float32:
        return values.to(torch.get_autocast_dtype(kind))
    return values


def _sides(images: Prepared, captions: Prepared, layout: Layout) -> tuple[Side, Side]:
    return Side(images, layout.regions, layout.to_regions), Side(captions, layout.words, layout.to_words)


def _affinity(images: Prepared, captions: Prepared, layout: Layout, keys: int) -> Tensor:
    """[..., R, N], with the captions' first or second `keys`."""
    return torch.einsum(layout.products, images.features, captions.keys[keys])
