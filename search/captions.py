"""The training captions that fit a picture best."""

import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camp_model.captions import CaptionTable
from camp_model.encoding import encode_captions
from camp_model.model import CAMP
from camp_model.vocabulary import UNK
from stages.contracts import input_errors

MOST = 40_000
"""Number of captions that are compared with a picture; from more, they are chosen evenly."""
BLOCK = 512
"""Number of captions of similar length that are encoded together."""


class CaptionRanker:
    """Ranks the captions of a table for pictures; they are encoded for the first picture, and kept.

    Args:
        model: in evaluation mode, on the CPU.
        path: file of the training captions.
    """

    def __init__(self, model: CAMP, path: Path) -> None:
        self.model, self.path = model, path
        self._lock = threading.Lock()
        self._texts: list[str] = []
        self._blocks: list[tuple[Tensor, Tensor]] | None = None

    def prepare(self) -> None:
        """Encode the captions, once.

        Raises:
            InputError: the table is damaged.
        """
        with self._lock, torch.inference_mode():
            if self._blocks is not None:
                return
            with input_errors():
                table = CaptionTable.load(self.path)
            _, rows = np.unique(table.text_index, return_index=True)  # the first of equal captions
            rows = rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(np.int64)] if len(rows) else rows
            rows = rows[(table.batch(rows)[0] > UNK).any(1).numpy()]  # of emoji alone the model reads nothing
            rows = rows[np.argsort(table.lengths[rows], kind="stable")]
            chunks = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
            self._texts = [table.texts[row] for row in rows]
            self._blocks = [encode_captions(self.model, table, chunk) for chunk in chunks]

    @torch.inference_mode()
    def rank(self, regions: Tensor, region_mask: Tensor, top: int) -> list[tuple[str, float]]:
        """The best captions of a picture [1, R, d], bool [1, R], and their logits; ties in alphabetical order."""
        self.prepare()
        assert self._blocks is not None
        if not self._texts:
            return []
        scores = torch.cat([self.model.score_matrix(regions, region_mask, *block)[0].float() for block in self._blocks])
        best = sorted(zip(self._texts, scores.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
        return best[:top]
