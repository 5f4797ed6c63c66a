"""Stage evaluate: its ranks against plain loops, protocols, ensembles, and the errors."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint
from camp_model.encoders import length_mask
from camp_model.files import sha256_of, write_text
from camp_model.metrics import retrieval_metrics
from camp_model.regions import RegionStore
from camp_model.scoring.ranking import rank_blocks
from camp_model.vocabulary import UNK, Vocabulary
from stages.errors import InputError
from stages.evaluation.folds import read_split
from stages.evaluation.measuring import query_table, rank_fold
from stages.evaluation.recall_table import coarseness_note, recall_text
from stages.tracking import TRAINED
from tests.stages.evaluation.running import PARAMS, run


def pair_logits(folder: Path, small) -> np.ndarray:
    """[I, C], each pair scored on its own."""
    model, _, _ = load_checkpoint(folder)
    store = RegionStore(small.regions)
    split = read_split("test", small.token_tables, store)
    scores = np.zeros((len(split.images), len(split.rows)))
    with torch.inference_mode():
        images = []
        for image_id in split.images:
            features, mask = store.features([store.row_of(image_id)])
            mask = torch.from_numpy(mask)
            images.append((model.encode_regions(torch.from_numpy(features).float(), mask), mask))
        for c in range(len(split.rows)):
            tokens, lengths = split.captions.batch([c])
            words, word_mask = model.encode_captions(tokens, lengths), length_mask(lengths, tokens.shape[1])
            for i, image in enumerate(images):
                scores[i, c] = model.score_pairs(*image, words, word_mask).item()
    return scores


def test_metrics_and_rows_agree_with_scoring_every_pair_alone(small, capsys):
    retrieval, _, rows = run(small)
    scores = pair_logits(small.model, small)
    owner = np.array([small.images.index(image_id) for _, image_id, _ in small.captions])
    assert retrieval["test"] == pytest.approx(retrieval_metrics(scores, owner))
    by_query = {(row["direction"], row["query_id"]): row for row in rows}
    assert len(by_query) == len(rows) == len(small.images) + len(small.captions)
    for c, (caption_id, image_id, _) in enumerate(small.captions):
        row = by_query["t2i", str(caption_id)]
        assert row["image_id"] == image_id
        order = np.argsort(-scores[:, c])
        assert row["top_ids"] == [small.images[i] for i in order[:10]]
        assert row["top_scores"] == pytest.approx(np.sort(scores[:, c])[::-1][:10], abs=1e-4)
        assert row["rank"] == list(order).index(small.images.index(image_id)) + 1
        assert row["right_id"] == image_id
        assert row["right_score"] == pytest.approx(scores[small.images.index(image_id), c], abs=1e-4)
    for i, image_id in enumerate(small.images):
        row = by_query["i2t", image_id]
        assert row["image_id"] == image_id
        best = scores[i, owner == i].max()
        assert row["rank"] == 1 + (scores[i] > best).sum()
        assert row["top_ids"][0] == str(small.captions[int(np.argmax(scores[i]))][0])
        assert row["right_id"] == str(small.captions[int(np.argmax(np.where(owner == i, scores[i], -np.inf)))][0])
        assert row["right_score"] == pytest.approx(best, abs=1e-4)
    said = capsys.readouterr().out
    assert f"{retrieval['test']['rsum']:.1f}" in said
    assert said.endswith("test: 20 images are too few to compare models by: each is 5.0 points of a recall.\n")


def test_what_is_said_of_small_splits():
    assert coarseness_note(50) == "" and "each is 2.0 points" in coarseness_note(49)


def test_equal_scores_rank_and_list_the_wrong_candidates_first():
    # As scores come: some images with some captions, all images for them before the next captions.
    blocks = [
        (torch.tensor(images), torch.tensor(captions), torch.zeros(len(images), len(captions)))
        for captions in (range(5), range(5, 24))
        for images in (range(7), range(7, 12))
    ]
    ranked = rank_blocks(blocks, torch.zeros(24), 12, torch.arange(12).repeat_interleave(2), 10)
    assert set(ranked.t2i_ranks.tolist()) == {12} and set(ranked.i2t_ranks.tolist()) == {23}
    for query, top in enumerate(ranked.t2i_top.tolist()):
        assert top == [image for image in range(12) if image != query // 2][:10]
    for query, top in enumerate(ranked.i2t_top.tolist()):
        assert top == [caption for caption in range(24) if caption // 2 != query][:10]


def test_a_caption_with_the_text_of_another_images_is_right_for_both(small):
    """Every product catalogue has them; neither of the two images may be a wrong answer."""
    path = small.token_tables / "test.parquet"
    table = CaptionTable.load(path)
    tokens, lengths = table.batch(range(len(table)))
    words = [ids[:length].tolist() for ids, length in zip(tokens, lengths, strict=True)]
    texts = list(table.texts)
    one, other = 0, next(row for row, image in enumerate(table.image_ids) if image != table.image_ids[0])
    texts[other], words[other] = texts[one], words[one]
    write_captions(path, table.caption_ids.tolist(), table.image_ids, texts, words)
    retrieval, _, rows = run(small, PARAMS.replace(foils=0))
    owner = np.array([small.images.index(image_id) for _, image_id, _ in small.captions])
    text = CaptionTable.load(path).text_index
    assert retrieval["test"] == pytest.approx(retrieval_metrics(pair_logits(small.model, small), owner, text))
    ranks = {row["query_id"]: row["rank"] for row in rows if row["direction"] == "t2i"}
    assert ranks[str(table.caption_ids[one])] == ranks[str(table.caption_ids[other])]
    right = {row["query_id"]: row["right_id"] for row in rows if row["direction"] == "t2i"}
    scores = pair_logits(small.model, small)
    best = max((one, other), key=lambda row: scores[owner[row], row])
    assert {right[str(table.caption_ids[row])] for row in (one, other)} == {small.images[owner[best]]}
    said = pq.read_schema(small.root / "data/evaluation/test.parquet").metadata
    assert said[b"camp.equal_captions"] == b"2"


def test_captions_of_unknown_words_are_right_for_their_own_images_alone(small):
    path = small.token_tables / "test.parquet"
    table = CaptionTable.load(path)
    texts = [f"name{number}" for number in range(len(table))]
    write_captions(path, table.caption_ids.tolist(), table.image_ids, texts, [[UNK]] * len(table))
    retrieval, *_ = run(small, PARAMS.replace(foils=0))
    assert retrieval["test"]["i2t_r1"] == 0, "as all captions are one to the model, each has wrong ones beside it"
    assert pq.read_schema(small.root / "data/evaluation/test.parquet").metadata[b"camp.equal_captions"] == b"0"


def test_ensemble_scores_the_mean_of_probabilities(small, make_checkpoint, tmp_path):
    vocabulary = Vocabulary.load(small.token_tables / "vocabulary.json")
    for seed in (1, 2):
        make_checkpoint(tmp_path / f"other{seed}", vocabulary, seed=seed, dim=16)
    others = (str(tmp_path / "other1"), str(tmp_path / "other2"))
    _, _, rows = run(small, PARAMS.replace(ensemble=others))
    folders = [small.model, *map(Path, others)]
    mean = np.mean([1 / (1 + np.exp(-pair_logits(folder, small))) for folder in folders], axis=0)
    owner = np.array([small.images.index(image_id) for _, image_id, _ in small.captions])
    for c, row in enumerate(row for row in rows if row["direction"] == "t2i"):
        assert row["rank"] == 1 + (mean[:, c] > mean[owner[c], c]).sum()
        found = 1 / (1 + np.exp(-np.array(row["top_scores"])))
        assert found == pytest.approx(np.sort(mean[:, c])[::-1][:10], abs=1e-5)
    alone, apart = pair_logits(small.model, small), 0
    for i, row in enumerate(row for row in rows if row["direction"] == "i2t"):
        best, first = (int(np.argmax(np.where(owner == i, scores[i], -np.inf))) for scores in (mean, alone))
        assert row["right_id"] == str(small.captions[best][0])
        assert 1 / (1 + np.exp(-row["right_score"])) == pytest.approx(mean[i, best], abs=1e-5)
        apart += best != first
    assert apart, "the first model alone would choose the same captions"


class Constant(torch.nn.Module):
    """A model whose every logit is `value`: past what a float32 probability can tell from 1."""

    matcher = SimpleNamespace(cosine=None)

    def __init__(self, value: float, best: torch.Tensor | None = None) -> None:
        """`best`: features [R, D] of the one image that is a little better than the others."""
        super().__init__()
        self.value, self.best = torch.nn.Parameter(torch.tensor(value), requires_grad=False), best

    def encode_regions(self, features, mask):
        return features

    def encode_captions(self, tokens, lengths):
        return tokens[..., None].float()

    def score_matrix(self, regions, region_mask, words, word_mask, *, progress):
        return self.score_pairs(regions, region_mask, words, word_mask)[:, None].expand(len(regions), len(words))

    def score_pairs(self, regions, region_mask, words, word_mask):
        return self.value + (torch.zeros(len(regions)) if self.best is None else (regions == self.best).all((1, 2)))


def test_scores_of_an_ensemble_stay_apart_near_one(small):
    store = RegionStore(small.regions)
    fold = read_split("test", small.token_tables, store)
    best = torch.from_numpy(store.features([store.row_of(fold.images[0])])[0][0]).float()
    ranked = rank_fold([Constant(40.0, best), Constant(41.0, best)], store, fold)
    assert (ranked.t2i_top[:, 0] == 0).all() and ranked.t2i_scores.isfinite().all()
    assert (ranked.t2i_scores[:, 0] > ranked.t2i_scores[:, 1]).all()
    assert (ranked.i2t_scores[0] > ranked.i2t_scores[1:]).all()


def test_of_right_answers_that_score_alike_the_first_is_the_best(small):
    """Else a library's sort would choose, on one machine as not on another."""
    store = RegionStore(small.regions)
    fold = read_split("test", small.token_tables, store)
    rows = query_table(fold, rank_fold([Constant(1.0)], store, fold)).to_pylist()
    first = {image_id: str(caption_id) for caption_id, image_id, _ in reversed(small.captions)}
    assert {row["query_id"]: row["right_id"] for row in rows if row["direction"] == "i2t"} == first


