"""Tiles of factorised scoring: matrix products by PyTorch, what is between them in a kernel.

On a GPU that is `camp_model.scoring.fused_pooling`. On the CPU it is receive.c, and products are oneDNN's: a pair costs
9.5 MFLOP (d 1024, 36 regions, 16 words, attention pooling). Affinities and gates take 2.4 of them, the matching layer
4.2; both are products of large matrices here. The C kernel forms the messages, and fuses and pools them while they are
in the cache. It also computes the hidden layer of the released pooling: 109 MFLOP per pair, less the products with
zeros.
"""

import dataclasses
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from camp_model.matchers.base import KernelPlan, KernelSide, PairScorer
from camp_model.matchers.prepared import Prepared
from camp_model.scoring import fused_pooling, native
from camp_model.scoring.fitting import Tiles

TILE = (16, 32)
"""Numbers of images and captions in a tile on the CPU; with fewer captions, a tile has more images."""
TILE_BYTES = 32 * 2**20
"""Largest size of a tile; with more regions or words than usual, a tile has fewer images and captions."""


def real_counts(images: Prepared, captions: Prepared) -> tuple[tuple[Tensor, Tensor], bool]:
    """int64 [I] and [C] on the CPU, numbers of real vectors; and whether these come first, at least one per item.

    All is copied from a GPU at once: each copy waits for it, and every tile needs some of the numbers.
    """
    parts = []
    for side in (images, captions):
        real = side.real
        first = (real[:, 1:] <= real[:, :-1]).all() & real[:, :1].all()
        parts += [real.sum(1), first[None].long()]
    rows, columns = len(images.features), len(captions.features)
    ends = [rows, rows + 1, rows + 1 + columns]
    of_images, first_images, of_captions, first_captions = torch.cat(parts).cpu().tensor_split(ends)
    return (of_images, of_captions), bool(first_images & first_captions)


class _Linear:
    """A linear layer whose weights are reordered once for many products."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> None:
        self.weight, self.bias, self.relu = weight.detach().contiguous(), bias, relu
        # Twice the rate of the default float32 product on some processors; not a public operator, so only if there.
        available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        self.fused = available and weight.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        if self.fused:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def __call__(self, values: Tensor) -> Tensor:
        if self.fused:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.packed, self.bias, "none", [], "")
        else:
            product = linear(values, self.weight, self.bias)
        # The ReLU is not fused, because oneDNN's turns not-a-number into 0.
        return product.relu_() if self.relu else product


class _Side:
    """The weights of one side's receiver and pooling."""

    def __init__(self, side: KernelSide, gpu: bool) -> None:
        self.side, self.gpu = side, gpu
        self.bias = None if side.bias is None else side.bias.detach()
        self.pooling: Tensor | native.HiddenLayer | None = None
        if isinstance(side.pooling, Tensor):
            self.pooling = side.pooling.detach().contiguous()
        elif side.pooling is not None:
            self.pooling = native.HiddenLayer.of(*side.pooling)
            self.first = _Linear(self.pooling.panels.mT.flatten(0, 1), self.pooling.bias)

    def prepare(self, items: Prepared) -> Prepared:
        """Add what the pooling's hidden layer makes of the residual, which is the same in every pair."""
        if not self.side.residual or not isinstance(self.pooling, native.HiddenLayer):
            return items
        return dataclasses.replace(items, hidden=self.first(items.features))

    def pool(
        self,
        own: Prepared,
        other: Prepared,
        affinity: Tensor,
        product: Tensor | None,
        counts: tuple[Tensor, Tensor],
        out: Tensor,
        evidence: Tensor | None = None,
    ) -> None:
        """Fill `out` [O, X, d] with pooled vectors; arguments as in `native.receive`."""
        if self.gpu:
            fused_pooling.receive_on_gpu(self.side, affinity, product, own, other, counts[0], out, evidence)
            return
        assert own.own is not None and other.message is not None
        residual = own.features if self.side.residual else None
        native.receive(
            affinity, product, own.own, residual, other.message, self.bias, self.pooling, own.hidden, counts, out,
            self.side.gate_context, evidence,
        )  # fmt: skip


