"""All pairs of images and captions, in tiles.

Images and captions are sorted by their numbers of regions and words, so a tile is padded only to its own longest. A
matcher prepares images and captions once per block; pairs are then scored tile by tile, with a compiled kernel if the
switches factorise (`camp_model.scoring.tiles`), otherwise in PyTorch. A block or tile that does not fit into
memory is halved.
"""

import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from camp_model.matchers.base import PairScorer
from camp_model.matchers.prepared import TILES, Prepared, check_mask
from camp_model.scoring.fitting import Tiles, in_parts
from camp_model.scoring.tiles import KernelTiles, real_counts
from camp_model.tensors import free_gpu_bytes

PREPARED_BYTES = 192 * 2**20
"""Size of the prepared captions that are held at a time; prepared images may take as much again."""
CACHE_BYTES = 8 * 2**20
"""Size of a tile's activations on the CPU."""
DEVICE_SHARE = 0.25
"""Share of a GPU's free memory for a tile's activations."""
GRAPH_BYTES = 512 * 2**20
"""Size of the activations that are kept for a backward pass, or of a tile's activations on other accelerators."""

Progress = Callable[[int], object]


def score_matrix(
    model: PairScorer,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    *,
    progress: Progress | None = None,
) -> Tensor:
    """Logits [I, C] of every image with every caption; arguments as in `CAMP.score_matrix`.

    Raises:
        ValueError: the shapes do not fit each other.
        torch.OutOfMemoryError: a single pair does not fit.
    """
    if torch.is_grad_enabled() and (
        regions.requires_grad or words.requires_grad or any(p.requires_grad for p in model.parameters())
    ):
        return _with_gradients(
            model, model.prepare_regions(regions, region_mask), model.prepare_words(words, word_mask)
        )
    scores = None
    for image_rows, caption_rows, logits in score_blocks(
        model, regions, region_mask, words, word_mask, progress=progress
    ):
        if scores is None:
            scores = logits.new_empty(len(regions), len(words))
        scores[image_rows[:, None], caption_rows] = logits
    return regions.new_empty(len(regions), len(words)) if scores is None else scores


