"""What the model can do on the val split, after each epoch."""

import numpy as np
import torch
from torch import Tensor

from camp_model.answers import RightAnswers
from camp_model.encoding import encode_images
from camp_model.gates import KINDS, histograms, mean_gates, random_others, summarise
from camp_model.metrics import ranks_to_metrics
from camp_model.model import CAMP
from camp_model.scoring.collection import Collection, rank_collection
from stages.contracts import input_errors
from stages.device import Precision
from stages.training.data import Split
from stages.training.processes import Processes

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
        The numbers, and `camp_model.gates.histograms` of the gates.
    """
    model.eval()
    caption_image = np.searchsorted(split.images, split.rows)
    collection = Collection(split.store, split.images, split.captions, np.arange(len(split)), caption_image)
    with precision.autocast(), input_errors():
        ranked = rank_collection([model], collection, top_k=0, share=processes)
        gates = _gates(model, split, collection, ranked.hardest.cpu().numpy())
    means = {name: value for name, value in summarise(gates).items() if value is not None} if gates else {}
    recall = ranks_to_metrics(ranked.i2t_ranks.cpu().numpy(), ranked.t2i_ranks.cpu().numpy())
    return recall | means, histograms(gates)


def _gates(model: CAMP, split: Split, collection: Collection, hardest: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Mean gates of pairs, by kind of pair and side; nothing where the model has no gates."""
    if model.config.why_no_gates() or len(split.images) < 2:
        return {}
    generator = np.random.default_rng(0)
    chosen = generator.choice(len(split), min(GATE_PAIRS, len(split)), replace=False)
    own = collection.caption_image[chosen]
    answers = RightAnswers(torch.from_numpy(collection.caption_image), torch.from_numpy(collection.caption_text))
    random = random_others(own, len(split.images), generator, answers, chosen)

    def encode(images: np.ndarray) -> tuple[Tensor, Tensor]:
        return encode_images(model, split.store, split.images[images])

    return {
        kind: mean_gates(model, encode, split.captions, rows=chosen, images=other, content=split.content)
        for kind, other in zip(KINDS, (own, random, hardest[chosen]), strict=True)
    }
