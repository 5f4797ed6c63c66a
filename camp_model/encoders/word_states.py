"""A cache of the word states of captions, so that a frozen network reads each distinct caption once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from camp_model.tensors import to_device

CACHE_BYTES = 4 * 2**30
"""Largest size in bytes of the cached states of one encoder; overhead adds a sixth. 40,000 captions of 12 words with
states of 384 numbers take 0.4 GB."""
AT_ONCE = 256
"""Captions that the network reads at a time."""
LARGEST = torch.finfo(torch.float16).max


class WordStates:
    """Caches the states [n, width] of captions by their n word ids, in float16 on the CPU.

    States are always rounded to float16, so that they are the same whether they were cached or not. When the cache is
    full, the network reads further captions each time.
    """

    def __init__(self) -> None:
        self._states: dict[bytes, Tensor] = {}
        self._bytes = 0
        self.is_full = False
        self.max_bytes = CACHE_BYTES
        """Largest size of the states."""

    def __len__(self) -> int:
        return len(self._states)

    def __deepcopy__(self, memo: dict[int, Any]) -> "WordStates":
        return self  # a copy of a frozen network has the same states

    def clear(self) -> None:
        """Forget all: the network has other weights."""
        self._states.clear()
        self._bytes, self.is_full = 0, False

    def of(self, tokens: Tensor, lengths: Tensor, read: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Look up the states of captions, or compute them.

        Args:
            tokens: int64 [C, N].
            lengths: int64 [C] on the CPU.
            read: runs the network: tokens [c, n] and lengths [c] -> states [c, n, width].

        Returns:
            float16 [C, N, width] on the device of `tokens`, zero at padding.
        """
        sizes = lengths.tolist()
        keys = [row[:size].tobytes() for row, size in zip(tokens.cpu().numpy(), sizes, strict=True)]
        rows = {key: row for row, key in enumerate(keys) if key not in self._states}
        fresh = self._read(tokens, lengths, list(rows.values()), read)
        states = dict(zip(rows, fresh, strict=True))
        padded = pad_sequence([states[key] if key in states else self._states[key] for key in keys], batch_first=True)
        self._keep(states)
        missing = tokens.shape[1] - padded.shape[1]
        return to_device(torch.nn.functional.pad(padded, (0, 0, 0, missing)), tokens.device)

    @staticmethod
    def _read(
        tokens: Tensor, lengths: Tensor, rows: Sequence[int], read: Callable[[Tensor, Tensor], Tensor]
    ) -> list[Tensor]:
        states: list[Tensor] = []
        for start in range(0, len(rows), AT_ONCE):
            chosen = torch.tensor(rows[start : start + AT_ONCE])
            sizes = lengths[chosen]
            some = read(tokens[chosen.to(tokens.device), : int(sizes.max())], sizes)
            some = some.float().clamp(-LARGEST, LARGEST).half().cpu()
            real = torch.arange(some.shape[1]) < sizes[:, None]
            states += torch.split(some[real], sizes.tolist())
        return states

    def _keep(self, states: dict[bytes, Tensor]) -> None:
        size = sum(state.numel() * state.element_size() for state in states.values())
        self.is_full = self.is_full or self._bytes + size > self.max_bytes
        if not self.is_full:
            self._states |= states
            self._bytes += size
