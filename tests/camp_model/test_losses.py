import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from camp_model import CampConfig
from camp_model.losses import (
    all_negatives_bce,
    gate_bce,
    hardest_negative_bce,
    mine_hardest,
    triplet_loss,
)
from camp_model.matchers.prepared import PAIRS
from camp_model.negatives import drawn_negatives, negative_pairs

SIZES = {"vocab_size": 12, "region_dim": 5, "word_dim": 3, "dim": 6, "pooling_heads": 2}
CONFIG = CampConfig(**SIZES)
# Pairs 0 and 3 show the same image.
INDEX = torch.tensor([7, 1, 2, 7, 4])


def batch_of(make_batch, config=CONFIG, **kwargs):
    batch = make_batch(config, counts=[4, 2, 3, 4, 1], lengths=[3, 1, 5, 2, 4], **kwargs)
    batch.features[3] = batch.features[0]
    return batch


def gradients(batch, loss):
    batch.model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in batch.model.named_parameters() if p.grad is not None}


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


def test_loss_equals_the_loop_reference(make_batch, reference):
    batch = batch_of(make_batch)
    images, captions = batch.plain(reference)
    scores = [[reference.score(batch.state, CONFIG, v, t)[0] for t in captions] for v in images]
    loss = hardest_negative_bce(batch.model, *batch.encode(), INDEX)
    assert loss.item() == pytest.approx(reference.hardest_bce(scores, INDEX.tolist()), abs=1e-9)


def test_captions_of_one_image_are_never_negatives():
    scores = torch.tensor([[0.0, 1.0, 9.0], [5.0, 0.0, 2.0], [8.0, 3.0, 0.0]])
    captions, images = mine_hardest(scores, torch.tensor([4, 6, 4]))
    assert captions.tolist() == [1, 0, 1]
    assert images.tolist() == [1, 2, 1]


# Captions 1 and 2 are the same text, and so are 3 and 4; pairs 0 and 3 show the same image.
TEXTS = torch.tensor([10, 11, 11, 13, 13])
NEGATIVES = [[1, 2], [0, 3, 4], [0, 3, 4], [1, 2], [0, 1, 2]]
"""For each image the captions that are its negatives, by hand. Caption 4 has the text of caption 3, one of the image of
pairs 0 and 3, so it is right for both; caption 0 is another of that image, but wrong for image 4."""


def test_captions_of_the_same_text_are_never_negatives():
    negative = negative_pairs(INDEX, TEXTS)
    assert [row.nonzero().flatten().tolist() for row in negative] == NEGATIVES
    scores = torch.tensor(
        [
            [0.0, 1.0, 2.0, 8.0, 9.0],
            [1.0, 0.0, 9.0, 2.0, 3.0],
            [3.0, 9.0, 0.0, 2.0, 1.0],
            [9.0, 2.0, 1.0, 0.0, 9.0],
            [4.0, 5.0, 3.0, 9.0, 0.0],
        ]
    )
    captions, images = mine_hardest(scores, INDEX, TEXTS)
    assert captions.tolist() == [2, 4, 0, 1, 1]
    assert images.tolist() == [4, 4, 4, 1, 1]
    same = torch.zeros(5, dtype=torch.int64)
    assert mine_hardest(scores, INDEX, same)[0].tolist() == [-1] * 5, "one text: no negatives"


@pytest.mark.parametrize("pairs", [None, slice(1, 4)])
@pytest.mark.parametrize("loss", ["hardest", "random", "triplet", "all", "gates"])
def test_losses_take_no_negative_of_the_same_text(make_batch, loss, pairs):
    """Against loops over the negatives that were worked out by hand."""
    batch = batch_of(make_batch)
    encoded = batch.encode()
    logits = batch.model.score_matrix(*encoded).detach()
    rows = range(5)[pairs or slice(None)]
    of_caption = [[i for i in range(5) if j in NEGATIVES[i]] for j in range(5)]
    draws = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(4)).tolist()
    drawn = [max(NEGATIVES[i], key=draws[0][i].__getitem__) for i in range(5)]
    drawn_images = [max(of_caption[i], key=draws[1][i].__getitem__) for i in range(5)]
    options = {"caption_index": TEXTS, "pairs": pairs}
    generator = torch.Generator().manual_seed(4)
    s, no = logits.tolist(), lambda x: logsigmoid(torch.tensor(-x)).item()
    if loss == "all":
        got = all_negatives_bce(batch.model, *encoded, INDEX, **options)
        terms = [np.mean([no(s[i][j]) for j in NEGATIVES[i]]) + np.mean([no(s[j][i]) for j in of_caption[i]])
                 + 2 * no(-s[i][i]) for i in rows]  # fmt: skip
    elif loss == "triplet":
        got = triplet_loss(batch.model, *encoded, INDEX, margin=0.3, **options)
        m = logits.sigmoid().tolist()
        terms = [-max(0, 0.3 - m[i][i] + max(m[i][j] for j in NEGATIVES[i]))
                 - max(0, 0.3 - m[i][i] + max(m[j][i] for j in of_caption[i])) for i in rows]  # fmt: skip
    elif loss == "gates":
        got = gate_bce(batch.model, *encoded, INDEX, generator=generator, **options)
        regions, region_mask, words, word_mask = encoded

        def closed(i, j):
            one = regions[i : i + 1], region_mask[i : i + 1], words[j : j + 1], word_mask[j : j + 1]
            return batch.model.inspect_pairs(*one).word_gates[0][word_mask[j]]

        terms = [2 * closed(i, i).log().mean().item() + (1 - closed(i, drawn[i])).log().mean().item()
                 + (1 - closed(drawn_images[i], i)).log().mean().item() for i in rows]  # fmt: skip
    else:
        random = loss == "random"
        got = hardest_negative_bce(
            batch.model, *encoded, INDEX, random_negatives=random, generator=generator, **options
        )
        hardest = [max(NEGATIVES[i], key=s[i].__getitem__) for i in range(5)]
        hardest_images = [max(of_caption[i], key=lambda j, i=i: s[j][i]) for i in range(5)]
        captions, images = (drawn, drawn_images) if random else (hardest, hardest_images)
        terms = [no(s[i][captions[i]]) + no(s[images[i]][i]) + 2 * no(-s[i][i]) for i in rows]
    assert got.item() == pytest.approx(-np.mean(terms))


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


