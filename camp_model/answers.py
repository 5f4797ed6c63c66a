"""Right answers: captions for an image, and images for a caption.

A caption is right for every image that has a caption of the same text, not only for its own: "a red shirt", written of
three pictures, is true of all three. Otherwise equal captions would be negatives of each other's images in training,
where the loss would pull and push the same pair, and wrong answers in evaluation.
"""

import torch
from torch import Tensor


class RightAnswers:
    """Says which captions are right for which images.

    Args:
        caption_image: int64 [C], position of each caption's image.
        caption_text: int64 [C], equal for captions of the same text (`CaptionTable.wording_index`); None: all differ.
    """

    def __init__(self, caption_image: Tensor, caption_text: Tensor | None = None) -> None:
        self.caption_image = caption_image
        if caption_text is None:
            caption_text = torch.arange(len(caption_image))
        texts, self.text = torch.unique(caption_text.to(caption_image.device), return_inverse=True)
        self.texts = len(texts)
        # Each image and text that belong together make one number.
        self.keys = torch.unique(caption_image * self.texts + self.text)
        self.shared = torch.bincount(self.keys % self.texts, minlength=self.texts)[self.text] > 1
        """bool [C], whether several images have a caption of this text."""

    def is_right(self, images: Tensor, captions: Tensor) -> Tensor:
        """Whether captions are right for images: int64 positions, which broadcast with each other -> bool."""
        is_right: Tensor = self.caption_image[captions] == images
        if bool(self.shared[captions].any()):
            keys = images * self.texts + self.text[captions]
            at = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
            is_right = self.keys[at] == keys
        return is_right
