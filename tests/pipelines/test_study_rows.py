"""Which rows a study has, with the params of every preset, and what is refused before any row is trained."""

import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
from prefect.logging import disable_run_logger

from pipelines import ablation as module
from pipelines.ablation import ALL_ROWS, OVERRIDES, ablation, possible_rows
from pipelines.experiments import sweep
from pipelines.study import Study
from pipelines.study_document import Page, check_document, write_document
from pipelines.study_rates import with_rates
from pipelines.variants import check_validated, params_of, variants_of
from stages.errors import InputError
from stages.params import document
from stages.params.presets import compose
from tests.pipelines.test_study import outcome

ROOT = Path(__file__).resolve().parents[2]
DATA = ("scenes", "flickr30k", "flickr8k", "coco", "own_images")
FEATURES = ("bottom_up", "faster_rcnn", "grid")
MODELS = ("counts", "gates", "paper", "best", "best_1_joint", "three_step_1_attention")


@pytest.fixture
def with_presets(tmp_path, monkeypatch):
    """Writes a params.yaml of presets into a workspace."""
    monkeypatch.chdir(tmp_path)

    def write(*names):
        shutil.copy(ROOT / "params.yaml", "params.yaml")
        params, _ = compose([ROOT / f"presets/{name}.yaml" for name in names])
        document.rewrite(Path("params.yaml"), params.to_dict())

    return write


@pytest.mark.parametrize(
    "presets",
    [*itertools.product(DATA, FEATURES), *(("flickr8k", "grid", model) for model in MODELS), ("scenes", "counts")],
)
def test_every_default_row_can_be_trained_or_is_left_out_with_its_reason(presets, with_presets, monkeypatch):
    with_presets(*presets)
    trained, reasons = {}, {}
    monkeypatch.setattr(module, "run_in_parallel", lambda _, trainings, *__: trained.update(trainings) or ([], {}, ""))
    monkeypatch.setattr(module, "warn_of_left_out", reasons.update)
    with disable_run_logger():
        ablation.fn(ALL_ROWS, [0], document="")
    assert params_of(trained).keys() == {f"{name}-s0" for name in ALL_ROWS.keys() - reasons.keys()}
    assert "full-s0" in trained and all(reasons.values())


def test_no_row_is_left_out_on_the_scenes_or_changes_what_names_its_experiments(with_presets):
    with_presets("scenes")
    assert possible_rows(ALL_ROWS, {}) == (ALL_ROWS, {})


@pytest.mark.parametrize("rows", [("full", "counts"), ("full", "own")])
def test_a_row_that_somebody_named_is_refused(rows, with_presets):
    with_presets("flickr30k", "bottom_up")
    variants = {name: ALL_ROWS.get(name, {"model.gate_evidence": True}) for name in rows}
    with pytest.raises(InputError, match=rf"^{rows[1]}-s0: model\.gate_evidence: true reads where regions lie"):
        ablation.fn(variants, [0], document="")
    assert possible_rows(OVERRIDES, {"regions.geometry": True})[1] == {}


def test_full_is_refused_not_left_out(with_presets):
    with_presets("flickr30k", "bottom_up")
    with pytest.raises(InputError, match=re.escape("full-s0: model.gate_evidence: true reads where")):
        ablation.fn(seeds=[0], base={"model.gate_evidence": True}, document="")


def test_the_page_says_which_rows_were_left_out_and_why(tmp_path):
    study = Study({"full": [outcome(4)]}, {"full": "full model"}, [0], {}, "made up", "0", None, None)
    write_document(tmp_path / "study.md", study, Page(left_out={"counts": "there are no places"}))
    said = "- Rows left out, because `params.yaml` cannot have them: `counts` (there are no places).\n"
    assert said in (tmp_path / "study.md").read_text()


@pytest.mark.parametrize(
    ("variants", "rates", "name"),
    [
        ({"full": {}}, [0.1234567, 0.12345671], "full-x0.123457"),
        ({"full": {}, "full-x2": {"model.gate": "none"}}, [2], "full-x2"),
    ],
)
def test_no_rate_takes_the_place_of_another_or_of_a_row(variants, rates, name):
    with pytest.raises(InputError, match=rf"rates: {rates[-1]}: {name} is there twice"):
        with_rates(variants, rates, 0.002, {})


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ("/proc/x.md", "No such file or directory|Permission denied|Operation not permitted"),
        ("pipe.md", "A device, pipe or socket is there; expected a file"),
        (f"{'x' * 300}.md", "File name too long"),
        (f"{'x' * 240}.md", "File name too long"),  # only of a chart and of temporary files
        ("half.md", "Is a directory"),  # a chart is
        ("half\0.md", "embedded null byte"),
    ],
)
def test_a_page_that_could_not_be_written_is_refused_and_nothing_is_left(document, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.md")
    Path("half-gates.svg").mkdir()
    with pytest.raises(InputError, match=rf"document: .*: cannot be written \(({why})\); expected a file such as"):
        ablation.fn(document=document)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half-gates.svg", "pipe.md"]
    check_document("new/page.md")
    assert list(Path("new").iterdir()) == []


@pytest.mark.parametrize(
    ("grid", "why"),
    [
        (
            {"dataset.scenes.val": [3, 12]},
            r"val-12: dataset\.scenes\.val: 12, but 3 in val-3; expected equal images in val",
        ),
        ({"dataset.scenes.seed": [0, 1]}, r"seed-1: dataset\.scenes\.seed: 1, but 0 in seed-0"),
    ],
)
def test_models_validated_on_other_images_are_not_ranked(grid, why, with_presets):
    with_presets("scenes")
    with pytest.raises(InputError, match=why):
        sweep.fn(grid)
    check_validated(params_of(variants_of({"dataset.scenes.train": [40, 80], "evaluate.protocol": ["full"]})))
