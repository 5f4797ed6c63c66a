"""Foils of the training captions, drawn again for every epoch and caption."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from camp_model.captions import CaptionTable
from camp_model.foils import balance
from camp_model.tensors import to_device
from stages.errors import InputError
from stages.foils.table import read_foils

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoilBatch:
    """A foil for some pairs of a batch."""

    pairs: Tensor
    """int64 [P], rows of the batch."""
    tokens: Tensor
    """int64 [P, M]"""
    lengths: Tensor
    """int64 [P], on the CPU"""
    positions: Tensor
    """int64 [P], of the changed word"""
    weights: Tensor
    """float32 [P], from `camp_model.foils.balance`, with mean 1; over an epoch all kinds have the same weight"""

    def to(self, device: torch.device) -> "FoilBatch":
        """The same on `device`, except what stays on the CPU."""
        names = [field.name for field in fields(self) if field.name != "lengths"]
        return replace(self, **{name: to_device(getattr(self, name), device) for name in names})


class TrainingFoils:
    """The foils of a split's captions.

    Raises:
        InputError: there are no foils, or foils of captions that the split does not have.
    """

    def __init__(self, path: Path, captions: CaptionTable, kinds: Sequence[str]) -> None:
        if not path.is_file():
            raise InputError(
                f"{path}: is not there; train.foil_weight needs foils of the captions that are trained on: set "
                "captions.train_foils: true and run tokenize_captions"
            )
        foils = read_foils(path)
        self.captions = foils.captions
        self.positions = np.array(foils.positions, dtype=np.int64)
        self.weights = balance(foils.words, foils.foil_words)
        count = Counter(foils.kinds)
        share = np.array([1 / count[kind] for kind in foils.kinds])
        row_of = {caption: row for row, caption in enumerate(captions.caption_ids.tolist())}
        rows: defaultdict[int, list[int]] = defaultdict(list)
        for foil, caption in enumerate(foils.captions.caption_ids.tolist()):
            if caption not in row_of:
                raise InputError(
                    f"{path}: caption_id: {caption} is not in {captions.path.name} beside it; expected both from one "
                    "run of tokenize_captions"
                )
            # A foil that cannot be balanced would teach that its word is always the right one.
            if self.weights[foil] and foils.kinds[foil] in kinds:
                rows[row_of[caption]].append(foil)
        used = Counter(foils.kinds[foil] for some in rows.values() for foil in some)
        of_all = ", ".join(f"{kind} {used[kind]} of {count[kind]}" for kind in kinds)
        print(f"train.foil_kinds: {of_all} foils of {path} are used, those whose words are each other's")
        if not rows:
            raise InputError(
                f"{path}: holds no foil of {', '.join(kinds)} whose words are each other's, for train.foil_weight"
            )
        self.choices = {row: (np.array(some), share[some] / share[some].sum()) for row, some in rows.items()}
        """Row of a caption -> its foils, and the probability of drawing each."""
        self._weigh_kinds_equally(foils.kinds)

    def _weigh_kinds_equally(self, kinds: Sequence[str]) -> None:
        """Scale the weights so that all kinds, one for each foil in `kinds`, have the same weight among drawn foils.

        A kind's share among drawn foils differs from its share of all foils: a caption gets one foil per step, and many
        have foils of only one kind. And kinds whose words differ in frequency have smaller weights.
        """
        drawn: defaultdict[str, float] = defaultdict(float)
        for some, chances in self.choices.values():
            for foil, chance in zip(some, chances, strict=True):
                drawn[kinds[foil]] += float(chance * self.weights[foil])
        for kind, weight in drawn.items():
            self.weights[np.array(kinds) == kind] *= len(self.choices) / len(drawn) / weight

    @property
    def eligible(self) -> Indices:
        """int64 [n], sorted: the foils that `draw` chooses from."""
        eligible: Indices = np.sort(np.concatenate([foils for foils, _ in self.choices.values()]))
        return eligible

    def draw(self, captions: Indices, seed: tuple[int, ...]) -> FoilBatch | None:
        """Draw a foil for each caption that has any; None if none has."""
        pairs = [pair for pair, row in enumerate(captions.tolist()) if row in self.choices]
        if not pairs:
            return None
        chosen = np.array([self._draw_one(int(captions[pair]), seed) for pair in pairs])
        tokens, lengths = self.captions.batch(chosen)
        positions, weights = torch.from_numpy(self.positions[chosen]), torch.from_numpy(self.weights[chosen])
        return FoilBatch(torch.tensor(pairs), tokens, lengths, positions, weights)

    def _draw_one(self, row: int, seed: tuple[int, ...]) -> int:
        """Draw a foil of caption `row`, independently of the batch and process that the caption is in."""
        foils, shares = self.choices[row]
        return int(np.random.default_rng((*seed, row)).choice(foils, p=shares))
