"""Ranks and best results of every query, computed while scoring."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from camp_model.answers import RightAnswers
from camp_model.matchers.base import PairScorer
from camp_model.matchers.prepared import PAIRS
from camp_model.scoring.all_pairs import GRAPH_BYTES, Progress, pair_bytes, score_blocks
from camp_model.scoring.best_results import BestResults, score_keys
from camp_model.scoring.fitting import in_parts

MAX_CLOSE_SCORES = 2**24
"""Number of scores near an image's best own score that are kept before equal ones are merged."""


@dataclass(frozen=True)
class RankedQueries:
    """The results of retrieval; ranks as `camp_model.metrics` defines them, ties count against the model."""

    i2t_ranks: Tensor
    """int64 [I], from 1; 0 for an image without a caption, which is no query."""
    t2i_ranks: Tensor
    """int64 [C], from 1."""
    i2t_top: Tensor
    """int64 [I, k], positions of the best captions, best first."""
    i2t_scores: Tensor
    """[I, k], their logits."""
    t2i_top: Tensor
    """int64 [C, k], positions of the best images."""
    t2i_scores: Tensor
    """[C, k]"""
    hardest: Tensor
    """int64 [C], position of the wrong image that scores highest with each caption; any image if all are right."""
    own_scores: Tensor
    """[C], logit of each caption with its own image; the other scores may be rounded differently."""


class WorkShare(Protocol):
    """The processes that share the captions, and the rank of this one."""

    @property
    def rank(self) -> int:
        """The rank of this process, from 0."""
        ...

    @property
    def count(self) -> int:
        """The number of processes."""
        ...

    def sum_(self, values: Tensor) -> None:
        """Replace values by their sum over the processes."""
        ...


@torch.no_grad()
def rank_queries(
    model: PairScorer,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    caption_image: Tensor,
    top_k: int = 10,
    *,
    caption_text: Tensor | None = None,
    progress: Progress | None = None,
) -> RankedQueries:
    """Rank all captions for every image and all images for every caption, without holding all scores.

    Args:
        regions: [I, R, d].
        region_mask: bool [I, R].
        words: [C, N, d].
        word_mask: bool [C, N].
        caption_image: int64 [C], position of the image that each caption belongs to.
        top_k: results kept for each query; fewer if there are fewer candidates.
        caption_text: int64 [C], equal for captions of the same text; None: all texts differ.
        progress: called now and then with the number of pairs scored since the last call.

    Raises:
        ValueError: shapes that do not fit each other, no images or captions, or as `rank_blocks`.
    """
    if not len(words) or not len(regions) or caption_image.shape != (len(words),):
        raise ValueError(
            f"ranking: {len(regions)} images, {len(words)} captions, caption_image {list(caption_image.shape)}; "
            "expected at least one image, one caption, and the image of each caption"
        )
    caption_image = caption_image.to(regions.device)
    estimates = _own_scores(model, regions, region_mask, words, word_mask, caption_image)
    blocks = score_blocks(model, regions, region_mask, words, word_mask, progress=progress)
    return rank_blocks(blocks, estimates, len(regions), caption_image, top_k, caption_text=caption_text)


