"""What does not fit is halved with a warning; tiles and blocks cover every pair and hold no more than they must."""

import itertools
from pathlib import Path

import pytest
import torch

from camp_model.encoders import length_mask
from camp_model.metrics import t2i_ranks
from camp_model.model import CAMP
from camp_model.scoring import all_pairs as scoring
from camp_model.scoring import native
from camp_model.scoring.ranking import rank_queries
from camp_model.scoring.tiles import KernelTiles
from tests.camp_model.encoded_batches import encoded, float64_scores, make


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


def test_tiles_of_long_captions_hold_fewer_pairs_than_tiles_of_short_ones(monkeypatch):
    """Captions come in two blocks, four of one word and then four of seven."""
    monkeypatch.setattr(native, "lanes", lambda: 0)
    monkeypatch.setattr(scoring, "PREPARED_BYTES", 4 * 6 * 7 * 48 * 4)
    monkeypatch.setattr(scoring, "CACHE_BYTES", 16 * 3 * (1 + 1) * 48 * 4)
    model, match, tiles = make(), CAMP.match, []

    def measured(images, captions, layout):
        pairs = len(images.features) * len(captions.features)
        tiles.append((pairs, pairs * scoring.pair_bytes(images.features, captions.features)))
        return match(model, images, captions, layout)

    monkeypatch.setattr(model, "match", measured)
    word_mask = length_mask(torch.tensor([1, 1, 1, 1, 7, 7, 7, 7]), 7)
    with torch.no_grad():
        model.score_matrix(torch.randn(8, 1, 48), torch.ones(8, 1, dtype=torch.bool), torch.randn(8, 7, 48), word_mask)
    assert {pairs for pairs, _ in tiles} == {16, 4}
    assert max(size for _, size in tiles) <= scoring.CACHE_BYTES


def test_a_tile_that_does_not_fit_is_halved_with_a_warning(monkeypatch):
    monkeypatch.setattr(native, "lanes", lambda: 0)
    model, batch = make(), encoded()
    match = model.match

    def small_memory(images, captions, layout):
        if len(images.features) * len(captions.features) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return match(images, captions, layout)

    monkeypatch.setattr(model, "match", small_memory)
    with torch.no_grad(), pytest.warns(UserWarning, match="out of memory: continuing with tiles of"):
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
    with torch.no_grad(), pytest.warns(UserWarning, match="out of memory: continuing with tiles of"):
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
    with torch.no_grad(), pytest.warns(UserWarning, match="continuing with [45] images or captions at a time"):
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
    with pytest.warns(UserWarning, match="out of memory: continuing with tiles of 1 pairs"):
        model.score_matrix(*batch).square().sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, gradient, rtol=1e-4, atol=1e-3, msg=name)


@pytest.mark.skipif(native.library() is None, reason="no C compiler for the CPU kernel")
def test_a_kernel_that_others_could_have_written_is_not_loaded(tmp_path, monkeypatch):
    build = native.library.__wrapped__
    monkeypatch.setattr(native, "FLAGS", ("-O0", *native.FLAGS[1:]))  # compiles four times, and computes nothing
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build() is not None
    (kernel,) = (tmp_path / "camp-retrieval").iterdir()
    assert kernel.stat().st_mode & 0o777 == 0o700
    assert build()._name == str(kernel)
    for place in (kernel.parent, kernel):
        mode = place.stat().st_mode
        place.chmod(0o777)
        assert not build()._name.startswith(str(tmp_path / "camp-retrieval")), "built elsewhere"
        place.chmod(mode)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", ".")
    assert Path(build()._name).is_absolute()
