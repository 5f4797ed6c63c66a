"""The paper's text encoder: a bidirectional GRU over word embeddings (section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from camp_model.config import CampConfig
from camp_model.encoders.base import TextEncoder
from camp_model.tensors import to_device


class GruEncoder(TextEncoder):
    """Word embedding and one bidirectional GRU layer; the two directions are averaged."""

    def __init__(self, config: CampConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.word_dim)
        self.gru = nn.GRU(config.word_dim, config.dim, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def encode(self, tokens: Tensor, lengths: Tensor, dropout: nn.Module) -> Tensor:
        """As `TextEncoder.encode`."""
        embedded = dropout(self.embedding(tokens))  # [C, N, word_dim]
        # Sorted here, because pack_padded_sequence would copy the inverse order from a GPU, and wait for it.
        lengths, order = lengths.sort(descending=True)
        packed = pack_padded_sequence(
            embedded.index_select(0, to_device(order, tokens.device)), lengths, batch_first=True
        )
        # Under autocast cuDNN's GRU computes in float16, even if bfloat16 is asked for, which has no loss scale.
        with torch.autocast(tokens.device.type, enabled=False):
            states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=tokens.shape[1])
        states = states.index_select(0, to_device(order.argsort(), tokens.device))  # [C, N, 2 d]
        forward, backward = states.chunk(2, dim=-1)
        return (forward + backward) / 2  # [C, N, d]

    def word_embeddings(self) -> Tensor:
        """The embedding's weights."""
        return self.embedding.weight
