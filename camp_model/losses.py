"""Training losses over a batch of aligned pairs (paper section 3.4; the triplet loss is its ablation).

Those with hardest negatives; `camp_model.all_negatives` has those with all. A batch that is to have several losses is
prepared once by `camp_model.encoded_batch`, whose methods they are.

All losses take the same arguments:
    model: a `CAMP`.
    regions, region_mask, words, word_mask: the encoded batch, [B, R, d], bool [B, R], [B, N, d], bool [B, N].
    image_index: int64 [B]; pairs with an equal index show the same image and are never each other's negatives.
    caption_index: int64 [B]; pairs with an equal index have captions of the same text, which are never each other's
        negatives either, nor those of the images that have them in this batch; None: no two are equal.
    gate_supervision: weight of binary cross-entropy on the pairs' mean gate logits, for the pairs already picked.
        Beyond the paper: it makes gates open on matching pairs and close on others. 0: as published.
    candidates, generator: pick the hardest of this many negatives drawn at random from `generator`, or of all where a
        batch has no more; 0: of all.
    random_negatives: as `candidates` 1.
    micro_batch: at most this many pairs in one forward and backward pass, whose activations are recomputed in the
        backward pass; 0: all at once. The loss and its gradient are the same.
    pairs: the pairs of the batch whose loss is wanted, with negatives from the whole batch; None: all of them. For
        training over several processes, see `camp_model.distributed`.
They return the mean over pairs, in float32 or wider, and raise a ValueError for gate supervision of a model without
gates. A pair without any possible negative contributes its positive term alone.
"""

import torch
from torch import Tensor

from camp_model.encoded_batch import EncodedBatch
from camp_model.model import CAMP
from camp_model.negatives import mine_hardest

__all__ = ["gate_bce", "hardest_negative_bce", "mine_hardest", "triplet_loss"]


def hardest_negative_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    caption_index: Tensor | None = None,
    gate_supervision: float = 0.0,
    random_negatives: bool = False,
    candidates: int = 0,
    generator: torch.Generator | None = None,
    micro_batch: int = 0,
    pairs: slice | None = None,
) -> Tensor:
    """Binary cross-entropy with the hardest negatives (paper equation 13), on logits.

    -[2 log m(I, T) + log(1 - m(I, T^)) + log(1 - m(I^, T))], T^ and I^ the highest-scoring negatives; arguments as in
    the module's docstring.
    """
    batch = EncodedBatch(
        model, regions, region_mask, words, word_mask, image_index,
        caption_index=caption_index, micro_batch=micro_batch, pairs=pairs,
    )  # fmt: skip
    candidates = 1 if random_negatives else candidates
    return batch.hardest_negative_bce(gate_supervision=gate_supervision, candidates=candidates, generator=generator)


def triplet_loss(
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
    random_negatives: bool = False,
    candidates: int = 0,
    generator: torch.Generator | None = None,
    micro_batch: int = 0,
    pairs: slice | None = None,
) -> Tensor:
    """Hinge with the hardest negatives, on the bare cosine or, for `matching: mlp`, on the probability.

    [margin - s(I, T) + s(I, T^)]+ + [margin - s(I, T) + s(I^, T)]+; arguments as in the module's docstring.
    """
    batch = EncodedBatch(
        model, regions, region_mask, words, word_mask, image_index,
        caption_index=caption_index, micro_batch=micro_batch, pairs=pairs,
    )  # fmt: skip
    candidates = 1 if random_negatives else candidates
    return batch.triplet_loss(
        margin=margin, gate_supervision=gate_supervision, candidates=candidates, generator=generator
    )


def gate_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    caption_index: Tensor | None = None,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    micro_batch: int = 0,
    pairs: slice | None = None,
) -> Tensor:
    """Binary cross-entropy of every word's gate: open on its own image, closed on a random other one.

    -[2 mean log s(g(I, T)) + mean log s(-g(I, T')) + mean log s(-g(I', T))], beyond the paper: s is the sigmoid, g the
    gate logits of a pair's words (regions where words receive no messages) divided by `temperature`, T' and I' are
    random negatives. The gates themselves stay undivided, so that above 1 one that is right more often than not is
    nearly open or closed. Other arguments as in the module's docstring.

    Raises:
        ValueError: the model has no gates.
    """
    batch = EncodedBatch(
        model, regions, region_mask, words, word_mask, image_index,
        caption_index=caption_index, micro_batch=micro_batch, pairs=pairs,
    )  # fmt: skip
    return batch.gate_bce(temperature=temperature, generator=generator)
