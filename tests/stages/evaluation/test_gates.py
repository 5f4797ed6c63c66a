"""Gates of the pairs that evaluation lists: their means, histograms, and what a model without them says."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.encoders import length_mask
from camp_model.gates import KINDS, area_under_curve
from camp_model.model import CAMP
from camp_model.regions import RegionStore
from stages.device import Precision
from stages.errors import InputError
from stages.evaluation.folds import COCO_FOLDS, read_split
from stages.evaluation.tables import PAIR_SCHEMA
from stages.foils.words import ids_of_kinds, load_words
from stages.training.data import Split
from stages.training.processes import Processes
from stages.training.validation import validate
from tests.camp_model import reference
from tests.stages.evaluation.running import PARAMS, run


def test_area_under_curve_counts_pairs_and_ties_half():
    positive, negative = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    wins = sum((p > n) + 0.5 * (p == n) for p in positive for n in negative)
    assert area_under_curve(positive, negative) == pytest.approx(wins / 6)


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


@pytest.mark.parametrize("pairs", [1, 30, 1000])
def test_pairs_of_several_folds_stay_in_their_own(small, monkeypatch, pairs):
    monkeypatch.setitem(COCO_FOLDS, "coco_1k", (5, 4))
    _, gates, rows = run(small, PARAMS.replace(protocol="coco_1k", gate_pairs=pairs))
    path = small.root / "data/evaluation/gates_test.parquet"
    assert pq.read_schema(path).equals(PAIR_SCHEMA)
    table = pq.read_table(path).to_pylist()
    store = RegionStore(small.regions)
    fold = {image_id: place // 5 for place, image_id in enumerate(read_split("test", small.token_tables, store).images)}
    owner = {caption_id: image_id for caption_id, image_id, _ in small.captions}
    of_kind = {kind: [row for row in table if row["kind"] == kind] for kind in KINDS}
    captions = [row["caption_id"] for row in of_kind["positive"]]
    assert len(captions) == len(set(captions)) == min(pairs, len(small.captions)), "no caption twice"
    assert {fold[owner[caption]] for caption in captions} == set(range(4)) or pairs == 1
    first = {row["query_id"]: row["top_ids"] for row in rows if row["direction"] == "t2i"}
    for kind, some in of_kind.items():
        assert [row["caption_id"] for row in some] == captions
        for row in some:
            own = owner[row["caption_id"]]
            assert (row["image_id"] == own) == (kind == "positive") and fold[row["image_id"]] == fold[own]
            assert kind != "hardest" or row["image_id"] == next(i for i in first[str(row["caption_id"])] if i != own)
    assert gates["test"]["gate_positive_mean"] == pytest.approx(np.mean([row["words"] for row in of_kind["positive"]]))


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
    _, gates, _ = run(make_run(tmp_path, 2, **switches))  # two images are the fewest
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


@pytest.mark.parametrize("switches", [{}, {"message_passing": "text_to_image"}, {"gate_context": 2.0}])
def test_gates_of_another_pair_are_those_with_the_first_picture_and_the_first_caption(
    make_run, tmp_path, monkeypatch, switches
):
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(tmp_path, 6, **switches)
    _, trained, _ = run(small)
    _, measured, rows = run(small, PARAMS.model_copy(update={"gates": "another"}))
    for name in ("gate_positive_mean", "region_gate_negative_mean"):
        assert measured["test"][name] == pytest.approx(trained["test"][name], abs=1e-6)  # still a pair's own
    model, _, _ = load_checkpoint(small.model)
    state = {name.removeprefix("matcher."): value.double().numpy() for name, value in model.state_dict().items()}
    store = RegionStore(small.regions)
    split = read_split("test", small.token_tables, store)
    images, captions = [], {}
    for image_id in split.images:
        features, mask = store.features([store.row_of(image_id)])
        images.append(reference.encode_regions(state, features[0][mask[0]].astype(float)))
    tokens, lengths = split.captions.batch(split.rows)
    for caption_id, ids, length in zip(split.captions.caption_ids[split.rows], tokens, lengths, strict=True):
        captions[str(caption_id)] = reference.encode_caption(state, ids[:length].tolist())
    first = next(iter(captions.values()))

    def gates(regions, words):
        return own_gates(state, model.config, regions, words)

    for row in [row for row in rows if row["direction"] == "t2i"][::3]:
        words = captions[row["query_id"]]
        _, of_words = gates(images[0], words)
        for image_id, scored in zip(row["top_ids"][:2], row["top_scores"][:2], strict=True):
            regions = images[split.images.index(image_id)]
            expected, _ = reference.score(state, model.config, regions, words, (gates(regions, first)[0], of_words))
            assert scored == pytest.approx(expected, abs=1e-4)


def own_gates(state, config, regions, words):
    """A pair's gates of regions and of words, from the paper's equations; None where a side receives nothing."""
    keys = [state["messages.region_key.weight"] @ x for x in regions]
    asked = [state["messages.word_key.weight"] @ x for x in words]
    sides = []
    for side, own, queries, others, other in (
        ("regions", regions, keys, asked, words), ("words", words, asked, keys, regions)
    ):  # fmt: skip
        receives = f"messages.to_{side}.fusion.weight" in state
        sides.append(reference.receive(state, config, side, own, queries, others, other)[1] if receives else None)
    return sides


@pytest.mark.parametrize("gates", ["open", "another"])
@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        ({"gate": "none"}, "model.gate is none"),
        ({"gate": "elementwise"}, "model.gate is elementwise"),
        ({"matcher": "scan"}, "model.matcher is scan"),
        ({"gate_evidence": True, "geometry": 4.0}, "model.gate_evidence is true"),
    ],
)
def test_only_scalar_gates_can_be_others(make_run, tmp_path, monkeypatch, switches, reason, gates):
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(tmp_path, 6, **switches)
    with pytest.raises(InputError, match=f"config.json: evaluate.gates: {gates} acts on scalar gates, but {reason}"):
        run(small, PARAMS.model_copy(update={"gates": gates}))
    assert not (small.root / "metrics/gates.json").exists()


def test_evaluation_and_validation_measure_the_same_gates(small):
    """Validation's numbers, with the same pairs, are evaluation's: as many captions as there are leave no choice."""
    gates = run(small, PARAMS.replace(gate_pairs=1000))[1]["test"]
    model, vocabulary, _ = load_checkpoint(small.model)
    store = RegionStore(small.regions)
    content = ids_of_kinds(load_words(small.token_tables / "lexicon.json"), vocabulary, ("object", "colour"))
    split = Split(store, small.token_tables / "test.parquet", vocabulary, content)
    found, _ = validate(model, split, Precision("fp32", torch.device("cpu")), Processes())
    for prefix in ("gate", "gate_content", "region_gate"):
        for name in ("positive_mean", "hardest_mean", "hardest_auc"):
            assert found[f"{prefix}_{name}"] == pytest.approx(gates[f"{prefix}_{name}"], abs=1e-6)
        assert found[f"{prefix}_auc"] == pytest.approx(gates[f"{prefix}_auc"], abs=0.1)  # other random pairs
