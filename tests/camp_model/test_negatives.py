"""Which captions and images are negatives, and which of them are drawn."""

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from camp_model.all_negatives import all_negatives_bce
from camp_model.losses import (
    gate_bce,
    hardest_negative_bce,
    mine_hardest,
    triplet_loss,
)
from camp_model.negatives import drawn_negatives, hardest, negative_pairs
from tests.camp_model.loss_batches import INDEX, batch_of


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
    with pytest.raises(ValueError, match=r"caption_index \[4\]; expected one for each of 5 pairs"):
        negative_pairs(INDEX, TEXTS[:4])


def test_a_row_without_negatives_has_none_beside_rows_with_some():
    negative = torch.tensor([[False, True], [False, False]])
    assert hardest(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), negative).tolist() == [1, -1]


@pytest.mark.parametrize("pairs", [None, slice(1, 4)])
@pytest.mark.parametrize("loss", ["hardest", "random", "triplet", "all", "gates"])
def test_losses_take_no_negative_of_the_same_text(make_batch, loss, pairs):
    """Against loops over the negatives that were worked out by hand."""
    batch = batch_of(make_batch)
    encoded = batch.encode()
    logits = batch.model.score_matrix(*encoded).detach()
    rows = range(5)[pairs or slice(None)]
    of_caption = [[i for i in range(5) if j in NEGATIVES[i]] for j in range(5)]
    draws = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(7)).tolist()
    drawn = [max(NEGATIVES[i], key=draws[0][i].__getitem__) for i in range(5)]
    drawn_images = [max(of_caption[i], key=draws[1][i].__getitem__) for i in range(5)]
    assert 0 in drawn[1:4] and 0 in drawn_images[1:4], "the first of the batch is a negative like any other"
    options = {"caption_index": TEXTS, "pairs": pairs}
    generator = torch.Generator().manual_seed(7)
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
        got = hardest_negative_bce(batch.model, *encoded, INDEX, candidates=int(random), generator=generator, **options)
        hardest = [max(NEGATIVES[i], key=s[i].__getitem__) for i in range(5)]
        hardest_images = [max(of_caption[i], key=lambda j, i=i: s[j][i]) for i in range(5)]
        captions, images = (drawn, drawn_images) if random else (hardest, hardest_images)
        terms = [no(s[i][captions[i]]) + no(s[images[i]][i]) + 2 * no(-s[i][i]) for i in rows]
    assert got.item() == pytest.approx(-np.mean(terms))


def test_random_negatives_are_negatives_and_follow_the_generator(make_batch):
    batch = batch_of(make_batch)
    encoded = batch.encode()

    def loss(seed):
        generator = torch.Generator().manual_seed(seed)
        return hardest_negative_bce(batch.model, *encoded, INDEX, candidates=1, generator=generator).item()

    assert loss(1) == loss(1)
    assert len({loss(seed) for seed in range(5)}) > 1
    hardest = hardest_negative_bce(batch.model, *encoded, INDEX).item()
    assert all(loss(seed) <= hardest + 1e-12 for seed in range(5))


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

    hardest_of_all = value()
    torch.testing.assert_close(value(candidates=5), hardest_of_all, rtol=0, atol=0)
    means = [value(candidates=count).mean() for count in (1, 2, 3)]
    assert means[0] < means[1] < means[2] <= hardest_of_all.mean()
