"""The score of a pooled image with a pooled caption (paper section 3.3, equation 11)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, logsigmoid

from camp_model.tensors import unit


class MlpMatching(nn.Module):
    """A hidden layer and an output: a learnt score of the two vectors (equation 11)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.hidden = nn.Linear(2 * dim, dim)
        self.output = nn.Linear(dim, 1)
        for layer in (self.hidden, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Score pairs; the two shapes broadcast.

        Args:
            image: pooled images [..., d].
            caption: pooled captions [..., d].

        Returns:
            Logits [...] and their probabilities [...], the similarity of ranking losses.
        """
        # W [v; t] = W_v v + W_t t: a side that received no messages is multiplied once, not once per pair.
        weight = self.hidden.weight  # [d, 2 d]
        hidden = linear(image, weight[:, : self.dim], self.hidden.bias) + linear(caption, weight[:, self.dim :])
        logits = self.logits(hidden.relu())  # [..., d] -> [...]
        return logits, logits.sigmoid()

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the last layer: [..., d] -> [...], in float32 or wider; 16 bits would tie thousands of candidates."""
        weight, bias = self.output.weight, self.output.bias
        if hidden.dtype in (torch.float16, torch.bfloat16):
            return (hidden.float() * weight[0].float()).sum(-1) + bias.float()
        return linear(hidden, weight, bias).squeeze(-1)

    def all_pairs(self, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, for all images with all captions: [I, d], [C, d] -> [I, C] each."""
        return self.forward(image[:, None], caption[None])


class CosineMatching(nn.Module):
    """A cosine, scaled and shifted into a logit.

    Scale and shift are learnt, because the sigmoid of a bare cosine stays within [0.27, 0.73], which limits binary
    cross-entropy. The scale is an exponential and so positive: logits rank as cosines do.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """As `MlpMatching.forward`; the similarity is the bare cosine."""
        image, caption = at_least_float32(image), at_least_float32(caption)
        return self.scaled((unit(image) * unit(caption)).sum(-1))

    def all_pairs(self, image: Tensor, caption: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, for all images with all captions: [I, d], [C, d] -> [I, C] each."""
        image, caption = at_least_float32(image), at_least_float32(caption)
        with torch.autocast(image.device.type, enabled=False):
            return self.scaled(unit(image) @ unit(caption).T)

    def unscaled(self, logits: Tensor) -> Tensor:
        """The cosines of logits; the inverse of `scaled`."""
        return (logits - self.shift) / self.log_scale.exp()

    def scaled(self, cosine: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of cosines, and the cosines."""
        return self.log_scale.exp() * cosine + self.shift, cosine


def at_least_float32(values: Tensor) -> Tensor:
    """`values`, converted to float32 if they have 16 bits."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """The logits of the mean of several scores m = sigmoid(logit), all of one shape.

    The mean is taken on logits, so scores whose probabilities would both round to 0 or 1 stay different.
    """
    if len(logits) == 1:
        return logits[0]
    yes, no = (torch.stack([logsigmoid(sign * values) for values in logits]).logsumexp(0) for sign in (1, -1))
    return yes - no
