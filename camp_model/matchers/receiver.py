"""What a side that receives messages makes of them: gates and fusion (paper section 3.3, equations 5 to 9)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from camp_model.config import CampConfig
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Prepared


class Side:
    """A side's prepared values, ready to broadcast; `mix` is the einsum that makes the messages to it."""

    def __init__(self, prepared: Prepared, spread: Callable[[Tensor], Tensor], mix: str) -> None:
        self.prepared, self.mix = prepared, mix
        self.features = spread(prepared.features)
        self.own, self.mask, self.hop, self.gram, self.gates = (
            None if value is None else spread(value)
            for value in (prepared.own, prepared.mask, prepared.hop, prepared.gram, prepared.gates)
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
            self.hop_query, self.hop_key = square(dim), square(dim)

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

    def scalar_logits(
        self, weights: Tensor, products: Tensor, mask: Tensor | None, evidence: Tensor | None = None
    ) -> Tensor:
        """Logits [..., L] of scalar gates, in float32 or wider.

        Args:
            weights: [..., L, M], of messages.
            products: [..., L, M], inner products.
            mask: bool, broadcast to [..., L].
            evidence: [..., L], added to the logits.
        """
        product = weights * products
        logits = product.sum(-1, dtype=_wide(product.dtype))
        return self.in_context(logits if evidence is None else logits + evidence, mask)

    def forward(
        self, side: Side, weights: Tensor, products: Tensor | None, mix: Mix, evidence: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Fuse a side with its messages (equations 5 to 9).

        Args:
            side: this side's features and, unless gates are elementwise, their product with `own_weight`.
            weights: [..., L, M], what the messages are made of.
            products: [..., L, M], inner products between the two sides' features; only for scalar gates.
            mix: (weights, whether the other side's vectors went through `message_weight`) -> [..., L, d].
            evidence: [..., L], added to the logits of scalar gates.

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
            gate_logits = gates = nothing
            if products is not None:
                gate_logits = self.scalar_logits(weights, products, side.mask, evidence)
                gates = gate_logits.sigmoid()
            if config.gate == "scalar":
                # The gate goes into the weights: a pass less over [..., L, d], and nothing of it kept for gradients.
                # Gates and bias are wider than 16-bit vectors, which they must not widen.
                applied = gates if side.gates is None else side.gates
                gated = mix(weights * applied[..., None].to(weights.dtype), True)
                fused = torch.addcmul(gated, side.own, applied[..., None].to(side.own.dtype))
            else:
                fused = side.own + mix(weights, True)
            if self.fusion.bias is not None:
                fused = fused + self.fusion.bias.to(fused.dtype)
        fused = fused.relu()
        return (fused + side.features if config.residual else fused), gate_logits, gates


def square(dim: int) -> nn.Linear:
    layer = nn.Linear(dim, dim, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
