import itertools
import warnings

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask
from camp_model.matchers.prepared import TILES
from camp_model.metrics import i2t_ranks, t2i_ranks
from camp_model.scoring import all_pairs as scoring
from camp_model.scoring import native
from camp_model.scoring.ranking import rank_queries
from camp_model.scoring.tiles import KernelTiles

SIZES = {"vocab_size": 5, "region_dim": 3, "word_dim": 2, "dim": 48, "pooling_heads": 2}


def encoded(images=37, captions=41, dim=48, seed=0):
    """Encoded images and captions of different sizes, real ones not always first, garbage in the padding."""
    generator = torch.Generator().manual_seed(seed)
    region_mask = length_mask(torch.randint(1, 10, (images,), generator=generator), 9)
    region_mask = region_mask[:, torch.randperm(9, generator=generator)]
    word_mask = length_mask(torch.randint(1, 8, (captions,), generator=generator), 7)
    regions = 0.7 * torch.randn(images, 9, dim, generator=generator)
    words = 0.7 * torch.randn(captions, 7, dim, generator=generator)
    regions[~region_mask], words[~word_mask] = 99.0, 55.0
    return regions, region_mask, words, word_mask


def make(seed=0, **switches):
    torch.manual_seed(seed)
    model = CAMP(CampConfig(**(SIZES | switches))).eval()
    for name, parameter in model.named_parameters():
        # With a joint score the last layer begins at 0.
        if name.endswith("bias") or (name.endswith("matching.output.weight") and not parameter.any()):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def float64_scores(model, regions, region_mask, words, word_mask):
    wide = CAMP(model.config).double()
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        images = wide.prepare_regions(regions.double(), region_mask)
        return wide.match(images, wide.prepare_words(words.double(), word_mask), TILES).logits


def assert_exact(model, batch, msg=None):
    with torch.no_grad():
        scores = model.score_matrix(*batch).double()
    torch.testing.assert_close(scores, float64_scores(model, *batch), rtol=1e-4, atol=1e-4, msg=msg)


KERNEL_SWITCHES = ("message_passing", "gate", "gate_context", "fusion", "residual", "pooling", "matching")
FACTORISED = [
    dict(zip(KERNEL_SWITCHES, values, strict=True))
    for values in itertools.product(
        ("both", "image_to_text", "text_to_image"), ("scalar", "none"), (0.0, 2.0), ("concat", "sum"), (True, False),
        ("attention", "mlp", "mean"), ("mlp", "cosine"),
    )
]  # fmt: skip


@pytest.mark.skipif(native.library() is None, reason="no C compiler for the CPU kernel")
def test_the_kernel_is_exact_for_every_switch_it_takes():
    batch = encoded()
    for switches in FACTORISED:
        model = make(**switches, joint_score=switches["fusion"] == "sum")
        assert KernelTiles.build(model) is not None
        assert_exact(model, batch, msg=str(switches))


