"""Training losses over all negatives of a batch; arguments, and what is returned, as in `camp_model.losses`."""

from torch import Tensor

from camp_model.encoded_batch import EncodedBatch
from camp_model.model import CAMP


def all_negatives_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    caption_index: Tensor | None = None,
    gate_supervision: float = 0.0,
    micro_batch: int = 0,
    pairs: slice | None = None,
) -> Tensor:
    """Binary cross-entropy with the mean over all negatives of the batch in place of the hardest one.

    -[2 log m(I, T) + mean_T' log(1 - m(I, T')) + mean_I' log(1 - m(I', T))].
    """
    batch = EncodedBatch(
        model, regions, region_mask, words, word_mask, image_index,
        caption_index=caption_index, micro_batch=micro_batch, pairs=pairs,
    )  # fmt: skip
    return batch.all_negatives_bce(gate_supervision=gate_supervision)


def all_negatives_triplet(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    caption_index: Tensor | None = None,
    margin: float = 0.2,
    gate_supervision: float = 0.0,
    micro_batch: int = 0,
    pairs: slice | None = None,
) -> Tensor:
    """Sum of hinges over all negatives of the batch: the ranking loss that VSE++ starts from (Faghri et al., BMVC 2018,
    equation 5), and VSE-infinity's first epoch.

    sum_T' [margin - s(I, T) + s(I, T')]+ + sum_I' [margin - s(I, T) + s(I', T)]+, s as in `triplet_loss`.
    """
    batch = EncodedBatch(
        model, regions, region_mask, words, word_mask, image_index,
        caption_index=caption_index, micro_batch=micro_batch, pairs=pairs,
    )  # fmt: skip
    return batch.all_negatives_triplet(margin=margin, gate_supervision=gate_supervision)
