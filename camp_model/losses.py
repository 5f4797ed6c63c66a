"""Training losses with hardest negatives over a batch of B aligned pairs (paper section 3.4).

The triplet loss is an ablation of the paper. `camp_model.all_negatives` has losses with all negatives.

All B x B pairs are scored without gradients to pick the hardest negatives; forward and backward then run on 3B pairs,
the B positives and 2B negatives. The gradient is that of the all-pairs graph. In shapes, b counts the pairs whose loss
is wanted (`BatchOptions.pairs`; all B by default).

All losses take these arguments, and those of `BatchOptions`:
    model: a `CAMP`.
    regions, region_mask, words, word_mask: the encoded batch, [B, R, d], bool [B, R], [B, N, d], bool [B, N].
    image_index: int64 [B]; pairs with an equal index show the same image and are never each other's negatives.
Several losses also take:
    gate_supervision: weight of a binary cross-entropy on the mean gate logits of the picked pairs, which opens gates on
        matching pairs and closes them on others. Beyond the paper; 0: as published.
    candidates, generator: pick the hardest of `candidates` random negatives, drawn from `generator`; 0: of all.
All losses return the mean over pairs, a scalar in float32 or wider, and raise ValueError for gate supervision of a
model without gates. A pair without any possible negative contributes only its positive term.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypedDict, Unpack

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu
from torch.utils.checkpoint import checkpoint

from camp_model.matchers.matching import at_least_float32
from camp_model.matchers.prepared import PAIRS, TILES, Layout
from camp_model.model import CAMP
from camp_model.negatives import drawn_negatives, hardest, mine_hardest, negative_pairs
from camp_model.scoring.all_pairs import score_prepared
from camp_model.tensors import to_device

__all__ = ["BatchOptions", "EncodedBatch", "gate_bce", "hardest_negative_bce", "mine_hardest", "triplet_loss"]

LOGIT, SIMILARITY, GATE_LOGIT = 0, 1, 2
"""Kinds of scores: indices of the first dimension of stacked scores [3, ...], or [2, ...] without gates."""


class BatchOptions(TypedDict, total=False):
    """Optional arguments of every loss."""

    caption_index: Tensor | None
    """int64 [B]; pairs with an equal index have captions of the same text. Such captions are never each other's
    negatives, nor negatives of images that have a caption of this text in the batch. None: all texts differ."""
    pairs: slice | None
    """The pairs whose loss is returned, with negatives from the whole batch; None: all pairs. For training on several
    processes, see `camp_model.distributed`."""
    micro_batch: int
    """Largest number of pairs in one forward and backward pass; activations are then recomputed in the backward pass.
    0: all at once. Loss and gradient are the same."""


def hardest_negative_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    gate_supervision: float = 0.0,
    candidates: int = 0,
    generator: torch.Generator | None = None,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """Binary cross-entropy with the hardest negatives (paper equation 13), on logits.

    -[2 log m(I, T) + log(1 - m(I, T^)) + log(1 - m(I^, T))], where T^ and I^ are the highest-scoring negatives. The
    module's docstring has arguments, result and errors.
    """
    gated = bool(gate_supervision)
    batch = EncodedBatch(model, regions, region_mask, words, word_mask, image_index, gated=gated, **options)
    picked = batch.pick(candidates, generator)
    loss = picked.cross_entropy(LOGIT)
    return loss + gate_supervision * picked.cross_entropy(GATE_LOGIT) if gate_supervision else loss


def triplet_loss(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    margin: float = 0.2,
    gate_supervision: float = 0.0,
    candidates: int = 0,
    generator: torch.Generator | None = None,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """Hinge loss with the hardest negatives; s is the cosine, or the probability if the logit is not just a cosine.

    [margin - s(I, T) + s(I, T^)]+ + [margin - s(I, T) + s(I^, T)]+. The module's docstring has arguments, result and
    errors.
    """
    gated = bool(gate_supervision)
    batch = EncodedBatch(model, regions, region_mask, words, word_mask, image_index, gated=gated, **options)
    picked = batch.pick(candidates, generator)
    loss = picked.hinge(margin)
    return loss + gate_supervision * picked.cross_entropy(GATE_LOGIT) if gate_supervision else loss


def gate_bce(
    model: CAMP,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    image_index: Tensor,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    **options: Unpack[BatchOptions],
) -> Tensor:
    """Binary cross-entropy of every word's gate: open on its own image, closed on a random other (beyond the paper).

    -[2 mean log s(g(I, T)) + mean log s(-g(I, T')) + mean log s(-g(I', T))], where s is the sigmoid, g the gate logits
    of a pair's words (of regions if words receive no messages) divided by `temperature`, T' and I' random negatives.
    Only this loss divides by `temperature`, so values above 1 make the applied gates sharper. Other arguments are as in
    the module's docstring.

    Raises:
        ValueError: the model has no gates.
    """
    batch = EncodedBatch(model, regions, region_mask, words, word_mask, image_index, **options)

    def likelihoods(image_rows: Tensor, caption_rows: Tensor) -> Tensor:
        """Mean log-likelihood [2, P] of open and of closed gates."""
        images, captions = batch.images.take(image_rows), batch.captions.take(caption_rows)
        logits, real = model.matcher.gate_logits(images, captions, PAIRS)  # [P, N] or [P, R]
        logits = at_least_float32(logits) / temperature
        of_gates = torch.stack([logsigmoid(logits), logsigmoid(-logits)]) * real  # [2, P, N] or [2, P, R]
        return of_gates.sum(-1) / real.sum(-1).clamp(min=1)

    (caption_draws, image_draws), (captions, images) = batch.draw(generator), batch.is_negative
    caption_rows, image_rows = hardest(caption_draws, captions), hardest(image_draws, images)  # [b] each
    positive, caption, image = batch.on_pairs(likelihoods, caption_rows, image_rows).chunk(3, dim=1)  # [2, b] each
    negative = (caption_rows >= 0) * caption[1] + (image_rows >= 0) * image[1]
    return -(2 * positive[0] + negative).mean()


@dataclass(frozen=True)
class _Picked:
    """Scores of the b wanted pairs, and of one negative caption and one negative image for each."""

    positive: Tensor
    """[3, b], by LOGIT, SIMILARITY and GATE_LOGIT; [2, b] without gates."""
    negative_caption: Tensor
    """As `positive`, of the image with a negative caption."""
    negative_image: Tensor
    """As `positive`, of the caption with a negative image."""
    has_caption: Tensor
    """bool [b], False for an image without any possible negative caption."""
    has_image: Tensor
    """bool [b], False for a caption without any possible negative image."""

    def cross_entropy(self, kind: int) -> Tensor:
        caption = self.has_caption * logsigmoid(-self.negative_caption[kind])
        image = self.has_image * logsigmoid(-self.negative_image[kind])
        return -(2 * logsigmoid(self.positive[kind]) + caption + image).mean()

    def hinge(self, margin: float) -> Tensor:
        positive = self.positive[SIMILARITY]
        caption = self.has_caption * relu(margin - positive + self.negative_caption[SIMILARITY])
        image = self.has_image * relu(margin - positive + self.negative_image[SIMILARITY])
        return (caption + image).mean()


class EncodedBatch:
    """An encoded batch of B pairs, b of which are wanted: their loss is returned. Arguments are those of all losses."""

    def __init__(
        self,
        model: CAMP,
        regions: Tensor,
        region_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        image_index: Tensor,
        *,
        gated: bool = False,
        caption_index: Tensor | None = None,
        pairs: slice | None = None,
        micro_batch: int = 0,
    ) -> None:
        size = len(image_index)
        if len(regions) != size or len(words) != size:
            raise ValueError(f"aligned pairs: {len(regions)} images, {len(words)} captions, {size} image_index")
        self.model, self.gated, self.micro_batch = model, gated, micro_batch
        self.images = model.prepare_regions(regions, region_mask)
        self.captions = model.prepare_words(words, word_mask)
        self.size = size
        self.rows = torch.arange(size, device=regions.device)[pairs or slice(None)]
        negative = negative_pairs(image_index, caption_index).to(regions.device)
        self.is_negative = negative[self.rows], negative.T[self.rows]
        """bool [b, B] each: captions that are negatives of the wanted images, and images that are of their captions."""

    def pick(self, candidates: int, generator: torch.Generator | None) -> _Picked:
        """Score the wanted pairs and their hardest negatives, of `candidates` random ones or (0) of all."""
        captions, images = self.is_negative
        draws = self.draw(generator) if 0 < candidates < self.size else None
        if draws is not None:
            captions = drawn_negatives(draws[0], captions, candidates)
            images = drawn_negatives(draws[1], images, candidates)
        # The only candidate needs no score to be the hardest.
        by_image, by_caption = draws if draws is not None and candidates == 1 else self._scores_without_gradients()
        caption, image = hardest(by_image, captions), hardest(by_caption, images)  # [b] each
        run = partial(self._match, layout=PAIRS)
        positive, negative_caption, negative_image = self.on_pairs(run, caption, image).chunk(3, dim=1)
        return _Picked(positive, negative_caption, negative_image, caption >= 0, image >= 0)

    def _scores_without_gradients(self) -> tuple[Tensor, Tensor]:
        """Logits of the wanted images with all captions, and of the wanted captions with all images, [b, B] each."""
        if len(self.rows) == self.size:
            scores = score_prepared(self.model, self.images, self.captions)
            return scores, scores.T
        by_image = score_prepared(self.model, self.images.take(self.rows), self.captions)
        by_caption = score_prepared(self.model, self.images, self.captions.take(self.rows)).T
        return by_image, by_caption

    def draw(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Random numbers from 0 to 1 for the wanted images with all captions, and their captions with all images.

        Returns:
            [b, B] each.
        """
        size = self.size
        # Drawn for the whole batch, so that several processes with equal generators pick as one would.
        device = generator.device if generator is not None else self.rows.device
        draws = torch.rand(2, size, size, generator=generator, device=device)
        draws = to_device(draws, self.rows.device)[:, self.rows]
        return draws[0], draws[1]

    def on_pairs(self, run: Callable[..., Tensor], caption: Tensor, image: Tensor) -> Tensor:
        """Run a function on the wanted pairs, on their images with negative captions, and on negative images.

        Args:
            run: rows of P images and of their captions -> [k, P].
            caption: int64 [b], rows of the negative captions; -1 where there is none.
            image: int64 [b], rows of the negative images; -1 where there is none.

        Returns:
            [k, 3 b]; anything where there is no negative.
        """
        rows = self.rows
        image_rows = torch.cat([rows, rows, image.clamp(min=0)])
        caption_rows = torch.cat([rows, caption.clamp(min=0), rows])
        step = self.micro_batch or len(image_rows)
        chunks = zip(torch.split(image_rows, step), torch.split(caption_rows, step), strict=True)
        return torch.cat([self._saving(run, i, c) for i, c in chunks], dim=1)

    def all_scores(self) -> tuple[Tensor, Tensor]:
        """Scores of the wanted images with all captions, and of the wanted captions with all images, [3, b, B] each."""
        everything = torch.arange(self.size, device=self.rows.device)
        size = max(1, self.micro_batch // len(everything)) if self.micro_batch else len(self.rows)
        chunks = torch.split(self.rows, size)
        run = partial(self._match, layout=TILES)
        by_image = torch.cat([self._saving(run, rows, everything) for rows in chunks], dim=1)
        if len(self.rows) == len(everything):
            return by_image, by_image.transpose(1, 2)
        columns = [self._saving(run, everything, rows) for rows in chunks]
        return by_image, torch.cat(columns, dim=2).transpose(1, 2)

    def _match(self, image_rows: Tensor, caption_rows: Tensor, layout: Layout) -> Tensor:
        """Stack the kinds of scores: [3, P] for aligned rows, or [3, I, C]; the first dimension is 2 without gates."""
        images, captions = self.images.take(image_rows), self.captions.take(caption_rows)
        matched = self.model.match(images, captions, layout)
        scores = [matched.logits, matched.similarity]
        if self.gated:
            scores.append(self.model.mean_gate_logits(images, captions, matched, layout))
        return at_least_float32(torch.stack(scores))

    def _saving(self, run: Callable[..., Tensor], image_rows: Tensor, caption_rows: Tensor) -> Tensor:
        """Return `run(image_rows, caption_rows)`; with micro-batches, the backward pass recomputes its activations."""
        if self.micro_batch:
            values: Tensor = checkpoint(run, image_rows, caption_rows, use_reentrant=False, preserve_rng_state=False)
            return values
        return run(image_rows, caption_rows)
