"""Stage report: which queries it shows, what it embeds, how it escapes, what it refuses, and the summary."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint
from camp_model.files import write_sealed
from camp_model.regions import RegionStore
from stages.contracts import hashes_of, read_fingerprint
from stages.errors import InputError
from stages.evaluate import evaluate
from stages.params.evaluate import EvaluateParams
from stages.params.pipeline import Params
from stages.params.report import ReportParams
from stages.report import Inputs, print_summary, write_report
from stages.reporting.page import read_curve
from stages.reporting.queries import Inspector, Query, choose_queries

INPUTS = Inputs()
EVALUATE = EvaluateParams(device="cpu", gate_pairs=40)


class Page(HTMLParser):
    """What a browser would parse out of the page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._within: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = (tag, dict(attrs))

    def handle_endtag(self, tag):
        self._within = None

    def handle_data(self, data):
        if self._within and self._within[0] == "script":
            self.scripts.append((self._within[1], data))
        elif not self._within or self._within[0] != "style":
            self.text += data

    @property
    def data(self) -> dict:
        return json.loads(next(text for attributes, text in self.scripts if attributes.get("id") == "data"))


def finished(make_run, root, monkeypatch, **switches):
    """A small run, evaluated; the working directory is its root."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("CAMP_TRACKING", "off")
    small = make_run(root, **switches)
    evaluate(
        EVALUATE, regions=INPUTS.regions, captions=INPUTS.captions, model=INPUTS.model, out=INPUTS.evaluation,
        metrics=INPUTS.metrics,
    )  # fmt: skip
    return small


@pytest.fixture
def small(make_run, tmp_path, monkeypatch):
    return finished(make_run, tmp_path, monkeypatch)


def draw(**report) -> Page:
    write_report(Params(report=ReportParams(**report)), INPUTS, Path("report/index.html"))
    return Page(Path("report/index.html").read_text(encoding="utf-8"))


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


def test_captions_stay_text(small):
    hostile = next(text for _, _, text in small.captions if "<script>" in text)
    page = draw(queries=60)
    query = next(query for query in page.data["queries"]["t2i"] if query["text"] == hostile)
    assert query["results"][0]["words"][:3] == ["script", "alert", "1"]
    assert 0 in query["results"][0]["unknown"]  # shown as written, marked as not known
    assert len(page.scripts) == 2  # the data and the page's own script
    assert not [tag for tag, attributes in page.tags if "onerror" in attributes]
    assert "alert(1)" not in page.scripts[1][1]


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
        assert {q.query_id for q in queries if q.worst} == {row["query_id"] for row in worst}
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


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("metrics/retrieval.json", "retrieval.json: is not JSON"),
        ("data/evaluation/test.parquet", "test.parquet: cannot be read"),
        ("data/evaluation/gates_test.parquet", "gates_test.parquet"),
        ("data/evaluation/foils_test.parquet", "foils_test.parquet: cannot be read"),
        ("metrics/foils.json", "foils.json: is not JSON"),
        ("data/regions/a.arrow", "a.arrow"),
        ("models/camp/model.safetensors", "model.safetensors"),
        ("plots/train_loss.csv", "train_loss.csv"),
        ("data/dataset/images/image-05.png", "image-05.png: cannot be read as a picture"),
    ],
)
def test_a_broken_input_is_named_and_no_page_is_written(small, path, match):
    Path(path).write_text("step,loss\nno,number\n")
    with pytest.raises(InputError, match=match):
        draw(queries=60)
    assert not Path("report/index.html").exists()


@pytest.mark.parametrize(
    "path", [*(f"metrics/{name}.json" for name in ("retrieval", "gates", "foils", "train")), "plots/val_recall.csv"]
)
def test_a_changed_digit_in_a_number_is_named_and_never_shown(small, path):
    record = Path("models/camp/fingerprint.json")
    trained = hashes_of([Path("metrics/train.json"), Path("plots/val_recall.csv")])
    write_sealed(record, read_fingerprint(record.parent) | {"results": trained})
    draw()
    content = Path(path).read_text()
    at = next(i for i, letter in enumerate(content) if letter.isdigit() and content[i - 1] in ": ,")
    Path(path).write_text(content[:at] + str((int(content[at]) + 1) % 10) + content[at + 1 :])
    with pytest.raises(InputError, match=rf"{path}: is damaged or of another run than .*(results|fingerprint)\.json"):
        draw()
    if "train" not in path and "plots" not in path:
        with pytest.raises(InputError, match=f"{path}: is damaged"):
            print_summary(Path("metrics"), Path("report/index.html"))


def test_without_its_file_a_picture_is_grey_and_all_else_is_there(small, capsys):
    """Features that someone else has extracted need no pictures."""
    whole = draw(queries=60).data
    for path in Path("data/dataset/images").iterdir():
        path.unlink()
    capsys.readouterr()
    page = draw(queries=60)
    assert page.data["queries"] == whole["queries"] and page.data["foils"] == whole["foils"]
    for image_id, image in page.data["images"].items():
        seen = whole["images"][image_id]
        assert {name: image[name] for name in ("alt", "w", "h", "boxes", "labels")} == {
            name: seen[name] for name in ("alt", "w", "h", "boxes", "labels")
        }
        assert image["boxes"] and image["uri"] != seen["uri"]
    count = len(page.data["images"])
    assert f"{count} of {count} pictures are shown grey: no file data/dataset/images/" in capsys.readouterr().out


def test_captions_with_the_text_of_another_images_are_counted_and_right(small):
    path = Path("data/evaluation/test.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"camp.equal_captions": b"12"}), path)
    assert "12 captions have the text of another image's" in draw().text
    captions = CaptionTable.load(INPUTS.captions / "test.parquet")
    tokens, lengths = captions.batch(range(len(captions)))
    words = [ids[:length].tolist() for ids, length in zip(tokens, lengths, strict=True)]
    first, last = captions.image_ids[0], captions.image_ids[-1]
    words[-1] = words[0]
    write_captions(captions.path, captions.caption_ids.tolist(), captions.image_ids, captions.texts, words)
    captions = CaptionTable.load(captions.path)
    model, vocabulary, _ = load_checkpoint(INPUTS.model)
    inspector = Inspector(model, RegionStore(INPUTS.regions), captions, vocabulary)
    query = Query("t2i", str(captions.caption_ids[0]), 99, [first, last, captions.image_ids[1]], [3.0, 2.0, 1.0], True)
    pairs = inspector.pairs(query, 3)
    assert [pair.right for pair in pairs[:2]] == [True, True]
    sought = pairs[-1]
    logits = {pair.image_id: pair.details["logit"] for pair in pairs[:2]}
    assert sought.beyond and sought.image_id == max(logits, key=logits.__getitem__)


def test_an_evaluation_of_other_captions_is_an_error(small):
    rows = pq.read_table("data/evaluation/test.parquet")
    ids = [f"9{query_id}" for query_id in rows["query_id"].to_pylist()]
    pq.write_table(rows.set_column(1, "query_id", [ids]), "data/evaluation/test.parquet")
    with pytest.raises(InputError, match=r"data/evaluation.*query"):
        draw()


def test_summary_is_fast_and_prints_the_table_the_page_and_mlflow(small, repository, capsys):
    draw()
    capsys.readouterr()
    print_summary(Path("metrics"), Path("report/index.html"))
    shown = capsys.readouterr().out
    retrieval = json.loads(Path("metrics/retrieval.json").read_text())["test"]
    assert f"{retrieval['rsum']:.1f}" in shown and "466.9" in shown
    foils = json.loads(Path("metrics/foils.json").read_text())["test"]["all"]
    assert f"{foils['true_first']:.1f} % of {foils['foils']} foils score below" in shown
    assert str(Path("report/index.html").resolve()) in shown and "make ui" in shown
    code = (
        "import sys, stages.report; sys.argv = ['report', '--summary']; stages.report.main(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("False\n"), done.stderr
    assert shown in done.stdout


def test_summary_without_metrics_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"retrieval.json: cannot be read"):
        print_summary(tmp_path, tmp_path / "index.html")


def test_a_curve_with_an_empty_cell_skips_the_row(tmp_path):
    (tmp_path / "c.csv").write_text("epoch,rsum\n1,10\n2,\n3,30\n")
    assert read_curve(tmp_path / "c.csv") == {"epoch": [1, 3], "rsum": [10, 30]}


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


def test_curves_of_a_model_without_gates_keep_their_recalls(tmp_path):
    (tmp_path / "c.csv").write_text("epoch,rsum,gate_auc\n1,10,\n2,20,\n")
    assert read_curve(tmp_path / "c.csv") == {"epoch": [1, 2], "rsum": [10, 20]}
