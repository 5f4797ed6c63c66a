"""Ranks pictures for a sentence: by CAMP, after a shortlist by vectors if the model was trained for that.

Here one model does both, for pictures that are added and removed, and prepared pictures are kept for the next query. In
the library's `camp_model.retrieval`, a second model makes the shortlist, and nothing is kept.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camp_model.encoding import encode_images, encode_sentences
from camp_model.matchers.prepared import Prepared
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from camp_model.scoring.all_pairs import Scorer
from search.pictures import Pictures
from stages.errors import InputError, shown

MappedRows = tuple[tuple[object, int], ...]
"""Rows of pictures in mapped shards (`RegionStore.mapped_rows`), the keys of cached regions."""
BLOCK = 512
"""Number of pictures prepared together."""
CACHE_BYTES = 3 * 2**29
"""Memory for prepared pictures that are cached between queries if all are ranked; the others are prepared again."""
ENCODED_BYTES = 2**29
"""Memory for the most recently used encoded pictures of shortlists: 14,000 with 36 regions of width 256."""


@dataclass(frozen=True)
class Ranked:
    """The pictures for a query, best first."""

    positions: npt.NDArray[np.int64]
    """[m], positions in `Pictures`: all, or those of the shortlist."""
    scores: npt.NDArray[np.float32]
    """[m], logits of CAMP."""


def has_zero_threshold(model: CAMP, fingerprint: Mapping[str, Any]) -> bool:
    """Whether logits of matches tend to be above 0 and others below: of the losses, only cross-entropies of single
    pairs see to that; a ranking loss orders them.

    A model that does not record its loss is assumed to have been trained with a ranking loss if it scores by cosines.
    """
    before = "triplet" if model.matcher.cosine is not None else "hardest_bce"
    return fingerprint.get("loss", before) in ("hardest_bce", "bce")


class Ranker:
    """Ranks pictures for sentences, one query at a time.

    Args:
        model: in evaluation mode, on the CPU.
        shortlist: number of pictures that CAMP ranks; None: all.
        cache_bytes: memory for prepared pictures.
        encoded_bytes: memory for encoded pictures of shortlists.
    """

    def __init__(
        self,
        model: CAMP,
        shortlist: int | None,
        cache_bytes: int = CACHE_BYTES,
        encoded_bytes: int = ENCODED_BYTES,
    ) -> None:
        self.model, self.shortlist, self.cache_bytes = model, shortlist, cache_bytes
        self._scorer = Scorer(model)
        self._cached: dict[MappedRows, Prepared] = {}
        self._cached_bytes = 0
        self._encoded = EncodedPictures(model, encoded_bytes)

    @torch.inference_mode()
    def rank(self, pictures: Pictures, ids: Sequence[int]) -> Ranked:
        """Rank pictures for a sentence of word ids; ties are ordered by picture id.

        Raises:
            InputError: a score is not a finite number.
        """
        words, word_mask = encode_sentences(self.model, [ids])
        if self.shortlist is None or self.shortlist >= len(pictures):
            positions = np.arange(len(pictures))
            scores = self._score_all(pictures, words, word_mask)
        else:
            vector = self.model.caption_vectors(words, word_mask).numpy()
            positions = np.sort(pictures.nearest(vector, self.shortlist)[0]).astype(np.int64)
            scores = self._score(pictures, positions, words, word_mask)
        if not (finite := np.isfinite(scores)).all():
            name = pictures.files[pictures.ids[positions[finite.argmin()]]].name
            raise InputError(
                f"{shown(name)}: its score is not finite; expected regions and weights that are as they were written. "
                "Looking for new pictures checks the regions"
            )
        order = np.lexsort((pictures.alphabetical[positions], -scores))
        return Ranked(positions[order], scores[order])

    def _score(
        self, pictures: Pictures, positions: npt.NDArray[np.int64], words: Tensor, word_mask: Tensor
    ) -> npt.NDArray[np.float32]:
        if not len(positions):
            return np.zeros(0, np.float32)
        self._cached.clear()  # from an earlier time when there were few pictures and all were ranked
        self._cached_bytes = 0
        regions, region_mask = self._encoded.of(pictures.store, pictures.rows[positions])
        scores = self.model.score_matrix(regions, region_mask, words, word_mask)[:, 0]
        return np.asarray(scores.float().numpy())

    def _score_all(self, pictures: Pictures, words: Tensor, word_mask: Tensor) -> npt.NDArray[np.float32]:
        captions = self.model.prepare_words(words, word_mask)
        scores = [self._scorer.score(block, captions)[:, 0].float() for block in self._blocks(pictures)]
        return np.asarray(torch.cat(scores).numpy()) if scores else np.zeros(0, np.float32)

    def _blocks(self, pictures: Pictures) -> Iterator[Prepared]:
        """Yield all pictures, prepared; keep as many as fit, and drop those of removed pictures."""
        starts = range(0, len(pictures), BLOCK)
        keys = [tuple(pictures.store.mapped_rows(pictures.rows[start : start + BLOCK])) for start in starts]
        for key in self._cached.keys() - set(keys):
            self._cached_bytes -= _bytes(self._cached.pop(key))
        for start, key in zip(starts, keys, strict=True):
            block = self._cached.get(key)
            if block is None:
                rows = pictures.rows[start : start + BLOCK]
                block = self.model.prepare_regions(*encode_images(self.model, pictures.store, rows))
                pictures.store.release()
                if self._cached_bytes + _bytes(block) <= self.cache_bytes:
                    self._cached[key] = block
                    self._cached_bytes += _bytes(block)
            yield block


class EncodedPictures:
    """A least-recently-used cache of encoded regions, by row of a mapped shard.

    Each picture is encoded alone, so that its result does not depend, to the bit, on the other pictures of a query.

    Args:
        max_bytes: maximum size in bytes.
    """

    def __init__(self, model: CAMP, max_bytes: int) -> None:
        self.model, self.max_bytes = model, max_bytes
        self.used_bytes = 0
        self._cached: OrderedDict[tuple[object, int], tuple[Tensor, Tensor]] = OrderedDict()

    def of(self, store: RegionStore, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Regions [n, R, d] and mask bool [n, R] of some rows of a store."""
        encoded, read = [], False
        for row, key in zip(rows.tolist(), store.mapped_rows(rows), strict=True):
            one = self._cached.pop(key, None)
            if one is None:
                one = encode_images(self.model, store, [row])
                self.used_bytes += one[0].nbytes
                read = True
            self._cached[key] = one
            encoded.append(one)
        if read:
            store.release()
        while self.used_bytes > self.max_bytes:
            _, (oldest, _) = self._cached.popitem(last=False)
            self.used_bytes -= oldest.nbytes
        return torch.cat([regions for regions, _ in encoded]), torch.cat([mask for _, mask in encoded])


def _bytes(prepared: Prepared) -> int:
    total = 0
    for value in vars(prepared).values():
        for tensor in value if isinstance(value, tuple) else (value,):
            total += 0 if tensor is None else tensor.nbytes
    return total
