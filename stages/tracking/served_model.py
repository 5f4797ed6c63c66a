"""The model that MLflow serves: sentences in, scores or images out. MLflow runs this file; nothing is pickled.

Columns of the input: `sentence`, and either `regions` (features [k, region_dim] of one image) or `image_id` (of the
store named by the param `store`): the score of that pair. With neither, the top `top_k` images of the store.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import set_model

from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.regions import RegionStore


def _given(value: Any) -> bool:
    """Whether a cell of a table holds something: not None, NaN or empty."""
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return False
    return len(value) > 0


class Retrieval(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """A trained CAMP that answers with the columns `query` (row of the input), `image_id`, `rank` and `score`."""

    def load_context(self, context: Any) -> None:
        self.model, self.vocabulary, _ = load_checkpoint(Path(context.artifacts["checkpoint"]))
        self.start_end = bool((context.model_config or {}).get("start_end", False))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Scores (between 0 and 1) of pairs, rank 1, or the top images of a store, rank 1 the best.

        Raises:
            ValueError: no store is named where one is needed, or it holds features of another width.
        """
        params = params or {}
        store = RegionStore(Path(params["store"])) if params.get("store") else None
        answers = []
        with torch.inference_mode():
            for query, row in enumerate(model_input.to_dict("records")):
                words, word_mask = self._words(row["sentence"])
                if _given(row.get("regions")):
                    features = np.stack([np.asarray(region, dtype=np.float32) for region in row["regions"]])
                    scores = self._scores(features[None], np.ones((1, len(features)), bool), words, word_mask)
                    found = [("", scores[0])]
                elif _given(row.get("image_id")):
                    image = str(row["image_id"])
                    found = [(image, self._scores(*self._stored(store, [image]), words, word_mask)[0])]
                else:
                    found = self._search(self._open(store), words, word_mask, int(params.get("top_k", 10)))
                answers += [(query, image, rank, score) for rank, (image, score) in enumerate(found, start=1)]
        return pd.DataFrame(answers, columns=["query", "image_id", "rank", "score"])

    def _words(self, sentence: str) -> tuple[torch.Tensor, torch.Tensor]:
        words = self.vocabulary.tokenize(sentence)
        ids = self.vocabulary.encode(["<start>", *words, "<end>"] if self.start_end else words)
        if not ids:
            raise ValueError(f"sentence: {sentence!r} holds no word")
        lengths = torch.tensor([len(ids)])
        return self.model.encode_captions(torch.tensor([ids]), lengths), length_mask(lengths, len(ids))

    @staticmethod
    def _open(store: RegionStore | None) -> RegionStore:
        if store is None:
            raise ValueError("store: no region store is named; expected params={'store': 'data/regions'}")
        return store

    def _stored(self, store: RegionStore | None, images: list[str]) -> tuple[np.ndarray, np.ndarray]:
        store = self._open(store)
        return store.features([store.row_of(image) for image in images])

    def _scores(
        self, features: np.ndarray, mask: np.ndarray, words: torch.Tensor, word_mask: torch.Tensor
    ) -> list[float]:
        if features.shape[-1] != self.model.config.region_dim:
            raise ValueError(
                f"regions: features are {features.shape[-1]} wide; this model reads {self.model.config.region_dim}"
            )
        known = torch.from_numpy(np.ascontiguousarray(mask))
        regions = self.model.encode_regions(torch.from_numpy(features.astype(np.float32)), known)
        logits = self.model.score_matrix(regions, known, words, word_mask)
        return [float(score) for score in torch.sigmoid(logits[:, 0].double())]

    def _search(
        self, store: RegionStore, words: torch.Tensor, word_mask: torch.Tensor, top_k: int
    ) -> list[tuple[str, float]]:
        """The best images of a store, read a thousand at a time."""
        scores: list[float] = []
        for first in range(0, len(store), 1000):
            rows = range(first, min(first + 1000, len(store)))
            scores += self._scores(*store.features(list(rows)), words, word_mask)
        best = np.argsort(-np.asarray(scores), kind="stable")[:top_k]
        return [(store.image_ids[row], scores[row]) for row in best]


set_model(Retrieval())
