"""What the page of a study says of outcomes whose answers are known."""

import re
import resource
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.ablation import FURTHER, OVERRIDES, STUDY, ablation, with_seeds
from pipelines.photographs import photographs
from pipelines.study import Outcome, Study, load_true_by_chance, read_data
from pipelines.study_answers import CLAIMS, QUESTIONS
from pipelines.study_document import Page, _draw_gates, write_document
from pipelines.study_rates import rates_markdown, with_rates
from pipelines.variants import params_of
from stages.errors import InputError
from stages.evaluation.bootstrap import image_hits

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = 40


def outcome(missed: int, **gates: float) -> Outcome:
    """A model that ranks everything first, but for the pictures and captions of the first `missed` images."""
    ranks = np.where(np.arange(IMAGES) < missed, 11, 1)
    rsum = 600 * (1 - missed / IMAGES)
    return Outcome(
        recall={"rsum": rsum, "i2t_r1": rsum / 6, "t2i_r1": rsum / 6},
        gates=gates,
        foils={"count": {"foils": 9, "true_first": 82.0, "true_first_balanced": 50.0}, "all": {"true_first": 82.0}},
        hits=image_hits(ranks, ranks, np.arange(IMAGES)),
        curve=pd.DataFrame({"epoch": [1]}),
        val_rsum=rsum,
    )


def study_of(outcomes: dict[str, list[Outcome]], seeds: list[int]) -> Study:
    return Study(outcomes, {name: STUDY[name].label for name in outcomes}, seeds, {}, "made up", "0", None, None)


def test_what_is_believed_is_what_the_intervals_allow(tmp_path):
    gates = {"gate_positive_mean": 0.1, "gate_negative_mean": 0.4, "gate_auc": 0.02}
    outcomes = {
        "full": [outcome(4), outcome(4)],
        "no-gates": [outcome(20), outcome(20)],
        "no-messages": [outcome(8), outcome(30)],
        "cosine-bce": [outcome(4), outcome(4)],
        "published-gates": [outcome(2, **gates), outcome(2, **gates)],
        "gates-open": [outcome(38), outcome(38)],
        "scan": [outcome(12), outcome(12)],
        "joint-embedding": [outcome(30), outcome(30)],
    }
    write_document(tmp_path / "study.md", study_of(outcomes, [0, 1]), Page())
    text = (tmp_path / "study.md").read_text()
    said = text[text.index("## What we believe now") : text.index("## The answers")].splitlines()[2:-1]
    assert [line[:60] for line in said] == [
        "- Messages are worth +225.0 [-1883.4, +2332.8] rsum, which i",
        "- Gates, supervised as in the full model, are worth +240.0 [",
        "- Gates of a trained model, against the same held open, are ",
        "- Supervision of the gates is worth -30.0 [-75.0, +0.0] rsum",
        "- A learnt score, against a cosine, is worth +0.0 [+0.0, +0.",
        "- Of the baselines, listed under question 1, *baseline: SCAN",
    ]
    assert said[0].endswith(" (1 of 2 seeds without it hardly learnt, the best reached 480.0).")
    assert "*without messages* (1 of 2 seeds)." in text
    assert said[2].endswith("worth +510.0 [+435.0, +570.0] rsum.") and "tested* (2 of" not in text  # it was not trained
    assert said[4].endswith("rsum, which is not significant.")
    assert "*baseline: SCAN, text to image* has the highest rsum: the full model is better by +120.0 [" in said[5]
    unsupervised = "rsum, which is not significant. Gates without supervision have a mean of 0.100 ± 0.000 on matching "
    assert unsupervised + "pairs and of 0.400 ± 0.000 on random ones, AUC 0.020 ± 0.000; with 2 of 2 seeds" in said[3]
    assert "| model | count | count, balanced | all |" in text
    assert "| without gates | 82.0 ± 0.0 | 50.0 ± 0.0 | 82.0 ± 0.0 |" in text


