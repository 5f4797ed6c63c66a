"""Gate means over pairs that match, random pairs that do not, and the hardest pairs that do not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from camp_model.camp import CAMP
from camp_model.encoders import length_mask
from camp_model.regions import RegionStore
from stages.evaluation.scores import Split, encode_images

PAIR_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("image_id", pa.string()),
        ("caption_id", pa.int64()),
        ("words", pa.float32()),
        ("regions", pa.float32()),
    ],
    metadata={"camp.format": "gates", "camp.version": "1"},
)
"""kind: positive, negative (a random other image) or hardest (the other image that scores highest); words and regions:
mean gate over the pair's real words or regions, null where the model has no such gates."""

KINDS = ("positive", "negative", "hardest")


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a value of `positive` is above one of `negative`; equal values count half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left") + np.searchsorted(ordered, positive, "right")
    return float(below.mean() / 2 / len(negative))


def measure_gates(
    model: CAMP,
    store: RegionStore,
    folds: Sequence[Split],
    hardest: Sequence[np.ndarray],
    *,
    pairs: int,
    device: torch.device,
) -> tuple[dict[str, Any], pa.Table]:
    """Gate means and their separation on `pairs` captions drawn at random, the same for the same captions.

    Args:
        folds: where the captions come from; a caption's negatives are of its own fold.
        hardest: for each fold, int64 [C], the wrong image that scores highest with each caption.

    Returns:
        gate_positive_mean, gate_negative_mean, gate_hardest_mean, gate_auc (positive against random pairs) and
        gate_hardest_auc over words, the same with `region_` before over regions, null where the model has no such
        gates; and the pairs as a table of PAIR_SCHEMA.
    """
    names = [f"{side}gate_{name}" for side in ("", "region_")
             for name in ("positive_mean", "negative_mean", "hardest_mean", "auc", "hardest_auc")]  # fmt: skip
    config = model.config
    if config.gate == "none" or config.message_passing == "none":
        key = "gate" if config.message_passing != "none" else "message_passing"
        return dict.fromkeys(names) | {"reason": f"model.{key} is none"}, PAIR_SCHEMA.empty_table()
    columns: dict[str, list[Any]] = {name: [] for name in PAIR_SCHEMA.names}
    generator = np.random.default_rng(0)
    of_fold = np.repeat(np.arange(len(folds)), [len(fold.rows) for fold in folds])
    chosen = np.sort(generator.choice(len(of_fold), min(pairs, len(of_fold)), replace=False))
    before = np.cumsum([0, *(len(fold.rows) for fold in folds)])
    for number, fold in enumerate(folds):
        picked = chosen[of_fold[chosen] == number] - before[number]
        if not len(picked):
            continue
        own, images = fold.caption_image[picked], len(fold.images)
        random = (own + generator.integers(1, images, len(own))) % images
        for kind, other in zip(KINDS, (own, random, hardest[number][picked]), strict=True):
            words, regions = _pair_gates(model, store, fold, images=other, rows=fold.rows[picked], device=device)
            columns["kind"] += [kind] * len(picked)
            columns["image_id"] += [fold.images[i] for i in other]
            columns["caption_id"] += fold.captions.caption_ids[fold.rows[picked]].tolist()
            columns["words"] += words
            columns["regions"] += regions
    table = pa.table(columns, schema=PAIR_SCHEMA)
    return {name: value for side, column in (("", "words"), ("region_", "regions"))
            for name, value in _summary(table, side, column).items()}, table  # fmt: skip


def _summary(table: pa.Table, side: str, column: str) -> dict[str, float | None]:
    kinds, values = np.array(table["kind"].to_pylist()), table[column].to_numpy()
    by_kind = {kind: values[kinds == kind] for kind in KINDS}
    missing = bool(np.isnan(values.astype(float)).any())
    result: dict[str, float | None] = {
        f"{side}gate_{kind}_mean": None if missing else float(of_kind.mean()) for kind, of_kind in by_kind.items()
    }
    for name, kind in (("auc", "negative"), ("hardest_auc", "hardest")):
        separation = None if missing else area_under_curve(by_kind["positive"], by_kind[kind])
        result[f"{side}gate_{name}"] = separation
    return result


@torch.inference_mode()
def _pair_gates(
    model: CAMP, store: RegionStore, fold: Split, *, images: np.ndarray, rows: np.ndarray, device: torch.device
) -> tuple[list[float | None], list[float | None]]:
    """Mean word gates and mean region gates of pairs: positions [P] in the fold's images, rows [P] of its captions."""
    words: list[float | None] = []
    regions: list[float | None] = []
    for start in range(0, len(rows), 128):
        part = slice(start, start + 128)
        encoded, region_mask = encode_images(model, store, [fold.images[i] for i in images[part]], device)
        tokens, lengths = fold.captions.batch(rows[part])
        word_mask = length_mask(lengths.to(device), tokens.shape[1])
        details = model.inspect_pairs(
            encoded, region_mask, model.encode_captions(tokens.to(device), lengths), word_mask
        )
        words += _means(details.word_gates, word_mask)
        regions += _means(details.region_gates, region_mask)
    return words, regions


def _means(gates: Tensor | None, mask: Tensor) -> list[float | None]:
    if gates is None:
        return [None] * len(mask)
    means: list[float | None] = (gates.sum(1) / mask.sum(1).clamp(min=1)).tolist()
    return means