@pytest.mark.parametrize(
    "switches",
    [{}, {"hops": 2}, {"gate": "elementwise"}, {"message_passing": "none"}, {"pooling": "mlp"}, {"joint_score": True}],
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


def test_blocks_cover_every_pair_once(monkeypatch):
    monkeypatch.setattr(scoring, "PREPARED_BYTES", 6 * 9 * 48 * 4 * 5)
    model, batch = make(), encoded()
    seen = torch.zeros(37, 41, dtype=torch.int64)
    for images, captions, logits in scoring.score_blocks(model, *batch):
        assert logits.shape == (len(images), len(captions))
        seen[images[:, None], captions] += 1
    assert bool((seen == 1).all())
    scored = []
    with torch.no_grad():
        scores = model.score_matrix(*batch, progress=scored.append)
    assert sum(scored) == 37 * 41 and len(scored) > 1
    torch.testing.assert_close(scores.double(), float64_scores(model, *batch), rtol=1e-4, atol=1e-4)


def test_ragged_tiles_hold_no_more_than_their_longest(monkeypatch):
    monkeypatch.setattr(native, "lanes", lambda: 0)
    monkeypatch.setattr(scoring, "CACHE_BYTES", 1)
    model, batch = make(), encoded(images=4, captions=6)
    sizes = []
    match = model.match
    monkeypatch.setattr(
        model,
        "match",
        lambda i, c, layout: (sizes.append((i.features.shape[1], c.features.shape[1])), match(i, c, layout))[1],
    )
    with torch.no_grad():
        model.score_matrix(*batch)
    counts = itertools.product(batch[1].sum(1).tolist(), batch[3].sum(1).tolist())
    assert sorted(sizes) == sorted(counts)


def test_a_tile_that_does_not_fit_is_halved_with_a_warning(monkeypatch):
    monkeypatch.setattr(native, "lanes", lambda: 0)
    model, batch = make(), encoded()
    match = model.match

    def small_memory(images, captions, layout):
        if len(images.features) * len(captions.features) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return match(images, captions, layout)

    monkeypatch.setattr(model, "match", small_memory)
    with torch.no_grad(), pytest.warns(UserWarning, match="out of memory: going on with tiles of"):
        scores = model.score_matrix(*batch)
    torch.testing.assert_close(scores.double(), float64_scores(model, *batch), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(native.library() is None, reason="no C compiler for the CPU kernel")
@pytest.mark.parametrize("pooling", ["attention", "mlp"])
def test_a_tile_of_the_kernel_that_does_not_fit_is_halved_with_a_warning(monkeypatch, pooling):
    receive, tried = native.receive, []

    def small_memory(affinity, *arguments, **options):
        tried.append(affinity.shape[0] * affinity.shape[1])
        if tried[-1] > 20:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        receive(affinity, *arguments, **options)

    monkeypatch.setattr(native, "receive", small_memory)
    model, batch = make(pooling=pooling), encoded()
    with torch.no_grad(), pytest.warns(UserWarning, match="out of memory: going on with tiles of"):
        scores = model.score_matrix(*batch)
    assert sum(pairs > 20 for pairs in tried) < 6, "what did not fit once is not tried again"
    torch.testing.assert_close(scores.double(), float64_scores(model, *batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["prepare_regions", "prepare_words"])
def test_a_block_that_does_not_fit_is_halved_with_a_warning(monkeypatch, side):
    model, batch = make(), encoded()
    prepare = getattr(model, side)

    def small_memory(values, mask):
        if len(values) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prepare(values, mask)

    monkeypatch.setattr(model, side, small_memory)
    index = torch.randint(0, 37, (41,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), pytest.warns(UserWarning, match="going on with [45] images or captions at a time"):
        scores = model.score_matrix(*batch)
    torch.testing.assert_close(scores.double(), float64_scores(model, *batch), rtol=1e-4, atol=1e-4)
    with pytest.warns(UserWarning, match="out of memory"):
        ranked = rank_queries(model, *batch, index)
    assert ranked.t2i_ranks.tolist() == t2i_ranks(scores, index).tolist()


def test_what_does_not_fit_even_alone_is_an_error(monkeypatch):
    model, batch = make(), encoded(images=3, captions=3)

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for part in ("match", "prepare_words"):
        monkeypatch.setattr(native, "lanes", lambda: 0)
        monkeypatch.setattr(model, part, no_memory)
        with torch.no_grad(), pytest.warns(UserWarning), pytest.raises(torch.OutOfMemoryError):
            model.score_matrix(*batch)


def test_tiles_of_the_kernel_shrink_with_long_captions_and_many_regions():
    model = make(dim=16, pooling="mlp")
    generator = torch.Generator().manual_seed(0)
    regions, words = torch.randn(5, 600, 16, generator=generator), torch.randn(6, 700, 16, generator=generator)
    masks = torch.ones(5, 600).bool(), torch.ones(6, 700).bool()
    with torch.no_grad():
        images, captions = model.prepare_regions(regions, masks[0]), model.prepare_words(words, masks[1])
        kernel = KernelTiles.build(model)
        height, width = kernel._shape(images, captions)
        assert height * width * 600 * 700 * 4 * 2 <= 2**25
        batch = (regions, masks[0], words, masks[1])
        expected = float64_scores(model, *batch)
        torch.testing.assert_close(model.score_matrix(*batch).double(), expected, rtol=1e-4, atol=1e-4)


def test_other_errors_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(native, "lanes", lambda: 0)
    model, batch = make(), encoded()

    def broken(*_):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model, "match", broken)
    with torch.no_grad(), pytest.raises(RuntimeError, match="shapes differ"):
        model.score_matrix(*batch)


def test_the_matrix_is_differentiable():
    model, batch = make(), encoded(images=3, captions=3)
    assert model.score_matrix(*batch).requires_grad
    with torch.no_grad():
        assert not model.score_matrix(*batch).requires_grad


def test_gradients_of_a_large_matrix_are_computed_in_tiles(monkeypatch):
    model, batch = make(), encoded(images=5, captions=7)
    model.score_matrix(*batch).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    monkeypatch.setattr(scoring, "GRAPH_BYTES", 4 * 3 * 16 * 48 * 4 * 3)  # three pairs
    match = model.match

    def small_memory(images, captions, layout):
        if len(images.features) * len(captions.features) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return match(images, captions, layout)

    monkeypatch.setattr(model, "match", small_memory)
    model.zero_grad()
    with pytest.warns(UserWarning, match="out of memory: going on with tiles of 1 pairs"):
        model.score_matrix(*batch).square().sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-3, msg=name)


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