def rank_blocks(
    blocks: Iterable[tuple[Tensor, Tensor, Tensor]],
    own_scores: Tensor,
    images: int,
    caption_image: Tensor,
    top_k: int,
    *,
    caption_text: Tensor | None = None,
    share: WorkShare | None = None,
) -> RankedQueries:
    """Rank from scores that come block by block.

    Args:
        blocks: positions of some images [i] and some captions [c], and their logits [i, c]. Every pair comes once; all
            images come for a set of captions before the next captions.
        own_scores: [C], the logit of each caption with its image, up to rounding.
        images: I.
        caption_image, top_k, caption_text: as in `rank_queries`.
        share: this process's share, if several processes share the captions; needs `top_k` 0.

    Raises:
        ValueError: a score is not a finite number, or an image's best own caption scores differently in its block and
            in `own_scores`.
    """
    _check_finite(own_scores)
    answers = RightAnswers(caption_image, caption_text)
    captions = len(caption_image)
    image_queries = _ImageQueries(own_scores, caption_image, images)
    caption_queries = _CaptionQueries(captions, images, own_scores.device)
    best_captions = BestResults(images, min(top_k, captions), own_scores)
    best_images = BestResults(captions, min(top_k, images), own_scores)
    hardest = BestResults(captions, 1, own_scores)
    for image_rows, caption_rows, logits in blocks:
        _check_finite(logits)
        own = caption_image[caption_rows] == image_rows[:, None]  # [i, c]
        right = answers.is_right(image_rows[:, None], caption_rows)  # [i, c]
        image_queries.add(image_rows, logits, own, right)
        caption_queries.add(caption_rows, logits, right)
        best_captions.add(image_rows, caption_rows, logits, right)
        best_images.add(caption_rows, image_rows, logits.T, right.T)
        hardest.add(caption_rows, image_rows, logits.masked_fill(right, -torch.inf).T, right.T)
    t2i_ranks, hardest_images = caption_queries.ranks, hardest.positions[:, 0]
    if share is not None:
        for values in (t2i_ranks, hardest_images.clamp_(min=0)):  # zero if another process has the caption
            share.sum_(values)
    return RankedQueries(
        i2t_ranks=image_queries.ranks(share),
        t2i_ranks=t2i_ranks,
        i2t_top=best_captions.positions,
        i2t_scores=best_captions.scores,
        t2i_top=best_images.positions,
        t2i_scores=best_images.scores,
        hardest=hardest_images,
        own_scores=own_scores,
    )


