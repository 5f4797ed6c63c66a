"""Gates of the pairs that evaluation lists: their means, histograms, and what a model without them says."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import length_mask
from camp_model.gates import area_under_curve, hardest_others
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from stages.errors import InputError
from stages.evaluation.folds import read_split
from tests.stages.evaluation.running import PARAMS, run


def test_area_under_curve_counts_pairs_and_ties_half():
    positive, negative = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert area_under_curve(positive, negative) == pytest.approx(wins / 6)


def test_the_hardest_other_image_is_never_the_captions_own():
    scores = torch.tensor([[9.0, 1.0, 2.0], [8.0, 5.0, 3.0], [1.0, 4.0, 7.0]])
    assert hardest_others(scores, np.array([0, 1, 2])).tolist() == [1, 2, 1]
    assert scores[0, 0] == 9.0, "what was given stays"


def test_the_histograms_are_a_page_of_their_own(small):
    run(small)
    page = (small.root / "data/evaluation/gates_test.html").read_text()
    for what in ("words", "content words", "regions"):
        assert f"Histogram of the mean gate over a pair&#39;s {what}" in page
    assert page.count("<svg") == 3 and "http" not in page.replace("http://www.w3.org", "")


def test_gate_means_are_those_of_the_pairs_listed(small):
    _, gates, rows = run(small)
    table = pq.read_table(small.root / "data/evaluation/gates_test.parquet").to_pylist()
    owner = {caption_id: image_id for caption_id, image_id, _ in small.captions}
    first = {row["query_id"]: row["top_ids"] for row in rows if row["direction"] == "t2i"}
    model, _, _ = load_checkpoint(small.model)
    store, split = RegionStore(small.regions), None
    split = read_split("test", small.token_tables, store)
    for kind, column, name in (("positive", "words", "gate"), ("hardest", "regions", "region_gate")):
        values = [row[column] for row in table if row["kind"] == kind]
        assert len(values) == 40
        assert gates["test"][f"{name}_{kind}_mean"] == pytest.approx(np.mean(values), abs=1e-6)
    for row in table:
        top = first[str(row["caption_id"])]
        own = owner[row["caption_id"]]
        assert (row["image_id"] == own) == (row["kind"] == "positive")
        if row["kind"] == "hardest":
            assert row["image_id"] == next(image for image in top if image != own)
    row = table[0]
    at = split.captions.caption_ids.tolist().index(row["caption_id"])
    tokens, lengths = split.captions.batch([at, int(np.argmax(split.captions.lengths))])
    features, mask = store.features([store.row_of(row["image_id"])] * 2)
    mask = torch.from_numpy(mask)
    with torch.inference_mode():
        details = model.inspect_pairs(
            model.encode_regions(torch.from_numpy(features).float(), mask), mask,
            model.encode_captions(tokens, lengths), length_mask(lengths, tokens.shape[1]),
        )  # fmt: skip
    real = details.word_gates[0, : lengths[0]]
    assert row["words"] == pytest.approx(real.mean().item(), abs=1e-5)  # the padding beside it changes nothing


@pytest.mark.parametrize(
    ("switches", "reason", "words", "regions"),
    [
        ({"gate": "none"}, "model.gate is none", False, False),
        ({"message_passing": "none"}, "model.message_passing is none", False, False),
        ({"message_passing": "text_to_image"}, None, False, True),
        ({"message_passing": "image_to_text", "gate": "elementwise"}, None, True, False),
    ],
)
def test_gates_that_a_model_lacks_are_null(make_run, tmp_path, monkeypatch, switches, reason, words, regions):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    _, gates, _ = run(make_run(tmp_path, 6, **switches))
    assert gates["test"].get("reason") == reason
    for name, has in (("gate_auc", words), ("gate_positive_mean", words), ("region_gate_auc", regions)):
        assert (gates["test"][name] is not None) == has


def test_gates_held_open_score_as_a_model_without_gates_of_the_same_weights(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(tmp_path, 6)
    trained, gates, _ = run(small)
    opened, measured, rows = run(small, PARAMS.model_copy(update={"gates": "open"}))
    assert pq.read_schema(small.root / "data/evaluation/test.parquet").metadata[b"camp.gates"] == b"open"
    for name in ("gate_positive_mean", "gate_negative_mean", "region_gate_positive_mean"):
        assert measured["test"][name] == pytest.approx(gates["test"][name], abs=1e-6)  # they are still measured
    model, vocabulary, _ = load_checkpoint(small.model)
    without = CAMP(replace(model.config, gate="none"))
    without.load_state_dict(model.state_dict())
    shutil.rmtree(small.model)
    save_checkpoint(small.model, without, vocabulary)
    expected, _, queries = run(small)
    assert opened == expected != trained
    for row, query in zip(rows, queries, strict=True):
        assert row["top_scores"] == pytest.approx(query["top_scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"gate": "none"}, "model.gate is none"),
        ({"gate": "elementwise"}, "model.gate is elementwise"),
        ({"matcher": "scan"}, "model.matcher is scan"),
        ({"gate_evidence": True, "geometry": 4.0}, "model.gate_evidence is true"),
    ],
)
def test_only_scalar_gates_can_be_held_open(make_run, tmp_path, monkeypatch, switches, reason):
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(tmp_path, 6, **switches)
    with pytest.raises(InputError, match=f"config.json: evaluate.gates: open acts on scalar gates, but {reason}"):
        run(small, PARAMS.model_copy(update={"gates": "open"}))
    assert not (small.root / "metrics/gates.json").exists()
