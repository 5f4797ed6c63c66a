"""The best results of many queries, whose candidates come in parts."""

import torch
from torch import Tensor


class BestResults:
    """Keeps the best candidates of each query; among equal scores wrong ones come first, as they do in the rank.

    Args:
        queries: number of queries Q.
        size: number of candidates K that are kept for each.
        like: a tensor with the type and the device of the scores.
    """

    scores: Tensor
    """[Q, K], best first; -inf before enough candidates have come."""
    positions: Tensor
    """int64 [Q, K], of the candidates; -1 before enough have come."""

    def __init__(self, queries: int, size: int, like: Tensor) -> None:
        self.scores = like.new_full((queries, size), -torch.inf)
        self.positions = torch.full((queries, size), -1, dtype=torch.int64, device=like.device)
        self._keys = torch.full_like(self.positions, torch.iinfo(torch.int64).min)

    def add(self, queries: Tensor, candidates: Tensor, scores: Tensor, right: Tensor) -> None:
        """Take the scores of some queries with some candidates.

        Args:
            queries: int64 [q], positions of the queries.
            candidates: int64 [c], positions of the candidates.
            scores: [q, c].
            right: bool [q, c], whether a candidate answers a query.
        """
        size = self.scores.shape[1]
        if size == 0:
            return
        # Ordered by score, then wrong before right, then by position.
        keys = (score_keys(scores) << 32) - (right.to(torch.int64) << 31) - candidates
        new, where = keys.topk(min(size, keys.shape[1]), dim=1)
        merged, order = torch.cat([self._keys[queries], new], dim=1).topk(size, dim=1)
        self._keys[queries] = merged
        self.scores[queries] = torch.cat([self.scores[queries], scores.gather(1, where)], dim=1).gather(1, order)
        self.positions[queries] = torch.cat([self.positions[queries], candidates[where]], dim=1).gather(1, order)


def score_keys(scores: Tensor) -> Tensor:
    """Whole numbers of 32 bits, as int64, in the order of the scores as float32; equal for equal scores."""
    bits = (scores.float() + 0.0).contiguous().view(torch.int32)  # + 0.0 makes -0.0 the other zero
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(torch.int64)
