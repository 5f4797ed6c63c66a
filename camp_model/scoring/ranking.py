"""Ranks and best results of every query, computed while scoring."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camp_model.answers import RightAnswers
from camp_model.matchers.base import PairScorer
from camp_model.matchers.prepared import PAIRS
from camp_model.scoring.all_pairs import GRAPH_BYTES, Progress, pair_bytes, score_blocks
from camp_model.scoring.fitting import in_parts


@dataclass(frozen=True)
class RankedQueries:
    """What retrieval found; ranks as `camp_model.metrics` defines them, ties against the model."""

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
        top_k: results kept of each query; fewer where there are fewer candidates.
        caption_text: int64 [C], equal where captions have the same text; None: no two have.
        progress: called now and then with the number of pairs scored since the last call.

    Raises:
        ValueError: shapes that do not fit each other, or no images or captions.
    """
    if not len(words) or not len(regions) or caption_image.shape != (len(words),):
        raise ValueError(
            f"ranking: {len(regions)} images, {len(words)} captions, caption_image {list(caption_image.shape)}; "
            "expected at least one image, one caption, and the image of each caption"
        )
    caption_image = caption_image.to(regions.device)
    answers = RightAnswers(caption_image, caption_text)
    estimates = _own_scores(model, regions, region_mask, words, word_mask, caption_image)
    queries = _ImageQueries(estimates, caption_image, len(regions))
    best_captions = _Best(len(regions), min(top_k, len(words)), estimates)
    best_images = _Best(len(words), min(top_k, len(regions)), estimates)
    t2i_ranks = torch.zeros(len(words), dtype=torch.int64, device=regions.device)
    column: list[Tensor] = []
    rights: list[Tensor] = []
    done = 0
    for image_rows, caption_rows, logits in score_blocks(
        model, regions, region_mask, words, word_mask, progress=progress
    ):
        own = caption_image[caption_rows] == image_rows[:, None]  # [i, c]
        right = answers.right(image_rows[:, None], caption_rows)
        queries.add(image_rows, logits, own, right)
        best_captions.add(image_rows, caption_rows, logits)
        best_images.add(caption_rows, image_rows, logits.T)
        rights.append(right)
        column.append(logits)
        done += len(image_rows)
        if done == len(regions):  # these captions have met every image
            scores, is_right = torch.cat(column), torch.cat(rights)
            best = scores.masked_fill(~is_right, torch.finfo(scores.dtype).min).amax(0)
            t2i_ranks[caption_rows] = 1 + ((scores >= best) & ~is_right).sum(0)
            column, rights, done = [], [], 0
    return RankedQueries(
        queries.ranks(), t2i_ranks, best_captions.positions, best_captions.scores, best_images.positions,
        best_images.scores,
    )  # fmt: skip


def _own_scores(
    model: PairScorer, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor, caption_image: Tensor
) -> Tensor:
    """Logit [C] of each caption with its image, equal to the tile's up to rounding."""

    def some(part: slice) -> Tensor:
        images = caption_image[part]
        prepared = model.prepare_regions(regions[images], region_mask[images])
        return model.match(prepared, model.prepare_words(words[part], word_mask[part]), PAIRS).logits

    size = max(1, min(64, GRAPH_BYTES // (8 * pair_bytes(regions, words))))
    return torch.cat(list(in_parts(some, len(words), size)))


class _ImageQueries:
    """Counts, for each image, the wrong captions that score at least as high as its best own one.

    The exact score of that one is known only when all its captions have come by. Against its estimate, scores clearly
    above are counted at once, scores clearly below forgotten, and the few in between kept until the end.
    """

    def __init__(self, estimates: Tensor, caption_image: Tensor, images: int) -> None:
        lowest = torch.finfo(estimates.dtype).min
        self.best = estimates.new_full((images,), lowest)
        self.estimate = self.best.scatter_reduce(0, caption_image, estimates, "amax")
        rounding = 8 * torch.finfo(estimates.dtype).eps ** 0.5
        self.margin = rounding * (1 + self.estimate.abs())
        self.is_query = torch.zeros(images, dtype=torch.bool, device=estimates.device)
        self.is_query[caption_image] = True
        self.count = torch.zeros(images, dtype=torch.int64, device=estimates.device)
        self.close: list[tuple[Tensor, Tensor]] = []

    def add(self, image_rows: Tensor, logits: Tensor, own: Tensor, right: Tensor) -> None:
        """Take the scores [i, c] of some images with some captions.

        Args:
            own: bool [i, c], which captions are the images' own.
            right: bool [i, c], which are right for the images; no other counts against them.
        """
        lowest = torch.finfo(logits.dtype).min
        self.best[image_rows] = torch.maximum(self.best[image_rows], logits.masked_fill(~own, lowest).amax(1))
        difference = logits - self.estimate[image_rows, None]
        margin = self.margin[image_rows, None]
        self.count[image_rows] += ((difference > margin) & ~right).sum(1)
        close = ((difference.abs() <= margin) & ~right & self.is_query[image_rows, None]).nonzero()
        if len(close):
            self.close.append((image_rows[close[:, 0]], logits[close[:, 0], close[:, 1]]))

    def ranks(self) -> Tensor:
        """int64 [I], 0 where an image has no caption."""
        count = self.count.clone()
        for images, scores in self.close:
            count.index_add_(0, images, (scores >= self.best[images]).to(torch.int64))
        return torch.where(self.is_query, count + 1, 0)


class _Best:
    """The best results of each query so far."""

    def __init__(self, queries: int, size: int, like: Tensor) -> None:
        self.scores = like.new_full((queries, size), -torch.inf)
        self.positions = torch.full((queries, size), -1, dtype=torch.int64, device=like.device)

    def add(self, queries: Tensor, candidates: Tensor, scores: Tensor) -> None:
        """Take the scores [q, c] of some queries with some candidates."""
        size = self.scores.shape[1]
        new, where = scores.topk(min(size, scores.shape[1]), dim=1)
        merged = torch.cat([self.scores[queries], new], dim=1)
        positions = torch.cat([self.positions[queries], candidates[where]], dim=1)
        kept, order = merged.topk(size, dim=1)
        self.scores[queries] = kept
        self.positions[queries] = positions.gather(1, order)
