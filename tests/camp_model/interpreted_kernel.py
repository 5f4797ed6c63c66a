"""Checks of the GPU kernel in Triton's interpreter, in a process of its own: Triton reads its switch when imported.

python -m tests.camp_model.interpreted_kernel
"""

import os
import warnings

os.environ["TRITON_INTERPRET"] = "1"

import torch

from camp_model.scoring import fused_pooling
from camp_model.scoring.tiles import KernelTiles
from tests.camp_model.encoded_batches import encoded, float64_scores, make
from tests.camp_model.test_scoring import FACTORISED


def build(tiles, model):
    """As `KernelTiles.build` on a GPU."""
    plan = model.kernel_plan()
    return tiles(plan, gpu=True) if plan is not None and fused_pooling.supports(plan) else None


def assert_exact(model, batch, msg=""):
    assert KernelTiles.build(model) is not None
    scores = model.score_matrix(*batch).double()
    torch.testing.assert_close(scores, float64_scores(model, *batch), rtol=1e-4, atol=1e-4, msg=msg or None)


def every_switch():
    fused_pooling.ELEMENTS = 128  # two vectors at a time, so that each pair has several turns
    batch = encoded(images=2, captions=3)
    for switches in FACTORISED[::19]:  # the interpreter is slow; 19 meets every value of every switch
        model = make(**switches, joint_score=switches["fusion"] == "sum", feature_norm=2.0 * switches["residual"])
        if switches["pooling"] == "mlp":
            assert KernelTiles.build(model) is None
        else:
            assert_exact(model, batch, str(switches))


def any_size():
    """Widths that are no power of two, and blocks of one vector, of some and of all."""
    for dim in (1, 3, 200):
        regions, region_mask, words, word_mask = encoded(images=2, captions=2, dim=max(dim, 8))
        for elements in (1, 256, 4096):
            fused_pooling.ELEMENTS = elements
            assert_exact(make(dim=dim), (regions[..., :dim], region_mask, words[..., :dim], word_mask))


def extremes():
    """Pooling's scores that overflow unless they are shifted, and an image that is not finite."""
    model, batch = make(), encoded(images=3, captions=2)
    expected = float64_scores(model, *batch)
    model.matcher.region_pooling.score.weight *= 1e4
    assert_exact(model, batch)
    assert (float64_scores(model, *batch) - expected).abs().max() > 0.01
    batch[0][1, batch[1][1].int().argmax()] = float("nan")
    scores = model.score_matrix(*batch)
    assert scores[1].isnan().all() and scores[[0, 2]].isfinite().all()


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)  # the kernel's, if it cannot be built
    KernelTiles.build = classmethod(build)
    with torch.no_grad():
        extremes()  # first, with the blocks that are usual
        every_switch()
        any_size()
