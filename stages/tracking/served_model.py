"""The model that MLflow serves: sentences in, scores or images out. MLflow imports this file to load it, not to log it.

Columns of the input: `sentence`, and either `regions` (features [k, region_dim] of one image) or `image_id` (in the
store that the param `store` names), for the score of that pair; with neither, for the best `top_k` images of the store.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from camp_model.checkpoint import load_checkpoint
from camp_model.encoding import encode_images, encode_sentences, word_ids
from camp_model.files import read_object
from camp_model.regions import RegionStore
from camp_model.vocabulary import END, START

BLOCK = 256
"""Images encoded, or sentences scored, at a time."""
CACHE_BYTES = 2 * 2**30
"""Size of the encoded images of a store that are kept between requests; the rest are encoded again."""
Encoded = tuple[Tensor, Tensor]
"""Vectors [n, L, d] and their mask [n, L]."""


class Retrieval:
    """A trained CAMP that answers with the columns `query` (row of the input), `image_id`, `rank`, `score`, `error`.

    Args:
        checkpoint: folder with model.safetensors, config.json and vocabulary.json.
        settings: how the training captions were tokenized: `start_end`, `max_words`.
    """

    def __init__(self, checkpoint: Path, settings: dict[str, Any]) -> None:
        self.model, self.vocabulary, _ = load_checkpoint(checkpoint)
        self.model.caption_encoder.limit_cache()
        self.settings = settings
        origin = checkpoint / "fingerprint.json"
        self.detector = read_object(origin, "a checkpoint's origin").get("detector") if origin.is_file() else None
        self.cached: tuple[object, RegionStore, dict[int, Encoded]] | None = None

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return scores (between 0 and 1): of pairs with rank 1, or of the best images of a store, ranked from 1.

        The answer to an invalid row is one row of rank 0, whose `error` says why.

        Raises:
            ValueError: the store cannot be read or has another detector or width, or `top_k` is below 1.
        """
        params = params or {}
        if (top_k := int(params.get("top_k", 10))) < 1:
            raise ValueError(f"top_k: is {top_k}; expected 1 or more")
        store = self._store(Path(params["store"])) if params.get("store") else None
        answers: list[tuple[int, str, int, float, str]] = []
        searches: dict[int, list[int]] = {}
        with torch.inference_mode():
            for query, row in enumerate(model_input.to_dict("records")):
                try:
                    tokens, image = self._word_ids(row.get("sentence")), ""
                    if _holds(row.get("regions")):
                        features = _features(row["regions"], self.model.config.region_dim)
                        mask = torch.ones(features.shape[:2], dtype=torch.bool)
                        regions = self.model.encode_regions(features, mask), mask
                    elif store is None:
                        raise ValueError("store: no region store is named; expected params={'store': 'data/regions'}")
                    elif _holds(row.get("image_id")):
                        image = str(row["image_id"])
                        regions = self._image(store, image)
                    else:
                        searches[query] = tokens
                        continue
                    logit = self._scores(regions, encode_sentences(self.model, [tokens]))
                    answers.append((query, image, 1, logit.sigmoid().item(), ""))
                except (ValueError, TypeError) as error:
                    answers.append((query, "", 0, float("nan"), str(error)[:300]))
            for first in range(0, len(searches), BLOCK):
                assert store is not None
                some = dict(list(searches.items())[first : first + BLOCK])
                answers += self._search(store, some, top_k)
        answers.sort(key=lambda answer: answer[0])
        return pd.DataFrame(answers, columns=["query", "image_id", "rank", "score", "error"])

    def _store(self, path: Path) -> RegionStore:
        """The store at `path`; that of the last request is reused while its manifest is unchanged."""
        manifest = path / "manifest.parquet"
        state = manifest.stat() if manifest.exists() else None
        key = state and (path.resolve(), state.st_mtime_ns, state.st_ino, state.st_size)
        if self.cached is None or self.cached[0] != key:
            store = RegionStore(path)
            if self.detector and store.detector != self.detector:
                ours = f"this model was trained on those of {self.detector}"
                raise ValueError(f"{path}: its regions come from the detector {store.detector}; {ours}")
            if store.region_dim != (width := self.model.config.region_dim):
                raise ValueError(f"{path}: its features are {store.region_dim} wide; this model reads {width}")
            self.cached = key, store, {}
        return self.cached[1]

    def _block(self, store: RegionStore, first: int) -> Encoded:
        """`BLOCK` encoded images from row `first`, kept for later requests up to `CACHE_BYTES`."""
        cached = self.cached[2] if self.cached and self.cached[1] is store else {}
        block = cached.get(first) or encode_images(self.model, store, range(first, min(first + BLOCK, len(store))))
        if sum(vectors.nbytes for vectors, _ in cached.values()) + block[0].nbytes <= CACHE_BYTES:
            cached[first] = block
        return block

    def _image(self, store: RegionStore, image_id: str) -> Encoded:
        row = store.row_of(image_id)
        first = row - row % BLOCK
        if self.cached and first in self.cached[2]:
            vectors, mask = self._block(store, first)
            return vectors[row - first, None], mask[row - first, None]
        return encode_images(self.model, store, [row])

    def _word_ids(self, sentence: Any) -> list[int]:
        words = self.vocabulary.tokenize(sentence) if isinstance(sentence, str) else []
        if not words:
            raise ValueError(f"sentence: {str(sentence)[:80]!r} holds no word")
        ids = word_ids(self.model, self.vocabulary, words[: self.settings.get("max_words")])
        return [START, *ids, END] if self.settings.get("start_end") else ids

    def _scores(self, regions: Encoded, words: Encoded) -> Tensor:
        """Logits [C, I], which keep their order where probabilities are all rounded to 1."""
        return self.model.score_matrix(*regions, *words).double().T

    def _search(self, store: RegionStore, searches: dict[int, list[int]], top_k: int) -> list[Any]:
        """The best images of a store for each sentence, ties in the store's order."""
        words = encode_sentences(self.model, list(searches.values()))
        best, rows = torch.empty(len(searches), 0), torch.empty(len(searches), 0, dtype=torch.int64)
        for first in range(0, len(store), BLOCK):
            scores = self._scores(self._block(store, first), words)
            at = torch.arange(first, first + scores.shape[1]).expand_as(scores)
            best, order = torch.cat([best, scores], 1).sort(dim=1, descending=True, stable=True)
            best, rows = best[:, :top_k], torch.cat([rows, at], 1).gather(1, order[:, :top_k])
        return [
            (query, store.image_ids[row], rank, score, "")
            for query, images, scores in zip(searches, rows.tolist(), best.sigmoid().tolist(), strict=True)
            for rank, (row, score) in enumerate(zip(images, scores, strict=True), start=1)
        ]


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> Retrieval:
    """Load the model; MLflow calls this (`loader_module`) with the folder of the checkpoint."""
    return Retrieval(Path(path), model_config or {})


def _holds(value: Any) -> bool:
    """Whether a cell of a table has a value: not None, NaN or empty."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return False
    return not hasattr(value, "__len__") or len(value) > 0


def _features(regions: Any, width: int) -> Tensor:
    """The features [1, k, width] in a cell of a table; ValueError or TypeError if it holds something else."""
    features = np.stack([np.asarray(region, dtype=np.float64) for region in regions])
    if features.ndim != 2:
        raise ValueError(f"regions: an array of {features.ndim} dimensions; expected features [regions, width]")
    if features.shape[1] != width:
        raise ValueError(f"regions: features are {features.shape[1]} wide; this model reads {width}")
    if not (np.abs(features) <= np.finfo(np.float32).max).all():
        raise ValueError("regions: a feature is not finite in float32")
    return torch.from_numpy(features.astype(np.float32)[None])
