"""Mean gates of matching pairs, random mismatched pairs, and the hardest mismatched pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from camp_model.gates import KINDS, NAMES, SIDES, gates_by_kind, summarise
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from stages.evaluation.folds import Fold
from stages.evaluation.tables import PAIR_SCHEMA


def measure_gates(
    model: CAMP,
    store: RegionStore,
    folds: Sequence[Fold],
    hardest: Sequence[np.ndarray],
    *,
    pairs: int,
    content: Sequence[int],
) -> tuple[dict[str, Any], pa.Table]:
    """Mean gates, and how well they separate pairs, on `pairs` random captions, the same for the same captions.

    Args:
        folds: where the captions come from; a caption's negatives are in its own fold.
        hardest: for each fold, int64 [C], the wrong image that scores highest with each caption.
        content: ids of the content words.

    Returns:
        The metrics in `camp_model.gates.NAMES`, null if the model has no such gates; and the pairs, as in PAIR_SCHEMA.
    """
    if (reason := model.config.no_gates_reason()) is not None:
        return dict.fromkeys(NAMES) | {"reason": reason}, PAIR_SCHEMA.empty_table()
    columns: dict[str, list[Any]] = {name: [] for name in PAIR_SCHEMA.names}
    generator = np.random.default_rng(0)
    of_fold = np.repeat(np.arange(len(folds)), [len(fold.rows) for fold in folds])
    chosen = np.sort(generator.choice(len(of_fold), min(pairs, len(of_fold)), replace=False))
    before = np.cumsum([0, *(len(fold.rows) for fold in folds)])
    for number, fold in enumerate(folds):
        picked = chosen[of_fold[chosen] == number] - before[number]
        of_kinds = gates_by_kind(model, fold.collection(store), picked, hardest[number], generator, content)
        for kind, (images, gates) in of_kinds.items():
            columns["kind"] += [kind] * len(picked)
            columns["image_id"] += [fold.images[i] for i in images]
            columns["caption_id"] += fold.captions.caption_ids[fold.rows[picked]].tolist()
            for side, values in gates.items():
                columns[side] += [None if np.isnan(value) else value for value in values.tolist()]
    kinds = np.array(columns["kind"])
    by_kind = {
        kind: {side: np.array(columns[side], dtype=float)[kinds == kind] for side in SIDES} for kind in KINDS
    }  # fmt: skip
    return dict(summarise(by_kind)), pa.table(columns, schema=PAIR_SCHEMA)
