"""The paper's equations for all pairs as one would first write them: broadcast, concatenate, multiply.

What the speed and memory bars are measured against. Takes a `CAMP` for its weights only; scalar gate, concat fusion,
residual, one hop.
"""

import math
from typing import Any

import torch
from torch import Tensor

from camp_model import CAMP


def pool(score: torch.nn.Module, fused: Tensor, mask: Tensor) -> Tensor:
    """[..., L, d], bool [..., L] -> [..., d]."""
    scores = score(fused).masked_fill(~mask[..., None], -1e9)
    weights = scores.softmax(dim=-2)  # [..., L, heads]
    return (weights.transpose(-2, -1) @ fused).mean(dim=-2)


def all_pairs(model: CAMP, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """Logits [I, C]; arguments as in `CAMP.score_matrix`."""
    matcher: Any = model.matcher
    to_regions, to_words = matcher.messages.to_regions, matcher.messages.to_words
    images, captions = len(regions), len(words)
    v = regions[:, None].expand(-1, captions, -1, -1)  # [I, C, R, d]
    t = words[None].expand(images, -1, -1, -1)  # [I, C, N, d]
    region_mask = region_mask[:, None].expand(-1, captions, -1)
    word_mask = word_mask[None].expand(images, -1, -1)
    keys_v = matcher.messages.region_key(regions)[:, None].expand(-1, captions, -1, -1)
    keys_t = matcher.messages.word_key(words)[None].expand(images, -1, -1, -1)
    affinity = keys_v @ keys_t.transpose(-2, -1) / math.sqrt(model.config.dim)  # [I, C, R, N]
    to_v = affinity.masked_fill(~word_mask[:, :, None], -1e9).softmax(dim=-1) @ t
    to_t = affinity.transpose(-2, -1).masked_fill(~region_mask[:, :, None], -1e9).softmax(dim=-1) @ v
    gate_v = (v * to_v).sum(dim=-1, keepdim=True).sigmoid()
    gate_t = (t * to_t).sum(dim=-1, keepdim=True).sigmoid()
    fused_v = to_regions.fusion(torch.cat([v, to_v], dim=-1) * gate_v).relu() + v
    fused_t = to_words.fusion(torch.cat([t, to_t], dim=-1) * gate_t).relu() + t
    image = pool(matcher.region_pooling.score, fused_v, region_mask)
    caption = pool(matcher.word_pooling.score, fused_t, word_mask)
    hidden = matcher.matching.hidden(torch.cat([image, caption], dim=-1)).relu()
    logits: Tensor = matcher.matching.output(hidden).squeeze(-1)
    return logits
