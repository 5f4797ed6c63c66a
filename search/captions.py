"""The training captions that fit a picture best."""

import contextlib
import threading
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camp_model.encoding import encode_sentences
from camp_model.model import CAMP
from search.sentences import SentenceReader
from stages.contracts import read_table
from stages.errors import InputError

MOST = 40_000
"""Number of captions that are compared with a picture; from more, they are chosen evenly."""
BLOCK = 512
"""Number of captions of similar length that are encoded together."""


class CaptionRanker:
    """Ranks the captions of a table for pictures; they are encoded for the first picture, and kept.

    Each is read as the sentence that its link searches for. The table's own word ids may be of another vocabulary, once
    another run has tokenized captions, and have no words that are known by their spelling alone.

    Args:
        model: in evaluation mode, on the CPU.
        reader: splits sentences into words.
        path: file of the training captions.
    """

    def __init__(self, model: CAMP, reader: SentenceReader, path: Path) -> None:
        self.model, self.reader, self.path = model, reader, path
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
            texts = list(dict.fromkeys(read_table(self.path, ("text",))["text"].to_pylist()))
            text_of: dict[tuple[int, ...], str] = {}
            for at in np.linspace(0, len(texts) - 1, min(MOST, len(texts))).astype(np.int64).tolist():
                with contextlib.suppress(InputError):  # of emoji alone the model reads nothing
                    sentence = self.reader.read(texts[at])
                    if any(sentence.known):
                        text_of.setdefault(sentence.ids, texts[at])
            ids = sorted(text_of, key=len)
            self._texts = [text_of[sentence] for sentence in ids]
            self._blocks = [encode_sentences(self.model, ids[at : at + BLOCK]) for at in range(0, len(ids), BLOCK)]

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
