import numpy as np
import pytest
import torch

from camp_model.metrics import (
    AT_ONCE,
    coco_folds,
    i2t_ranks,
    mean_metrics,
    ranks_to_metrics,
    retrieval_metrics,
    t2i_ranks,
)


def test_a_matrix_worked_out_by_hand():
    # Captions 0 and 1 belong to image 0, caption 2 to image 1, captions 3 to 5 to image 2.
    index = np.array([0, 0, 1, 2, 2, 2])
    scores = np.array(
        [
            [0.9, 0.2, 0.5, 0.1, 0.3, 0.0],  # best own 0.9: first
            [0.8, 0.1, 0.6, 0.7, 0.0, 0.2],  # own 0.6, behind 0.8 and 0.7: third
            [0.9, 0.8, 0.7, 0.4, 0.3, 0.2],  # best own 0.4, behind three: fourth
        ]
    )
    assert i2t_ranks(scores, index).tolist() == [1, 3, 4]
    # Columns: 0.9 ties with image 2 (second); 0.2 behind 0.8 (second); 0.6 behind 0.7 (second); 0.4 behind 0.7
    # (second); 0.3 ties with image 0 (second); 0.2 ties with image 1 (second).
    assert t2i_ranks(scores, index).tolist() == [2, 2, 2, 2, 2, 2]
    metrics = retrieval_metrics(scores, index)
    assert metrics["i2t_r1"] == pytest.approx(100 / 3)
    assert metrics["i2t_r5"] == metrics["i2t_r10"] == 100
    assert metrics["i2t_medr"] == 3
    assert metrics["i2t_meanr"] == pytest.approx(8 / 3)
    assert (metrics["t2i_r1"], metrics["t2i_r5"], metrics["t2i_medr"]) == (0, 100, 2)
    assert metrics["rsum"] == pytest.approx(100 / 3 + 100 + 100 + 0 + 100 + 100)
    assert set(metrics) == {
        f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", "medr", "meanr")
    } | {"rsum"}


def test_a_tie_is_a_miss():
    index = np.repeat(np.arange(20), 5)
    metrics = retrieval_metrics(np.zeros((20, 100)), index)
    assert metrics["rsum"] == 0
    assert metrics["i2t_medr"] == 96  # all 95 wrong captions come first
    assert metrics["t2i_medr"] == 20


def test_an_image_with_the_same_caption_twice_can_still_be_first():
    assert i2t_ranks(np.array([[0.9, 0.9, 0.1], [0.2, 0.2, 0.7]]), np.array([0, 0, 1])).tolist() == [1, 1]


def test_any_number_and_order_of_captions_per_image():
    rng = np.random.default_rng(0)
    index = rng.permutation(np.repeat(np.arange(7), [1, 4, 7, 0, 5, 2, 3]))
    scores = rng.normal(size=(7, len(index)))
    expected = []
    for image in (0, 1, 2, 4, 5, 6):
        order = np.argsort(-scores[image])
        expected.append(1 + min(int(np.flatnonzero(order == c)[0]) for c in np.flatnonzero(index == image)))
    # Right captions ahead of a right one do not exist: the best own caption is ahead of the others.
    assert i2t_ranks(scores, index).tolist() == expected
    assert t2i_ranks(scores, index).tolist() == [
        1 + int(np.flatnonzero(np.argsort(-scores[:, c]) == image)[0]) for c, image in enumerate(index)
    ]


def test_an_answer_with_the_text_of_the_query_is_right_by_hand():
    # Captions 0 and 1 belong to image 0, caption 2 to image 1, captions 3 and 4 to image 2; 1 and 3 are the same text.
    index, text = np.array([0, 0, 1, 2, 2]), np.array([5, 9, 2, 9, 7])
    scores = np.array(
        [
            [0.2, 0.3, 0.1, 0.8, 0.5],  # best own 0.3; 0.8 has the text of caption 1; 0.5 alone is wrong: second
            [0.9, 0.6, 0.5, 0.6, 0.4],  # shares nothing; own 0.5 behind 0.9, 0.6 and 0.6: fourth
            [0.1, 0.8, 0.7, 0.4, 0.3],  # best own 0.4; 0.8 has the text of caption 3; 0.7 is wrong: second
        ]
    )
    assert i2t_ranks(scores, index, text).tolist() == [2, 4, 2]
    # Caption 1 is right for images 0 and 2 (0.3, 0.8), so image 1 (0.6) is behind; caption 3 likewise (0.8, 0.4).
    # Caption 0 behind 0.9; caption 2 (0.5) behind 0.7; caption 4 (0.3) behind 0.5 and 0.4.
    assert t2i_ranks(scores, index, text).tolist() == [2, 1, 2, 1, 3]
    # Without the texts, the same answers are wrong.
    assert i2t_ranks(scores, index).tolist() == [3, 4, 3]
    assert t2i_ranks(scores, index).tolist() == [2, 3, 2, 3, 3]
    with pytest.raises(ValueError, match=r"caption_text \[3\]; expected one for each of 5 captions"):
        retrieval_metrics(scores, index, text[:3])


