"""Message aggregation, gates and fusion (paper sections 3.2 and 3.3, equations 1 to 9).

A message is a weighted sum of the other modality's vectors. Every product with a message can therefore be taken on the
other modality's vectors first, once per image or caption, and the pair pays only for the weights:

    gate      <x_i, m_i>  = sum_j a_ij <x_i, y_j>
    fusion    W_m m_i     = sum_j a_ij (W_m y_j)
    2nd hop   <W_q m_i, W_k m_k> = sum_jl a_ij <W_q y_j, W_k y_l> a_kl

All are exact. Only the elementwise gate needs the messages themselves.

Beyond the paper, `gate_context` c lets the gates of a pair's N words open and close together, with z_j = <t_j, m_j>:

    gate      sigmoid(z_j + c / N sum_l z_l)

and `gate_evidence` adds to z_j what `camp_model.matchers.evidence` says of counts and places.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from camp_model.config import CampConfig
from camp_model.matchers.base import Received
from camp_model.matchers.evidence import GateEvidence
from camp_model.matchers.pooling import masked_softmax
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

    def _prepare(self, values: Tensor, mask: Tensor, receiver: Receiver | None, sender: Receiver | None) -> Prepared:
        """`receiver` is this side's; `sender` the other side's, whose messages are made of these values."""
        values = _narrowed(values)
        factorised = self.config.fusion != "message" and self.config.gate != "elementwise"
        hops = self.config.hops == 2 and sender is not None
        return Prepared(
            features=values,
            mask=mask,
            own=linear(values, receiver.own_weight) if receiver is not None and factorised else None,
            message=linear(values, sender.message_weight) if sender is not None and factorised else None,
            hop=sender.hop_products(values) if hops and sender is not None else None,
            gram=values @ values.transpose(-2, -1) if hops else None,
        )

    def prepare_regions(self, regions: Tensor, mask: Tensor, encoded: Tensor) -> Prepared:
        """What pairs need of images: [I, R, d], bool [I, R].

        `encoded`, [I, R, d], has the regions as encoded, which `feature_norm` leaves without a scale to read places by.
        """
        prepared = self._prepare(regions, mask, self.to_regions, self.to_words)
        if self.evidence is None:
            return prepared
        return replace(prepared, evidence=self.evidence.of_regions(encoded, mask))

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """What pairs need of captions: [C, N, d], bool [C, N]."""
        # (V W_v)(T W_t)^T = V (T W_t W_v^T)^T: regions meet the captions' keys as they are.
        scale = 1 / math.sqrt(self.config.dim)
        if self.config.hops == 1:
            keys: tuple[Tensor, ...] = (self.word_key(words) @ self.region_key.weight * scale,)
        else:
            keys = (
                self.word_key(words) @ self.region_query.weight * scale,
                self.word_query(words) @ self.region_key.weight * scale,
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
            products = torch.einsum(layout.products, images.features, captions.features)
        regions = Side(images, layout.regions, layout.to_regions)
        words = Side(captions, layout.words, layout.to_words)
        received_regions = received_words = None
        affinity = _affinity(images, captions, layout, 0)
        if self.to_regions is not None:
            received_regions = _receive(self.to_regions, regions, words, affinity, products)
        if self.to_words is not None:
            back = affinity if self.config.hops == 1 else _affinity(images, captions, layout, 1)
            back, turned = back.transpose(-2, -1), None if products is None else products.transpose(-2, -1)
            evidence, in_score = self.gate_evidence(layout, images, captions, back)
            received_words = _receive(self.to_words, words, regions, back, turned, evidence)
            received_words = replace(received_words, evidence=in_score)
        return received_regions, received_words

    def gate_evidence(
        self, layout: Layout, images: Prepared, captions: Prepared, affinity: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """What is added to the gate logits of words, [..., N], and to the logit, [...]; None: nothing.

        `affinity`: [..., N, R].
        """
        return (None, None) if self.evidence is None else self.evidence(images, captions, layout, affinity)

    def gate_logits(self, images: Prepared, captions: Prepared, layout: Layout) -> Tensor | None:
        """Gate logits of words [..., N], or of regions [..., R] where words receive no messages; None without gates.

        Those of scalar gates, without what `forward` would do beyond them: no vector of length d is formed for a pair.
        """
        if self.config.gate not in INNER_PRODUCT:
            regions_and_words = self(images, captions, layout)
            received = regions_and_words[1] or regions_and_words[0]
            return None if received is None else received.gate_logits
        products = torch.einsum(layout.products, images.features, captions.features)
        regions = Side(images, layout.regions, layout.to_regions)
        words = Side(captions, layout.words, layout.to_words)
        if self.to_words is not None:
            back = _affinity(images, captions, layout, self.config.hops - 1).transpose(-2, -1)
            weights = _weigh(self.to_words, words, regions, back)[1]
            evidence, _ = self.gate_evidence(layout, images, captions, back)
            return self.to_words.scalar_logits(weights, products.transpose(-2, -1), words.mask, evidence)
        assert self.to_regions is not None
        weights = _weigh(self.to_regions, regions, words, _affinity(images, captions, layout, 0))[1]
        return self.to_regions.scalar_logits(weights, products, regions.mask)


def _narrowed(values: Tensor) -> Tensor:
    """`values` in the numbers that autocast multiplies in, so that vectors of pairs stay in them."""
    kind = values.device.type
    if torch.is_autocast_enabled(kind) and values.dtype == torch.float32:
        return values.to(torch.get_autocast_dtype(kind))
    return values


def _affinity(images: Prepared, captions: Prepared, layout: Layout, keys: int) -> Tensor:
    """[..., R, N]"""
    return torch.einsum(layout.products, images.features, captions.keys[keys])


def _weigh(receiver: Receiver, side: Side, other: Side, affinity: Tensor) -> tuple[Tensor, Tensor]:
    """Attention, and the weights that the messages are made of, both [..., L, M]."""
    weights = masked_softmax(affinity, None if other.mask is None else other.mask[..., None, :])
    if receiver.config.hops == 1:
        return weights, weights
    assert other.hop is not None and other.gram is not None
    return receiver.second_hop(weights, other.hop, other.gram, side.mask)


def _receive(
    receiver: Receiver,
    side: Side,
    other: Side,
    affinity: Tensor,
    products: Tensor | None,
    evidence: Tensor | None = None,
) -> Received:
    attention, weights = _weigh(receiver, side, other, affinity)

    def mix(weights: Tensor, projected: bool) -> Tensor:
        values = other.prepared.message if projected else other.prepared.features
        return torch.einsum(side.mix, weights, values)

    fused, gate_logits, gates = receiver(side, weights, products, mix, evidence)
    has_gates = gates.numel() > 0
    return Received(fused, attention, gate_logits if has_gates else None, gates if has_gates else None)