def test_one_seed_has_no_spread(tmp_path):
    outcomes = {"full": [outcome(4)], "no-gates": [outcome(20)]}
    write_document(tmp_path / "study.md", study_of(outcomes, [0]), Page())
    text = (tmp_path / "study.md").read_text()
    assert "±" not in text and "| full model | 540.0 | 90.0 | 90.0 |" in text
    assert "one training seed (0)" in text
    assert "interval, a bootstrap over images only, which does not cover other seeds: " in text
    assert "one in twenty misses the true difference." in text


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (1, "images and, where a row has several seeds, a t distribution over seeds: "),
        (2, "images and a t distribution over seeds: "),
    ],
)
def test_the_page_says_which_intervals_know_of_seeds(tmp_path, seeds, said):
    """Of rows with further seeds there are several even where the others have one."""
    outcomes = {"full": [outcome(4)] * 3, "mlp-ranking": [outcome(8)] * 3, "no-gates": [outcome(8)] * seeds}
    write_document(tmp_path / "study.md", study_of(outcomes, [*range(seeds)]), Page())
    assert f"interval, a bootstrap over {said}" in (tmp_path / "study.md").read_text()


def test_a_page_that_does_not_fit_on_the_disk_leaves_that_of_before_with_its_charts(tmp_path):
    page = tmp_path / "study.md"
    write_document(page, study_of({"full": [outcome(4)], "no-gates": [outcome(8)]}, [0]), Page())
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    largest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (page.stat().st_size - 100, largest[1]))
    try:
        with pytest.raises(OSError, match="study.md"):
            write_document(page, study_of({"full": [outcome(4)], "no-gates": [outcome(30)]}, [0]), Page())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, largest)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_rows_that_were_tested_on_other_captions_are_not_compared(tmp_path):
    """As with another dataset.scenes.seed: as many images under the same ids, so that all numbers would fit."""
    full, others = (
        replace(one, hits=replace(one.hits, queries=name)) for name, one in (("a", outcome(4)), ("b", outcome(8)))
    )
    outcomes = {"full": [full], "no-gates": [others]}
    with pytest.raises(InputError, match=r"no-gates: was tested on other captions or images than full; expected"):
        write_document(tmp_path / "study.md", study_of(outcomes, [0]), Page())
    assert not list(tmp_path.iterdir())


def test_a_seed_is_not_set_for_every_row():
    with pytest.raises(InputError, match=r"train\.seed: cannot be set for every row; expected seeds"):
        with_seeds(OVERRIDES, [0], {"train.seed": 7})


@pytest.mark.parametrize("splits", [["test"], ["train", "val"]])
def test_no_other_scene_makes_a_word_true_by_chance(tmp_path, splits):
    table = pa.table({"split": splits, "objects": [[]] * len(splits), "captions": [[]] * len(splits)})
    pq.write_table(table, tmp_path / "scenes.parquet")
    assert load_true_by_chance(tmp_path) is None


