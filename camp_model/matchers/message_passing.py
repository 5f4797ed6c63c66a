"""Message aggregation, gates and fusion (paper sections 3.2 and 3.3, equations 1 to 9).

A message is a weighted sum of the other modality's vectors. Every product with a message can therefore be taken on the
other modality's vectors first, once per image or caption, and the pair pays only for the weights:

    gate      <x_i, m_i>  = sum_j a_ij <x_i, y_j>
    fusion    W_m m_i     = sum_j a_ij (W_m y_j)
    2nd hop   <W_q m_i, W_k m_k> = sum_jl a_ij <W_q y_j, W_k y_l> a_kl

All are exact. Only the elementwise gate needs the messages themselves.

Beyond the paper, `gate_context` c lets the gates of a pair's N words open and close together, with z_j = <t_j, m_j>:

    gate      sigmoid(z_j + c / N sum_l z_l)
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from camp_model.config import CampConfig
from camp_model.matchers.base import Received
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared


class Side:
    """A side's prepared values, ready to broadcast; `mix` is the einsum that makes the messages to it."""

    def __init__(self, prepared: Prepared, spread: Callable[[Tensor], Tensor], mix: str) -> None:
        self.prepared, self.mix = prepared, mix
        self.features = spread(prepared.features)
        self.own, self.mask, self.hop, self.gram = (
            None if value is None else spread(value)
            for value in (prepared.own, prepared.mask, prepared.hop, prepared.gram)
        )


Mix = Callable[[Tensor, bool], Tensor]


