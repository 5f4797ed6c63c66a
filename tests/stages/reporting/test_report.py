"""The stage `report`: what a broken input, a missing picture or an empty cell makes of it; its summary."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from camp_model.captions import CaptionTable, write_captions
from camp_model.checkpoint import load_checkpoint, save_checkpoint
from camp_model.files import write_sealed
from camp_model.regions import RegionStore
from camp_model.vocabulary import Vocabulary
from stages.contracts import hashes_of, read_fingerprint
from stages.errors import InputError
from stages.evaluate import evaluate
from stages.params.dataset import DatasetParams
from stages.report import print_summary
from stages.reporting.contents import dataset_name
from stages.reporting.page import read_curve
from stages.reporting.queries import Inspector, Query
from tests.stages.reporting.conftest import EVALUATE, INPUTS, draw


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


def test_an_evaluation_of_another_model_or_of_other_captions_is_not_drawn(small):
    """Its ranks would stand beside gates and attention of what never gave them."""
    model, vocabulary, facts = load_checkpoint(INPUTS.model)
    captions = INPUTS.captions / "test.parquet"
    table = pq.read_table(captions)
    pq.write_table(table.set_column(table.schema.names.index("text"), "text", [["other"] * len(table)]), captions)
    with pytest.raises(InputError, match=r"captions/test.parquet: .*of another run than data/evaluation/results.json"):
        draw()
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    save_checkpoint(INPUTS.model, model, vocabulary, facts)
    with pytest.raises(InputError, match=r"model.safetensors: .*of another run than data/evaluation/results.json"):
        draw()
    assert not Path("report/index.html").exists()


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, "drawn scenes"),
        ({"source": "table"}, "own pictures"),
        ({"source": "table", "root": "data/raw/holiday"}, "holiday"),
        ({"source": "karpathy", "karpathy": {"annotations": "splits/dataset_flickr8k.json"}}, "flickr8k"),
        ({"source": "coco"}, "COCO"),
    ],
)
def test_the_data_are_called_as_people_call_them(params, name):
    assert dataset_name(DatasetParams(**params)) == name


def test_what_eccv_caption_and_cxc_say_stands_below_the_table(small):
    path = Path("metrics/retrieval.json")
    values = json.loads(path.read_text())
    values["test"] |= {"eccv_i2t_map_at_r": 23.94, "cxc_t2i_r1": 50.0}
    path.write_text(json.dumps(values))
    Path("data/evaluation/results.json").unlink()  # of the numbers as they were
    draw()
    page = Path("report/index.html").read_text()
    assert "test, ECCV Caption: i2t_map_at_r 23.9" in page and "test, CxC: t2i_r1 50.0" in page


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
    said = capsys.readouterr().out
    assert re.search(rf"{count} of {count} pictures are shown grey: data/dataset/images/.*: the file is missing", said)


def test_a_report_of_an_ensemble_shows_its_best_right_answers_with_its_scores(small, make_checkpoint):
    """The first model alone may prefer others, and its scores are of another kind."""
    assert "what an opened pair shows" not in draw().text
    make_checkpoint(Path("other"), Vocabulary.load(INPUTS.captions / "vocabulary.json"), seed=1, dim=16)
    params = EVALUATE.replace(ensemble=("other",), gates="open")
    evaluate(params, regions=INPUTS.regions, captions=INPUTS.captions, model=INPUTS.model, out=INPUTS.evaluation,
             metrics=INPUTS.metrics)  # fmt: skip
    rows = {row["query_id"]: row for row in pq.read_table(INPUTS.evaluation / "test.parquet").to_pylist()}
    texts = {str(caption_id): text for caption_id, _, text in small.captions}
    page = draw(queries=60, top_k=3)
    beyond = [(query, query["results"][3]) for query in page.data["queries"]["i2t"] if query["rank"] > 3]
    assert len(beyond) > 10
    for query, pair in beyond:
        assert (pair["text"], pair["score"]) == (
            texts[rows[query["id"]]["right_id"]], round(rows[query["id"]]["right_score"], 3)
        )  # fmt: skip
    assert "ensemble of 2; what an opened pair shows is the first's" in page.text
    assert "ranked with all gates held open; what an opened pair shows is with gates as trained" in page.text


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
    query = Query("t2i", str(captions.caption_ids[0]), 1, [first, last], [3.0, 2.0], first, 3.0, is_worst=True)
    assert [pair.is_right for pair in inspector.pairs(query, 3)] == [True, True]


def test_regions_of_another_detector_are_an_error(small):
    path = INPUTS.model / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"detector": "c" * 64}))
    with pytest.raises(InputError, match=r"fingerprint\.json: detector: 'ccc"):
        draw()


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
    command = f"set -o pipefail; {sys.executable} -m stages.report --summary | head -0"
    done = subprocess.run(
        ["bash", "-c", command], env={"PYTHONPATH": str(repository)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (128 + 13, "")


def test_summary_without_metrics_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"retrieval.json: cannot be read"):
        print_summary(tmp_path, tmp_path / "index.html")


def test_a_curve_with_an_empty_cell_skips_the_row(tmp_path):
    (tmp_path / "c.csv").write_text("epoch,rsum\n1,10\n2,\n3,30\n")
    assert read_curve(tmp_path / "c.csv") == {"epoch": [1, 3], "rsum": [10, 30]}


def test_curves_of_a_model_without_gates_keep_their_recalls(tmp_path):
    (tmp_path / "c.csv").write_text("epoch,rsum,gate_auc\n1,10,\n2,20,\n")
    assert read_curve(tmp_path / "c.csv") == {"epoch": [1, 2], "rsum": [10, 20]}
