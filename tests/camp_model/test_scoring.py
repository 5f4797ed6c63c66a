"""Scores of all pairs, exact on every path; ranks while scoring."""

import itertools
import warnings

import pytest
import torch

from camp_model.metrics import i2t_ranks, t2i_ranks
from camp_model.scoring import all_pairs as scoring
from camp_model.scoring import native
from camp_model.scoring.ranking import rank_blocks, rank_queries
from camp_model.scoring.tiles import KernelTiles, real_counts
from tests.camp_model.encoded_batches import encoded, float64_scores, make


def assert_exact(model, batch, msg=None):
    with torch.no_grad():
        scores = model.score_matrix(*batch).double()
    torch.testing.assert_close(scores, float64_scores(model, *batch), rtol=1e-4, atol=1e-4, msg=msg)


KERNEL_SWITCHES = ("message_passing", "gate", "gate_context", "fusion", "residual", "pooling", "matching")
FACTORISED = [
    dict(zip(KERNEL_SWITCHES, values, strict=True))
    for values in itertools.product(
        ("both", "image_to_text", "text_to_image"), ("scalar", "none", "unapplied"), (0.0, 2.0), ("concat", "sum"),
        (True, False), ("attention", "mlp", "mean"), ("mlp", "cosine"),
    )
]  # fmt: skip
FACTORISED += [
    {"gate_evidence": True, "geometry": 4.0, **switches}
    for switches in FACTORISED
    if switches["gate"] == "scalar" and switches["message_passing"] != "text_to_image" and switches["residual"]
]


@pytest.mark.skipif(native.library() is None, reason="no C compiler for the CPU kernel")
def test_the_kernel_is_exact_for_every_switch_it_takes():
    batch = encoded()
    for switches in FACTORISED:
        model = make(**switches, joint_score=switches["fusion"] == "sum", feature_norm=2.0 * switches["residual"])
        assert KernelTiles.build(model) is not None
        assert_exact(model, batch, msg=str(switches))


@pytest.mark.skipif(native.library() is None, reason="no C compiler for the CPU kernel")
@pytest.mark.parametrize("captions", [0, 1, 3, 33])
def test_a_tile_of_few_captions_holds_more_images(captions):
    model, (regions, region_mask, words, word_mask) = make(), encoded(images=40, captions=34)
    batch = regions, region_mask, words[:captions], word_mask[:captions]
    with torch.no_grad():
        images, some = model.prepare_regions(*batch[:2]), model.prepare_words(*batch[2:])
        kernel = KernelTiles.build(model)
        height, width = kernel._shape(images, some)
        assert 256 < height * width <= 512 and width <= max(1, captions)
        assert kernel.score(images, some, real_counts(images, some)[0]).shape == (40, captions)
    assert_exact(model, batch)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"hops": 2},
        {"gate": "elementwise"},
        {"message_passing": "none"},
        {"pooling": "mlp"},
        {"joint_score": True},
        {"joint_score": True, "feature_norm": 3.0},
        {"gate_evidence": True, "geometry": 4.0},
        {"gate_evidence": True, "geometry": 4.0, "hops": 2},
        {"gate_evidence": True, "geometry": 4.0, "feature_norm": 3.0},
    ],
)
def test_the_pytorch_path_is_exact(switches, monkeypatch):
    monkeypatch.setattr(native, "lanes", lambda: 0)
    model, batch = make(**switches), encoded()
    assert_exact(model, batch)


@pytest.mark.parametrize("pooling", ["attention", "mlp"])
@pytest.mark.parametrize("dim", [16, 48, 64, 80, 208])
def test_the_kernel_takes_any_whole_number_of_vectors(dim, pooling):
    model, batch = make(dim=dim, pooling=pooling), encoded(images=3, captions=5, dim=dim)
    assert_exact(model, batch)


@pytest.mark.parametrize(("bias", "residual"), [(-9.0, True), (9.0, True), (9.0, False)])
def test_the_kernel_is_exact_where_a_relu_leaves_nothing_or_everything(bias, residual):
    model, batch = make(pooling="mlp", residual=residual), encoded()
    for receiver in (model.matcher.messages.to_regions, model.matcher.messages.to_words):
        torch.nn.init.constant_(receiver.fusion.bias, bias)
    assert_exact(model, batch)