class KernelTiles:
    """Scores pairs as a matcher's plan says."""

    @classmethod
    def build(cls, model: PairScorer) -> "KernelTiles | None":
        """Make tiles for a model; None if its matcher, its weights or this machine cannot use the kernel."""
        plan = model.kernel_plan()
        if plan is None:
            return None
        weight = next(iter(model.parameters()))
        if weight.device.type == "cuda":
            return cls(plan, gpu=True) if fused_pooling.supports(plan) else None
        if weight.dtype != torch.float32 or weight.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        lanes = native.lanes()  # last, for it may compile
        return cls(plan, gpu=False) if lanes and plan.dim % lanes == 0 else None

    def __init__(self, plan: KernelPlan, gpu: bool) -> None:
        self.plan, self.gpu = plan, gpu
        self.regions = _Side(plan.regions, gpu) if plan.regions is not None else None
        self.words = _Side(plan.words, gpu) if plan.words is not None else None
        self.tiles = Tiles(sys.maxsize)
        self.hidden = _Linear(plan.layers[0].weight, plan.layers[0].bias, relu=True) if plan.layers else None

    def supports(self, images: Prepared, captions: Prepared) -> bool:
        """Whether their own gates are applied and, on the CPU, all are float32; real vectors must come first, at least
        one per item (`real_counts`)."""
        sides = (images, captions)
        return all((self.gpu or side.features.dtype == torch.float32) and side.gates is None for side in sides)

    def score(
        self,
        images: Prepared,
        captions: Prepared,
        counts: tuple[Tensor, Tensor],
        progress: Callable[[int], object] | None = None,
        shape: tuple[int, int] | None = None,
    ) -> Tensor:
        """Logits [I, C]; `counts`: of `real_counts`; `shape`: numbers of images and captions in a tile, None: those
        that suit the CPU's cache."""
        wide = torch.promote_types(images.features.dtype, torch.float32)
        scores = images.features.new_empty(len(images.features), len(captions.features), dtype=wide)
        height, width = shape or self._shape(images, captions)
        if self.regions is not None:
            images = self.regions.prepare(images)
        for c in range(0, scores.shape[1], width):
            columns = slice(c, c + width)
            some_captions = captions.cut(columns, counts[1])
            if self.words is not None:
                some_captions = self.words.prepare(some_captions)
            some_captions = some_captions.contiguous()
            keys = _Linear(self._keys(some_captions))
            for i in range(0, scores.shape[0], height):
                rows = slice(i, i + height)
                some_images = images.cut(rows, counts[0]).contiguous()
                scores[rows, columns] = self.tiles.score(
                    self._tile_scorer(some_captions, keys), some_images, some_captions
                )
            if progress is not None:
                progress(scores[:, columns].numel())
        if self.plan.joint is not None:
            assert images.vector is not None and captions.vector is not None
            scores += self.plan.joint(images.vector, captions.vector)
        return scores

    def _shape(self, images: Prepared, captions: Prepared) -> tuple[int, int]:
        """Numbers of images and captions in a tile: as many pairs as in TILE, halved until they fit into TILE_BYTES."""
        each = 2 * images.features.shape[1] * captions.features.shape[1]
        width = min(TILE[1], max(1, len(captions.features)))
        height = TILE[0] * TILE[1] // width
        while height * width > 1 and 4 * height * width * each > TILE_BYTES:
            height, width = (height, -(-width // 2)) if width > height else (-(-height // 2), width)
        return height, width

    def _tile_scorer(self, captions: Prepared, keys: _Linear) -> Callable[[Prepared, Prepared], Tensor]:
        """Make the function that scores images with `captions`, whose keys are there already, or with some of them."""

        def logits(images: Prepared, some: Prepared) -> Tensor:
            return self._tile(images, some, keys if some is captions else _Linear(self._keys(some)))

        return logits

    def _keys(self, captions: Prepared) -> Tensor:
        """The vectors that regions are multiplied with: keys and, for gates, the words too, [c * N or 2 * c * N, d]."""
        dim = captions.features.shape[2]
        keys = captions.keys[0].reshape(-1, dim)
        return torch.cat([keys, captions.features.reshape(-1, dim)]) if self.plan.gated else keys

    def _tile(self, images: Prepared, captions: Prepared, keys: _Linear) -> Tensor:
        """Logits [i, c]."""
        counts = images.real.sum(1, dtype=torch.int32), captions.real.sum(1, dtype=torch.int32)
        i, r, dim = images.features.shape
        c, n = captions.features.shape[:2]
        products = keys(images.features.reshape(-1, dim)).view(i, r, -1, c, n)  # [i, R, 1 or 2, c, N]
        products = products.permute(2, 0, 3, 1, 4)  # [1 or 2, i, c, R, N]
        affinity, product = products[0], products[1] if self.plan.gated else None
        pair = images.features.new_empty(i, c, 2, dim)
        if self.regions is not None:
            self.regions.pool(images, captions, affinity, product, counts, pair[:, :, 0])
        in_score = None
        if self.words is not None:
            turned = None if product is None else product.permute(1, 0, 3, 2)  # [c, i, N, R]
            out = pair[:, :, 1].transpose(0, 1)  # [c, i, d]
            evidence, in_score = self.plan.evidence(images, captions, affinity.mT)  # [i, c, N], [i, c]
            evidence = None if evidence is None else evidence.transpose(0, 1)
            by_caption = affinity.permute(1, 0, 3, 2)  # [c, i, N, R]
            self.words.pool(captions, images, by_caption, turned, (counts[1], counts[0]), out, evidence)
        if self.hidden is not None and self.plan.layers is not None:
            logits = self.plan.layers[1](self.hidden(pair.view(i * c, 2 * dim))).view(i, c)
        else:
            image = pair[:, :, 0] if images.pooled is None else images.pooled[:, None]  # [i, c or 1, d]
            caption = pair[:, :, 1] if captions.pooled is None else captions.pooled[None]  # [i or 1, c, d]
            logits = self.plan.score(image, caption)
        return logits if in_score is None else logits + in_score
