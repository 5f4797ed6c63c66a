"""One vector per picture and per caption, beside the matcher, to search a shortlist with.

CAMP scores every picture with every caption. The means of the encoders' outputs need no such pairs, so an index can
hold them (`CAMP.image_vectors`; a joint embedding's index holds its own vectors). A contrastive loss makes them
comparable (InfoNCE, van den Oord et al. 2018, in both directions as in CLIP).
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from camp_model.matchers.matching import at_least_float32
from camp_model.negatives import negative_pairs
from camp_model.tensors import unit


def pooled_vectors(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the real regions or words, of unit length: [B, L, d], bool [B, L] -> [B, d], in float32 or wider."""
    total = (at_least_float32(states) * mask[..., None]).sum(1)  # [B, d]
    return unit(total / mask.sum(1, keepdim=True).clamp(min=1))


def joint_contrastive(
    images: Tensor,
    captions: Tensor,
    image_index: Tensor,
    *,
    caption_index: Tensor | None = None,
    temperature: float = 0.05,
    pairs: slice | None = None,
) -> Tensor:
    """Contrastive cross-entropy of each image's caption and each caption's image among those of the batch.

    Beyond the paper. The target is each pair's own partner; other pairs of the same image or text are left out.

    Args:
        images, captions: unit vectors of the pairs, [B, d] each (`CAMP.image_vectors`, `CAMP.caption_vectors`).
        image_index, caption_index, pairs: as in `camp_model.losses`.
        temperature: cosines are divided by it.

    Returns:
        The mean over the wanted pairs and both directions.
    """
    with torch.autocast(images.device.type, enabled=False):
        cosines = images @ captions.T / temperature  # [B, B]
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    allowed = negative_pairs(image_index, caption_index).to(cosines.device) | own
    cosines = cosines.masked_fill(~allowed, -torch.inf)
    rows = torch.arange(len(cosines), device=cosines.device)[pairs or slice(None)]
    return (cross_entropy(cosines[rows], rows) + cross_entropy(cosines.T[rows], rows)) / 2
