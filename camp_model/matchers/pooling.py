"""Pool the regions of an image, or the words of a caption, into one vector (paper section 3.3)."""

import torch
from torch import Tensor, nn

from camp_model.config import CampConfig
from camp_model.matchers.gpo import GeneralisedPooling


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last dimension, exactly 0 where `mask` (broadcast to `scores`) is False."""
    if mask is not None:
        # The lowest finite value, not -inf: a row without a single real entry must not become NaN.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


class Pooling(nn.Module):
    """A weighted sum over regions or words.

    The weights are softmax(w . x) (`attention`), the mean over the heads of the released code's Linear-ReLU-Linear
    (`mlp`), equal (`mean`), or those of each channel's sorted values by rank (`gpo`, see `GeneralisedPooling`).
    """

    def __init__(self, config: CampConfig) -> None:
        super().__init__()
        self.score: nn.Module | None = None
        self.places = GeneralisedPooling() if config.pooling == "gpo" else None  # the name in checkpoints
        if config.pooling == "attention":
            self.score = nn.Linear(config.dim, 1, bias=False)
        elif config.pooling == "mlp":
            self.score = nn.Sequential(
                nn.Linear(config.dim, config.dim), nn.ReLU(), nn.Linear(config.dim, config.pooling_heads)
            )

    def weights(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """The weight of each region or word: [..., L, d], bool [..., L] (None: all real) -> [..., L]."""
        if self.score is not None:
            scores = self.score(features).transpose(-2, -1)  # [..., heads, L]
            return masked_softmax(scores, None if mask is None else mask[..., None, :]).mean(-2)  # [..., L]
        if mask is None:
            return features.new_full(features.shape[:-1], 1 / features.shape[-2])
        share = mask.to(features.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
        return share.expand(features.shape[:-1])

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pool regions or words.

        Args:
            features: [..., L, d].
            mask: bool, broadcast to [..., L]; None: all are real.

        Returns:
            The pooled vectors [..., d] and the weights [..., L].
        """
        if self.places is not None:
            pooled: tuple[Tensor, Tensor] = self.places(features, mask)
            return pooled
        weights = self.weights(features, mask)  # [..., L]
        return (weights[..., None, :] @ features).squeeze(-2), weights  # [..., 1, L] @ [..., L, d] -> [..., d]
