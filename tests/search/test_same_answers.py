"""One model, one answer: evaluation, search and the model that MLflow serves rank pictures alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search.collection import open_workspace
from stages.tracking.served_model import Retrieval
from tests.camp_model.conftest import own
from tests.stages.conftest import SmallRun
from tests.stages.evaluation.running import PARAMS, run

__all__ = ["own"]  # a fixture


def test_a_sentence_finds_the_same_pictures_on_every_way_to_the_model(
    make_run: Callable[..., SmallRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: Path
) -> None:
    """One of the sentences has words that are in no vocabulary; the transformer reads them by spelling."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(tmp_path, images=6, text="transformer", transformer=str(own))
    evaluated = {row["query_id"]: row for row in run(small, PARAMS)[2] if row["direction"] == "t2i"}
    collection, served = open_workspace(small.root), Retrieval(small.model, {})
    sentences = [text for _, _, text in small.captions]
    answers = served.predict(pd.DataFrame({"sentence": sentences}), {"store": str(small.regions)})
    for query, (caption_id, _, sentence) in enumerate(small.captions):
        expected, hits = evaluated[str(caption_id)], collection.search(sentence, top=10).hits
        answer = answers[answers["query"] == query]
        assert [hit.picture_id for hit in hits] == answer["image_id"].tolist() == expected["top_ids"]
        logits = np.array(expected["top_scores"])
        assert [hit.score for hit in hits] == pytest.approx(logits, abs=1e-3)
        assert answer["score"].to_numpy() == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-4)