class Receiver(nn.Module):
    """The weights of a side that receives messages; its gates have `gate_context`, or 0."""

    def __init__(self, config: CampConfig, gate_context: float = 0.0) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.gate_context = config, gate_context
        if config.fusion != "message":
            self.fusion = nn.Linear(2 * dim if config.fusion == "concat" else dim, dim, bias=config.hops == 1)
            # The released initial range, which is that of a square matrix for `concat` too.
            nn.init.uniform_(self.fusion.weight, -math.sqrt(3 / dim), math.sqrt(3 / dim))
            if config.hops == 1:
                nn.init.zeros_(self.fusion.bias)
        if config.hops == 2:
            self.hop_query, self.hop_key = _square(dim), _square(dim)

    @property
    def own_weight(self) -> Tensor:
        """[d, d], the part of the fusion weights that a feature of this side meets."""
        return self.fusion.weight[:, : self.config.dim]

    @property
    def message_weight(self) -> Tensor:
        """[d, d], the part that a message meets; for `sum` the same as `own_weight`."""
        return self.fusion.weight[:, -self.config.dim :]

    def hop_products(self, features: Tensor) -> Tensor:
        """Second-hop affinities between the vectors that messages are made of: [B, L, d] -> [B, L, L]."""
        products: Tensor = self.hop_query(features) @ self.hop_key(features).transpose(-2, -1)
        return products / math.sqrt(self.config.dim)

    def second_hop(self, weights: Tensor, hop: Tensor, gram: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Let the messages attend among themselves once more (the released GatedFusionNew).

        Args:
            weights: [..., L, M], what the messages are made of.
            hop: [..., M, M], `hop_products` of the other side's vectors.
            gram: [..., M, M], inner products of the other side's vectors.
            mask: bool, broadcast to [..., L]; whose messages are real.

        Returns:
            The new weights, and the same divided by the length of the message that they make, both [..., L, M].
        """
        affinity = weights @ hop @ weights.transpose(-2, -1)
        weights = masked_softmax(affinity, None if mask is None else mask[..., None, :]) @ weights
        if self.config.fusion == "message":
            return weights, weights
        squares = ((weights @ gram) * weights).sum(-1, keepdim=True)
        return weights, weights / squares.clamp(min=max(1e-16, torch.finfo(squares.dtype).tiny)).sqrt()

    def in_context(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Gate logits plus their pair's mean, `gate_context` times: [..., L], bool broadcast to it (None: all real)."""
        weight = self.gate_context
        if not weight:
            return logits
        if mask is None:
            return logits + weight * logits.mean(-1, keepdim=True)
        total, real = (logits * mask).sum(-1, keepdim=True), mask.sum(-1, keepdim=True).clamp(min=1)
        return logits + weight * total / real

    def scalar_logits(self, weights: Tensor, products: Tensor, mask: Tensor | None) -> Tensor:
        """Logits of scalar gates, in float32 or wider; weights of messages and inner products, both [..., L, M]."""
        product = weights * products
        return self.in_context(product.sum(-1, dtype=_wide(product.dtype)), mask)

    def forward(self, side: Side, weights: Tensor, products: Tensor | None, mix: Mix) -> tuple[Tensor, ...]:
        """Fuse a side with its messages (equations 5 to 9).

        Args:
            side: this side's features and, unless gates are elementwise, their product with `own_weight`.
            weights: [..., L, M], what the messages are made of.
            products: [..., L, M], inner products between the two sides' features; only for scalar gates.
            mix: (weights, whether the other side's vectors went through `message_weight`) -> [..., L, d].

        Returns:
            Fused features [..., L, d], gate logits and gates [..., L]; the last two are empty without gates.
        """
        config = self.config
        nothing = weights.new_empty(0)
        if config.fusion == "message":
            return mix(weights, False), nothing, nothing
        if config.gate == "elementwise":
            message = mix(weights, False)
            across = None if side.mask is None else side.mask[..., None, :]
            logits = self.in_context((side.features * message).mT, across).mT
            gate = logits.sigmoid()
            fused = linear(gate * side.features, self.own_weight, self.fusion.bias)
            fused = fused + linear(gate * message, self.message_weight)
            gate_logits, gates = (values.mean(-1, dtype=_wide(values.dtype)) for values in (logits, gate))
        else:
            assert side.own is not None
            if products is None:
                gate_logits = gates = nothing
                fused = side.own + mix(weights, True)
            else:
                gate_logits = self.scalar_logits(weights, products, side.mask)
                gates = gate_logits.sigmoid()
                # The gate goes into the weights: a pass less over [..., L, d], and nothing of it kept for gradients.
                # Gates and bias are wider than 16-bit vectors, which they must not widen.
                gated = mix(weights * gates[..., None].to(weights.dtype), True)
                fused = torch.addcmul(gated, side.own, gates[..., None].to(side.own.dtype))
            if self.fusion.bias is not None:
                fused = fused + self.fusion.bias.to(fused.dtype)
        fused = fused.relu()
        return (fused + side.features if config.residual else fused), gate_logits, gates


def _square(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class MessagePassing(nn.Module):
    """Cross-modal attention, and the receivers of the sides that `message_passing` names."""

    def __init__(self, config: CampConfig) -> None:
        super().__init__()
        self.config = config
        self.region_key, self.word_key = _square(config.dim), _square(config.dim)
        if config.hops == 2:
            self.region_query, self.word_query = _square(config.dim), _square(config.dim)
        passing = config.message_passing
        self.to_regions = Receiver(config) if passing in ("both", "text_to_image") else None
        self.to_words = Receiver(config, config.gate_context) if passing in ("both", "image_to_text") else None

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

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """What pairs need of images: [I, R, d], bool [I, R]."""
        return self._prepare(regions, mask, self.to_regions, self.to_words)

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
        return dataclasses.replace(self._prepare(words, mask, self.to_words, self.to_regions), keys=keys)

    def forward(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Received | None, Received | None]:
        """Pass messages both ways, or one.

        Returns:
            What regions and words have received; None for a side that receives nothing.
        """
        products = None
        if self.config.gate == "scalar":
            products = torch.einsum(layout.products, images.features, captions.features)
        regions = Side(images, layout.regions, layout.to_regions)
        words = Side(captions, layout.words, layout.to_words)
        received_regions = received_words = None
        affinity = _affinity(images, captions, layout, 0)
        if self.to_regions is not None:
            received_regions = _receive(self.to_regions, regions, words, affinity, products)
        if self.to_words is not None:
            back = affinity if self.config.hops == 1 else _affinity(images, captions, layout, 1)
            turned = None if products is None else products.transpose(-2, -1)
            received_words = _receive(self.to_words, words, regions, back.transpose(-2, -1), turned)
        return received_regions, received_words

    def gate_logits(self, images: Prepared, captions: Prepared, layout: Layout) -> Tensor | None:
        """Gate logits of words [..., N], or of regions [..., R] where words receive no messages; None without gates.

        Those of scalar gates, without what `forward` would do beyond them: no vector of length d is formed for a pair.
        """
        if self.config.gate != "scalar":
            regions_and_words = self(images, captions, layout)
            received = regions_and_words[1] or regions_and_words[0]
            return None if received is None else received.gate_logits
        products = torch.einsum(layout.products, images.features, captions.features)
        regions = Side(images, layout.regions, layout.to_regions)
        words = Side(captions, layout.words, layout.to_words)
        if self.to_words is not None:
            back = _affinity(images, captions, layout, self.config.hops - 1).transpose(-2, -1)
            weights = _weigh(self.to_words, words, regions, back)[1]
            return self.to_words.scalar_logits(weights, products.transpose(-2, -1), words.mask)
        assert self.to_regions is not None
        weights = _weigh(self.to_regions, regions, words, _affinity(images, captions, layout, 0))[1]
        return self.to_regions.scalar_logits(weights, products, regions.mask)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


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


def _receive(receiver: Receiver, side: Side, other: Side, affinity: Tensor, products: Tensor | None) -> Received:
    attention, weights = _weigh(receiver, side, other, affinity)

    def mix(weights: Tensor, projected: bool) -> Tensor:
        values = other.prepared.message if projected else other.prepared.features
        return torch.einsum(side.mix, weights, values)

    fused, gate_logits, gates = receiver(side, weights, products, mix)
    has_gates = gates.numel() > 0
    return Received(fused, attention, gate_logits if has_gates else None, gates if has_gates else None)
