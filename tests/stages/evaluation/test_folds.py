"""What is ranked together: the folds of a protocol."""

from dataclasses import replace

import numpy as np
import pytest

from camp_model.regions import RegionStore
from stages.errors import InputError
from stages.evaluation.folds import COCO_FOLDS, folds_of, queries_hash, read_split
from tests.stages.evaluation.running import PARAMS, run
from tests.stages.stores import rewrite_captions, rewrite_store


def test_coco_folds_are_thousands_of_images_in_order(small):
    images, per_image = 5003, 2
    split = read_split("test", small.token_tables, RegionStore(small.regions))
    owner = np.repeat(np.arange(images), per_image)
    big = replace(
        split, images=[f"i{i}" for i in range(images)], rows=np.arange(len(owner)), caption_image=owner
    )  # fmt: skip
    folds = folds_of(big, "coco_1k")
    assert [fold.images[0] for fold in folds] == ["i0", "i1000", "i2000", "i3000", "i4000"]
    assert all(len(fold.images) == 1000 and len(fold.rows) == 2000 for fold in folds)
    assert [big.images[owner[row]] for row in folds[3].rows[:4]] == ["i3000", "i3000", "i3001", "i3001"]
    assert folds[3].caption_image[:4].tolist() == [0, 0, 1, 1]
    for protocol in ("coco_5k", "coco"):
        (whole,) = folds_of(big, protocol)
        assert whole.images[-1] == "i4999" and len(whole.rows) == 10_000
    (all_of_it,) = folds_of(big, "full")
    assert len(all_of_it.images) == images
    for protocol in ("coco_1k", "coco_5k", "coco"):
        with pytest.raises(InputError, match=rf"evaluate.protocol: {protocol}.*5000.*there are 20"):
            folds_of(split, protocol)


def test_ranks_are_comparable_where_the_same_captions_were_ranked_whatever_their_order(small):
    split = read_split("test", small.token_tables, RegionStore(small.regions))
    order = np.random.default_rng(0).permutation(len(split.images))  # of another store
    images = [split.images[position] for position in order]
    other = replace(split, images=images, caption_image=np.argsort(order)[split.caption_image])
    assert queries_hash([other]) == queries_hash([split])
    half = len(split.rows) // 2
    parts = [
        replace(split, rows=split.rows[rows], caption_image=split.caption_image[rows])
        for rows in (slice(half), slice(half, None))
    ]
    reworded = replace(
        split.captions, _table=split.captions._table.set_column(2, "text", [["a dog"] * len(split.rows)])
    )
    different = [parts, parts[:1], parts[1:], [replace(split, captions=reworded)]]
    assert len({queries_hash(folds) for folds in [[split], *different]}) == 5


def test_one_run_measures_both_protocols_of_coco(small, monkeypatch, capsys):
    for protocol, folds in {"coco_1k": (4, 5), "coco_5k": (20, 1), "coco": (20, 1)}.items():
        monkeypatch.setitem(COCO_FOLDS, protocol, folds)
    both, gates, rows = run(small, PARAMS.replace(protocol="coco"))
    shown = capsys.readouterr().out
    assert list(both) == ["test", "test_coco_1k"] and list(gates) == ["test"]
    for name, protocol in (("test", "coco_5k"), ("test_coco_1k", "coco_1k")):
        alone, _, its_rows = run(small, PARAMS.replace(protocol=protocol))
        assert both[name] == alone["test"]
        assert (rows == its_rows) == (name == "test")
    assert both["test"] != both["test_coco_1k"]
    assert "images are ranked" not in shown
    monkeypatch.setitem(COCO_FOLDS, "coco_5k", (15, 1))
    run(small, PARAMS.replace(protocol="coco_5k"))
    assert "test: the first 15 of 20 images are ranked (evaluate.protocol)" in capsys.readouterr().out
    assert f"test_coco_1k{both['test_coco_1k']['i2t_r1']:8.1f}" in shown


@pytest.mark.parametrize("rewritten", ["regions", "captions"])
def test_every_answer_is_the_same_in_whatever_order_images_and_captions_are(small, rewritten):
    params = PARAMS.replace(gate_pairs=1000)
    recalls, gates, rows = run(small, params)
    if rewritten == "regions":
        rewrite_store(small.regions, np.random.default_rng(0).permutation(len(small.images)).tolist(), 7)
    else:
        order = np.random.default_rng(0).permutation(len(small.captions)).tolist()
        rewrite_captions(small.token_tables / "test.parquet", order)
    again = run(small, params)
    assert again[0] == recalls
    for kind in ("positive_mean", "hardest_mean", "hardest_auc"):  # the negatives are drawn
        assert again[1]["test"][f"gate_{kind}"] == pytest.approx(gates["test"][f"gate_{kind}"], abs=1e-5)
    found = {(row["direction"], row["query_id"]): row for row in again[2]}
    for row in rows:
        other = found[row["direction"], row["query_id"]]
        for name in ("top_scores", "right_score"):
            assert other.pop(name) == pytest.approx(row.pop(name), abs=1e-4)
        assert other == row
