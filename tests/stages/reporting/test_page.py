"""The report page: whole in one file, numbers those of the metrics, captions as text, results marked."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from camp_model.files import write_sealed
from stages.contracts import hashes_of, read_fingerprint
from stages.evaluate import evaluate
from stages.params.report import ReportParams
from stages.reporting.queries import choose_queries
from tests.stages.reporting.conftest import EVALUATE, INPUTS, draw, finished


def test_page_holds_everything_and_points_nowhere(small):
    page = draw()
    assert [path.name for path in Path("report").iterdir()] == ["index.html"]
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "poster", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith(("#", "data:")), (tag, attributes)
    raw = Path("report/index.html").read_text(encoding="utf-8")
    assert "@import" not in raw and not re.search(r"url\((?!#)", raw)
    outside = re.findall(r"https?://[^\s\"'<]+", raw)
    assert set(outside) <= {"http://www.w3.org/2000/svg"}  # a namespace, not an address
    assert len(raw) < 15_000_000


def test_a_further_protocol_is_a_row_of_its_own(small):
    retrieval = json.loads(Path("metrics/retrieval.json").read_text())
    retrieval["test_coco_1k"] = retrieval["test"] | {"rsum": 432.1}
    Path("metrics/retrieval.json").write_text(json.dumps(retrieval))
    names = [f"metrics/{name}.json" for name in ("retrieval", "gates", "foils")]
    write_sealed(Path("data/evaluation/results.json"), {"results": hashes_of(map(Path, names))})
    page = draw()
    assert "432.1" in page.text and "mean of five folds of 1,000 images" in page.text


def test_numbers_on_the_page_are_those_of_the_metrics(small):
    page = draw()
    retrieval = json.loads(Path("metrics/retrieval.json").read_text())["test"]
    gates = json.loads(Path("metrics/gates.json").read_text())["test"]
    for value in retrieval.values():
        assert f"{value:.1f}" in page.text
    for name in ("gate_positive_mean", "gate_negative_mean", "gate_hardest_mean", "gate_auc", "region_gate_auc"):
        assert f"{gates[name]:.3f}" in page.text
    assert page.text.count(", by epoch") == 2  # words and regions are in val_gates.csv
    for published in ("68.1", "95.2", "466.9", "506.8", "410.0"):
        assert published in page.text
    assert "20 images, 59 captions" in page.text and "another task" in page.text
    assert "best epoch" in page.text and "123.4" in page.text
    assert "20 images are too few to compare models by" in page.text and "started from" not in page.text
    record = Path("models/camp/fingerprint.json")
    write_sealed(record, read_fingerprint(record.parent) | {"start_from": "pretrained/flickr8k"})
    assert "training started from" in draw().text and "pretrained/flickr8k" in draw().text


def test_captions_stay_text(small):
    hostile = next(text for _, _, text in small.captions if "<script>" in text)
    page = draw(queries=60)
    query = next(query for query in page.data["queries"]["t2i"] if query["text"] == hostile)
    assert query["results"][0]["words"][:3] == ["script", "alert", "1"]
    assert 0 in query["results"][0]["unknown"]  # shown as written, marked as not known
    assert len(page.scripts) == 2  # the data and the page's own script
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    assert "alert(1)" not in page.scripts[1][1]
    shown = [*page.data["foils"], *(query for query in page.data["queries"]["t2i"] if query["worst"])]
    # Each in its own direction, whatever stands around it.
    assert [tag for tag, _ in page.tags].count("bdi") >= len(shown)


def test_only_the_hashed_script_may_run_and_nothing_may_be_loaded(small):
    import base64
    import hashlib

    page = draw()
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    script = page.scripts[1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_queries_are_drawn_by_seed_and_worst_failures_added(small):
    table = pq.read_table("data/evaluation/test.parquet")
    chosen = choose_queries(table, ReportParams(queries=4, seed=7))
    assert chosen == choose_queries(table, ReportParams(queries=4, seed=7))
    assert [q.query_id for q in chosen["t2i"][:4]] != [
        q.query_id for q in choose_queries(table, ReportParams(queries=4, seed=8))["t2i"][:4]
    ]
    for direction, queries in chosen.items():
        rows = [row for row in table.to_pylist() if row["direction"] == direction]
        worst = sorted(rows, key=lambda row: (-row["rank"], row["query_id"]))[:2]
        assert {q.query_id for q in queries if q.is_worst} == {row["query_id"] for row in worst}
        assert len({q.query_id for q in queries}) == len(queries) >= 4
    everything = choose_queries(table, ReportParams(queries=1000))
    assert len(everything["t2i"]) == len(small.captions) and len(everything["i2t"]) == len(small.images)


def test_results_mark_right_answers_and_add_the_best_one_beyond_the_first(small):
    data = draw(top_k=3).data
    owner = {text: image_id for _, image_id, text in small.captions}
    beyond = 0
    for direction, queries in data["queries"].items():
        for query in queries:
            shown = query["results"]
            assert [pair["at"] for pair in shown[:3]] == [1, 2, 3]
            for pair in shown:
                assert pair["right"] == (owner[pair["text"]] == pair["image"])
            right = [pair["at"] for pair in shown if pair["right"]]
            assert right[0] == query["rank"]
            if query["rank"] > 3:
                beyond += 1
                assert shown[3]["beyond"] and shown[3]["score"] <= shown[0]["score"]
            assert direction == "i2t" or all(pair["text"] == query["text"] for pair in shown)
    assert beyond


def test_attention_and_gates_fit_words_and_regions(small):
    data = draw().data
    for query in (*data["queries"]["t2i"], *data["queries"]["i2t"]):
        for pair in query["results"]:
            words, regions = len(pair["words"]), len(data["images"][pair["image"]]["boxes"])
            assert len(pair["wordGates"]) == words and len(pair["regionGates"]) == regions
            assert np.shape(pair["wordAttention"]) == (words, regions)
            assert np.shape(pair["regionAttention"]) == (regions, words)
            for row in (*pair["wordAttention"], *pair["regionAttention"], pair["wordPooling"], pair["regionPooling"]):
                assert sum(row) == pytest.approx(1000, abs=len(row))
    picture = data["images"]["image-01"]
    assert (picture["w"], picture["h"]) == (120, 90)
    assert picture["labels"][:2] == ["red circle", "green square"] and picture["uri"].startswith("data:image/jpeg")


@pytest.mark.parametrize(
    "switches",
    [{"matcher": "joint"}, {"message_passing": "text_to_image"}, {"gate": "none"}],
)
def test_models_without_gates_or_messages_have_a_page_too(make_run, tmp_path, monkeypatch, switches):
    finished(make_run, tmp_path, monkeypatch, images=8, **switches)
    page = draw(queries=2)
    pair = page.data["queries"]["t2i"][0]["results"][0]
    assert (pair["wordAttention"] is None) == (switches in ({"matcher": "joint"}, {"message_passing": "text_to_image"}))
    assert (pair["regionGates"] is None) == (switches != {"message_passing": "text_to_image"})
    assert ("This model has no gates" in page.text) == (switches != {"message_passing": "text_to_image"})


def test_the_same_inputs_give_the_same_page(small):
    draw()
    first = Path("report/index.html").read_bytes()
    draw()
    assert Path("report/index.html").read_bytes() == first


def test_evaluating_several_splits_shows_each_and_opens_test(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    make_run(tmp_path)
    for name in ("val",):
        for part in ("", "foils_"):
            source = INPUTS.captions / f"{part}test.parquet"
            (INPUTS.captions / f"{part}{name}.parquet").write_bytes(source.read_bytes())
    evaluate(
        EVALUATE.replace(splits=("val", "test")), regions=INPUTS.regions,
        captions=INPUTS.captions, model=INPUTS.model, out=INPUTS.evaluation, metrics=INPUTS.metrics,
    )  # fmt: skip
    page = draw()
    assert "Every image of the test split" in page.text and "val 20 images" in page.text


def test_foils_are_some_of_each_kind_and_the_worst(small):
    rows = pq.read_table("data/evaluation/foils_test.parquet").to_pylist()
    page = draw(foils=3)
    shown = page.data["foils"]
    for kind in ("object", "colour", "relation"):
        of_kind = [entry for entry in shown if entry["kind"] == kind]
        lost = sum(row["foil_score"] >= row["caption_score"] for row in rows if row["kind"] == kind)
        assert 3 <= len(of_kind) <= 5 and sum(not entry["won"] for entry in of_kind) >= min(2, lost)
    by_id = {(str(row["caption_id"]), row["kind"]): row for row in rows}
    for entry in shown:
        row, (caption, foil) = by_id[entry["id"], entry["kind"]], entry["results"]
        assert (caption["text"], foil["text"]) == (row["caption"], row["foil"])
        assert caption["image"] == foil["image"] == entry["image"] == row["image_id"]
        assert (caption["score"], foil["score"]) == pytest.approx((row["caption_score"], row["foil_score"]), abs=1e-3)
        changed = [i for i, (a, b) in enumerate(zip(caption["words"], foil["words"], strict=True)) if a != b]
        assert changed == [entry["position"]] == [row["position"]]
        assert (entry["byScore"], entry["byGate"]) == (row["guilty_by_score"], row["guilty_by_gate"])
        assert foil["wordGates"][entry["byGate"]] <= foil["wordGates"][entry["position"]]
        assert np.shape(foil["wordAttention"])[0] == len(foil["words"])
    found = json.loads(Path("metrics/foils.json").read_text())["test"]
    for values in found.values():
        assert f"{values['true_first']:.1f}" in page.text and f"{values['chance']:.1f}" in page.text
    assert draw(foils=0).data["foils"] == []


def test_a_run_without_foils_has_a_page_that_says_so(small):
    evaluate(
        EVALUATE.replace(foils=0), regions=INPUTS.regions, captions=INPUTS.captions, model=INPUTS.model,
        out=INPUTS.evaluation, metrics=INPUTS.metrics,
    )  # fmt: skip
    page = draw()
    assert "No foils were scored." in page.text and page.data["foils"] == []
