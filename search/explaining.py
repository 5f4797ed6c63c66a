"""Explains the score of one picture and one sentence."""

from dataclasses import dataclass
from typing import Any

from camp_model.model import CAMP
from camp_model.vocabulary import Vocabulary
from search.pictures import Pictures
from search.sentences import Sentence
from stages.pair_view.details import explain_pairs, region_labels, word_effects


@dataclass(frozen=True)
class PairView:
    """A picture with R regions and a sentence with N words, as pair_view.js draws them."""

    picture_id: str
    score: float
    """CAMP's logit."""
    details: dict[str, Any]
    """From `explain_pairs`: words, unknown, gates, attention and pooling, in thousandths."""
    effects: list[float | None]
    """[N], how much each word adds to the logit (`word_effects`); below 0 it counts against the picture."""
    width: int
    height: int
    """Width and height of the upright picture in pixels; 0 if unknown."""
    boxes: list[list[float]]
    """[R][4], XYXY, in pixels of the upright picture."""
    labels: list[str]
    """[R], the detector's name for each region."""


def explain_pair(
    model: CAMP, vocabulary: Vocabulary, pictures: Pictures, picture_id: str, text: str, sentence: Sentence
) -> PairView:
    """What the model did with a pair.

    Raises:
        KeyError: no such picture.
    """
    row = int(pictures.rows[pictures.position[picture_id]])
    store = pictures.store
    features, mask = store.features([row])
    (details,) = explain_pairs(model, vocabulary, features, mask, [sentence.ids], [text])
    effects = word_effects(model, features[0], mask[0], sentence.ids)
    boxes = store.boxes(row).astype(float).round(1).tolist()
    return PairView(
        picture_id, details["logit"], details, effects, *store.size(row), boxes, region_labels(store, row)
    )  # fmt: skip
