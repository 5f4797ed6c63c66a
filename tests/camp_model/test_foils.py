"""The loss of captions with one word changed, and the weights that leave nothing to a reader of captions alone."""

import numpy as np
import pytest
import torch

from camp_model import CAMP, CampConfig
from camp_model.encoders import length_mask, region_locations
from camp_model.foils import balance, foil_bce
from camp_model.matchers.evidence import effective_number, overlap
from camp_model.matchers.prepared import PAIRS


def test_balanced_foils_leave_nothing_to_a_reader_of_captions():
    words = ["two"] * 6 + ["three"] * 2 + ["four", "couple"]
    foil_words = ["three"] * 4 + ["four"] * 2 + ["two"] * 2 + ["two", "trio"]
    weights = balance(words, foil_words)
    np.testing.assert_allclose(weights, [2 / 4] * 4 + [1 / 2] * 2 + [1, 1, 1, 0])
    for likes in np.random.default_rng(0).random((20, 5)):  # whatever a blind reader prefers, it is right half the time
        liked = dict(zip(["two", "three", "four", "couple", "trio"], likes, strict=True))
        right = [liked[a] > liked[b] for a, b in zip(words, foil_words, strict=True)]
        assert (weights * right).sum() / weights.sum() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "switches", [{"gate_evidence": True, "geometry": 4.0}, {}, {"gate": "none"}, {"matcher": "joint"}]
)
def test_the_loss_is_that_of_the_two_scores_and_of_the_changed_words_gate(switches, make_batch):
    batch = make_batch(CampConfig(vocab_size=9, region_dim=5, word_dim=3, dim=6, **switches), [3, 2, 4], [4, 2, 5])
    foils = batch.tokens.clone()
    positions = torch.tensor([2, 0, 4])
    foils[torch.arange(3), positions] = (foils[torch.arange(3), positions] + 1) % 9
    regions, region_mask, words, word_mask = batch.encode()
    foil_words = batch.model.encode_captions(foils, batch.lengths)
    weights = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    loss = foil_bce(
        batch.model, regions, region_mask, words, word_mask, foil_words, word_mask, positions=positions,
        weights=weights, gate_supervision=0.7,
    )  # fmt: skip
    expected = 0.0
    for i in range(3):
        details = [
            batch.model.inspect_pairs(regions[i : i + 1], region_mask[i : i + 1], w[i : i + 1], word_mask[i : i + 1])
            for w in (words, foil_words)
        ]
        true, false = (d.logits[0] for d in details)
        cost = -torch.log(torch.sigmoid(-false)) - torch.log(torch.sigmoid(true - false))
        if details[0].word_gates is not None and switches.get("gate") != "none":
            opened, closed = (torch.logit(d.word_gates[0, positions[i]]) for d in details)
            cost -= 0.7 * (opened.sigmoid().log() + (-closed).sigmoid().log() + (opened - closed).sigmoid().log())
        expected += weights[i] * cost
    torch.testing.assert_close(loss, expected)


def test_regions_end_with_where_they_lie():
    """Whatever the encoder has learnt, and whichever features are dropped while training."""
    torch.manual_seed(0)
    config = CampConfig(vocab_size=9, region_dim=12, word_dim=3, dim=16, geometry=4.0, gate_evidence=True)
    model = CAMP(config, dropout=0.5, region_dropout=0.5).double().train()
    x0, y0, x1, y1, area = torch.rand(5, 2, 3, dtype=torch.float64)
    geometry = torch.stack([2 * x0 - 1, 2 * y0 - 1, 2 * x1 - 1, 2 * y1 - 1, area], -1)
    features = torch.cat([torch.randn(2, 3, 7, dtype=torch.float64), 4 * geometry], -1)
    mask = length_mask(torch.tensor([3, 2]), 3)
    regions = model.encode_regions(features, mask)
    expected = torch.stack([x0 + x1 - 1, y0 + y1 - 1, area, 2 * y1 - 1], -1)
    expected[1, 2] = 0.0
    torch.testing.assert_close(regions[..., -4:], expected)
    torch.testing.assert_close(model.matcher.messages.evidence.of_regions(regions, mask)[0], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # whose three digits would lose small boxes
        narrow = model.float().encode_regions(features.float(), mask)
    torch.testing.assert_close(narrow[..., -4:], expected.float())


def test_boxes_overlap_by_their_locations():
    """The whole picture, its left half, its upper half, and a corner of neither."""
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0.5, 1], [0, 0, 1, 0.5], [0.75, 0.75, 1, 1]], dtype=torch.float64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    found = overlap(region_locations(torch.cat([2 * boxes - 1, area[:, None]], 1), 1.0)[None])[0]
    expected = [[1, 1 / 2, 1 / 2, 1 / 16], [1 / 2, 1, 1 / 3, 0], [1 / 2, 1 / 3, 1, 0], [1 / 16, 0, 0, 1]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_an_attention_counts_things_and_not_their_boxes():
    """Two boxes of one star, one of another, and one of something else."""
    same = torch.eye(4)
    same[0, 1] = same[1, 0] = 1.0
    attention = torch.tensor([[0.3, 0.2, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0], [0.2, 0.2, 0.2, 0.4]])
    number = effective_number(attention[None], same[None], PAIRS)[0]
    torch.testing.assert_close(number, torch.tensor([2.0, 1.0, 1 / 0.36]))


def test_what_does_not_read_locations_keeps_what_it_has_encoded():
    model = CAMP(CampConfig(vocab_size=9, region_dim=12, word_dim=3, dim=16, geometry=4.0))
    features, mask = torch.randn(2, 3, 12), torch.ones(2, 3, dtype=torch.bool)
    assert torch.equal(model.encode_regions(features, mask), model.region_encoder(features, mask))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"geometry": 0.0, "dim": 16}, r"model\.gate_evidence: true reads .*expected .*regions\.geometry: true"),
        ({"geometry": 4.0, "dim": 4}, r"model\.dim: 4 has no room for the 4 numbers of a region's location"),
    ],
)
def test_evidence_needs_places_and_room_for_them(sizes, message):
    with pytest.raises(ValueError, match=message):
        CAMP(CampConfig(vocab_size=9, region_dim=12, word_dim=3, gate_evidence=True, **sizes))


