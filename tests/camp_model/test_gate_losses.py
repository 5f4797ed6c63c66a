"""Supervised gates: open for a pair's own caption, closed for random others."""

import numpy as np
import pytest
import torch

from camp_model import CampConfig
from camp_model.losses import (
    gate_bce,
    hardest_negative_bce,
)
from camp_model.matchers.prepared import PAIRS
from tests.camp_model.loss_batches import INDEX, SIZES, batch_of, drawn, gradients


@pytest.mark.parametrize(
    "switches", [{}, {"gate_context": 2.0}, {"gate": "elementwise"}, {"hops": 2}, {"message_passing": "text_to_image"}]
)
def test_gate_bce_opens_own_and_closes_random_gates(make_batch, switches):
    batch = batch_of(make_batch, CampConfig(**SIZES, **switches))
    regions, region_mask, words, word_mask = batch.encode()
    captions, images = drawn(seed=4)

    def likelihood(i, j, sign):
        """Mean over the real words of caption j (or regions of image i) of log s(sign * logit / 2)."""
        one = (regions[i : i + 1], region_mask[i : i + 1], words[j : j + 1], word_mask[j : j + 1])
        prepared = batch.model.prepare_regions(*one[:2]), batch.model.prepare_words(*one[2:])
        received = batch.model.match(*prepared, PAIRS)
        logits = (received.words or received.regions).gate_logits[0]
        real = word_mask[j] if received.words else region_mask[i]
        return np.mean([-np.log1p(np.exp(-sign * x / 2)) for x in logits[real].tolist()])

    expected = 0.0
    for i in range(5):
        expected -= 2 * likelihood(i, i, 1) + likelihood(i, captions[i], -1) + likelihood(images[i], i, -1)
    given = {"temperature": 2.0, "generator": torch.Generator().manual_seed(4)}
    loss = gate_bce(batch.model, regions, region_mask, words, word_mask, INDEX, **given)
    assert loss.item() == pytest.approx(expected / 5)


def test_gate_bce_is_the_same_in_shares_and_in_micro_batches(make_batch):
    batch = batch_of(make_batch)

    def loss(**more):
        return gate_bce(batch.model, *batch.encode(), INDEX, generator=torch.Generator().manual_seed(4), **more)

    expected = gradients(batch, loss())
    torch.testing.assert_close((2 * loss(pairs=slice(0, 2)) + 3 * loss(pairs=slice(2, 5))) / 5, loss())
    got = gradients(batch, loss(micro_batch=4))
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=0, atol=1e-10, msg=name)


def test_gate_bce_of_one_image_has_only_open_gates(make_batch):
    batch = batch_of(make_batch)
    loss = gate_bce(batch.model, *batch.encode(), torch.zeros(5, dtype=torch.int64))
    gates = batch.model.inspect_pairs(*batch.encode()).word_gates
    expected = [-2 * np.log(row[real].tolist()).mean() for row, real in zip(gates, batch.word_mask, strict=True)]
    assert loss.item() == pytest.approx(np.mean(expected))


def test_gate_supervision_without_gates_is_an_error(make_batch):
    batch = batch_of(make_batch, CampConfig(**SIZES, gate="none"))
    with pytest.raises(ValueError, match="gate_supervision"):
        hardest_negative_bce(batch.model, *batch.encode(), INDEX, gate_supervision=0.5)