def test_scores_that_are_not_finite_are_an_error(small):
    store = RegionStore(small.regions)
    with pytest.raises(InputError, match="not finite"):
        rank_fold([Constant(float("nan"))], store, read_split("test", small.token_tables, store))


def test_what_else_was_measured_stands_below_the_table():
    values = {"rsum": 1.0, "eccv_i2t_map_at_r": 23.94, "eccv_t2i_r1": 70.06, "cxc_i2t_r1": 50.0}
    assert recall_text({"val": {"rsum": 2.0}, "test": values}).splitlines()[-2:] == [
        "test, ECCV Caption: i2t_map_at_r 23.9, t2i_r1 70.1", "test, CxC: i2t_r1 50.0",
    ]  # fmt: skip


def test_evaluation_computes_in_the_numbers_that_validation_did(small):
    def scores(**values):
        run(small, PARAMS.replace(**values))
        rows = pq.read_table(small.root / "data/evaluation/test.parquet").to_pylist()
        return {row["query_id"]: row["top_scores"][0] for row in rows if row["direction"] == "t2i"}

    exact = scores()
    path = small.model / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bf16"}))
    rough = scores()
    assert rough != exact and rough == scores(precision="bf16")
    assert rough == pytest.approx(exact, abs=0.1)
    assert scores(precision="fp32") == exact
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "fp16"}))
    with pytest.raises(InputError, match=r"evaluate\.precision: fp16 needs a CUDA device, not cpu"):
        run(small)