@pytest.mark.parametrize("switches", [{"gate": "none"}, {"gate": "elementwise"}, {"message_passing": "none"},
                                      {"message_passing": "text_to_image"}])  # fmt: skip
def test_evidence_needs_gates_of_words(switches):
    with pytest.raises(ValueError, match=r"model\.gate_evidence: true needs gates of words"):
        CampConfig(vocab_size=9, gate_evidence=True, **switches)


def test_evidence_learns_left_from_right_and_two_from_three():
    """Captions that no bag of regions and words tells apart, and a model that learns them in seconds."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    config = CampConfig(vocab_size=12, region_dim=9, word_dim=16, dim=32, geometry=4.0, gate_evidence=True)
    model = CAMP(config)

    def pictures(size):
        """Four regions: one of kind A, one to three of kind B; the caption "A left|right B" or "two|three B"."""
        number = torch.randint(2, 4, (size,), generator=generator)
        kinds = torch.zeros(size, 4, dtype=torch.long)
        kinds[torch.arange(4)[None] <= number[:, None]] = 1
        kinds[:, 0] = 0
        kinds[torch.arange(4)[None] > number[:, None]] = 2
        x = torch.rand(size, 4, generator=generator) * 0.4
        left = torch.rand(size, generator=generator) < 0.5
        x[:, 1:] += 0.5 * left[:, None]
        x[:, 0] += 0.5 * ~left
        half = torch.full_like(x, 0.5)
        geometry = torch.stack([2 * x - 1, half, 2 * (x + 0.1) - 1, half + 0.2, half], -1)
        features = torch.cat([3 * torch.eye(4)[kinds], 4 * geometry], -1)
        counts = torch.rand(size, generator=generator) < 0.5
        relation = torch.stack([torch.full((size,), 4), torch.where(left, 6, 7), torch.full((size,), 5)], 1)
        count = torch.stack([torch.where(number == 2, 8, 9), torch.full((size,), 5), torch.full((size,), 10)], 1)
        tokens = torch.where(counts[:, None], count, relation)
        foils = tokens.clone()
        place = torch.where(counts, 0, 1)
        swap = torch.tensor([0, 0, 0, 0, 0, 0, 7, 6, 9, 8, 0, 0])
        foils[torch.arange(size), place] = swap[tokens[torch.arange(size), place]]
        return features, tokens, foils, place, counts

    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    mask, lengths = torch.ones(64, 4, dtype=torch.bool), torch.full((64,), 3)
    for _ in range(150):
        features, tokens, foils, place, _ = pictures(64)
        regions = model.encode_regions(features, mask)
        words, foil_words = (model.encode_captions(t, lengths) for t in (tokens, foils))
        word_mask = torch.ones(64, 3, dtype=torch.bool)
        loss = foil_bce(
            model, regions, mask, words, word_mask, foil_words, word_mask, positions=place,
            weights=torch.ones(64), gate_supervision=1.0,
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features, tokens, foils, place, counts = pictures(512)
    mask, lengths = torch.ones(512, 4, dtype=torch.bool), torch.full((512,), 3)
    with torch.no_grad():
        right = model(features, mask, tokens, lengths) > model(features, mask, foils, lengths)
    assert right[counts].float().mean() > 0.9 and right[~counts].float().mean() > 0.9
