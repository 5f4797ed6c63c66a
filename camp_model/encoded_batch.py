"""An encoded batch of aligned pairs, prepared once for all losses that it is to have.

A loss with hardest negatives touches only the B positives and 2B negatives. All B x B pairs are scored without
gradients to pick them; forward and backward then run on 3B pairs. The gradient is that of the all-pairs graph.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu
from torch.utils.checkpoint import checkpoint

from camp_model.matchers.prepared import PAIRS, TILES, Layout, Prepared
from camp_model.model import CAMP
from camp_model.negatives import drawn_negatives, hardest, negative_pairs
from camp_model.scoring.all_pairs import score_prepared

LOGIT, SIMILARITY, GATE_LOGIT = 0, 1, 2


class EncodedBatch:
    """An encoded batch, and the rows of it whose loss is wanted; arguments as in `camp_model.losses`."""

    def __init__(
        self,
        model: CAMP,
        regions: Tensor,
        region_mask: Tensor,
        words: Tensor,
        word_mask: Tensor,
        image_index: Tensor,
        *,
        caption_index: Tensor | None = None,
        micro_batch: int = 0,
        pairs: slice | None = None,
    ) -> None:
        size = len(image_index)
        if len(regions) != size or len(words) != size:
            raise ValueError(f"aligned pairs: {len(regions)} images, {len(words)} captions, {size} image_index")
        self.model, self.micro_batch = model, micro_batch
        self.images = model.prepare_regions(regions, region_mask)
        self.captions = model.prepare_words(words, word_mask)
        self.size = size
        self.rows = torch.arange(size, device=regions.device)[pairs or slice(None)]
        negative = negative_pairs(image_index, caption_index).to(regions.device)
        self.is_negative = negative[self.rows], negative.T[self.rows]
        """bool [b, B] each: captions that are negatives of the wanted images, images that are of their captions."""

    def hardest_negative_bce(
        self, *, gate_supervision: float = 0.0, candidates: int = 0, generator: torch.Generator | None = None
    ) -> Tensor:
        """As `camp_model.losses.hardest_negative_bce`."""
        picked = self._pick(candidates, generator, bool(gate_supervision))
        return _with_gates(picked.cross_entropy(LOGIT), picked, gate_supervision)

    def triplet_loss(
        self,
        *,
        margin: float = 0.2,
        gate_supervision: float = 0.0,
        candidates: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As `camp_model.losses.triplet_loss`."""
        picked = self._pick(candidates, generator, bool(gate_supervision))
        return _with_gates(picked.hinge(margin), picked, gate_supervision)

    def all_negatives_bce(self, *, gate_supervision: float = 0.0) -> Tensor:
        """As `camp_model.all_negatives.all_negatives_bce`."""
        scores = _AllPairs(self, bool(gate_supervision))
        return _with_gates(scores.cross_entropy(LOGIT), scores, gate_supervision)

    def all_negatives_triplet(self, *, margin: float = 0.2, gate_supervision: float = 0.0) -> Tensor:
        """As `camp_model.all_negatives.all_negatives_triplet`."""
        scores = _AllPairs(self, bool(gate_supervision))
        return _with_gates(scores.hinge(margin), scores, gate_supervision)

    def gate_bce(self, *, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        """As `camp_model.losses.gate_bce`."""

        def likelihoods(image_rows: Tensor, caption_rows: Tensor) -> Tensor:
            """Mean log-likelihood [2, P] of open and of closed gates."""
            images, captions = self.images.take(image_rows), self.captions.take(caption_rows)
            logits, real = self.model.each_gate_logit(images, captions, PAIRS)
            logits = (logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits) / temperature
            of_words = torch.stack([logsigmoid(logits), logsigmoid(-logits)]) * real
            return of_words.sum(-1) / real.sum(-1).clamp(min=1)

        of_image, of_caption = (hardest(*pair) for pair in zip(self._draw(generator), self.is_negative, strict=True))
        positive, caption, image = self._on_pairs(likelihoods, of_image, of_caption).chunk(3, dim=1)
        has_caption, has_image = of_image >= 0, of_caption >= 0
        negative = has_caption * caption[1] + has_image * image[1]
        return -(2 * positive[0] + negative).mean()

    def _pick(self, candidates: int, generator: torch.Generator | None, gated: bool) -> "_Picked":
        rows, size = self.rows, self.size
        is_negative = self.is_negative
        with torch.no_grad():
            draws = self._draw(generator) if 0 < candidates < size else None
            if draws is not None and candidates == 1:
                by_image, by_caption = draws
            elif len(rows) == size:
                by_image = score_prepared(self.model, self.images, self.captions)
                by_caption = by_image.T
            else:
                by_image = score_prepared(self.model, self.images.take(rows), self.captions)
                by_caption = score_prepared(self.model, self.images, self.captions.take(rows)).T
            if draws is not None:
                captions, images = is_negative
                is_negative = (
                    drawn_negatives(draws[0], captions, candidates), drawn_negatives(draws[1], images, candidates)
                )  # fmt: skip
            caption, image = hardest(by_image, is_negative[0]), hardest(by_caption, is_negative[1])
        run = partial(self._match, layout=PAIRS, gated=gated)
        positive, negative_caption, negative_image = self._on_pairs(run, caption, image).chunk(3, dim=1)
        return _Picked(positive, negative_caption, negative_image, caption >= 0, image >= 0)

    def _draw(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Random numbers, [b, B] each: of the wanted images with captions, and of their captions with images."""
        size = self.size
        # Drawn for the whole batch, so that several processes with equal generators pick as one would.
        device = generator.device if generator is not None else self.rows.device
        draws = torch.rand(2, size, size, generator=generator, device=device).to(self.rows.device)[:, self.rows]
        return draws[0], draws[1]

    def _on_pairs(self, run: Callable[..., Tensor], caption: Tensor, image: Tensor) -> Tensor:
        """`run(image_rows, caption_rows)` -> [k, P] on the positives, the negative captions and the negative images."""
        rows = self.rows
        image_rows = torch.cat([rows, rows, image.clamp(min=0)])
        caption_rows = torch.cat([rows, caption.clamp(min=0), rows])
        step = self.micro_batch or len(image_rows)
        chunks = zip(torch.split(image_rows, step), torch.split(caption_rows, step), strict=True)
        return torch.cat([self._saving(run, i, c) for i, c in chunks], dim=1)

    def all_scores(self, gated: bool) -> tuple[Tensor, Tensor]:
        """The wanted images with all captions, and the wanted captions with all images, [3, b, B] each."""
        everything = torch.arange(self.size, device=self.rows.device)
        size = max(1, self.micro_batch // len(everything)) if self.micro_batch else len(self.rows)
        chunks = torch.split(self.rows, size)
        run = partial(self._match, layout=TILES, gated=gated)
        by_image = torch.cat([self._saving(run, rows, everything) for rows in chunks], dim=1)
        if len(self.rows) == len(everything):
            return by_image, by_image.transpose(1, 2)
        columns = [self._saving(run, everything, rows) for rows in chunks]
        return by_image, torch.cat(columns, dim=2).transpose(1, 2)

    def _match(self, image_rows: Tensor, caption_rows: Tensor, layout: Layout, gated: bool) -> Tensor:
        images: Prepared = self.images.take(image_rows)
        captions: Prepared = self.captions.take(caption_rows)
        matched = self.model.match(images, captions, layout)
        scores = [matched.logits, matched.similarity]
        if gated:
            scores.append(self.model.mean_gate_logits(images, captions, matched, layout))
        stacked = torch.stack(scores)
        return stacked.float() if stacked.dtype in (torch.float16, torch.bfloat16) else stacked

    def _saving(self, run: Callable[..., Tensor], image_rows: Tensor, caption_rows: Tensor) -> Tensor:
        """`run(image_rows, caption_rows)`; with micro-batches its activations are computed again in the backward
        pass."""
        if self.micro_batch:
            values: Tensor = checkpoint(run, image_rows, caption_rows, use_reentrant=False, preserve_rng_state=False)
            return values
        return run(image_rows, caption_rows)


def _with_gates(loss: Tensor, pairs: "_Picked | _AllPairs", gate_supervision: float) -> Tensor:
    return loss + gate_supervision * pairs.cross_entropy(GATE_LOGIT) if gate_supervision else loss


@dataclass(frozen=True)
class _Picked:
    """Positives and one negative of each kind, [3, b] each: logits, similarities, mean gate logits."""

    positive: Tensor
    negative_caption: Tensor
    negative_image: Tensor
    has_caption: Tensor
    """bool [b], False where a pair has no possible negative."""
    has_image: Tensor

    def cross_entropy(self, kind: int) -> Tensor:
        caption = self.has_caption * logsigmoid(-self.negative_caption[kind])
        image = self.has_image * logsigmoid(-self.negative_image[kind])
        return -(2 * logsigmoid(self.positive[kind]) + caption + image).mean()

    def hinge(self, margin: float) -> Tensor:
        positive = self.positive[SIMILARITY]
        caption = self.has_caption * relu(margin - positive + self.negative_caption[SIMILARITY])
        image = self.has_image * relu(margin - positive + self.negative_image[SIMILARITY])
        return (caption + image).mean()


class _AllPairs:
    """The wanted images with all captions, and the wanted captions with all images."""

    def __init__(self, batch: EncodedBatch, gated: bool) -> None:
        self.by_image, self.by_caption = batch.all_scores(gated)  # [3, b, B] each
        self.negative, self.of_captions = batch.is_negative  # [b, B] each
        self.rows = batch.rows

    def cross_entropy(self, kind: int) -> Tensor:
        count, count_images = (mask.sum(1).clamp(min=1) for mask in (self.negative, self.of_captions))
        captions, images = self._over_negatives(lambda scores, _: logsigmoid(-scores), kind)
        return -(2 * logsigmoid(self._positive(kind)) + captions / count + images / count_images).mean()

    def hinge(self, margin: float) -> Tensor:
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
