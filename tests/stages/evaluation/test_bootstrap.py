"""The bootstrap against recalls worked out by hand and against resampling written as loops."""

import numpy as np
import pyarrow as pa
import pytest

from camp_model.files import write_table
from stages.evaluation.bootstrap import MEASURES, ImageHits, image_hits, paired_differences, read_hits
from stages.evaluation.tables import QUERY_SCHEMA


def random_ranks(seed, images=40):
    rng = np.random.default_rng(seed)
    caption_image = np.repeat(np.arange(images), rng.integers(1, 6, images))
    return rng.integers(1, 14, images), rng.integers(1, 14, len(caption_image)), caption_image


def loop_rsum(i2t, t2i, caption_image, drawn):
    """rsum over a list of drawn images, each bringing its captions."""
    own = [i2t[i] for i in drawn]
    captions = [t2i[c] for i in drawn for c in np.flatnonzero(caption_image == i)]
    return sum(100 * np.mean([rank <= k for rank in ranks]) for ranks in (own, captions) for k in (1, 5, 10))


def test_hits_by_hand():
    # Image 0: found at rank 1 (three hits), captions at 1 and 7; image 1: rank 11, one caption at 5.
    hits = image_hits(np.array([1, 11]), np.array([1, 7, 5]), np.array([0, 0, 1]))
    assert hits.image.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert hits.captions.tolist() == [[1, 1, 2], [0, 1, 1]]
    assert hits.count.tolist() == [2, 1]
    assert MEASURES == ("rsum", "i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
    assert hits.measures(np.ones(2)) == pytest.approx([350, 50, 50, 50, 100 / 3, 200 / 3, 100])
    assert hits.measures(np.array([2.0, 0.0])) == pytest.approx([500, 100, 100, 100, 50, 50, 100])


def test_hits_find_each_captions_image_whatever_the_order_of_the_rows(tmp_path):
    rows = [("t2i", "a", 2), ("i2t", "b", 1), ("t2i", "b", 11), ("i2t", "a", 6), ("t2i", "b", 1)]
    named = [dict(zip(("direction", "image_id", "rank"), row, strict=True)) for row in rows]
    table = pa.Table.from_pylist([{**row, "query_id": "", "top_ids": [], "top_scores": []} for row in named])
    metadata = QUERY_SCHEMA.metadata | {b"camp.queries": b"what was ranked"}
    write_table(tmp_path / "test.parquet", table.replace_schema_metadata(metadata))
    hits = read_hits(tmp_path / "test.parquet")
    # a: its own query at 6, a caption at 2; b: its own query at 1, captions at 1 and 11.
    assert hits.image.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert (hits.captions.tolist(), hits.count.tolist()) == ([[0, 1, 1], [1, 1, 1]], [1, 2])
    assert hits.queries == "what was ranked"


def test_rsum_of_a_resample_equals_the_loops():
    i2t, t2i, caption_image = random_ranks(0)
    drawn = np.random.default_rng(1).integers(40, size=40)
    weights = np.bincount(drawn, minlength=40).astype(float)
    assert image_hits(i2t, t2i, caption_image).measures(weights)[0] == pytest.approx(
        loop_rsum(i2t, t2i, caption_image, drawn)
    )


def test_a_model_does_not_differ_from_itself_and_a_better_one_does():
    i2t, t2i, caption_image = random_ranks(2)
    same = image_hits(i2t, t2i, caption_image)
    better = image_hits(np.maximum(1, i2t - 6), np.maximum(1, t2i - 6), caption_image)
    assert set(paired_differences([same, same], [same, same]).values()) == {(0, 0, 0)}
    back = paired_differences([same, same], [better, better])
    for name, (mean, low, high) in paired_differences([better, better], [same, same]).items():
        assert 0 < low < mean < high
        assert back[name] == pytest.approx((-mean, -high, -low))


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_the_interval_is_mirrored_where_the_models_change_places(seeds):
    rng, caption_image = np.random.default_rng(4), np.repeat(np.arange(40), 5)
    models, others = (
        [image_hits(rng.integers(1, 14, 40), rng.integers(1, 14, 200), caption_image) for _ in range(seeds)]
        for _ in range(2)
    )
    back = paired_differences(others, models)
    for name, (mean, low, high) in paired_differences(models, others).items():
        assert back[name] == pytest.approx((-mean, -high, -low))


def test_seeds_that_disagree_widen_the_interval():
    i2t, t2i, caption_image = random_ranks(3)
    plain = image_hits(i2t, t2i, caption_image)
    up = image_hits(np.maximum(1, i2t - 4), t2i, caption_image)
    steady = paired_differences([up, up, up], [plain, plain, plain])["rsum"]
    shaky = paired_differences([up, up, plain], [plain, plain, up])["rsum"]
    assert shaky[2] - shaky[1] > steady[2] - steady[1]


@pytest.mark.parametrize("images", [4, 512, 1000])
@pytest.mark.parametrize(
    ("differences", "quantile"),
    [([5.0, 9.0], 12.706), ([1.0, 2.0, 6.0], 4.303), ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 9.0], 2.365)],
)
def test_where_all_images_are_alike_the_interval_is_students(differences, quantile, images):
    """By the t table at 97.5 %, for one, two and seven degrees of freedom."""
    same, count = np.zeros((images, 3)), np.ones(images)
    models = [ImageHits(same + difference / 300, same, count) for difference in differences]
    others = [ImageHits(same, same, count)] * len(models)
    mean, low, high = paired_differences(models, others)["rsum"]
    half = quantile * np.std(differences, ddof=1) / np.sqrt(len(differences))
    assert (mean, low, high) == pytest.approx((np.mean(differences), mean - half, mean + half), rel=0.04)
    single = paired_differences(models[:1], others[:1])["rsum"]
    assert single == pytest.approx((differences[0],) * 3), "one seed has no deviation"


@pytest.mark.parametrize(("seeds", "deviation"), [(3, 12.0), (3, 1.0), (8, 5.0)])
def test_the_interval_holds_the_true_difference_as_often_as_it_says(seeds, deviation):
    """Of two kinds of model that are equally good, whose trainings differ and which few images tell apart."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        captions, count = rng.integers(0, 2, (100, 3)).astype(float), np.ones(100)
        sides = [
            [
                ImageHits(
                    np.repeat(rng.binomial(3, 0.5, (100, 1)), 3, 1) / 3 + rng.normal(0, deviation / 2**0.5 / 300),
                    captions,
                    count,
                )
                for _ in range(seeds)
            ]
            for _ in range(2)
        ]
        _, low, high = paired_differences(*sides, draws=400)["rsum"]
        held += low <= 0 <= high
    assert held / 300 > 0.92


def test_unequal_sides_are_an_error():
    hits, fewer = image_hits(*random_ranks(0)), image_hits(*random_ranks(0, images=39))
    with pytest.raises(ValueError, match="1 and 2 seeds"):
        paired_differences([hits], [hits, hits])
    with pytest.raises(ValueError, match=r"\[39, 40\] images"):
        paired_differences([hits], [fewer])