def _check_finite(scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        raise ValueError("model.safetensors: gives scores that are not finite; expected weights that do")


def _own_scores(
    model: PairScorer, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor, caption_image: Tensor
) -> Tensor:
    """Logit [C] of each caption with its own image; tiles may round it differently."""

    def score_block(block: slice) -> Tensor:
        images = caption_image[block]
        prepared = model.prepare_regions(regions[images], region_mask[images])
        return model.match(prepared, model.prepare_words(words[block], word_mask[block]), PAIRS).logits

    size = max(1, min(64, GRAPH_BYTES // (8 * pair_bytes(regions, words))))
    return torch.cat(list(in_parts(score_block, len(words), size)))


class _CaptionQueries:
    """Ranks captions; the blocks of a set of captions hold all images before the next captions come."""

    def __init__(self, captions: int, images: int, device: torch.device) -> None:
        self.ranks = torch.zeros(captions, dtype=torch.int64, device=device)
        """int64 [C]; 0 for captions whose blocks are missing."""
        self.images = images
        self.blocks: list[tuple[Tensor, Tensor]] = []
        """Logits and right answers, [i, c] each, of the captions that are under way."""

    def add(self, caption_rows: Tensor, logits: Tensor, right: Tensor) -> None:
        """Take the scores [i, c] of some images with some captions; `right`: which images are right."""
        self.blocks.append((logits, right))
        if sum(len(block) for block, _ in self.blocks) < self.images:
            return
        scores, is_right = (torch.cat(values) for values in zip(*self.blocks, strict=True))  # [I, c]
        best = scores.masked_fill(~is_right, torch.finfo(scores.dtype).min).amax(0)
        self.ranks[caption_rows] = 1 + ((scores >= best) & ~is_right).sum(0)
        self.blocks = []


class _ImageQueries:
    """Counts for each image the wrong captions that score at least as high as its best own caption.

    The exact score of the best own caption is known only at the end. Until then there is an estimate: scores clearly
    above it are counted at once, scores clearly below it are dropped, and the few near it are kept to the end.
    """

    def __init__(self, estimates: Tensor, caption_image: Tensor, images: int) -> None:
        lowest = torch.finfo(estimates.dtype).min
        self.best = estimates.new_full((images,), lowest)
        self.estimate = self.best.scatter_reduce(0, caption_image, estimates, "amax")
        self.margin = 8 * _rounding(estimates) ** 0.5 * (1 + self.estimate.abs())
        self.is_query = torch.zeros(images, dtype=torch.bool, device=estimates.device)
        self.is_query[caption_image] = True
        self.count = torch.zeros(images, dtype=torch.int64, device=estimates.device)
        self.close: list[tuple[Tensor, Tensor, Tensor]] = []
        """Positions of images, scores near their estimates, and numbers of captions with these scores."""
        self.close_count, self.close_limit = 0, MAX_CLOSE_SCORES

    def add(self, image_rows: Tensor, logits: Tensor, own: Tensor, right: Tensor) -> None:
        """Take the scores [i, c] of some images with some captions.

        Args:
            image_rows: int64 [i], positions of the images.
            logits: [i, c].
            own: bool [i, c], whether a caption is the image's own.
            right: bool [i, c], whether a caption is right for the image; only wrong ones count in its rank.
        """
        lowest = torch.finfo(logits.dtype).min
        self.best[image_rows] = torch.maximum(self.best[image_rows], logits.masked_fill(~own, lowest).amax(1))
        difference = logits - self.estimate[image_rows, None]
        margin = self.margin[image_rows, None]
        self.count[image_rows] += ((difference > margin) & ~right).sum(1)
        close = ((difference.abs() <= margin) & ~right & self.is_query[image_rows, None]).nonzero()
        if len(close):
            images, scores = image_rows[close[:, 0]], logits[close[:, 0], close[:, 1]]
            self.close.append((images, scores, torch.ones_like(images)))
            self.close_count += len(close)
            if self.close_count > self.close_limit and scores.dtype != torch.float64:
                self._compact()
                # Doubled: otherwise, if nearly all stay, each further block would go through all of them again.
                self.close_limit = max(MAX_CLOSE_SCORES, 2 * self.close_count)

    def _compact(self) -> None:
        """Drop scores below the best own one so far and, if many are left, merge equal scores of an image.

        Without merging, a model that gives every pair the same score would make this class keep all pairs.
        """
        kept = []
        for images, scores, counts in self.close:
            above = scores >= self.best[images]
            kept.append((images[above], scores[above], counts[above]))
        self.close, self.close_count = kept, sum(len(images) for images, *_ in kept)
        if self.close_count <= MAX_CLOSE_SCORES // 2:
            return
        images, scores, counts = (torch.cat(values) for values in zip(*self.close, strict=True))
        self.close = []
        keys, where = torch.unique((images << 32) + score_keys(scores), return_inverse=True)
        merged = torch.zeros_like(keys).index_add_(0, where, counts)
        one = torch.empty_like(keys).scatter_(0, where, torch.arange(len(where), device=keys.device))
        self.close = [(images[one], scores[one], merged)]
        self.close_count = len(keys)

    def _check(self, best: Tensor) -> None:
        """Raise ValueError if the best own scores are not near their estimates: dropped scores would then count."""
        wrong = (self.is_query & ~((best - self.estimate).abs() <= self.margin)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"image {row}: its best own caption scores {float(best[row]):.4g} among all pairs, but "
                f"{float(self.estimate[row]):.4g} alone; expected a matcher that scores the same in every layout, and "
                "in its kernel_plan"
            )

    def ranks(self, share: WorkShare | None) -> Tensor:
        """int64 [I], 0 where an image has no caption."""
        best, count = self.best, self.count.clone()
        if share is not None:
            of_each = best.new_zeros(share.count, len(best))
            of_each[share.rank] = best
            share.sum_(of_each)
            best = of_each.amax(0)
        self._check(best)
        for images, scores, counts in self.close:
            count.index_add_(0, images, (scores >= best[images]) * counts)
        if share is not None:
            share.sum_(count)
        return torch.where(self.is_query, count + 1, 0)


def _rounding(scores: Tensor) -> float:
    """Relative rounding error of the type in which scores were computed, which may be coarser than their own."""
    kind, error = scores.device.type, torch.finfo(scores.dtype).eps
    if torch.is_autocast_enabled(kind):
        error = max(error, torch.finfo(torch.get_autocast_dtype(kind)).eps)
    if kind == "cuda" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        error = max(error, torch.finfo(torch.float16).eps)  # as many digits
    return error
