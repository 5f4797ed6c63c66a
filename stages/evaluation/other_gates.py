"""Evaluates a trained model with other gates than its own, to tell what gates do from what training with them did."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from camp_model.encoding import encode_captions, encode_images
from camp_model.matchers.prepared import TILES, Prepared
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from stages.contracts import input_errors
from stages.evaluation.folds import Fold
from stages.params.evaluate import EvaluateParams, check_gates


def with_gates(params: EvaluateParams, folder: Path, model: CAMP, store: RegionStore, split: Fold) -> CAMP:
    """The model of `folder` with the gates that `evaluate.gates` names; `another` takes the other pair from `split`.

    Raises:
        InputError: the model has no scalar gates, or its gates also depend on evidence.
    """
    if params.gates == "trained":
        return model
    with input_errors(f"{folder / 'config.json'}: "):
        check_gates(params.gates, model.config)
    if params.gates == "open":
        other = CAMP(replace(model.config, gate="unapplied"), caption_encoder=model.caption_encoder)
    else:
        other = _GatesOfOtherPair(model, store, split)
    other.load_state_dict(model.state_dict())
    return other.to(next(model.parameters()).device).eval()


class _GatesOfOtherPair(CAMP):
    """In every pair, words have their gates with the split's first picture, regions theirs with its first caption."""

    def __init__(self, model: CAMP, store: RegionStore, split: Fold) -> None:
        super().__init__(model.config, caption_encoder=model.caption_encoder)
        with torch.inference_mode():
            self.caption = model.prepare_words(*encode_captions(model, split.captions, split.rows[:1]))
            self.image = model.prepare_regions(*encode_images(model, store, [store.row_of(split.images[0])]))

    def prepare_regions(self, regions: Tensor, mask: Tensor) -> Prepared:
        """As `CAMP.prepare_regions`, with the gates that the regions have with that caption."""
        prepared = super().prepare_regions(regions, mask)
        received = self.match(prepared, self.caption, TILES).regions
        return prepared if received is None or received.gates is None else replace(prepared, gates=received.gates[:, 0])

    def prepare_words(self, words: Tensor, mask: Tensor) -> Prepared:
        """As `CAMP.prepare_words`, with the gates that the words have with that picture."""
        prepared = super().prepare_words(words, mask)
        received = self.match(self.image, prepared, TILES).words
        return prepared if received is None or received.gates is None else replace(prepared, gates=received.gates[0])
