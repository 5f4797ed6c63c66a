"""What the matchers of others offer beyond the scores that `test_model.py` compares with loops."""

import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import length_mask
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