def test_another_vocabulary_is_an_error_that_names_the_checkpoint(small, make_checkpoint, tmp_path):
    vocabulary = Vocabulary.load(small.token_tables / "vocabulary.json")
    make_checkpoint(tmp_path / "other", Vocabulary([*vocabulary.words, "giraffe"]))
    with pytest.raises(InputError, match=r"other/vocabulary.json: word2idx"):
        run(small, PARAMS.replace(ensemble=(str(tmp_path / "other"),)))
    assert not (small.root / "data/evaluation").exists() and not (small.root / "metrics/retrieval.json").exists()


def test_captions_of_another_vocabulary_are_an_error(small):
    path = small.token_tables / "test.parquet"
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"camp.vocabulary": b"c" * 64}), path)
    with pytest.raises(InputError, match=r"test\.parquet: tokens: are ids of words of another vocabulary"):
        run(small)


def test_other_features_or_another_detector_are_errors(small):
    path = small.model / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"detector": "c" * 64}))
    with pytest.raises(InputError, match=r"fingerprint.json: detector: 'ccc"):
        run(small)
    path.unlink()
    run(small)  # a checkpoint that does not say where it comes from is taken as it is
    config = json.loads((small.model / "config.json").read_text())
    (small.model / "config.json").write_text(json.dumps(config | {"region_dim": config["region_dim"] + 1}))
    with pytest.raises(InputError, match=r"model.safetensors: region_encoder"):
        run(small)


def test_a_missing_or_torn_input_is_an_error(small):
    with pytest.raises(InputError, match=r"val.parquet"):
        run(small, PARAMS.replace(splits=("val",)))
    shard = small.regions / "b.arrow"
    shard.write_bytes(shard.read_bytes()[:200])
    with pytest.raises(InputError, match=r"b.arrow"):
        run(small)
    assert not (small.root / "data/evaluation").exists()
    (small.regions / "manifest.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"manifest.parquet"):
        run(small)


def test_captions_of_one_image_cannot_be_evaluated(small):
    write_captions(small.token_tables / "test.parquet", [1], [small.images[0]], ["red"], [[4]])
    with pytest.raises(InputError, match=r"test.parquet: image_id: .* 1 images; expected 2"):
        run(small)


def test_the_run_is_recorded_below_the_train_run(small, monkeypatch):
    write_text(small.root / TRAINED / sha256_of(small.model / "model.safetensors"), "the-train-run")
    monkeypatch.setenv("CAMP_TRACKING", "on")
    # Nobody delivers: what was recorded stays in the spool, where it can be read.
    monkeypatch.setattr("stages.tracking._deliver", lambda *_: None)
    retrieval, _, _ = run(small)
    (path,) = small.root.glob(".tracking/spool/*/events.jsonl")
    events = [json.loads(line) for line in path.read_text().splitlines()]
    start = next(event for event in events if event["event"] == "start")
    assert (start["kind"], start["parent"]) == ("evaluate", "the-train-run")
    values = {name: value for event in events if event["event"] == "metrics" for name, value in event["values"].items()}
    assert values["test/rsum"] == pytest.approx(retrieval["test"]["rsum"]) and "test/gate_auc" in values
    assert events[-1]["event"] == "end" and events[-1]["status"] == "FINISHED"