@pytest.mark.parametrize("pooling", ["attention", "mlp"])
def test_an_image_without_regions_leaves_the_others_alone(pooling):
    model, batch = make(pooling=pooling), encoded()
    expected = float64_scores(model, *batch)
    batch[1][5] = False
    with torch.no_grad():
        scores = model.score_matrix(*batch).double()
    others = torch.arange(len(scores)) != 5
    torch.testing.assert_close(scores[others], expected[others], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pooling", ["attention", "mlp"])
@pytest.mark.parametrize("side", [0, 2])
def test_a_number_that_is_none_stays_visible(side, pooling):
    """The kernel must not turn it into a plausible score."""
    batch = encoded(images=3, captions=4)
    batch[1][:], batch[3][:] = True, True
    batch[side][1, 2, 5] = torch.nan
    with torch.no_grad():
        scores = make(pooling=pooling).score_matrix(*batch)
    assert bool(scores.isnan().any())
    assert scores.isnan().tolist() == float64_scores(make(pooling=pooling), *batch).isnan().tolist()


def test_the_matrix_is_differentiable():
    model, batch = make(), encoded(images=3, captions=3)
    assert model.score_matrix(*batch).requires_grad
    with torch.no_grad():
        assert not model.score_matrix(*batch).requires_grad


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_score(shape):
    regions, region_mask, words, word_mask = encoded(images=3, captions=3)
    with torch.no_grad():
        scores = make().score_matrix(
            regions[: shape[0]], region_mask[: shape[0]], words[: shape[1]], word_mask[: shape[1]]
        )
    assert scores.shape == shape


def test_shapes_that_do_not_fit_are_an_error():
    regions, region_mask, words, word_mask = encoded()
    with torch.no_grad(), pytest.raises(ValueError, match="words: shape"):
        make().score_matrix(regions, region_mask, words, word_mask[:, :3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("block_items", [5, 1000])
def test_ranks_while_scoring_equal_those_of_the_matrix(monkeypatch, dtype, block_items):
    monkeypatch.setattr(scoring, "PREPARED_BYTES", 6 * 9 * 48 * 4 * block_items)
    regions, region_mask, words, word_mask = encoded(images=23, captions=60)
    # Twins: ties that count against the model.
    regions[5], region_mask[5], words[9], word_mask[9] = regions[4], region_mask[4], words[8], word_mask[8]
    model = make().to(dtype)
    batch = (regions.to(dtype), region_mask, words.to(dtype), word_mask)
    index = torch.randint(0, 22, (60,), generator=torch.Generator().manual_seed(1))
    index[8], index[9] = 3, 4
    with torch.no_grad():
        scores = model.score_matrix(*batch)
        ranked = rank_queries(model, *batch, index, top_k=4)
    has_caption = torch.bincount(index, minlength=23) > 0
    assert ranked.i2t_ranks[has_caption].tolist() == i2t_ranks(scores, index).tolist()
    assert bool((ranked.i2t_ranks[~has_caption] == 0).all())
    assert ranked.t2i_ranks.tolist() == t2i_ranks(scores, index).tolist()
    assert ranked.i2t_top.shape == (23, 4) and ranked.t2i_top.shape == (60, 4)
    torch.testing.assert_close(ranked.i2t_scores, scores.topk(4, dim=1).values, rtol=0, atol=0)
    torch.testing.assert_close(scores.gather(1, ranked.i2t_top), ranked.i2t_scores, rtol=0, atol=0)
    torch.testing.assert_close(scores.T.gather(1, ranked.t2i_top), ranked.t2i_scores, rtol=0, atol=0)


@pytest.mark.parametrize("block_items", [5, 1000])
def test_ranks_while_scoring_take_equal_texts_as_right(monkeypatch, block_items):
    monkeypatch.setattr(scoring, "PREPARED_BYTES", 6 * 9 * 48 * 4 * block_items)
    model, (regions, region_mask, words, word_mask) = make(), encoded(images=23, captions=60)
    generator = torch.Generator().manual_seed(1)
    index, text = (torch.randint(0, most, (60,), generator=generator) for most in (22, 25))
    for other in range(60):  # the same text is the same words
        first = int((text == text[other]).nonzero()[0])
        words[other], word_mask[other] = words[first], word_mask[first]
    batch = regions, region_mask, words, word_mask
    with torch.no_grad():
        scores = model.score_matrix(*batch)
        ranked = rank_queries(model, *batch, index, caption_text=text)
    queries = ranked.i2t_ranks > 0
    assert ranked.i2t_ranks[queries].tolist() == i2t_ranks(scores, index, text).tolist()
    assert ranked.t2i_ranks.tolist() == t2i_ranks(scores, index, text).tolist()
    assert ranked.t2i_ranks.tolist() != t2i_ranks(scores, index).tolist()


def test_without_a_compiler_scoring_still_works(monkeypatch):
    native.library.cache_clear()
    try:
        monkeypatch.setenv("CAMP_NATIVE", "0")
        assert native.library() is None and KernelTiles.build(make()) is None
        monkeypatch.delenv("CAMP_NATIVE")
        native.library.cache_clear()
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert native.library() is None
        assert "the CPU kernel cannot be built" in str(caught[-1].message)
    finally:
        native.library.cache_clear()


@pytest.mark.parametrize("switches", [{}, {"pooling": "mean"}, {"pooling": "gpo"}, {"message_passing": "none"}])
def test_items_without_a_real_vector_score_as_their_pairs_do(switches):
    """No detector or tokenizer here makes them; the library's users may."""
    model, (regions, region_mask, words, word_mask) = make(**switches), encoded(images=20, captions=60)
    region_mask[:7], word_mask[50:] = False, False
    regions[~region_mask], words[~word_mask] = 0.0, 0.0  # as encoders leave padding
    owner = torch.arange(60) // 3
    with torch.no_grad():
        matrix = model.score_matrix(regions, region_mask, words, word_mask)
        pairs = model.score_pairs(regions[owner], region_mask[owner], words, word_mask)
        torch.testing.assert_close(matrix[owner, torch.arange(60)], pairs, rtol=1e-4, atol=1e-4)
        ranked = rank_queries(model, regions, region_mask, words, word_mask, owner)
    assert ranked.i2t_ranks.tolist() == i2t_ranks(matrix, owner).tolist()


def test_a_score_that_is_no_number_is_an_error_and_no_rank():
    model, (regions, region_mask, words, word_mask) = make(), encoded(images=5, captions=10)
    regions[2, region_mask[2]] = torch.nan
    with pytest.raises(ValueError, match="scores that are not finite"):
        rank_queries(model, regions, region_mask, words, word_mask, torch.arange(10) // 2)


def test_any_score_that_is_no_number_is_an_error_and_no_rank():
    rows = torch.arange(2)
    for own, other in ((torch.nan, 1.0), (0.0, torch.nan)):
        blocks = [(rows, rows, torch.tensor([[0.0, other], [1.0, 0.0]]))]
        with pytest.raises(ValueError, match="scores that are not finite"):
            rank_blocks(blocks, torch.tensor([own, 0.0]), 2, rows, 1)


@pytest.mark.parametrize(("images", "captions", "owners"), [(0, 3, 3), (3, 0, 0), (3, 4, 3)])
def test_ranking_needs_images_captions_and_the_image_of_each(images, captions, owners):
    regions, region_mask, words, word_mask = encoded(images=3, captions=4)
    batch = regions[:images], region_mask[:images], words[:captions], word_mask[:captions]
    with pytest.raises(ValueError, match=rf"ranking: {images} images, {captions} captions, caption_image \[{owners}\]"):
        rank_queries(make(), *batch, torch.zeros(owners, dtype=torch.int64))


def test_a_mask_of_another_shape_is_an_error_with_gradients_and_without():
    model, (regions, region_mask, words, word_mask) = make(), encoded(images=4, captions=4)
    for score in (model.score_matrix, model.score_pairs, torch.no_grad()(model.score_matrix)):
        with pytest.raises(ValueError, match=r"regions: shape \[4, 9, 48\], mask \[1, 9\]"):
            score(regions, region_mask[:1], words, word_mask)
