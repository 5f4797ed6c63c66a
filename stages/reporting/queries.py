"""The queries that the report shows: which, what ranks first for each, and how the model came to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from camp_model.captions import CaptionTable
from camp_model.encoders import length_mask
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.vocabulary import UNK, Vocabulary
from stages.errors import InputError
from stages.params.report import ReportParams

DIRECTIONS = ("t2i", "i2t")


@dataclass(frozen=True)
class Query:
    """One query of data/evaluation."""

    direction: str
    query_id: str
    rank: int
    top_ids: list[str]
    top_scores: list[float]
    worst: bool


@dataclass
class Pair:
    """An image and a caption that the page shows together."""

    image_id: str
    caption_row: int
    at: int
    """Its rank for the query."""
    right: bool
    beyond: bool
    """A right answer that the first ones do not hold."""
    score: float | None
    """Logit; None until the model has scored it."""
    details: dict[str, Any] = field(default_factory=dict)


def choose_queries(table: pa.Table, params: ReportParams) -> dict[str, list[Query]]:
    """Queries of each direction: `params.queries` drawn at random, then the worst failures among the rest.

    The draw depends on `params.seed` alone; equal ranks are ordered by id.
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
            Query(
                direction, query["query_id"], query["rank"], query["top_ids"], query["top_scores"], row in marked
            )
            for row, query in zip(picked, table.take(picked).to_pylist(), strict=True)
        ]  # fmt: skip
    return chosen


class Inspector:
    """Looks up the pairs of a query and asks the model how it scored them.

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
        """What ranks first for a query, and its best right answer where that ranks lower; scored and explained.

        Raises:
            InputError: the query or a result is not in the captions: they are of another evaluation.
        """
        try:
            pairs = self._first(query, top_k)
            if query.rank > len(pairs):
                pairs.append(self._best_right(query))
            self._inspect(pairs)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"data/evaluation: query {query.query_id!r}: {error}; expected queries of the captions and regions here"
            ) from None
        return pairs

    def _first(self, query: Query, top_k: int) -> list[Pair]:
        pairs = []
        for at, (found, score) in enumerate(zip(query.top_ids[:top_k], query.top_scores, strict=False), start=1):
            image_id, caption = (query.query_id, found) if query.direction == "i2t" else (found, query.query_id)
            row = self.row_of[caption]
            pairs.append(Pair(image_id, row, at, self._is_right(image_id, row), False, score))
        return pairs

    def _is_right(self, image_id: str, row: int) -> bool:
        """Whether a caption is right for an image: one of the image's own has its text (`camp_model.answers`)."""
        texts = self.captions.wording_index
        return any(texts[own] == texts[row] for own in self.captions_of.get(image_id, ()))

    def _best_right(self, query: Query) -> Pair:
        """The right answer that the query's rank is that of."""
        if query.direction == "t2i":
            row = self.row_of[query.query_id]
            equal = np.flatnonzero(self.captions.wording_index == self.captions.wording_index[row])
            images = dict.fromkeys(self.captions.image_ids[other] for other in equal)
            candidates = [Pair(image_id, row, query.rank, True, True, None) for image_id in images]
        else:
            own = self.captions_of[query.query_id]
            candidates = [Pair(query.query_id, row, query.rank, True, True, None) for row in own]
        self._inspect(candidates)
        return max(candidates, key=lambda pair: pair.details["logit"])

    def _inspect(self, pairs: Sequence[Pair]) -> None:
        tokens, lengths = self.captions.batch([pair.caption_row for pair in pairs])
        ids = [tokens[i, : int(n)].tolist() for i, n in enumerate(lengths)]
        texts = [self.captions.texts[pair.caption_row] for pair in pairs]
        for pair, details in zip(pairs, self.explain([pair.image_id for pair in pairs], ids, texts), strict=True):
            pair.details = details
            if pair.score is None:
                pair.score = details["logit"]

    @torch.inference_mode()
    def explain(
        self, image_ids: Sequence[str], ids: Sequence[Sequence[int]], texts: Sequence[str]
    ) -> list[dict[str, Any]]:
        """How aligned pairs of images and captions came to their scores: the logit, and what page.js draws.

        Args:
            ids: word ids of each caption; `texts` is how it is written.

        Raises:
            KeyError: an image has no regions here.
        """
        features, mask = self.store.features([self.store.row_of(image_id) for image_id in image_ids])
        region_mask = torch.from_numpy(mask)
        lengths = torch.tensor([len(caption) for caption in ids])
        tokens = pad_sequence([torch.tensor(caption) for caption in ids], batch_first=True)
        found = self.model.inspect_pairs(
            self.model.encode_regions(torch.from_numpy(features).float(), region_mask),
            region_mask,
            self.model.encode_captions(tokens, lengths),
            length_mask(lengths, tokens.shape[1]),
        )
        details = []
        for i, (caption, text) in enumerate(zip(ids, texts, strict=True)):
            n, r = len(caption), int(mask[i].sum())
            details.append({
                "logit": float(found.logits[i]),
                **self._words(text, caption),
                "wordGates": _per_mille(found.word_gates, i, n),
                "regionGates": _per_mille(found.region_gates, i, r),
                "wordAttention": _per_mille(found.word_attention, i, n, r),
                "regionAttention": _per_mille(found.region_attention, i, r, n),
                "wordPooling": _per_mille(found.word_pooling, i, n),
                "regionPooling": _per_mille(found.region_pooling, i, r),
            })  # fmt: skip
        return details

    def _words(self, text: str, ids: Sequence[int]) -> dict[str, Any]:
        """The words as the model reads them; one that it does not know is shown as written, and marked."""
        words = self.vocabulary.decode(ids)
        written = iter(self.vocabulary.tokenize(text))
        unknown = [i for i, token in enumerate(ids) if token == UNK]
        for i, token in enumerate(ids):
            if token >= UNK:
                words[i] = next(written, words[i])
        return {"words": words, "unknown": unknown}


def _per_mille(values: Tensor | None, index: int, *shape: int) -> list[Any] | None:
    """Shares as whole thousandths, padding cut off: a third of the text that decimals would take."""
    if values is None:
        return None
    real = values[index][tuple(slice(0, size) for size in shape)]
    rounded: list[Any] = (real.double() * 1000).round().long().tolist()
    return rounded
