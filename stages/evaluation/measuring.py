"""Measures one split: recall, gates, foils."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from camp_model.answers import RightAnswers
from camp_model.metrics import mean_metrics, ranks_to_metrics
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.scoring.collection import rank_collection
from camp_model.scoring.ranking import RankedQueries
from stages.contracts import input_errors
from stages.evaluation.eccv import EccvCaption
from stages.evaluation.foils import choose_foils, foil_metrics, measure_foils
from stages.evaluation.folds import Fold, folds_of, queries_hash
from stages.evaluation.gates import measure_gates
from stages.evaluation.loading import LexiconIds
from stages.evaluation.tables import FOIL_SCHEMA, QUERY_SCHEMA
from stages.params.evaluate import EvaluateParams

TOP = 10
"""Results that are kept for each query."""


@dataclass(frozen=True)
class SplitMeasures:
    """The measurements on one split."""

    recall: dict[str, float]
    """Mean over the protocol's folds, with the metrics of ECCV Caption and CxC if requested."""
    recall_1k: dict[str, float] | None
    """Mean over the folds of COCO 1K, if the protocol includes both."""
    gates: dict[str, Any]
    foils: dict[str, dict[str, float | int | None]]
    queries: pa.Table
    """One row of QUERY_SCHEMA per query."""
    pairs: pa.Table
    """One row of PAIR_SCHEMA per pair whose gates were measured."""
    foil_scores: pa.Table
    """One row of FOIL_SCHEMA per scored foil."""

    def numbers(self) -> dict[str, float]:
        """All numeric results, for the tracking server."""
        foils = {f"foils_{kind}_{name}": value for kind, values in self.foils.items() for name, value in values.items()}
        return {k: v for k, v in {**self.recall, **self.gates, **foils}.items() if isinstance(v, int | float)}


def rank_fold(models: Sequence[CAMP], store: RegionStore, fold: Fold, top: int = TOP) -> RankedQueries:
    """Rank a fold both ways by one model, or by the mean of several, and keep the `top` results of each query.

    Raises:
        InputError: a score is not a finite number, or a shard of regions is damaged.
    """
    pairs = len(models) * len(fold.images) * len(fold.rows)
    bar = tqdm(total=pairs, unit="pair", unit_scale=True, desc=f"score {fold.name}")
    with bar, input_errors():
        return rank_collection(models, fold.collection(store), top, progress=bar.update)


def query_table(fold: Fold, ranked: RankedQueries) -> pa.Table:
    """One row of QUERY_SCHEMA per query of a fold."""
    images = pa.array(fold.images, pa.string())
    captions = pa.array(fold.captions.caption_ids[fold.rows]).cast(pa.string())
    tables = []
    image_of = images.take(pa.array(fold.caption_image))
    own_scores = ranked.own_scores.float().cpu().numpy()
    # A right image has a caption of the same text as the query's, and both score the same with it.
    texts = fold.captions.wording_index[fold.rows]
    of_image, of_text = _best_of_each(fold.caption_image, own_scores), _best_of_each(texts, own_scores)[texts]
    for direction, queries, image_ids, candidates, ranks, results, logits, right, best in (
        ("i2t", images, images, captions, ranked.i2t_ranks, ranked.i2t_top, ranked.i2t_scores, captions, of_image),
        ("t2i", captions, image_of, images, ranked.t2i_ranks, ranked.t2i_top, ranked.t2i_scores, image_of, of_text),
    ):
        top, scores = results[:, :TOP], logits[:, :TOP]
        offsets = pa.array(np.arange(len(queries) + 1, dtype=np.int32) * top.shape[1])
        first = candidates.take(pa.array(top.cpu().numpy().ravel()))
        columns = [
            pa.array([direction] * len(queries)),
            queries,
            pa.array(ranks.cpu().numpy().astype(np.int32)),
            pa.ListArray.from_arrays(offsets, first),
            pa.ListArray.from_arrays(offsets, pa.array(scores.float().cpu().numpy().ravel())),
            image_ids,
            right.take(pa.array(best)),
            pa.array(own_scores[best]),
        ]
        tables.append(pa.Table.from_arrays(columns, schema=QUERY_SCHEMA))
    return pa.concat_tables(tables)


def _best_of_each(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Position of the best score of each group, the first of equal ones, int64 [G]: groups int64 [C] from 0, scores
    [C]."""
    order = np.argsort(-scores, kind="stable")[::-1]
    best = np.zeros(groups.max() + 1, dtype=np.int64)
    best[groups[order]] = order  # of a repeated index the last value stays
    return best


def _equal_captions(fold: Fold) -> int:
    """Number of captions in a fold with the same text as a caption of another of its images."""
    texts = torch.from_numpy(fold.captions.wording_index[fold.rows])
    return int(RightAnswers(torch.from_numpy(fold.caption_image), texts).shared.sum())


def _recall(ranked: RankedQueries) -> dict[str, float]:
    return ranks_to_metrics(ranked.i2t_ranks.cpu().numpy(), ranked.t2i_ranks.cpu().numpy())


def measure_split(
    params: EvaluateParams,
    models: Sequence[CAMP],
    store: RegionStore,
    split: Fold,
    lexicon: LexiconIds,
) -> SplitMeasures:
    """Rank a split, measure gates and score foils."""
    folds = folds_of(split, params.protocol)
    eccv = EccvCaption(folds[0]) if params.eccv and split.name == "test" else None
    recalls, queries, hardest = [], [], []
    for fold in folds:
        ranked = rank_fold(models, store, fold, eccv.depth if eccv else TOP)
        recalls.append(_recall(ranked) | (eccv.measure(ranked) if eccv else {}))
        queries.append(query_table(fold, ranked))
        hardest.append(ranked.hardest.cpu().numpy())
    gates, pairs = measure_gates(models[0], store, folds, hardest, pairs=params.gate_pairs, content=lexicon.content)
    foil_scores = FOIL_SCHEMA.empty_table()
    if (foils := lexicon.foils.get(split.name)) is not None:
        chosen = choose_foils(foils, split, np.concatenate([fold.rows for fold in folds]), params.foils)
        foil_scores = measure_foils(models, store, split, foils, chosen, lexicon=lexicon.words)
    recall_1k = None
    if params.protocol == "coco":
        recall_1k = mean_metrics([_recall(rank_fold(models, store, f, 0)) for f in folds_of(split, "coco_1k")])
    metadata = {
        **(QUERY_SCHEMA.metadata or {}),
        "camp.protocol": params.protocol,
        "camp.models": str(len(models)),
        "camp.gates": params.gates,
        "camp.images": str(sum(len(fold.images) for fold in folds)),
        "camp.captions": str(sum(len(fold.rows) for fold in folds)),
        "camp.queries": queries_hash(folds),
        "camp.equal_captions": str(sum(map(_equal_captions, folds))),
    }
    table = pa.concat_tables(queries).replace_schema_metadata(metadata)
    recall = mean_metrics(recalls)
    return SplitMeasures(recall, recall_1k, gates, foil_metrics(foil_scores), table, pairs, foil_scores)