def test_the_data_that_the_page_names_are_those_of_its_rows(repository):
    """Not this workspace's, which has another dataset if the study sets one for every row."""
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    Path("data/dataset").mkdir(parents=True)
    for name in ("images", "captions"):
        pq.write_table(pa.table({"split": ["train", "train", "val", "test"]}), f"data/dataset/{name}.parquet")
    for command in (["add", "-A"], ["commit", "-qm", "row"], ["update-ref", "refs/exps/00/00/full-s0", "HEAD"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run([*git, "reset", "-q", "--hard", "HEAD~"], check=True)
    assert read_data("full-s0")[0].startswith("`scenes`; train 2 images and 2 captions, val 1 images and 1 captions, ")


def test_gates_are_compared_where_both_have_the_same_further_signal(tmp_path):
    rows = {"full": 4, "published-gates-joint-term": 10, "no-gates-joint-term": 30}
    outcomes = {name: [outcome(missed)] * 2 for name, missed in rows.items()}
    write_document(tmp_path / "study.md", study_of(outcomes, [0, 1]), Page())
    expected = "- Gates without supervision, where a joint embedding teaches the encoders, are worth +300.0 [+2"
    assert expected in (tmp_path / "study.md").read_text()


def test_what_counts_and_places_tell_is_said_with_what_they_cost(tmp_path):
    def told(missed, count, relation):
        foils = {
            kind: {"foils": 9, "true_first": 99.0, "true_first_balanced": share}
            for kind, share in (("count", count), ("relation", relation), ("all", None))
        }
        return replace(outcome(missed), foils=foils)

    outcomes = {"full": [told(4, 55.0, 51.0)] * 2, "counts": [told(20, 80.0, 99.0), told(20, 84.0, 100.0)]}
    alone = "; trained with foils alone: 81.0 ± 1.4 % and 64.0 ± 2.8 %"
    for added, said in (({}, ""), ({"foils": [told(4, 80.0, 62.0), told(4, 82.0, 66.0)]}, alone)):
        outcomes |= added
        write_document(tmp_path / "study.md", study_of(outcomes, [0, 1]), Page())
        expected = (
            "- With counts and locations as evidence and training on foils, captions score higher than foils with "
            "another count in 82.0 ± 2.8 % of cases, and with another relation in 99.5 ± 0.7 % (the full model: 55.0 ± "
            f"0.0 % and 51.0 ± 0.0 %{said}; balanced, so that guessing gives 50 %); in rsum the full model is better "
            "by +240"
        )
        assert expected in (tmp_path / "study.md").read_text()


def test_rows_with_further_seeds_are_compared_over_those_that_both_have(tmp_path):
    outcomes = {
        "full": [outcome(4), outcome(8), outcome(30)],
        "mlp-ranking": [outcome(8), outcome(12), outcome(38)],
        "no-gates": [outcome(8), outcome(8)],
    }
    write_document(tmp_path / "study.md", study_of(outcomes, [0, 1]), Page())
    text = (tmp_path / "study.md").read_text()
    assert "2 training seeds (0, 1), for *full model*, *MLP, ranking loss* over 3; differences use the seeds" in text
    assert "| MLP, ranking loss | 310.0 ± 244.3 | 51.7 ± 40.7 | 51.7 ± 40.7 | +80.0 [" in text  # of (60 + 60 + 120) / 3
    assert "| without gates | 480.0 ± 0.0 | 80.0 ± 0.0 | 80.0 ± 0.0 | +30.0 [" in text  # of (60 + 0) / 2


def test_each_row_is_trained_with_multiples_of_its_own_learning_rate_and_the_best_on_validation_is_compared():
    variants = {"full": {}, "scan": {"train.learning_rate": 0.01}}
    trainings = with_rates(variants, [0.5, 2], 0.002, {"train.epochs": 1})
    assert list(trainings) == ["full-x0.5", "full-x2", "scan-x0.5", "scan-x2"]
    assert trainings["full-x2"] == {"train.learning_rate": 0.004}
    assert trainings["scan-x0.5"] == {"train.learning_rate": 0.005}
    assert with_rates({"full": {}}, [2], 0.002, {"train.learning_rate": 0.1})["full-x2"]["train.learning_rate"] == 0.2
    rated = {
        "full": {1.0: replace(outcome(4), val_rsum=560.0), 2.0: replace(outcome(2), val_rsum=550.0)},
        "scan": {1.0: replace(outcome(2), val_rsum=300.0), 2.0: replace(outcome(10), val_rsum=310.0)},
    }
    text = rates_markdown(rated, {name: STUDY[name].label for name in rated}, 0)
    assert "| full model | 560.0 | 550.0 | x 1 | 540.0 |  |" in text and "a rate beyond it may be better" in text
    assert "| baseline: SCAN, text to image | 300.0 | 310.0 | x 2 | 450.0 | +90.0 [" in text


def test_every_row_can_be_trained_beside_a_full_model_whose_gates_have_context():
    base = {"model.gate_context": 3.0}
    assert params_of({name: {**base, **row.overrides} for name, row in STUDY.items()}).keys() == STUDY.keys()


def test_rows_that_the_page_speaks_of_are_rows_of_the_study():
    assert {name for _, names in QUESTIONS for name in names} | {*CLAIMS} <= set(STUDY) and set(STUDY) >= FURTHER
    assert "full" in OVERRIDES and not FURTHER & set(OVERRIDES)


@pytest.mark.parametrize(
    ("seeds", "more_seeds", "twice"), [([0, 1, 0], [], 0), ([0, 1], [1], 1), ([2], [3, 3], 3)]
)  # fmt: skip
def test_a_seed_that_is_there_twice_is_refused_before_anything_is_trained(seeds, more_seeds, twice):
    with pytest.raises(InputError, match=f"seeds: {twice} is there twice; expected every seed once"):
        ablation.fn(seeds=seeds, more_seeds=more_seeds)


@pytest.mark.parametrize(
    ("base", "why"),
    [
        ({"evaluate.splits": ["val"]}, r"s0: evaluate\.splits: \['val'\] lacks test"),
        ({"train.epoch": 3}, r"s0: train\.epoch: unknown key; allowed here: "),
        ({"train.seed.first": 3}, r"s0: train\.seed\.first: seed has no keys"),
    ],
)
def test_a_study_that_could_not_be_written_is_refused_before_anything_is_trained(base, why, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=why):
        ablation.fn(variants={"full": {}}, seeds=[0], base=base)
    with pytest.raises(InputError, match=why):
        photographs.fn(seeds=[0], base=base)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"dataset.scenes.seed": 1}, r"other-s0: dataset\.scenes\.seed: 1, but 0 in full-s0; expected equal"),
        (
            {"dataset.scenes.train": 9, "dataset.scenes.test": 6000},
            r"other-s0: dataset\.scenes\.test: 6000, but 5000",
        ),
        (
            {"evaluate.protocol": "coco_1k"},
            r"other-s0: evaluate\.protocol: 'coco_1k', but 'full' in full",
        ),
    ],
)
def test_rows_on_other_images_are_refused_before_anything_is_trained(overrides, why, monkeypatch):
    """Scenes of other seeds have the same ids: their images would be paired, and the intervals mean nothing."""
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=why):
        ablation.fn(variants={"full": {}, "other": overrides}, seeds=[0], base={"dataset.scenes.test": 5000})


