"""One vector for each picture: what shortlists and pictures that are alike are found by."""

from collections.abc import Sequence

import numpy as np
import torch

from camp_model.encoding import Regions, encode_batches
from camp_model.model import CAMP
from stages.indexing.engines import Ids, Vectors


@torch.inference_mode()
def picture_vectors(model: CAMP, regions: Regions, rows: Sequence[int] | Ids) -> Vectors:
    """The unit vectors [n, d] of some pictures of a store.

    Raises:
        ValueError: the store's features are damaged.
    """
    batches = [pooled_vectors(*batch).cpu().numpy() for batch in encode_batches(model, regions, rows)]
    return np.concatenate([np.zeros((0, model.config.dim), np.float32), *batches])


def pooled_vectors(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The mean over real regions or words, of unit length: [B, L, d], bool [B, L] -> float32 [B, d]."""
    mean = (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.nn.functional.normalize(mean, dim=-1)