def _with_gradients(model: PairScorer, images: Prepared, captions: Prepared) -> Tensor:
    """Score in one graph or, if that would be large, in tiles that the backward pass recomputes: -> logits [I, C]."""

    def logits(some_images: Prepared, some_captions: Prepared) -> Tensor:
        return model.match(some_images, some_captions, TILES).logits

    def recomputed(some_images: Prepared, some_captions: Prepared) -> Tensor:
        scores: Tensor = checkpoint(logits, some_images, some_captions, use_reentrant=False, preserve_rng_state=False)
        return scores

    height, width = len(images.features), len(captions.features)
    pairs = max(1, GRAPH_BYTES // (4 * pair_bytes(images.features, captions.features)))
    if height * width <= pairs:
        return logits(images, captions)
    tiles = Tiles(pairs)
    step_c = min(width, pairs)
    step_i = max(1, pairs // step_c)
    rows = []
    for i in range(0, height, step_i):
        some_images = images.take(slice(i, i + step_i))
        row = [
            tiles.score(recomputed, some_images, captions.take(slice(c, c + step_c))) for c in range(0, width, step_c)
        ]
        rows.append(torch.cat(row, dim=1))
    return torch.cat(rows)


def pair_bytes(images: Tensor, captions: Tensor) -> int:
    """Bytes of a pair's fused vectors, and of the one or two copies that elementwise steps make of them.

    Args:
        images: [I, R, d], prepared features, whose type fused vectors have.
        captions: [C, N, d], prepared features.
    """
    size = max(images.element_size(), captions.element_size())
    return 3 * (images.shape[1] + captions.shape[1]) * images.shape[2] * size


@torch.no_grad()
def score_blocks(
    model: PairScorer,
    regions: Tensor,
    region_mask: Tensor,
    words: Tensor,
    word_mask: Tensor,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Score all pairs block by block, without gradients.

    Yields:
        Positions of some images [i] and some captions [c], and their logits [i, c]. Every pair comes once; all images
        come for a set of captions before the next captions.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_mask("regions", regions, region_mask)
    check_mask("words", words, word_mask)
    images, captions = _Sorted(regions, region_mask), _Sorted(words, word_mask)
    if not len(words) or not len(regions):
        return
    scorer = Scorer(model)
    for caption_rows, prepared_captions in captions.blocks(model.prepare_words):
        for image_rows, prepared_images in images.blocks(model.prepare_regions):
            yield image_rows, caption_rows, scorer.score(prepared_images, prepared_captions, progress)


def score_prepared(model: PairScorer, images: Prepared, captions: Prepared) -> Tensor:
    """Logits [I, C] of prepared images with prepared captions, without gradients."""
    with torch.no_grad():
        return Scorer(model).score(images, captions)


class _Sorted:
    """Images or captions in the order of their numbers of real vectors, with these first.

    Args:
        values: [B, L, d], encoded.
        mask: bool [B, L].
    """

    def __init__(self, values: Tensor, mask: Tensor) -> None:
        self.values, self.mask = values, mask
        self.counts = mask.sum(1)
        self.real_first = bool((mask[:, 1:] <= mask[:, :-1]).all())
        self.order = self.counts.argsort(stable=True) if len(values) else self.counts

    def blocks(self, prepare: Callable[[Tensor, Tensor], Prepared]) -> Iterator[tuple[Tensor, Prepared]]:
        """Yield positions and prepared values of as many items at a time as fit."""
        # An item's prepared values take up to six tensors of its own size.
        bytes_each = 6 * self.values.shape[1] * self.values.shape[2] * self.values.element_size()
        size = max(1, PREPARED_BYTES // max(1, bytes_each))
        return in_parts(lambda chunk: self._prepare(self.order[chunk], prepare), len(self.order), size)

    def _prepare(self, rows: Tensor, prepare: Callable[[Tensor, Tensor], Prepared]) -> tuple[Tensor, Prepared]:
        values, mask = self.values[rows], self.mask[rows]
        if not self.real_first:
            order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
            values, mask = values.gather(1, order[..., None].expand_as(values)), mask.gather(1, order)
        size = max(1, int(self.counts[rows[-1]]))  # the last has most
        return rows, prepare(values[:, :size].contiguous(), mask[:, :size].contiguous())


class Scorer:
    """Scores prepared images with prepared captions; remembers which tiles did not fit."""

    def __init__(self, model: PairScorer) -> None:
        self.model = model
        self.kernel = KernelTiles.build(model)
        self.tiles = Tiles(sys.maxsize)

    def score(self, images: Prepared, captions: Prepared, progress: Progress | None = None) -> Tensor:
        """Logits [I, C]; `progress` is called now and then with the number of pairs scored since the last call.

        Raises:
            torch.OutOfMemoryError, MemoryError or RuntimeError: a single pair does not fit.
        """
        pairs = min(self.tiles.pairs, self._tile_pairs(images, captions))
        width = max(1, min(len(captions.features), pairs, int(2 * pairs**0.5)))
        height = max(1, pairs // width)
        counts, real_first = real_counts(images, captions)
        if self.kernel is not None and real_first and self.kernel.supports(images, captions):
            return self.kernel.score(images, captions, counts, progress, (height, width) if self.kernel.gpu else None)
        rows = []
        for i in range(0, len(images.features), height):
            some_images = images.cut(slice(i, i + height), counts[0])
            row = []
            for c in range(0, len(captions.features), width):
                some_captions = captions.cut(slice(c, c + width), counts[1])
                row.append(self.tiles.score(self._logits, some_images, some_captions))
                if progress is not None:
                    progress(row[-1].numel())
            rows.append(torch.cat(row, dim=1))
        return torch.cat(rows)

    def _logits(self, images: Prepared, captions: Prepared) -> Tensor:
        return self.model.match(images, captions, TILES).logits

    def _tile_pairs(self, images: Prepared, captions: Prepared) -> int:
        """Number of pairs whose activations fit into the cache, or into the device's free memory."""
        device, bytes_each = images.features.device, pair_bytes(images.features, captions.features)
        if device.type == "cuda":
            return max(1, int(free_gpu_bytes(device) * DEVICE_SHARE) // bytes_each)
        return max(1, (CACHE_BYTES if device.type == "cpu" else GRAPH_BYTES) // bytes_each)