@pytest.mark.parametrize(
    ("study", "document"),
    [(ablation, "docs"), (photographs, "docs"), (photographs, ""), (ablation, "README.md/study.md")],
)
def test_a_page_that_could_not_be_written_is_refused_before_anything_is_trained(study, document, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(InputError, match=f"document: '{document}' does not name a file; expected one such as"):
        study.fn(document=document)


def test_a_study_that_ends_early_has_every_row_of_its_first_seeds():
    trainings = with_seeds({"full": {}, "no-gates": {"model.gate": "none"}}, [0, 1], {"train.epochs": 1})
    assert list(trainings) == ["full-s0", "no-gates-s0", "full-s1", "no-gates-s1"]
    assert trainings["no-gates-s1"] == {"train.epochs": 1, "model.gate": "none", "train.seed": 1}


def test_gates_are_drawn_as_far_as_any_seed_was_trained(tmp_path):
    """One that ended early does not cut the others short."""
    curves = [pd.DataFrame({f"gate_{kind}_mean": [0.5] * epochs for kind in ("positive", "negative")})
              for epochs in (2, 5)]  # fmt: skip
    outcomes = {"full": [replace(outcome(4), curve=curve) for curve in curves]}
    drawn = _draw_gates(study_of(outcomes, [0, 1]))
    first = re.search(r'<polyline[^>]*points="([^"]*)"', drawn)
    assert first and len(first[1].split()) == 5


def test_a_model_without_word_gates_has_no_line_of_them():
    """As with messages to regions alone: its curve has the columns, without numbers."""
    empty = pd.DataFrame({"epoch": [1, 2], "gate_positive_mean": [np.nan] * 2, "gate_negative_mean": [np.nan] * 2})
    outcomes = {"full": [replace(outcome(4), curve=empty)]}
    drawn = _draw_gates(study_of(outcomes, [0]))
    assert "nan" not in drawn and "polyline" not in drawn
