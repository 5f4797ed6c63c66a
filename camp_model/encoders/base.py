"""The interface of text encoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from camp_model.config import CampConfig
from camp_model.out_of_vocabulary import FIRST_OOV_ID
from camp_model.tensors import to_device
from camp_model.vocabulary import UNK, Vocabulary

SERVING_BYTES = 2**26
"""Largest size in bytes of the encoded sentences that a serving process caches."""


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """Mask of real positions from lengths: int64 [B] -> bool [B, size]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class TextEncoder(nn.Module, ABC):
    """Maps word ids into the joint space.

    A subclass is listed in `camp_model.registry.TEXT_ENCODERS` and calls this constructor before it makes its weights.
    """

    def __init__(self, config: CampConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, tokens: Tensor, lengths: Tensor, dropout: nn.Module) -> Tensor:
        """Encode captions; the output may be anything at padding, but padding must not affect real words.

        Args:
            tokens: int64 [C, N] word ids.
            lengths: int64 [C] on the CPU, numbers of real words, from 1 to N.
            dropout: a module that the encoder applies to the word embeddings.

        Returns:
            [C, N, d].
        """

    def word_embeddings(self) -> Tensor | None:
        """The table [vocab_size, word_dim] that `train.word_vectors` fills; None if the encoder has no such table."""
        return None

    def read_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Receive the words of a new model's vocabulary, for an encoder that needs more than their ids."""

    @property
    def reads_spelling(self) -> bool:
        """Whether words outside the vocabulary can be read; otherwise they are <unk>."""
        return False

    def oov_ids(self, words: Sequence[str]) -> list[int]:
        """Ids of words outside the vocabulary; the id of <unk> for words that the encoder cannot read."""
        return [UNK] * len(words)

    def unread(self, ids: Sequence[int]) -> list[bool]:
        """Whether the encoder treats each word as <unk>, whatever its id."""
        return [number == UNK for number in ids]

    def words_read(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Number of each caption's first words that fit into the encoder's input; others have no state of their own.

        Args:
            tokens: int64 [C, N] word ids.
            lengths: int64 [C], numbers of real words, from 1 to N.

        Returns:
            int64 [C].
        """
        return lengths

    def limit_cache(self, size: int = SERVING_BYTES) -> None:
        """Cache at most `size` bytes of encoded captions, because a serving process gets ever new sentences."""

    def facts(self) -> dict[str, Any]:
        """JSON-able facts that a checkpoint must store beside config and weights to restore the encoder."""
        return {}

    @classmethod
    def from_facts(cls, config: CampConfig, facts: dict[str, Any]) -> Self:
        """Make the encoder of a checkpoint, before its weights are loaded.

        Raises:
            ValueError: something that `facts` names is not available.
        """
        return cls(config)

    def cache_states(self, tokens: Tensor, lengths: Tensor) -> bool:
        """Encode captions and cache the result, if the encoder caches captions.

        Returns:
            Whether the encoder caches captions and has room for more.
        """
        return False

    def forward(self, tokens: Tensor, lengths: Tensor, dropout: nn.Module) -> Tensor:
        """Encode captions; padding becomes zero.

        Args:
            tokens: int64 [C, N] word ids, of the vocabulary or of `camp_model.out_of_vocabulary`.
            lengths: int64 [C], numbers of real words.
            dropout: a module that the encoder applies to the word embeddings.

        Returns:
            [C, N, d].

        Raises:
            ValueError: `lengths` is not [C], or a caption has no words or more than N.
        """
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                f"tokens: shape {list(tokens.shape)}, lengths {list(lengths.shape)}; expected [C, N] and [C]"
            )
        size = tokens.shape[1]
        if not len(tokens):
            return torch.zeros(0, size, self.config.dim, device=tokens.device)
        lengths = lengths.cpu()
        wrong = ((lengths < 1) | (lengths > size)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(f"caption {row} of the batch: length {int(lengths[row])} is not between 1 and {size}")
        real = to_device(length_mask(lengths, size), tokens.device)
        if not self.reads_spelling:
            tokens = tokens.masked_fill(tokens >= FIRST_OOV_ID, UNK)
        return self.encode(tokens, lengths, dropout).masked_fill(~real[..., None], 0.0)
