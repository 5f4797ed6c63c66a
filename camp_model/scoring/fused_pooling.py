"""The GPU kernel of factorised message passing: fuses and pools one side in one pass over its messages, in Triton.

Affinities, messages and the matching layer are matrix products, which PyTorch computes. What PyTorch does between them
moves a fused vector through memory 15 times; this kernel reads each message once and writes pooled vectors only.
Without Triton, or with CAMP_NATIVE=0, scoring takes its PyTorch path.
"""

import functools
import os
import warnings
from typing import Any

import torch
from torch import Tensor

from camp_model.matchers.base import KernelPlan, KernelSide
from camp_model.matchers.pooling import masked_softmax
from camp_model.matchers.prepared import Prepared

LARGEST_DIM = 4096
"""Largest d: a fused vector is in the registers of one block of threads."""
ELEMENTS = 4096
"""Numbers of fused vectors that a block of threads holds at a time."""
WARPS = 4
"""Size of a block of threads, in 32."""


@functools.cache
def kernel() -> Any:
    """`fuse_and_pool`, after a trial on one vector; None without Triton or a C compiler, or if CAMP_NATIVE=0."""
    if os.environ.get("CAMP_NATIVE") == "0":
        return None
    try:
        from camp_model.scoring.fused_pooling_kernel import fuse_and_pool
    except ImportError:
        return None
    one = torch.ones(1, 1, 1, 1, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        _launch(fuse_and_pool, one, one[0], one[0], None, None, None, one[0, 0, 0].int(), one[0].clone())
    except Exception as error:  # of Triton, a C compiler, a linker, the driver or a folder for what is compiled
        warnings.warn(f"the GPU kernel cannot be built, so scoring is slower: {error}", stacklevel=2)
        return None
    return fuse_and_pool


def supports(plan: KernelPlan) -> bool:
    """Whether the kernel is here, and pools as the plan says: by attention or by the mean."""
    sides = [side for side in (plan.regions, plan.words) if side is not None]
    pools = all(side.pooling is None or isinstance(side.pooling, Tensor) for side in sides)
    return pools and plan.dim <= LARGEST_DIM and kernel() is not None


def receive_on_gpu(
    side: KernelSide,
    affinity: Tensor,
    product: Tensor | None,
    own: Prepared,
    other: Prepared,
    counts: Tensor,
    pooled: Tensor,
    evidence: Tensor | None = None,
) -> None:
    """Attend, gate, fuse and pool one side of all pairs of O own items, which receive, and X other items.

    Args:
        side: the parameters of the side that receives.
        affinity: [O, X, L, M].
        product: [O, X, L, M], inner products of the two sides' features; None: no gates.
        own: the O items, contiguous.
        other: the X items.
        counts: int32 [O], numbers of the own items' real vectors, which come first, at least one in each.
        pooled: [O, X, d] with d contiguous; filled with the pooled vectors.
        evidence: [O, X, L], added to the gate logits, or None.
    """
    assert own.own is not None and other.message is not None
    assert side.pooling is None or isinstance(side.pooling, Tensor)
    weights = masked_softmax(affinity, None if other.mask is None else other.mask[:, None])  # [O, X, L, M]
    gates = None
    if product is not None:
        mask = None if own.mask is None else own.mask[:, None]  # [O, 1, L]
        gates = side.gate_logits(weights, product, mask, evidence).sigmoid().contiguous()  # [O, X, L]
        weights = weights * gates[..., None].to(weights.dtype)
    message = torch.einsum("oxlm,xmd->oxld", weights, other.message)
    if message.stride()[2:] != (message.shape[3], 1):
        message = message.contiguous()
    residual = own.features if side.residual else None
    _launch(kernel(), message, own.own, residual, gates, side.bias, side.pooling, counts, pooled)


def _launch(
    run: Any,
    message: Tensor,
    own: Tensor,
    residual: Tensor | None,
    gates: Tensor | None,
    bias: Tensor | None,
    score: Tensor | None,
    counts: Tensor,
    pooled: Tensor,
) -> None:
    """Run `fuse_and_pool`, a block of threads for each pair; arguments as there."""
    items, others, length, dim = message.shape
    width = 1 << (dim - 1).bit_length()
    with torch.cuda.device_of(pooled):  # type: ignore[no-untyped-call] # Triton takes the current device
        run[(items * others,)](
            message, own, residual, gates, bias, score, counts, pooled,
            others, dim, length, *message.stride()[:2], *pooled.stride()[:2],
            HAS_GATES=gates is not None, HAS_RESIDUAL=residual is not None, HAS_BIAS=bias is not None,
            HAS_SCORE=score is not None, ROWS=max(1, ELEMENTS // width), WIDTH=width, num_warps=WARPS,
        )  # fmt: skip