@pytest.mark.parametrize("loss", [hardest_negative_bce, triplet_loss, all_negatives_bce])
def test_shares_of_a_batch_average_to_the_whole(make_batch, loss):
    batch = batch_of(make_batch)
    encoded = batch.encode()
    whole = loss(batch.model, *encoded, INDEX, gate_supervision=0.5)
    parts = [loss(batch.model, *encoded, INDEX, gate_supervision=0.5, pairs=slice(a, b)) for a, b in ((0, 2), (2, 5))]
    torch.testing.assert_close((2 * parts[0] + 3 * parts[1]) / 5, whole)


def drawn(seed):
    """Random negatives as loops: the caption and the image with the highest draw among those of another image."""
    draws = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(seed)).tolist()
    others = [[j for j in range(5) if INDEX[j] != INDEX[i]] for i in range(5)]
    return [[max(others[i], key=lambda j, row=kind[i]: row[j]) for i in range(5)] for kind in draws]


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


def test_random_negatives_are_negatives_and_follow_the_generator(make_batch):
    batch = batch_of(make_batch)
    encoded = batch.encode()

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return hardest_negative_bce(batch.model, *encoded, INDEX, random_negatives=True, generator=generator).item()

    assert loss(1) == loss(1)
    assert len({loss(seed) for seed in range(5)}) > 1
    hardest = hardest_negative_bce(batch.model, *encoded, INDEX).item()
    assert all(loss(seed) <= hardest + 1e-12 for seed in range(5))


def test_a_confident_model_keeps_a_finite_loss(make_batch):
    """On probabilities, log(1 - m) of a sure mistake is infinite; on logits it is the logit."""
    batch = batch_of(make_batch)
    batch.model.float()
    batch.features = batch.features.float()
    batch.model.matcher.matching.output.bias.data.fill_(500.0)
    loss = hardest_negative_bce(batch.model, *batch.encode(), INDEX)
    assert 900 < loss.item() < 1100


def test_gate_supervision_without_gates_is_an_error(make_batch):
    batch = batch_of(make_batch, CampConfig(**SIZES, gate="none"))
    with pytest.raises(ValueError, match="gate_supervision"):
        hardest_negative_bce(batch.model, *batch.encode(), INDEX, gate_supervision=0.5)


def test_a_batch_that_is_not_aligned_is_an_error(make_batch):
    batch = batch_of(make_batch)
    with pytest.raises(ValueError, match="aligned pairs"):
        hardest_negative_bce(batch.model, *batch.encode(), INDEX[:4])


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


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_candidates_are_the_highest_draws_among_the_negatives(count):
    draws = torch.tensor([[0.9, 0.1, 0.8, 0.2, 0.7], [0.0, 0.5, 0.25, 0.75, 0.6], [0.3, 0.2, 0.1, 0.4, 0.5]])
    negative = torch.tensor([[False, True, True, True, True], [True, False, True, False, True], [False] * 5])
    chosen = drawn_negatives(draws, negative, count)
    for row in range(3):
        order = sorted((j for j in range(5) if negative[row, j]), key=lambda j: -draws[row, j])
        assert chosen[row].nonzero().flatten().tolist() == sorted(order[:count])


@pytest.mark.parametrize("pairs", [None, slice(1, 4)])
@pytest.mark.parametrize("loss", [hardest_negative_bce, triplet_loss])
def test_curriculum_from_random_to_the_hardest(make_batch, loss, pairs):
    """One candidate is a random negative, as many as there are pairs the hardest; between them the loss rises."""
    batch = batch_of(make_batch)

    def value(**options):
        drawn = (
            loss(batch.model, *batch.encode(), INDEX, pairs=pairs, **options, generator=seeded(seed))
            for seed in range(20)
        )
        return torch.stack(list(drawn)).detach()

    def seeded(seed):
        return torch.Generator().manual_seed(seed)

    torch.testing.assert_close(value(candidates=1), value(random_negatives=True), rtol=0, atol=0)
    hardest_of_all = value()
    torch.testing.assert_close(value(candidates=5), hardest_of_all, rtol=0, atol=0)
    means = [value(candidates=count).mean() for count in (1, 2, 3)]
    assert means[0] < means[1] < means[2] <= hardest_of_all.mean()
