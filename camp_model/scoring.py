"""All pairs of images and captions, in tiles."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from camp_model.message_passing import TILES, Prepared

if TYPE_CHECKING:
    from camp_model.camp import CAMP


def score_matrix(
    model: "CAMP",
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    *,
    progress: Callable[[int], object] | None = None,
) -> Tensor:
    """Logits [I, C] of every image with every caption; shapes as in `CAMP.score_matrix`."""
    images = model.prepare_regions(regions, region_mask)
    rows = []
    for start in range(0, len(words), 32):
        captions = model.prepare_words(words[start : start + 32], word_mask[start : start + 32])
        rows.append(score_prepared(model, images, captions))
        if progress is not None:
            progress(rows[-1].numel())
    return torch.cat(rows, dim=1)


def score_prepared(model: "CAMP", images: Prepared, captions: Prepared) -> Tensor:
    """Logits [I, C] of prepared images with prepared captions."""
    size = len(images.features)
    return torch.cat([model.match(images.take(slice(i, i + 32)), captions, TILES).logits for i in range(0, size, 32)])
