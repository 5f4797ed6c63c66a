"""Which other image a gate is compared on, and how many gates lie where."""

from collections import Counter

import numpy as np
import pytest
import torch

from camp_model.answers import RightAnswers
from camp_model.gates import histograms, random_negatives, summarise


def others_of(owners, texts, times=1):
    own, captions = np.tile(owners, times), np.tile(np.arange(len(owners)), times)
    answers = RightAnswers(torch.tensor(owners), torch.tensor(texts))
    found = random_negatives(own, max(owners) + 1, np.random.default_rng(0), answers, captions)
    return [Counter(found[captions == caption].tolist()) for caption in range(len(owners))]


def test_a_random_other_image_is_any_that_is_wrong_and_all_are_as_likely():
    # Captions 0 and 2 have the same text, so images 0 and 1 are right for both; caption 1 is right for image 0 alone.
    drawn = others_of([0, 0, 1, 2, 3], [5, 6, 5, 7, 8], times=600)
    assert [set(images) for images in drawn] == [{2, 3}, {1, 2, 3}, {2, 3}, {0, 1, 3}, {0, 1, 2}]
    assert all(0.8 < count * len(images) / 600 < 1.2 for images in drawn for count in images.values())


def test_where_every_image_is_right_another_than_its_own_is_taken():
    assert all(caption not in images for caption, images in enumerate(others_of([0, 1, 2], [4, 4, 4], times=50)))


def test_one_image_has_no_other():
    with pytest.raises(ValueError, match="random negatives: 1 image; expected two or more"):
        others_of([0, 0], [1, 2])


def test_gates_are_counted_in_twentieths():
    missing = np.full(3, np.nan)
    known = {"words": np.array([0.0, 0.06, 1 + 1e-7]), "content": np.array([np.nan, 0.99, 0.97]), "regions": missing}
    gates = {"positive": known, "negative": known | {"content": missing}, "hardest": dict.fromkeys(known, missing)}
    words = [1, 1, *[0] * 17, 1]
    assert histograms(gates) == {
        "words_positive": words, "words_negative": words, "content_positive": [*[0] * 19, 2]
    }  # fmt: skip
    assert set(summarise(gates).values()) == {None}, "a mean of some kinds of pairs alone compares nothing"
