"""SGRAF, a baseline without messages: vector similarities, filtered or reasoned over (Diao et al., AAAI 2021).

With unit vectors v_i and t_j:

    similarity  s(x, y; W) = unit(W |x - y|^2 + b), of m numbers (equation 1)
    global      s_0 = s(v*, t*; W_g), the sides' vectors x* = unit(sum_k a_k x_k),
                a = softmax_k(w . (tanh(W_l x_k) * tanh(W_m mean_k x_k)))
    local       s_j = s(unit(a_j), t_j; W_s), a_j what word j attends to among the regions, as in SCAN
    SGR         three times s_p = relu(W_r sum_q softmax_q((W_in s_p) . (W_out s_q)) s_q); the result is s_0
    SAF         the result is unit(sum_p b_p s_p), b = sigmoid(W_f s_p) / sum_q sigmoid(W_f s_q)
    score       sigmoid(w . the result); both: the mean of the scores of SGR and SAF

Biases and the unit length of attended vectors are those of the released code. Three parts of it are left out: dropout
in the self-attention, dropout of word embeddings (instead: `train.dropout`), and batch normalisation, which would make
a pair's score depend on the rest of the batch while training. In SAF, the trained normalisation is a scale and a shift,
which the layer before it can express; in the self-attention, it has a scale for each region index, so that the order of
regions matters. (The paper's SGRAF is two separately trained models, as with `evaluate.ensemble`.)
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from camp_model.config import CampConfig
from camp_model.matchers.base import Matched, Matcher, Received
from camp_model.matchers.matching import at_least_float32, mean_logits
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Layout, Prepared
from camp_model.matchers.scan import WORD_SHARPNESS, stacked_attention
from camp_model.tensors import unit

STEPS = 3
"""Steps of graph reasoning."""


def _layer(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class GlobalVector(nn.Module):
    """Pools an image or a caption into one unit vector by self-attention, with the mean as the query."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local, self.whole = _layer(dim, dim), _layer(dim, dim)
        self.score = _layer(dim, 1, bias=False)  # here and in `ReasoningStep.key` a softmax would not see a bias

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        """Pool: [B, L, d], bool [B, L] -> unit vectors [B, d]."""
        mean = (values * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)  # [B, d]
        common = self.local(values).tanh() * self.whole(mean).tanh()[:, None]  # [B, L, d]
        weights = masked_softmax(at_least_float32(self.score(common).squeeze(-1)), mask)  # [B, L]
        return unit((weights[..., None] * values).sum(1))


class ReasoningStep(nn.Module):
    """A step of graph reasoning: each node becomes a weighted sum of all nodes, through a layer."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.query = _layer(size, size)
        self.key = _layer(size, size, bias=False)
        self.output = _layer(size, size)

    def forward(self, nodes: Tensor, mask: Tensor, wanted: int) -> Tensor:
        """Compute the first `wanted` nodes after the step.

        Args:
            nodes: [..., K, m].
            mask: bool, broadcast to [..., K], True at real nodes.
            wanted: number of nodes that are needed.

        Returns:
            [..., wanted, m].
        """
        # (W_in s_p + b) . (W_out s_q) = (W_out^T W_in s_p + W_out^T b) . s_q: one product a node in place of two.
        weight, bias = self.key.weight.T @ self.query.weight, self.query.bias @ self.key.weight
        queries = linear(nodes[..., :wanted, :], weight, bias)  # [..., wanted, m]
        edges = masked_softmax(at_least_float32(queries @ nodes.mT), mask[..., None, :])  # [..., wanted, K]
        reasoned: Tensor = self.output(edges.to(nodes.dtype) @ nodes).relu()
        return reasoned


class SgrafMatcher(Matcher):
    """Similarity vectors, filtered (SAF), reasoned over (SGR), or both; reads `sgraf` and `similarity_dim`."""

    def __init__(self, config: CampConfig) -> None:
        super().__init__(config)
        size = config.similarity_dim
        self.image_vector, self.caption_vector = GlobalVector(config.dim), GlobalVector(config.dim)
        self.global_similarity, self.local_similarity = _layer(config.dim, size), _layer(config.dim, size)
        self.steps: nn.ModuleList | None = None
        self.filter: nn.Linear | None = None
        if config.sgraf != "saf":
            self.steps = nn.ModuleList(ReasoningStep(size) for _ in range(STEPS))
            self.reasoned_score = _layer(size, 1)
        if config.sgraf != "sgr":
            self.filter = _layer(size, 1)
            self.filtered_score = _layer(size, 1)

    def _prepare(self, values: Tensor, mask: Tensor, pool: GlobalVector) -> Prepared:
        values = unit(at_least_float32(values))
        return Prepared(values, mask, pooled=pool(values, mask))

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_regions`, with the images' global vectors."""
        return self._prepare(regions, mask, self.image_vector)

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `Matcher.prepare_words`, with the captions' global vectors."""
        return self._prepare(words, mask, self.caption_vector)

    def match(self, images: Prepared, captions: Prepared, layout: Layout) -> Matched:
        """As `Matcher.match`; with SAF, the share of each word is the weight of its similarity."""
        similarities, attention = self._similarities(images, captions, layout)  # [..., 1 + N, m], [..., N, R]
        words = layout.words(captions.real)
        mask = torch.cat([words.new_ones(()).expand(*words.shape[:-1], 1), words], dim=-1)  # [..., 1 + N]
        logits, shares = [], None
        if self.steps is not None:
            nodes = similarities
            for number, step in enumerate(self.steps, start=1):
                nodes = step(nodes, mask, nodes.shape[-2] if number < STEPS else 1)
            logits.append(at_least_float32(self.reasoned_score(nodes[..., 0, :]).squeeze(-1)))
        if self.filter is not None:
            weights = at_least_float32(self.filter(similarities).squeeze(-1)).sigmoid() * mask  # [..., 1 + N]
            filtered = unit((weights[..., None] * similarities).sum(-2))  # [..., m]
            logits.append(at_least_float32(self.filtered_score(filtered).squeeze(-1)))
            of_words = weights[..., 1:]
            shares = of_words / of_words.sum(-1, keepdim=True).clamp(min=torch.finfo(of_words.dtype).tiny)
        score = mean_logits(logits)
        region_shares = None if shares is None else (shares[..., None] * attention).sum(-2)  # [..., R]
        return Matched(score, score.sigmoid(), None, Received(None, attention), region_shares, shares)

    def _similarities(self, images: Prepared, captions: Prepared, layout: Layout) -> tuple[Tensor, Tensor]:
        """The global and each word's local similarity [..., 1 + N, m], and the words' attention [..., N, R]."""
        assert images.pooled is not None and captions.pooled is not None
        with torch.autocast(images.features.device.type, enabled=False):
            products = torch.einsum(layout.products, images.features, captions.features).transpose(-2, -1)
            keys = None if images.mask is None else layout.regions(images.mask)
            attention = stacked_attention(products, layout.words(captions.real), keys, WORD_SHARPNESS)
            attended = unit(torch.einsum(layout.to_words, attention, images.features))  # [..., N, d]
        local = (attended - layout.words(captions.features)).square()  # [..., N, d]
        whole = (layout.regions(images.pooled) - layout.words(captions.pooled)).square()  # [..., d]
        both = self.global_similarity(whole)[..., None, :], self.local_similarity(local)
        return unit(at_least_float32(torch.cat(both, dim=-2))), attention
