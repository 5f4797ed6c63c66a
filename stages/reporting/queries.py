"""The queries that the report shows: their selection, their first results, and how the model scored these."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from camp_model.captions import CaptionTable
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.errors import InputError
from stages.pair_view.details import explain_pairs
from stages.params.report import ReportParams

DIRECTIONS = ("t2i", "i2t")
COLUMNS = ["query_id", "rank", "top_ids", "top_scores", "right_id", "right_score"]
"""Columns of an evaluation that make a `Query`."""


@dataclass(frozen=True)
class Query:
    """One query in data/evaluation."""

    direction: str
    query_id: str
    rank: int
    top_ids: list[str]
    top_scores: list[float]
    right_id: str
    """The best right answer; it has the rank."""
    right_score: float
    is_worst: bool


@dataclass
class Pair:
    """An image and a caption that the page shows together."""

    image_id: str
    caption_row: int
    rank: int
    """Its rank in the query's results."""
    is_right: bool
    is_extra: bool
    """Whether it is a right answer that is not among the first results."""
    score: float
    """Logit of the evaluation."""
    details: dict[str, Any] = field(default_factory=dict)


def choose_queries(table: pa.Table, params: ReportParams) -> dict[str, list[Query]]:
    """Choose queries of each direction: `params.queries` drawn at random, then the worst failures among the rest.

    The draw depends only on `params.seed`; equal ranks are ordered by id.
    """
    chosen: dict[str, list[Query]] = {}
    directions = np.array(table["direction"].to_pylist())
    ranks = table["rank"].to_numpy()
    ids = np.array(table["query_id"].to_pylist(), dtype=object)
    for number, direction in enumerate(DIRECTIONS):
        rows = np.flatnonzero(directions == direction)
        generator = np.random.default_rng([params.seed, number])
        drawn = np.sort(generator.choice(rows, min(params.queries, len(rows)), replace=False))
        failed = sorted((row for row in rows if ranks[row] > 1), key=lambda row: (-ranks[row], ids[row]))
        worst = failed[: max(params.queries // 2, 1)]
        picked = [*drawn, *(row for row in worst if row not in set(drawn.tolist()))]
        marked = set(worst)
        chosen[direction] = [
            Query(direction, is_worst=row in marked, **query)
            for row, query in zip(picked, table.select(COLUMNS).take(picked).to_pylist(), strict=True)
        ]
    return chosen


class Inspector:
    """Looks up the pairs of a query, and explains how the model scored them.

    Args:
        model: in eval mode, on the CPU.
        store: the regions.
        captions: of the split that was evaluated.
        vocabulary: the model's.
    """

    def __init__(self, model: CAMP, store: RegionStore, captions: CaptionTable, vocabulary: Vocabulary) -> None:
        self.model, self.store, self.captions, self.vocabulary = model, store, captions, vocabulary
        self.row_of = {str(caption_id): row for row, caption_id in enumerate(captions.caption_ids)}
        self.captions_of: dict[str, list[int]] = {}
        for row, image_id in enumerate(captions.image_ids):
            self.captions_of.setdefault(image_id, []).append(row)

    def pairs(self, query: Query, top_k: int) -> list[Pair]:
        """The first results of a query, and its best right answer if that ranks lower; scored and explained.

        Raises:
            InputError: the query or a result is not in the captions: they are from another evaluation.
        """
        try:
            pairs = self._first(query, top_k)
            if query.rank > len(pairs):
                pairs.append(self._pair(query, query.right_id, query.rank, query.right_score, is_extra=True))
            self._inspect(pairs)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"data/evaluation: query {query.query_id!r}: {error}; expected queries of the captions and regions here"
            ) from None
        return pairs

    def _first(self, query: Query, top_k: int) -> list[Pair]:
        results = zip(query.top_ids[:top_k], query.top_scores, strict=False)
        return [self._pair(query, result, rank, score) for rank, (result, score) in enumerate(results, start=1)]

    def _pair(self, query: Query, result: str, rank: int, score: float, *, is_extra: bool = False) -> Pair:
        image_id, caption = (query.query_id, result) if query.direction == "i2t" else (result, query.query_id)
        row = self.row_of[caption]
        return Pair(image_id, row, rank, self._is_right(image_id, row), is_extra, score)

    def _is_right(self, image_id: str, row: int) -> bool:
        """Whether a caption is right for an image: one of the image's own has the same text (`camp_model.answers`)."""
        texts = self.captions.wording_index
        return any(texts[own] == texts[row] for own in self.captions_of.get(image_id, ()))

    def _inspect(self, pairs: Sequence[Pair]) -> None:
        tokens, lengths = self.captions.batch([pair.caption_row for pair in pairs])
        ids = [tokens[i, : int(n)].tolist() for i, n in enumerate(lengths)]
        texts = [self.captions.texts[pair.caption_row] for pair in pairs]
        for pair, details in zip(pairs, self.explain([pair.image_id for pair in pairs], ids, texts), strict=True):
            pair.details = details

    def explain(
        self, image_ids: Sequence[str], ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """How pairs of images and captions, given side by side, got their scores: `explain_pairs`.

        Args:
            ids: word ids of each caption; `texts` is how it is written.

        Raises:
            KeyError: an image has no regions here.
        """
        features, mask = self.store.features([self.store.row_of(image_id) for image_id in image_ids])
        return explain_pairs(self.model, self.vocabulary, features, mask, ids, texts)
