"""What the matchers of others offer beyond the scores that `test_model.py` compares with loops."""

import numpy as np
import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import length_mask
from camp_model.matchers.prepared import PAIRS, TILES
from camp_model.vocabulary import SPECIALS, Vocabulary

SIZES = {"vocab_size": 12, "region_dim": 5, "word_dim": 3, "dim": 6}
PEERS = [
    {"matcher": "scan", "scan_direction": "text_to_image"},
    {"matcher": "scan", "scan_direction": "image_to_text"},
    {"matcher": "scan", "scan_direction": "both"},
    {"matcher": "joint", "pooling": "gpo"},
    {"matcher": "camp", "pooling": "gpo"},
    {"matcher": "sgraf", "sgraf": "saf", "similarity_dim": 4},
    {"matcher": "sgraf", "sgraf": "sgr", "similarity_dim": 4},
    {"matcher": "sgraf", "sgraf": "both", "similarity_dim": 4},
]


def name_of(switches):
    return "-".join(map(str, switches.values()))


@pytest.fixture(params=PEERS, ids=name_of)
def peer(request):
    return CampConfig(**SIZES, **request.param)


def test_gradients_are_those_of_the_function(make_batch, peer):
    batch = make_batch(peer, counts=[3, 1], lengths=[2, 4], spare=1)
    batch.features.requires_grad_()
    names = [name for name, _ in batch.model.named_parameters()]

    def scores(features, *parameters):
        values = dict(zip(names, parameters, strict=True))
        arguments = (features, batch.region_mask, batch.tokens, batch.lengths)
        return torch.func.functional_call(batch.model, values, arguments)

    assert torch.autograd.gradcheck(scores, (batch.features, *batch.model.parameters()), fast_mode=True)


def test_every_weight_of_a_peer_moves_its_scores(make_batch, peer):
    batch = make_batch(peer, counts=[4, 2, 3], lengths=[3, 5, 2])
    batch.model.score_matrix(*batch.encode()).square().sum().backward()
    idle = [name for name, parameter in batch.model.named_parameters() if not parameter.grad.any()]
    assert idle == []


