"""Negatives of a batch: mismatched images and captions, and the hardest of them."""

import torch
from torch import Tensor


def mine_hardest(scores: Tensor, image_index: Tensor, caption_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The highest-scoring negative of each image and of each caption of a batch.

    Args:
        scores: [B, B], image i with caption j.
        image_index: int64 [B].
        caption_index: int64 [B], equal for captions of the same text; None: all texts differ.

    Returns:
        For each image the position of a caption, and for each caption the position of an image, int64 [B]; -1 where
        there is no negative.
    """
    negative = negative_pairs(image_index, caption_index)
    return hardest(scores, negative), hardest(scores.T, negative.T)


def negative_pairs(image_index: Tensor, caption_index: Tensor | None = None) -> Tensor:
    """Whether images and captions of a batch are negatives: int64 [B] each -> bool [B, B], images by captions.

    A caption is a negative of an image unless the image has a caption of the same text in the batch.

    Raises:
        ValueError: `caption_index` has another length than `image_index`.
    """
    same_image = image_index[:, None] == image_index  # [B, B]
    if caption_index is None:
        return ~same_image
    if caption_index.shape != image_index.shape:
        raise ValueError(
            f"caption_index {list(caption_index.shape)}; expected one for each of {len(image_index)} pairs"
        )
    same_text = caption_index[:, None] == caption_index  # [B, B]
    # The product counts the captions that an image has with the text of a caption.
    return (same_image.float() @ same_text.float()) < 0.5


def hardest(scores: Tensor, negative: Tensor) -> Tensor:
    """Position of the highest score per row among the negatives: [b, B], bool [b, B] -> int64 [b]; -1 without one."""
    best = scores.masked_fill(~negative, -torch.inf).argmax(dim=1)
    return torch.where(negative.any(dim=1), best, -1)


def drawn_negatives(draws: Tensor, negative: Tensor, count: int) -> Tensor:
    """Select the `count` negatives of each row with the highest draws, or all if a row has no more.

    Args:
        draws: [b, B], random numbers of 0 or more.
        negative: bool [b, B].

    Returns:
        bool [b, B].
    """
    draws = draws.masked_fill(~negative, -1.0)
    least = draws.topk(min(count, draws.shape[1]), dim=1).values[:, -1:]
    return (draws >= least) & negative
