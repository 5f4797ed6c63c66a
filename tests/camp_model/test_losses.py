"""Losses against plain loops and the all-pairs graph: values, gradients, shares, precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from camp_model import CampConfig
from camp_model.all_negatives import all_negatives_bce, all_negatives_triplet
from camp_model.losses import (
    gate_bce,
    hardest_negative_bce,
    mine_hardest,
    triplet_loss,
)
from camp_model.matchers.prepared import TILES
from tests.camp_model.loss_batches import CONFIG, INDEX, SIZES, batch_of, gradients


def all_pairs_loss(batch, gate_supervision=0.0):
    """The same loss as one graph over all pairs."""
    regions, region_mask, words, word_mask = batch.encode()
    size = len(INDEX)
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    i, j = i.flatten(), j.flatten()
    flat = (regions[i], region_mask[i], words[j], word_mask[j])
    scores = batch.model.score_pairs(*flat).reshape(size, size)
    same = INDEX[:, None] == INDEX
    masked = scores.masked_fill(same, -torch.inf)
    captions, images = masked.argmax(1), masked.argmax(0)

    def bce(s):
        pairs = torch.arange(size)
        return -(2 * logsigmoid(s.diagonal()) + logsigmoid(-s[pairs, captions]) + logsigmoid(-s[images, pairs])).mean()

    loss = bce(scores)
    if gate_supervision:
        loss = loss + gate_supervision * bce(batch.model.gate_logits(*flat).reshape(size, size))
    return loss


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("micro_batch", [0, 1, 4])
@pytest.mark.parametrize(
    "switches", [{}, {"gate_context": 2.0}, {"gate": "elementwise"}, {"hops": 2}, {"message_passing": "text_to_image"}]
)
def test_gradient_is_that_of_the_all_pairs_graph(make_batch, switches, micro_batch, weight):
    batch = batch_of(make_batch, CampConfig(**SIZES, **switches))
    expected_loss = all_pairs_loss(batch, weight)
    expected = gradients(batch, expected_loss)
    loss = hardest_negative_bce(batch.model, *batch.encode(), INDEX, gate_supervision=weight, micro_batch=micro_batch)
    torch.testing.assert_close(loss, expected_loss, rtol=0, atol=1e-12)
    got = gradients(batch, loss)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-10, msg=name)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, gate="none"), replace(CONFIG, message_passing="none")])
def test_loss_equals_the_loop_reference(make_batch, reference, config):
    batch = batch_of(make_batch, config)
    images, captions = batch.plain(reference)
    scores = [[reference.score(batch.state, config, v, t)[0] for t in captions] for v in images]
    loss = hardest_negative_bce(batch.model, *batch.encode(), INDEX)
    assert loss.item() == pytest.approx(reference.hardest_bce(scores, INDEX.tolist()), abs=1e-9)


def test_a_batch_of_one_image_has_only_positives(make_batch):
    batch = batch_of(make_batch)
    index = torch.zeros(5, dtype=torch.int64)
    assert mine_hardest(torch.randn(5, 5), index)[0].tolist() == [-1] * 5
    encoded = batch.encode()
    expected = -2 * logsigmoid(batch.model.score_pairs(*encoded)).mean()
    for loss in (hardest_negative_bce, all_negatives_bce):
        torch.testing.assert_close(loss(batch.model, *encoded, index), expected)
    assert triplet_loss(batch.model, *encoded, index).item() == 0


@pytest.mark.parametrize("matching", ["mlp", "cosine"])
def test_triplet_is_the_hinge_on_similarities(make_batch, matching):
    batch = batch_of(make_batch, CampConfig(**SIZES, matching=matching))
    encoded = batch.encode()
    logits = batch.model.score_matrix(*encoded)
    if matching == "mlp":
        s = logits.sigmoid()
    else:
        s = (logits - batch.model.matcher.matching.shift) / batch.model.matcher.matching.log_scale.exp()
    expected = 0.0
    for i in range(5):
        others = [j for j in range(5) if INDEX[j] != INDEX[i]]
        expected += max(0.0, 0.3 - s[i, i].item() + max(s[i, j].item() for j in others)) / 5
        expected += max(0.0, 0.3 - s[i, i].item() + max(s[j, i].item() for j in others)) / 5
    loss = triplet_loss(batch.model, *encoded, INDEX, margin=0.3)
    assert loss.item() == pytest.approx(expected)
    pairs, (captions, images) = torch.arange(5), mine_hardest(logits, INDEX)
    own, of_caption, of_image = (
        batch.model.gate_logits(encoded[0][i], encoded[1][i], encoded[2][j], encoded[3][j])
        for i, j in ((pairs, pairs), (pairs, captions), (images, pairs))
    )
    gates = -(2 * logsigmoid(own) + logsigmoid(-of_caption) + logsigmoid(-of_image)).mean().item()
    supervised = triplet_loss(batch.model, *encoded, INDEX, margin=0.3, gate_supervision=0.5)
    assert supervised.item() == pytest.approx(expected + 0.5 * gates)
    if matching == "cosine":  # the bare cosine has no scale to learn
        assert not {"matcher.matching.log_scale", "matcher.matching.shift"} & {
            n for n, g in gradients(batch, loss).items() if g.abs().max() > 0
        }


@pytest.mark.parametrize("micro_batch", [0, 7])
@pytest.mark.parametrize("message_passing", ["both", "text_to_image"])
def test_all_negatives_are_averaged(make_batch, micro_batch, message_passing):
    batch = batch_of(make_batch, CampConfig(**SIZES, message_passing=message_passing))
    regions, region_mask, words, word_mask = batch.encode()
    expected = 0.0
    for weight, kind in ((1.0, batch.model.score_pairs), (0.5, batch.model.gate_logits)):

        def one(i, j, kind=kind):
            return kind(regions[i : i + 1], region_mask[i : i + 1], words[j : j + 1], word_mask[j : j + 1])[0].item()

        for i in range(5):
            others = [j for j in range(5) if INDEX[j] != INDEX[i]]
            expected -= weight * 2 * np.log(1 / (1 + np.exp(-one(i, i)))) / 5
            expected -= weight * np.mean([np.log(1 / (1 + np.exp(one(i, j)))) for j in others]) / 5
            expected -= weight * np.mean([np.log(1 / (1 + np.exp(one(j, i)))) for j in others]) / 5
    loss = all_negatives_bce(
        batch.model, regions, region_mask, words, word_mask, INDEX, gate_supervision=0.5, micro_batch=micro_batch
    )
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", [hardest_negative_bce, triplet_loss, all_negatives_bce, all_negatives_triplet])
def test_shares_of_a_batch_average_to_the_whole(make_batch, loss):
    batch = batch_of(make_batch)
    encoded = batch.encode()
    whole = loss(batch.model, *encoded, INDEX, gate_supervision=0.5)
    parts = [loss(batch.model, *encoded, INDEX, gate_supervision=0.5, pairs=slice(a, b)) for a, b in ((0, 2), (2, 5))]
    torch.testing.assert_close((2 * parts[0] + 3 * parts[1]) / 5, whole)


def test_a_confident_model_keeps_a_finite_loss(make_batch):
    """On probabilities, log(1 - m) of a sure mistake is infinite; on logits it is the logit."""
    batch = batch_of(make_batch)
    batch.model.float()
    batch.features = batch.features.float()
    batch.model.matcher.matching.output.bias.data.fill_(500.0)
    loss = hardest_negative_bce(batch.model, *batch.encode(), INDEX)
    assert 900 < loss.item() < 1100


def test_a_batch_that_is_not_aligned_is_an_error(make_batch):
    batch = batch_of(make_batch)
    regions, region_mask, words, word_mask = batch.encode()
    with pytest.raises(ValueError, match="aligned pairs"):
        hardest_negative_bce(batch.model, regions, region_mask, words, word_mask, INDEX[:4])
    with pytest.raises(ValueError, match="aligned pairs: 4 images, 5 captions, 5 image_index"):
        hardest_negative_bce(batch.model, regions[:4], region_mask[:4], words, word_mask, INDEX)


@pytest.mark.parametrize("switches", [{}, {"hops": 2}, {"gate": "elementwise"}, {"matching": "cosine"}])
@pytest.mark.parametrize("loss", [hardest_negative_bce, triplet_loss, all_negatives_bce])
def test_mixed_precision_keeps_a_float32_loss(make_batch, loss, switches):
    batch = batch_of(make_batch, CampConfig(**SIZES, **switches))
    batch.model.float()
    batch.features = batch.features.float()
    exact = loss(batch.model, *batch.encode(), INDEX, gate_supervision=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(batch.model, *batch.encode(), INDEX, gate_supervision=0.5, micro_batch=4)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact, rtol=0.1, atol=0.1)
    assert all(gradient.isfinite().all() for gradient in gradients(batch, value).values())


@pytest.mark.parametrize("switches", [{}, {"hops": 2}, {"gate": "elementwise"}, {"message_passing": "text_to_image"}])
def test_mixed_precision_keeps_a_float32_loss_of_gates(make_batch, switches):
    batch = batch_of(make_batch, CampConfig(**SIZES, **switches))
    batch.model.float()
    batch.features = batch.features.float()
    exact, rough = (torch.Generator().manual_seed(1) for _ in range(2))
    expected = gate_bce(batch.model, *batch.encode(), INDEX, generator=exact)
    with torch.autocast("cpu", torch.bfloat16):
        value = gate_bce(batch.model, *batch.encode(), INDEX, generator=rough)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("micro_batch", [0, 7])
@pytest.mark.parametrize("matching", ["mlp", "cosine"])
def test_hinges_over_all_negatives_are_summed(make_batch, matching, micro_batch):
    config = CampConfig(**(CONFIG.to_dict() | {"matching": matching}))
    batch = batch_of(make_batch, config)
    encoded = batch.encode()
    loss = all_negatives_triplet(batch.model, *encoded, INDEX, margin=0.3, micro_batch=micro_batch)
    images, captions = batch.model.prepare_regions(*encoded[:2]), batch.model.prepare_words(*encoded[2:])
    scores = batch.model.match(images, captions, TILES).similarity
    expected = 0.0
    for i in range(len(INDEX)):
        for j in range(len(INDEX)):
            if INDEX[i] != INDEX[j]:
                expected += max(0.0, 0.3 - scores[i, i].item() + scores[i, j].item())
                expected += max(0.0, 0.3 - scores[i, i].item() + scores[j, i].item())
    assert loss.item() == pytest.approx(expected / len(INDEX))
    own_gates = [
        (of(batch.model, *encoded, INDEX, gate_supervision=0.5) - of(batch.model, *encoded, INDEX)).item()
        for of in (all_negatives_triplet, all_negatives_bce)
    ]
    assert own_gates[0] == pytest.approx(own_gates[1]) and own_gates[0] > 0.1, "as beside cross-entropy"
