"""What the model can do on the val split, after each epoch."""

import numpy as np
import torch
from torch import Tensor

from camp_model.camp import CAMP
from camp_model.encoders import length_mask
from camp_model.metrics import retrieval_metrics
from stages.training.data import Indices, Split
from stages.training.device import Precision
from stages.training.processes import Processes

CHUNK = 256
"""Captions, or images, encoded at a time."""
GATE_PAIRS = 1000
"""Captions whose gates are looked at, each with its own image and with a random other one."""


@torch.inference_mode()
def validate(model: CAMP, split: Split, precision: Precision, processes: Processes) -> dict[str, float]:
    """Recall in both directions, rsum, and mean gates of matching and of random pairs where the model has gates.

    The processes share the captions; all of them get the same result.
    """
    model.eval()
    device = precision.device
    with precision.autocast():
        regions, mask = _encode_images(model, split, device)
        scores = torch.zeros(len(split.images), len(split), device=device)
        # Captions of like length together, so that little of a chunk is padding.
        by_length = np.argsort(split.captions.lengths, kind="stable")
        for chunk in np.array_split(by_length, -(-len(by_length) // CHUNK))[processes.rank :: processes.count]:
            words, word_mask = _encode_captions(model, split, chunk, device)
            scores[:, torch.from_numpy(chunk).to(device)] = model.score_matrix(regions, mask, words, word_mask).float()
        processes.sum_(scores)
        caption_image = torch.from_numpy(np.searchsorted(split.images, split.rows))
        return retrieval_metrics(scores.cpu(), caption_image) | _gate_means(model, split, regions, mask, caption_image)


def _encode_images(model: CAMP, split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    regions, masks = [], []
    for start in range(0, len(split.images), CHUNK):
        features, mask = split.regions(split.images[start : start + CHUNK])
        masks.append(mask.to(device))
        regions.append(model.encode_regions(features.to(device).float(), masks[-1]))
    return torch.cat(regions), torch.cat(masks)


def _encode_captions(model: CAMP, split: Split, chunk: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens, lengths = split.captions.batch(chunk)
    return model.encode_captions(tokens.to(device), lengths), length_mask(lengths, tokens.shape[1]).to(device)


def _gate_means(model: CAMP, split: Split, regions: Tensor, mask: Tensor, caption_image: Tensor) -> dict[str, float]:
    """gate_positive_mean, gate_negative_mean and gate_auc over mean word gates (region gates if words have none)."""
    if model.messages is None or model.config.gate == "none" or len(regions) < 2:
        return {}
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(split), min(GATE_PAIRS, len(split)), replace=False)
    own = caption_image.numpy()[chosen]
    other = (own + generator.integers(1, len(regions), len(own))) % len(regions)
    means: list[Tensor] = []
    for images in (own, other):
        parts = []
        for start in range(0, len(chosen), CHUNK):
            words, word_mask = _encode_captions(model, split, chosen[start : start + CHUNK], regions.device)
            rows = torch.from_numpy(images[start : start + CHUNK]).to(regions.device)
            details = model.inspect_pairs(regions[rows], mask[rows], words, word_mask)
            if details.word_gates is not None:
                parts.append(details.word_gates.sum(1) / word_mask.sum(1))
            elif details.region_gates is not None:
                parts.append(details.region_gates.sum(1) / mask[rows].sum(1))
        means.append(torch.cat(parts).float().cpu())
    positive, negative = means
    return {
        "gate_positive_mean": positive.mean().item(),
        "gate_negative_mean": negative.mean().item(),
        "gate_auc": _area_under_curve(positive.numpy(), negative.numpy()),
    }


def _area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Chance that a matching pair's gates are more open than a random pair's; equal values count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))
