"""Attention, gates and fusion of the side that receives messages (paper sections 3.2 and 3.3, equations 1 to 9).

Shapes are those of `camp_model`: this side has L vectors, the other M.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from camp_model.config import CampConfig
from camp_model.matchers.base import Received
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Prepared


class Side:
    """The prepared values of images or captions, ready to broadcast with values per pair.

    Args:
        prepared: the images or captions.
        spread: `Layout.regions` or `Layout.words`.
        to_side: `Layout.to_regions` or `Layout.to_words`.
    """

    def __init__(self, prepared: Prepared, spread: Callable[[Tensor], Tensor], to_side: str) -> None:
        self.prepared, self.to_side = prepared, to_side
        self.features = spread(prepared.features)
        self.own, self.mask, self.hop, self.gram, self.gates = (
            None if value is None else spread(value)
            for value in (prepared.own, prepared.mask, prepared.hop, prepared.gram, prepared.gates)
        )

    def messages(self, weights: Tensor, vectors: Tensor) -> Tensor:
        """Sum the other side's vectors by weights: [..., L, M], [B, M, d] -> messages to this side [..., L, d]."""
        return torch.einsum(self.to_side, weights, vectors)


class Receiver(nn.Module):
    """What one side makes of the other's vectors.

    Args:
        config: the switches.
        gate_context: weight of the pair's mean gate logit in each gate logit.
    """

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
            self.hop_query, self.hop_key = square(dim), square(dim)

    @property
    def own_weight(self) -> Tensor:
        """[d, d], the part of the fusion weights that multiplies this side's features."""
        return self.fusion.weight[:, : self.config.dim]

    @property
    def message_weight(self) -> Tensor:
        """[d, d], the part that multiplies messages; for `sum` the same as `own_weight`."""
        return self.fusion.weight[:, -self.config.dim :]

    def hop_products(self, features: Tensor) -> Tensor:
        """Second-hop affinities between the vectors that messages are made of: [B, L, d] -> [B, L, L]."""
        products: Tensor = self.hop_query(features) @ self.hop_key(features).transpose(-2, -1)
        return products / math.sqrt(self.config.dim)

    def attend(self, side: Side, other: Side, affinity: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to the other side (equations 1 to 4).

        Args:
            side: the side that receives.
            other: the side that is attended to.
            affinity: [..., L, M].

        Returns:
            The attention, and the weights that messages are made of (after the second hop, if any), both [..., L, M].
        """
        attention = masked_softmax(affinity, None if other.mask is None else other.mask[..., None, :])  # [..., L, M]
        if self.config.hops == 1:
            return attention, attention
        assert other.hop is not None and other.gram is not None
        return self.second_hop(attention, other.hop, other.gram, side.mask)

    def second_hop(self, weights: Tensor, hop: Tensor, gram: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Let the messages attend among themselves once more (the released GatedFusionNew).

        Args:
            weights: [..., L, M], those of the messages.
            hop: [..., M, M], `hop_products` of the other side's vectors.
            gram: [..., M, M], inner products of the other side's vectors.
            mask: bool, broadcast to [..., L], True at real messages.

        Returns:
            The new weights, and the same divided by the length of the message that they make (not for fusion
            `message`), both [..., L, M].
        """
        affinity = weights @ hop @ weights.transpose(-2, -1)  # [..., L, L]
        weights = masked_softmax(affinity, None if mask is None else mask[..., None, :]) @ weights  # [..., L, M]
        if self.config.fusion == "message":
            return weights, weights
        squares = ((weights @ gram) * weights).sum(-1, keepdim=True)  # [..., L, 1]
        # A message without length has no direction either: as `camp_model.tensors.unit`.
        least = max(1e-16, torch.finfo(squares.dtype).tiny)
        return weights, weights / squares.masked_fill(squares < least, torch.inf).sqrt()

    def in_context(self, logits: Tensor, mask: Tensor | None) -> Tensor:
        """Add `gate_context` times the mean logit of the pair to each logit.

        Args:
            logits: [..., L].
            mask: bool, broadcast to [..., L]; None: all are real.
        """
        weight = self.gate_context
        if not weight:
            return logits
        if mask is None:
            return logits + weight * logits.mean(-1, keepdim=True)
        total, real = (logits * mask).sum(-1, keepdim=True), mask.sum(-1, keepdim=True).clamp(min=1)
        return logits + weight * total / real

    def scalar_logits(
        self, weights: Tensor, products: Tensor, mask: Tensor | None, evidence: Tensor | None = None
    ) -> Tensor:
        """Inner products of features and messages: the logits [..., L] of scalar gates, in float32 or wider.

        Args:
            weights: [..., L, M], of messages.
            products: [..., L, M], inner products of the two sides' features.
            mask: bool, broadcast to [..., L].
            evidence: [..., L], added to the logits.
        """
        product = weights * products  # [..., L, M]
        logits = product.sum(-1, dtype=_wide(product.dtype))  # [..., L]
        return self.in_context(logits if evidence is None else logits + evidence, mask)

    def forward(
        self, side: Side, other: Side, affinity: Tensor, products: Tensor | None, evidence: Tensor | None = None
    ) -> Received:
        """Attend to the other side, and fuse its messages with the own features (equations 1 to 9).

        Args:
            side: the side that receives.
            other: the side that sends.
            affinity: [..., L, M].
            products: [..., L, M], inner products of the two sides' features; None unless gate logits are these.
            evidence: [..., L], added to the logits of scalar gates.
        """
        attention, weights = self.attend(side, other, affinity)  # [..., L, M]
        if self.config.fusion == "message":
            return Received(side.messages(weights, other.prepared.features), attention)
        gate_logits: Tensor | None = None
        gates: Tensor | None = None
        if self.config.gate == "elementwise":
            fused, gate_logits, gates = self._gated_elementwise(side, other, weights)
        else:
            if products is not None:
                gate_logits = self.scalar_logits(weights, products, side.mask, evidence)  # [..., L]
                gates = gate_logits.sigmoid()
            fused = self._factorised(side, other, weights, gates)
        fused = fused.relu()  # [..., L, d]
        return Received(fused + side.features if self.config.residual else fused, attention, gate_logits, gates)

    def _gated_elementwise(self, side: Side, other: Side, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The paper's formula: fused features [..., L, d] before the ReLU, mean gate logits and gates [..., L]."""
        message = side.messages(weights, other.prepared.features)  # [..., L, d]
        mask = None if side.mask is None else side.mask[..., None, :]  # [..., 1, L]
        logits = self.in_context((side.features * message).mT, mask).mT  # [..., L, d]
        gates = logits.sigmoid()
        fused = linear(gates * side.features, self.own_weight, self.fusion.bias)
        fused = fused + linear(gates * message, self.message_weight)
        wide = _wide(logits.dtype)
        return fused, logits.mean(-1, dtype=wide), gates.mean(-1, dtype=wide)

    def _factorised(self, side: Side, other: Side, weights: Tensor, gates: Tensor | None) -> Tensor:
        """Fused features [..., L, d] before the ReLU: g W_1 x_i + sum_j g a_ij (W_2 y_j) + b.

        g is 1 if gates are not applied. `Prepared.own` holds W_1 x_i, and `Prepared.message` W_2 y_j.
        """
        assert side.own is not None and other.prepared.message is not None
        if self.config.gate == "scalar":
            # The gate goes into the weights: a pass less over [..., L, d], and nothing of it kept for gradients.
            # Gates and bias are wider than 16-bit vectors, which they must not widen.
            applied = gates if side.gates is None else side.gates
            assert applied is not None
            gated = side.messages(weights * applied[..., None].to(weights.dtype), other.prepared.message)
            fused = torch.addcmul(gated, side.own, applied[..., None].to(side.own.dtype))  # [..., L, d]
        else:
            fused = side.own + side.messages(weights, other.prepared.message)  # [..., L, d]
        return fused if self.fusion.bias is None else fused + self.fusion.bias.to(fused.dtype)


def square(dim: int) -> nn.Linear:
    """A linear layer [d, d] without bias, in the released initial range."""
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The type itself, or float32 if it has 16 bits."""
    return torch.promote_types(dtype, torch.float32)
