"""What the served model answers, row by row, and what it does not do twice."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from camp_model.checkpoint import save_checkpoint
from camp_model.config import CampConfig
from camp_model.model import CAMP
from camp_model.regions import ImageRegions, StoreInfo, write_manifest, write_rejected, write_shard
from camp_model.vocabulary import Vocabulary
from stages.tracking import served_model

WIDTH, IMAGES = 6, 21


def write_store(folder, detector="d", width=WIDTH, seed=0):
    info = StoreInfo(region_dim=width, max_regions=3, detector=detector)
    numbers = np.random.default_rng(seed)
    images = []
    for i in range(IMAGES):
        k = 1 + i % 3
        none = np.full(k, -1, np.int32)
        features = numbers.normal(size=(k, width)).astype(np.float32)
        boxes, zeros = np.zeros((k, 4), np.float32), np.zeros(k, np.float32)
        images.append((f"image {i}", ImageRegions(features, boxes, zeros, none, none, zeros, 10, 10)))
    write_shard(folder / "key.arrow", info, "key", images)
    write_manifest(folder, info, [(name, "key.arrow", i, len(item.features)) for i, (name, item) in enumerate(images)])
    write_rejected(folder, info, [])
    return str(folder)


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "regions")


@pytest.fixture
def load(tmp_path, monkeypatch):
    """A loaded model with these settings, trained on features of detector "d"; blocks of four images."""
    monkeypatch.setattr(served_model, "BLOCK", 4)

    def loaded(**settings):
        torch.manual_seed(3)
        vocabulary = Vocabulary.build([["a", "red", "circle"], ["two", "blue", "squares"]])
        model = CAMP(CampConfig(vocab_size=len(vocabulary), region_dim=WIDTH, word_dim=5, dim=8)).eval()
        save_checkpoint(tmp_path / "camp", model, vocabulary)
        (tmp_path / "camp" / "fingerprint.json").write_text(json.dumps({"detector": "d"}))
        return served_model.Retrieval(tmp_path / "camp", settings)

    return loaded


def ask(served, store=None, top_k=3, **columns):
    return served.predict(pd.DataFrame(columns), {"store": store or "", "top_k": top_k})


def same(answer, other):
    pd.testing.assert_frame_equal(answer, other, rtol=0, atol=1e-6)


def test_a_bad_row_is_answered_by_its_reason_and_the_others_by_scores(load, store):
    served = load()
    sentences = ["a red circle", "!?...", None, float("nan"), "two blue squares", "a circle", "a circle", "a circle"]
    images = ["image 1", "image 1", "image 1", "image 1", None, "nowhere", None, None]
    regions = [None] * 6 + [[[0.0] * 5], [[0.0] * WIDTH, [0.0] * 4]]
    answer = ask(served, store, sentence=sentences, image_id=images, regions=regions)
    assert answer["query"].tolist() == [0, 1, 2, 3, 4, 4, 4, 5, 6, 7]
    errors = answer.drop_duplicates("query").set_index("query")["error"]
    assert [bool(text) for text in errors] == [False, True, True, True, False, True, True, True]
    assert "holds no word" in errors[1] and "nowhere" in errors[5] and "5 wide; this model reads 6" in errors[6]
    good = answer[answer["error"] == ""]
    assert good["score"].between(0, 1).all() and good["rank"].tolist() == [1, 1, 2, 3]
    alone = ask(served, store, sentence=["a red circle"], image_id=["image 1"])
    same(alone, answer[:1])
    without = ask(served, sentence=["a red circle", "!"])
    assert "no region store is named" in without["error"][0] and "holds no word" in without["error"][1]


def test_what_is_no_table_of_finite_features_has_no_score(load, store):
    served = load()
    regions = [[[float("nan")] * WIDTH], [[1e39] * WIDTH], [0.5] * WIDTH, None, [[0.5] * WIDTH]]
    sentences = ["a red circle"] * 5
    ids = pd.Series([None, None, None, 7, None], dtype=object)
    answer = ask(served, store, sentence=sentences, regions=regions, image_id=ids)
    expected = ["not finite", "not finite", "1 dimensions; expected features", "holds no image '7'"]
    assert all(said in error for said, error in zip(expected, answer["error"], strict=False))
    assert answer["error"][4] == "" and 0 < answer["score"][4] < 1
    with pytest.raises(ValueError, match="top_k: is -1; expected 1 or more"):
        ask(served, store, top_k=-1, sentence=["a circle"])


def test_regions_of_another_detector_or_width_are_refused(load, tmp_path):
    served = load()
    with pytest.raises(ValueError, match="detector other; this model was trained on those of d"):
        ask(served, write_store(tmp_path / "other", detector="other"), sentence=["a circle"])
    with pytest.raises(ValueError, match="manifest.parquet"):
        ask(served, str(tmp_path / "nowhere"), sentence=["a circle"])
    with pytest.raises(ValueError, match="wide: its features are 7 wide; this model reads 6"):
        ask(served, write_store(tmp_path / "wide", width=WIDTH + 1), sentence=["a circle"])


def test_a_sentence_is_cut_as_in_training(load, store):
    long = "a red circle two blue squares"
    cut, whole = load(max_words=3), load()
    short = ask(whole, store, sentence=["a red circle"])
    same(ask(cut, store, sentence=[long]), short)
    assert not ask(whole, store, sentence=[long]).equals(short)
    between = ask(load(max_words=3, start_end=True), store, sentence=[long])
    same(between, ask(load(start_end=True), store, sentence=["a red circle"]))


def test_a_store_is_encoded_once_and_no_more_of_it_is_held_than_allowed(load, store, tmp_path, monkeypatch):
    served = load()
    encoded = []
    encode = served.model.encode_regions
    monkeypatch.setattr(served.model, "encode_regions", lambda *each: encoded.append(len(each[0])) or encode(*each))
    sentences = ["a red circle", "two blue squares", "a circle"] * 3  # more than one block of sentences
    first = ask(served, store, sentence=sentences)
    assert sum(encoded) == IMAGES
    again = ask(served, store, sentence=[*sentences, "red"])
    pair = ask(served, store, sentence=["a red circle"], image_id=[first["image_id"][0]])
    assert sum(encoded) == IMAGES
    same(again[again["query"] < len(sentences)], first)
    assert pair["score"][0] == pytest.approx(first["score"][0], abs=1e-6)

    # Another store at the same path is read anew.
    shutil.rmtree(store)
    write_store(tmp_path / "regions", seed=1)
    assert not ask(served, store, sentence=sentences).equals(first)
    assert sum(encoded) == 2 * IMAGES

    # One that is too large is held in part, and answers the same.
    shutil.rmtree(store)
    write_store(tmp_path / "regions")
    monkeypatch.setattr(served_model, "CACHE_BYTES", 2 * 4 * 3 * 8 * 4)  # two blocks of four images of three regions
    encoded.clear()
    same(ask(served, store, sentence=sentences[:3]), first[first["query"] < 3])
    assert len(served.cached[2]) == 2
    ask(served, store, sentence=sentences[:3])
    assert sum(encoded) == 2 * IMAGES - 8


def test_a_store_may_be_ranked_wholly(load, store):
    everything = ask(load(), store, top_k=100, sentence=["a red circle"])
    assert len(everything) == IMAGES
    assert everything["score"].is_monotonic_decreasing
    assert len(set(everything["image_id"])) == IMAGES


def test_scores_that_are_all_1_are_ranked_by_what_lies_behind_them(load, store):
    """Logits beyond 37 are one probability."""
    served = load()
    plain = ask(served, store, top_k=IMAGES, sentence=["a red circle"])
    with torch.no_grad():
        served.model.matcher.matching.output.bias += 45
    sure = ask(served, store, top_k=IMAGES, sentence=["a red circle"])
    assert (sure["score"] == 1).all() and sure["image_id"].tolist() == plain["image_id"].tolist()