def test_all_pairs_in_tiles_are_the_pairs_one_by_one(peer):
    """Float32, as evaluation has it: sizes that differ, real ones not always first, garbage in the padding."""
    torch.manual_seed(1)
    config = CampConfig(**{**SIZES, **peer.to_dict(), "dim": 32})
    model = CAMP(config).eval()
    region_mask = length_mask(torch.randint(1, 10, (33,)), 9)[:, torch.randperm(9)]
    word_mask = length_mask(torch.randint(1, 8, (29,)), 7)
    regions, words = torch.randn(33, 9, 32), torch.randn(29, 7, 32)
    regions[~region_mask], words[~word_mask] = 77.0, 55.0
    with torch.no_grad():
        matrix = model.score_matrix(regions, region_mask, words, word_mask)
        for shift in range(0, 29, 7):
            rows = torch.arange(29)
            columns = (rows + shift) % 29
            pairs = model.score_pairs(regions[:29], region_mask[:29], words[columns], word_mask[columns])
            torch.testing.assert_close(matrix[rows, columns], pairs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", [PAIRS, TILES])
def test_scores_are_in_float32_where_layers_compute_in_16_bits(make_batch, peer, layout):
    """Sixteen bits would tie thousands of candidates."""
    batch = make_batch(peer, counts=[4, 2, 3], lengths=[3, 5, 2])
    model, features = batch.model.float(), batch.features.float()

    def scores():
        regions, words = model.encode_regions(features, batch.region_mask), model.encode_captions(*texts)
        images, captions = (
            model.prepare_regions(regions, batch.region_mask),
            model.prepare_words(words, batch.word_mask),
        )
        return model.match(images, captions, layout)

    texts = batch.tokens, batch.lengths
    with torch.no_grad():
        exact = scores()
        with torch.autocast("cpu", torch.bfloat16):
            rough = scores()
    assert rough.logits.dtype == rough.similarity.dtype == torch.float32
    torch.testing.assert_close(rough.logits, exact.logits, rtol=0.1, atol=0.2)


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text", "both"])
def test_scan_says_what_attends_to_what_and_how_much_it_counts(make_batch, reference, direction):
    batch = make_batch(CampConfig(**SIZES, matcher="scan", scan_direction=direction), [4, 2], [1, 5], spare=1)
    details = batch.model.inspect_pairs(*batch.encode())
    for i, (regions, words) in enumerate(zip(*batch.plain(reference), strict=True)):
        of_words, of_regions = [], []
        for found, queries, keys, sharpness, own, other in (
            (details.word_attention, words, regions, 9.0, of_words, of_regions),
            (details.region_attention, regions, words, 4.0, of_regions, of_words),
        ):
            if found is None:
                continue
            attention = found[i, : len(queries), : len(keys)].detach().numpy()
            attended = np.array(reference.attended_vectors(queries, keys, sharpness))
            np.testing.assert_allclose(attention @ np.array([reference.unit(key) for key in keys]), attended)
            assert attention.sum() == pytest.approx(found[i].sum().item()), "nothing attends to padding, or from it"
            own.append(np.full(len(queries), 1 / len(queries)))
            other.append(attention.mean(0))
        for pooling, expected in ((details.word_pooling, of_words), (details.region_pooling, of_regions)):
            np.testing.assert_allclose(pooling[i, : len(expected[0])].detach().numpy(), np.mean(expected, axis=0))
    assert (details.word_attention is None) == (direction == "image_to_text")
    assert (details.region_attention is None) == (direction == "text_to_image")


@pytest.mark.parametrize("way", ["saf", "sgr", "both"])
def test_sgraf_says_what_attends_to_what_and_how_much_its_filter_lets_pass(make_batch, reference, way):
    batch = make_batch(CampConfig(**SIZES, matcher="sgraf", sgraf=way, similarity_dim=4), [4, 2], [3, 5], spare=1)
    details = batch.model.inspect_pairs(*batch.encode())
    assert details.region_attention is None
    for i, (regions, words) in enumerate(zip(*batch.plain(reference), strict=True)):
        attention = details.word_attention[i, : len(words), : len(regions)].detach().numpy()
        units = [[reference.unit(x) for x in side] for side in (regions, words)]
        attended = reference.attended_vectors(words, regions, 9.0)
        np.testing.assert_allclose(attention @ np.array(units[0]), np.array(attended))
        if way == "sgr":
            assert details.word_pooling is None and details.region_pooling is None
            continue
        opened = []
        for word, seen in zip(units[1], attended, strict=True):
            similarity = reference.layer(batch.state, "local_similarity", (reference.unit(seen) - word) ** 2)
            opened.append(reference.sigmoid(reference.layer(batch.state, "filter", reference.unit(similarity))[0]))
        shares = np.array(opened) / sum(opened)
        np.testing.assert_allclose(details.word_pooling[i, : len(words)].detach().numpy(), shares)
        np.testing.assert_allclose(details.region_pooling[i, : len(regions)].detach().numpy(), shares @ attention)


def test_a_peer_comes_back_from_its_checkpoint(tmp_path, make_batch, peer):
    vocabulary = Vocabulary((*SPECIALS, *"abcdefgh"))
    batch = make_batch(peer, counts=[4, 2], lengths=[3, 5])
    model = batch.model.float()
    save_checkpoint(tmp_path / "model", model, vocabulary)
    again, _, _ = load_checkpoint(tmp_path / "model")
    assert again.config == peer
    arguments = (batch.features.float(), batch.region_mask, batch.tokens, batch.lengths)
    with torch.no_grad():
        assert torch.equal(again(*arguments), model.eval()(*arguments))


def test_shares_of_a_score_are_shares_of_what_is_real(make_batch, peer):
    batch = make_batch(peer, counts=[4, 2], lengths=[3, 5], spare=2)
    with torch.no_grad():
        details = batch.model.inspect_pairs(*batch.encode())
    for shares, mask in ((details.word_pooling, batch.word_mask), (details.region_pooling, batch.region_mask)):
        if shares is not None:
            torch.testing.assert_close(shares.sum(-1), torch.ones(2, dtype=torch.float64))
            assert not shares[~mask].any()
    for attention, mask in ((details.word_attention, batch.word_mask), (details.region_attention, batch.region_mask)):
        if attention is not None:
            torch.testing.assert_close(attention.sum(-1), mask.double())
