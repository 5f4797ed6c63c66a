"""Region features and word ids into the joint space (paper section 3.1).

Neither output is L2-normalised: gates are inner products and open or close only on features of free length.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def length_mask(lengths: Tensor, size: int) -> Tensor:
    """True at real positions: int64 [B] -> bool [B, size]."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class RegionEncoder(nn.Module):
    """One linear layer."""

    def __init__(self, region_dim: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(region_dim, dim)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Encode regions; padding becomes zero.

        Args:
            features: [I, R, region_dim], any floating dtype.
            mask: bool [I, R], True at real regions.

        Returns:
            [I, R, d] in the dtype of the weights.
        """
        encoded: Tensor = self.linear(features.to(self.linear.weight.dtype))
        return encoded.masked_fill(~mask[..., None], 0.0)


class CaptionEncoder(nn.Module):
    """Word embedding and one bidirectional GRU layer; the two directions are averaged."""

    def __init__(self, vocab_size: int, word_dim: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, word_dim)
        self.gru = nn.GRU(word_dim, dim, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def forward(self, tokens: Tensor, lengths: Tensor, dropout: nn.Module) -> Tensor:
        """Encode captions; padding becomes zero and never reaches a real word.

        Args:
            tokens: int64 [C, N] word ids.
            lengths: int64 [C] real words of each caption.
            dropout: applied to the word embeddings.

        Returns:
            [C, N, d].

        Raises:
            ValueError: a caption of no words, or of more than N.
        """
        lengths = lengths.cpu()
        size = tokens.shape[1]
        wrong = ((lengths < 1) | (lengths > size)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(f"caption {row} of the batch: length {int(lengths[row])} is not between 1 and {size}")
        embedded = dropout(self.embedding(tokens))
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=size)
        forward, backward = states.chunk(2, dim=-1)
        return (forward + backward) / 2
