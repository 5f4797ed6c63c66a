"""Training losses over all negatives of a batch; arguments, and what is returned, as in `camp_model.losses`."""

from collections.abc import Callable
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
    """Sum of hinges over all negatives of the batch: the ranking loss that VSE++ starts from (Faghri et al., BMVC 2018,
    equation 5), and VSE-infinity's first epoch.

    sum_T' [margin - s(I, T) + s(I, T')]+ + sum_I' [margin - s(I, T) + s(I', T)]+, s as in `triplet_loss`.
    """
    gated = bool(gate_supervision)
    batch = EncodedBatch(model, regions, region_mask, words, word_mask, image_index, gated=gated, **options)
    scores = _AllPairs(batch)
    loss = scores.hinges(margin)
    return loss + gate_supervision * scores.cross_entropy(GATE_LOGIT) if gate_supervision else loss


class _AllPairs:
    """The wanted images with all captions, and the wanted captions with all images."""

    def __init__(self, batch: EncodedBatch) -> None:
        self.by_image, self.by_caption = batch.all_scores()  # [3, b, B] each
        self.negative, self.of_captions = batch.is_negative  # [b, B] each
        self.rows = batch.rows

    def cross_entropy(self, kind: int) -> Tensor:
        count, count_images = (mask.sum(1).clamp(min=1) for mask in (self.negative, self.of_captions))
        captions, images = self._over_negatives(lambda scores, _: logsigmoid(-scores), kind)
        return -(2 * logsigmoid(self._positive(kind)) + captions / count + images / count_images).mean()

    def hinges(self, margin: float) -> Tensor:
        captions, images = self._over_negatives(
            lambda scores, positive: relu(margin - positive[:, None] + scores), SIMILARITY
        )
        return (captions + images).mean()

    def _positive(self, kind: int) -> Tensor:
        return self.by_image[kind].gather(1, self.rows[:, None]).squeeze(1)

    def _over_negatives(self, of: Callable[[Tensor, Tensor], Tensor], kind: int) -> tuple[Tensor, Tensor]:
        """Sums [b] over the negative captions of each image and over the negative images of each caption."""
        positive = self._positive(kind)
        captions = (self.negative * of(self.by_image[kind], positive)).sum(1)
        return captions, (self.of_captions * of(self.by_caption[kind], positive)).sum(1)
