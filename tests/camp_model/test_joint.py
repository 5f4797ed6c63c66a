import dataclasses
import math

import pytest
import torch

from camp_model import CampConfig
from camp_model.joint import joint_contrastive, pooled_vectors

CONFIG = CampConfig(vocab_size=12, region_dim=5, word_dim=3, dim=6)


def test_vectors_are_unit_means_of_what_is_real():
    states = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [50.0, 50.0]], [[0.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = torch.tensor([[3 / math.sqrt(10), 1 / math.sqrt(10)], [0.0, 1.0]])
    torch.testing.assert_close(pooled_vectors(states, mask), expected)
    assert pooled_vectors(states.bfloat16(), mask).dtype == torch.float32


def loop(images, captions, image_index, texts, temperature, rows):
    """The mean over rows and directions, with Python's own numbers."""
    total = 0.0
    for i in rows:
        for direction in ("caption", "image"):
            exponents = {}
            for j in range(len(images)):
                same_image = image_index[i] == image_index[j]
                # A text is right for every image that has a caption of it.
                owner, text = (i, j) if direction == "caption" else (j, i)
                shared = any(
                    image_index[k] == image_index[owner] and texts[k] == texts[text] for k in range(len(images))
                )
                if j != i and (same_image or shared):
                    continue
                left, right = (images[i], captions[j]) if direction == "caption" else (captions[i], images[j])
                exponents[j] = math.exp(float(left @ right) / temperature)
            total -= math.log(exponents[i] / sum(exponents.values()))
    return total / (2 * len(rows))


@pytest.mark.parametrize("rows", [None, slice(1, 4)])
def test_contrastive_term_against_a_loop(make_batch, rows):
    batch = make_batch(CONFIG, counts=[4, 2, 3, 4, 1], lengths=[3, 1, 5, 2, 4])
    regions, region_mask, words, word_mask = batch.encode()
    index, texts = torch.tensor([7, 1, 2, 7, 4]), torch.tensor([10, 11, 11, 13, 13])
    images, captions = pooled_vectors(regions, region_mask), pooled_vectors(words, word_mask)
    loss = joint_contrastive(images, captions, index, caption_index=texts, temperature=0.3, pairs=rows)
    expected = loop(images, captions, index.tolist(), texts.tolist(), 0.3, list(range(5))[rows or slice(None)])
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in batch.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("switches", [
    {"matcher": "joint", "pooling": "gpo"}, {"matcher": "joint", "pooling": "attention"},
    {"message_passing": "none", "gate": "none", "matching": "cosine", "pooling": "mlp", "feature_norm": 2.0},
])  # fmt: skip
def test_vectors_are_those_that_a_score_of_cosines_compares_and_the_term_trains_them(make_batch, switches):
    """A term on means would train what generalised pooling never reads."""
    batch = make_batch(dataclasses.replace(CONFIG, **switches), counts=[4, 2, 3], lengths=[3, 1, 5])
    regions, region_mask, words, word_mask = batch.encode()
    model = batch.model
    images, captions = model.image_vectors(regions, region_mask), model.caption_vectors(words, word_mask)
    logits = model.matcher.cosine.log_scale.exp() * (images @ captions.T) + model.matcher.cosine.shift
    torch.testing.assert_close(logits, model.score_matrix(regions, region_mask, words, word_mask))
    joint_contrastive(images, captions, torch.arange(3)).backward()
    poolings = (model.matcher.region_pooling, model.matcher.word_pooling)
    assert all(p.grad.abs().max() > 0 for pooling in poolings for n, p in pooling.named_parameters() if p.ndim > 1)


def test_vectors_are_means_where_a_score_is_more_than_a_cosine(make_batch):
    for config in (CONFIG, dataclasses.replace(CONFIG, joint_score=True), dataclasses.replace(CONFIG, matcher="scan")):
        batch = make_batch(config, counts=[4, 2], lengths=[3, 1])
        regions, region_mask, words, word_mask = batch.encode()
        assert torch.equal(batch.model.image_vectors(regions, region_mask), pooled_vectors(regions, region_mask))
        assert torch.equal(batch.model.caption_vectors(words, word_mask), pooled_vectors(words, word_mask))