def test_where_all_captions_are_equal_every_answer_is_right():
    metrics = retrieval_metrics(np.zeros((20, 100)), np.repeat(np.arange(20), 5), np.zeros(100, dtype=int))
    assert metrics["rsum"] == 600


def test_tensors_and_arrays_agree():
    scores = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    index = torch.arange(8) // 2
    assert retrieval_metrics(scores, index) == retrieval_metrics(scores.numpy(), index.numpy())
    assert retrieval_metrics(scores.bfloat16(), index)["rsum"] >= 0
    assert retrieval_metrics(scores.clone().requires_grad_(), index) == retrieval_metrics(scores, index)


def test_queries_beyond_those_ranked_at_a_time_are_ranked_alike():
    size = AT_ONCE + 3
    scores = np.random.default_rng(1).permutation(size * size).reshape(size, size)
    index = np.random.default_rng(2).permutation(size)
    own = scores[index, np.arange(size)]
    assert t2i_ranks(scores, index).tolist() == (scores >= own).sum(0).tolist()
    of_image = own[np.argsort(index)]
    assert i2t_ranks(scores, index).tolist() == (scores >= of_image[:, None]).sum(1).tolist()


def test_without_captions_there_are_no_ranks():
    nothing = np.zeros((2, 0)), np.zeros(0, dtype=int)
    assert i2t_ranks(*nothing).tolist() == t2i_ranks(*nothing).tolist() == []


@pytest.mark.parametrize(
    ("scores", "index", "message"),
    [
        (np.zeros((2, 3)), np.array([0.5, 1, 1]), "not positions of images"),
        (np.zeros((2, 3)), np.array([0, 1]), "expected \\[I, C\\] and \\[C\\]"),
        (np.zeros((2, 3, 1)), np.array([0, 1, 1]), "expected \\[I, C\\] and \\[C\\]"),
        (np.zeros((2, 3)), np.array([0, 1, 2]), "between 0 and 1"),
        (np.zeros((2, 3)), np.array([0, 1, -1]), "between 0 and 1"),
        (np.array([[0.0, np.nan], [0.0, 0.0]]), np.array([0, 1]), "NaN"),
    ],
)
def test_wrong_input_is_an_error(scores, index, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(scores, index)


@pytest.mark.parametrize(("i2t", "t2i", "which"), [([], [1], "i2t"), ([1], [], "t2i"), ([1], [2, 0], "t2i")])
def test_no_queries_and_ranks_below_the_first_are_an_error(i2t, t2i, which):
    with pytest.raises(ValueError, match=f"{which} ranks"):
        ranks_to_metrics(i2t, t2i)


def test_coco_folds_are_measured_apart():
    index = np.array([0, 0, 1, 2, 3, 3, 3, 1])
    folds = coco_folds(index, num_images=5, size=2, count=2)
    assert [(f[0].start, f[0].stop, f[1].tolist(), f[2].tolist()) for f in folds] == [
        (0, 2, [0, 1, 2, 7], [0, 0, 1, 1]),
        (2, 4, [3, 4, 5, 6], [0, 1, 1, 1]),
    ]
    with pytest.raises(ValueError, match="6 images"):
        coco_folds(index, num_images=5, size=2, count=3)
    assert mean_metrics([{"rsum": 100.0}, {"rsum": 300.0}]) == {"rsum": 200.0}
    assert mean_metrics([{"rsum": 100.0}]) == {"rsum": 100.0}


def test_five_thousand_images_are_just_enough_for_five_folds():
    folds = coco_folds(np.arange(5000), num_images=5000)
    assert [(f[0].start, f[0].stop, len(f[1])) for f in folds] == [(i, i + 1000, 1000) for i in range(0, 5000, 1000)]
