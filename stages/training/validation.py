"""Measures the model on the val split after each epoch."""

import math
from collections.abc import Callable

import numpy as np
import torch
from tqdm import tqdm

from camp_model.gates import gates_by_kind, histograms, summarise
from camp_model.metrics import ranks_to_metrics
from camp_model.model import CAMP
from camp_model.scoring.collection import Collection, rank_collection
from stages.contracts import input_errors
from stages.device import Precision
from stages.training.data import Split
from stages.training.processes import Processes

GATE_PAIRS = 1000
"""Number of captions whose gates are measured, each with its own image, a random other image and the highest-scoring
other image."""


def images_for(split: Split, share: float) -> np.ndarray:
    """A fixed subset of a split's images, with their captions: the given share, at least 2.

    Returns:
        Rows of the store, ascending.
    """
    count = min(len(split.images), max(2, math.ceil(share * len(split.images))))
    chosen: np.ndarray = np.sort(np.random.default_rng(0).permutation(split.images)[:count])
    return chosen


@torch.inference_mode()
def validate(
    model: CAMP,
    split: Split,
    precision: Precision,
    processes: Processes,
    share: float = 1.0,
    progress: Callable[[], object] = lambda: None,
) -> tuple[dict[str, float], dict[str, list[int]]]:
    """Measure recall in both directions, rsum, and the mean gates of matching and other pairs if the model has gates.

    The captions are divided among the processes, which all get the same result.

    Args:
        share: share of the images; see `images_for`.
        progress: called now and then while pairs are scored; what it raises ends the measurement.

    Returns:
        The metrics, and `camp_model.gates.histograms` of the gates.
    """
    model.eval()
    images = images_for(split, share)
    rows = np.flatnonzero(np.isin(split.rows, images))
    collection = Collection(split.store, images, split.captions, rows, np.searchsorted(images, split.rows[rows]))
    with precision.autocast(), input_errors():
        with tqdm(
            total=len(images) * len(rows) // processes.count, unit="pair", unit_scale=True, desc="validation",
            delay=5, position=0, leave=False, disable=processes.rank > 0,
        ) as bar:  # fmt: skip

            def scored(pairs: int) -> None:
                bar.update(pairs)
                progress()

            ranked = rank_collection([model], collection, top_k=0, share=processes, progress=scored)
        gates = _gates(model, split, collection, ranked.hardest.cpu().numpy())
    means = {name: value for name, value in summarise(gates).items() if value is not None} if gates else {}
    recall = ranks_to_metrics(ranked.i2t_ranks.cpu().numpy(), ranked.t2i_ranks.cpu().numpy())
    return recall | means, histograms(gates)


def _gates(model: CAMP, split: Split, collection: Collection, hardest: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    """Mean gates of pairs, by kind of pair and side; empty if the model has no gates."""
    captions = len(collection.caption_rows)
    if model.config.no_gates_reason() or len(collection.image_rows) < 2:
        return {}
    generator = np.random.default_rng(0)
    chosen = generator.choice(captions, min(GATE_PAIRS, captions), replace=False)
    by_kind = gates_by_kind(model, collection, chosen, hardest, generator, split.content)
    return {kind: gates for kind, (_, gates) in by_kind.items()}
