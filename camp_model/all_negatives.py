"""Training losses over all negatives of a batch; arguments and results are those of `camp_model.losses`."""

from typing import Unpack

from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from camp_model.losses import GATE_LOGIT, LOGIT, SIMILARITY, BatchOptions, EncodedBatch
from camp_model.model import CAMP


def all_negatives_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    gate_supervision: float = 0.0,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """Binary cross-entropy with the mean over all negatives of the batch in place of the hardest one.

    -[2 log m(I, T) + mean_T' log(1 - m(I, T')) + mean_I' log(1 - m(I', T))].
    """
    gated = bool(gate_supervision)
    batch = EncodedBatch(model, regions, region_mask, words, word_mask, image_index, gated=gated, **options)
    scores = _AllPairs(batch)
    loss = scores.cross_entropy(LOGIT)
    return loss + gate_supervision * scores.cross_entropy(GATE_LOGIT) if gate_supervision else loss


def all_negatives_triplet(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    margin: float = 0.2,
    gate_supervision: float = 0.0,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """Sum of hinges over all negatives of the batch, as in the first epoch of VSE-infinity.

    VSE++ compares itself with this loss (Faghri et al., BMVC 2018, equation 5):

    sum_T' [margin - s(I, T) + s(I, T')]+ + sum_I' [margin - s(I, T) + s(I', T)]+, s as in `triplet_loss`.
    """
    gated = bool(gate_supervision)
    batch = EncodedBatch(model, regions, region_mask, words, word_mask, image_index, gated=gated, **options)
    scores = _AllPairs(batch)
    loss = scores.hinges(margin)
    return loss + gate_supervision * scores.cross_entropy(GATE_LOGIT) if gate_supervision else loss


class _AllPairs:
    """Scores of the wanted images with all captions, and of the wanted captions with all images."""

    def __init__(self, batch: EncodedBatch) -> None:
        self.by_image, self.by_caption = batch.all_scores()  # [3, b, B] each
        self.is_negative_caption, self.is_negative_image = batch.is_negative  # [b, B] each
        self.rows = batch.rows

    def cross_entropy(self, kind: int) -> Tensor:
        captions = (self.is_negative_caption * logsigmoid(-self.by_image[kind])).sum(1)  # [b]
        images = (self.is_negative_image * logsigmoid(-self.by_caption[kind])).sum(1)
        mean_captions = captions / self.is_negative_caption.sum(1).clamp(min=1)
        mean_images = images / self.is_negative_image.sum(1).clamp(min=1)
        return -(2 * logsigmoid(self._positive(kind)).squeeze(1) + mean_captions + mean_images).mean()

    def hinges(self, margin: float) -> Tensor:
        positive = self._positive(SIMILARITY)
        captions = (self.is_negative_caption * relu(margin - positive + self.by_image[SIMILARITY])).sum(1)  # [b]
        images = (self.is_negative_image * relu(margin - positive + self.by_caption[SIMILARITY])).sum(1)
        return (captions + images).mean()

    def _positive(self, kind: int) -> Tensor:
        """[b, 1]"""
        return self.by_image[kind].gather(1, self.rows[:, None])
