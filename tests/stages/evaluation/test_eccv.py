"""ECCV Caption and CxC: on COCO's own 5,000 test pictures, with made-up results, against loops of our own."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from camp_model.captions import CaptionTable, write_captions
from camp_model.scoring.ranking import RankedQueries
from stages.errors import InputError
from stages.evaluation.eccv import EccvCaption
from stages.evaluation.folds import Fold
from stages.params.evaluate import EvaluateParams

eccv_caption = pytest.importorskip("eccv_caption", reason="the extra eccv is not installed")
EXTRA = 10


@pytest.fixture(scope="module")
def matches():
    return eccv_caption.Metrics()


@pytest.fixture(scope="module")
def coco(matches, tmp_path_factory):
    """COCO's test split in an order of our own, with ten captions more than the package knows, as Karpathy's has."""
    rng = np.random.default_rng(0)
    image_of = {caption: images[0] for caption, images in matches.coco_gts["t2i"].items()}
    coco_images = rng.permutation(sorted(set(image_of.values())))
    captions = rng.permutation(np.array(sorted(image_of)))
    position = {image: i for i, image in enumerate(coco_images.tolist())}
    own = np.array([position[image_of[caption]] for caption in captions.tolist()])
    captions = np.concatenate([captions, 10**7 + np.arange(EXTRA)])
    own = np.concatenate([own, np.arange(EXTRA)])
    path = tmp_path_factory.mktemp("captions") / "test.parquet"
    names = [f"picture {i}" for i in range(len(coco_images))]
    write_captions(path, captions.tolist(), [names[i] for i in own], ["x"] * len(own), [[4]] * len(own))
    return Fold("test", names, CaptionTable.load(path), np.arange(len(own)), own), coco_images


def made_up(matches, fold, coco_images, depth):
    """Results of each query: some of its matches at random places among random others."""
    rng = np.random.default_rng(1)
    captions = fold.captions.caption_ids
    at = {side: {int(item): i for i, item in enumerate(ids)} for side, ids in (("i", coco_images), ("c", captions))}

    def side(queries, own, other, right):
        top = rng.integers(0, other, (len(queries), depth))
        for row, query in enumerate(queries.tolist()):
            likely = [own[item] for of in right for item in of.get(query, []) if item in own]
            hits = rng.permutation(likely)[: rng.integers(0, depth)]
            top[row, np.sort(rng.permutation(depth)[: len(hits)])] = hits
            distinct = np.array(list(dict.fromkeys(top[row].tolist())))  # a result comes once
            spare = np.setdiff1d(np.arange(depth * 2), distinct)
            top[row] = np.concatenate([distinct, spare])[:depth]
        return torch.from_numpy(top)

    gts = (matches.cxc_gts, matches.eccv_gts)
    i2t = side(coco_images, at["c"], len(captions), [of["i2t"] for of in gts])
    t2i = side(captions, at["i"], len(coco_images), [of["t2i"] for of in gts])
    nothing = torch.zeros(0)
    fields = {name: nothing for name in RankedQueries.__dataclass_fields__}
    return RankedQueries(**(fields | {"i2t_top": i2t, "t2i_top": t2i}))


def test_numbers_are_those_of_loops_over_queries(coco, matches):
    fold, coco_images = coco
    measure = EccvCaption(fold)
    assert measure.depth == 48 + EXTRA
    ranked = made_up(matches, fold, coco_images, measure.depth)
    values = measure.measure(ranked)
    captions, known = fold.captions.caption_ids, set(matches.coco_gts["t2i"])
    ids = {
        "i2t": (coco_images.tolist(), [[int(captions[c]) for c in row] for row in ranked.i2t_top.tolist()]),
        "t2i": (captions.tolist(), [[int(coco_images[i]) for i in row] for row in ranked.t2i_top.tolist()]),
    }
    expected = {}
    for way, (queries, results) in ids.items():
        of = {q: [r for r in row if way == "t2i" or r in known] for q, row in zip(queries, results, strict=True)}
        cxc, eccv = matches.cxc_gts[way], matches.eccv_gts[way]
        for k in (1, 5, 10):
            hits = [any(item in of[query][:k] for item in right) for query, right in cxc.items()]
            expected[f"cxc_{way}_r{k}"] = 100 * sum(hits) / len(hits)
        first, precision, mean_precision = [], [], []
        for query, right in eccv.items():
            seen = [item in right for item in of[query][: len(right)]]
            first.append(seen[0])
            precision.append(sum(seen) / len(right))
            mean_precision.append(sum(sum(seen[: r + 1]) / (r + 1) for r in range(len(seen)) if seen[r]) / len(right))
        expected[f"eccv_{way}_r1"] = 100 * np.mean(first)
        expected[f"eccv_{way}_rprecision"] = 100 * np.mean(precision)
        expected[f"eccv_{way}_map_at_r"] = 100 * np.mean(mean_precision)
    assert values.keys() == expected.keys() and len(values) == 12
    assert all(1 < value < 99 for value in expected.values())
    assert values == pytest.approx(expected, abs=1e-9)


def test_anything_but_cocos_test_split_is_refused(coco, tmp_path, monkeypatch):
    fold, _ = coco
    with pytest.raises(InputError, match=r"test\.parquet: caption_id: lacks 5 of COCO's 25,000, \d+ among them"):
        EccvCaption(replace(fold, rows=fold.rows[5:], caption_image=fold.caption_image[5:]))
    write_captions(tmp_path / "test.parquet", range(4), list("abab"), ["x"] * 4, [[4]] * 4)
    table = CaptionTable.load(tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"evaluate\.eccv: .*lacks 2\d,\d+ of COCO's 25,000.*Karpathy's test split"):
        EccvCaption(Fold("test", ["a", "b"], table, np.arange(4), np.array([0, 1, 0, 1])))
    with pytest.raises(InputError, match=r"test\.parquet: image_id: captions are not grouped by picture"):
        EccvCaption(replace(fold, caption_image=np.roll(fold.caption_image, 1)))
    apart = np.where(np.arange(len(fold.rows)) == 0, len(fold.images), fold.caption_image)
    with pytest.raises(InputError, match=r"test\.parquet: image_id: captions are not grouped by picture"):
        EccvCaption(replace(fold, images=[*fold.images, "another"], caption_image=apart))
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    with pytest.raises(InputError, match=r"evaluate\.eccv: needs the package eccv-caption; expected .*'\.\[eccv\]'"):
        EccvCaption(fold)


@pytest.mark.parametrize("values", [{"protocol": "coco_1k"}, {"splits": ("val",)}])
def test_it_needs_the_whole_test_split(values):
    with pytest.raises(InputError, match=r"evaluate\.eccv: true needs the whole test split.*expected full"):
        EvaluateParams.from_dict(values | {"eccv": True})
