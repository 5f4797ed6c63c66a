"""What the model can do on the val split, after each epoch."""

import numpy as np
import torch
from torch import Tensor

from camp_model.answers import RightAnswers
from camp_model.encoders import length_mask
from camp_model.gates import KINDS, hardest_others, histograms, mean_gates, random_others, summarise
from camp_model.metrics import retrieval_metrics
from camp_model.model import CAMP
from stages.device import Precision
from stages.training.data import Indices, Split
from stages.training.processes import Processes

CHUNK = 256
"""Captions, or images, encoded at a time."""
GATE_PAIRS = 1000
"""Captions whose gates are looked at, each with its own image, a random other one and the other one that scores
highest."""


@torch.inference_mode()
def validate(
    model: CAMP, split: Split, precision: Precision, processes: Processes
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Recall in both directions, rsum, and mean gates of matching and of other pairs where the model has gates.

    The processes share the captions; all of them get the same result.

    Returns:
        The numbers, and `pair_gates.histograms` of the gates.
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
        scores = scores.cpu()
        gates = _gates(model, split, regions, mask, scores, caption_image.numpy())
        means = {name: value for name, value in summarise(gates).items() if value is not None} if gates else {}
        recall = retrieval_metrics(scores, caption_image, split.captions.text_index)
        return recall | means, histograms(gates)


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


def _gates(
    model: CAMP, split: Split, regions: Tensor, mask: Tensor, scores: Tensor, caption_image: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Mean gates of pairs, by kind of pair and side; nothing where the model has no gates."""
    if model.config.why_no_gates() or len(regions) < 2:
        return {}
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(split), min(GATE_PAIRS, len(split)), replace=False)
    own, texts = caption_image[chosen], split.captions.text_index
    answers = RightAnswers(torch.from_numpy(caption_image), torch.from_numpy(texts))
    random = random_others(own, len(regions), generator, answers, chosen)
    images = (own, random, hardest_others(scores, caption_image, texts)[chosen])

    def encoded(images: np.ndarray) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(images).to(regions.device)
        return regions[rows], mask[rows]

    return {
        kind: mean_gates(model, encoded, split.captions, rows=chosen, images=other, content=split.content)
        for kind, other in zip(KINDS, images, strict=True)
    }
