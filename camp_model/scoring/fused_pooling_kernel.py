"""The Triton source of `camp_model.scoring.fused_pooling`, which imports it where there is Triton.

Triton takes annotations for values, so there are only its own.
"""

import triton
import triton.language as tl


# Compiled once for all numbers of items and of vectors.
@triton.jit(do_not_specialize=["others", "length"])  # type: ignore[untyped-decorator]
def fuse_and_pool(  # type: ignore[no-untyped-def]
    message,
    own,
    residual,
    gates,
    bias,
    score,
    counts,
    pooled,
    others,
    dim,
    length,
    message_own,
    message_other,
    pooled_own,
    pooled_other,
    HAS_GATES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCORE: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Pool relu(g_l own_l + message_l + bias) + residual_l over the vectors l of one pair, in float32.

    Args:
        message: [O, X, L, d], a row contiguous; `message_own` and `message_other` are the strides of O and X.
        own, residual: [O, L, d], contiguous.
        gates: float32 [O, X, L], contiguous, g; without HAS_GATES it is 1.
        bias: [d].
        score: [d], the weights of attention pooling; without HAS_SCORE all vectors weigh the same.
        counts: int32 [O], numbers of real vectors, which come first, at least 1.
        pooled: [O, X, d], the result, of strides `pooled_own`, `pooled_other` and 1.
        others, dim, length: X, d and L.
        ROWS: vectors that are read at a time.
        WIDTH: the power of two from d on.
    """
    pair = tl.program_id(0).to(tl.int64)
    item, other = pair // others, pair % others  # neighbours share an item's own vectors, in the cache
    column = tl.arange(0, WIDTH)
    inside = column < dim
    real = tl.load(counts + item)
    first = message + item * message_own + other * message_other
    top = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    result = tl.zeros([WIDTH], tl.float32)
    for start in range(0, real, ROWS):  # one pass: a softmax that is rescaled when a higher score comes
        row = start + tl.arange(0, ROWS)
        here = row < real
        both = here[:, None] & inside[None, :]
        place = row[:, None] * dim + column[None, :]
        fused = tl.load(first + place, both, 0.0).to(tl.float32)
        mine = tl.load(own + item * length * dim + place, both, 0.0).to(tl.float32)
        if HAS_GATES:
            mine *= tl.load(gates + pair * length + row, here, 0.0)[:, None]
        fused += mine
        if HAS_BIAS:
            fused += tl.load(bias + column, inside, 0.0).to(tl.float32)[None, :]
        fused = tl.where(fused < 0.0, 0.0, fused)  # not-a-number stays
        if HAS_RESIDUAL:
            fused += tl.load(residual + item * length * dim + place, both, 0.0).to(tl.float32)
        if HAS_SCORE:
            logit = tl.sum(fused * tl.load(score + column, inside, 0.0).to(tl.float32)[None, :], 1)
        else:
            logit = tl.zeros([ROWS], tl.float32)
        logit = tl.where(here, logit, float("-inf"))
        highest = tl.maximum(top, tl.max(logit, 0))
        share = tl.exp(logit - highest)
        rescale = tl.exp(top - highest)
        result = result * rescale + tl.sum(tl.where(both, share[:, None] * fused, 0.0), 0)
        total = total * rescale + tl.sum(share, 0)
        top = highest
    place = pooled + item * pooled_own + other * pooled_other + column
    tl.store(place, (result / total).to(pooled.dtype.element_ty), inside)
