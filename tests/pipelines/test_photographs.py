"""The rows of the study of photographs."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from camp_model import CAMP
from camp_model.vocabulary import Vocabulary
from pipelines.photograph_rows import AT_ONCE, FIRST, JOINT, TRAINED_WORDS, rows_of, starts_from_joint
from pipelines.photographs import _remarks, effects, photographs
from pipelines.variants import override_params
from stages.errors import InputError
from stages.params.document import rewrite
from stages.params.pipeline import Params
from stages.params.presets import compose
from stages.training.groups import parameter_groups
from stages.training.start import new_model
from tests.pipelines.test_study import outcome

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = ("presets/flickr8k.yaml", "presets/grid.yaml")


@pytest.fixture
def full() -> Params:
    return compose([REPOSITORY / name for name in (*DATA, "presets/best_2_camp.yaml")])[0]


def test_every_row_is_params_that_can_be_trained(full: Params) -> None:
    rows = rows_of(full, REPOSITORY / FIRST, {})[0]
    models: dict[str, CAMP] = {}
    for row in rows.values():
        values = full.to_dict()
        for dotted, value in row.overrides.items():
            section, key = dotted.split(".")
            values[section] = values[section] | {key: value}
        params = Params.from_dict(values)
        key = str((params.model, params.train.freeze, params.train.word_vectors))
        if key not in models:
            train = params.train.replace(start_from=None)
            models[key] = new_model(params.model, train, Vocabulary.build([["a"]]), 8)
        groups = parameter_groups(models[key], params.train.learning_rates)
        assert groups, "what has a rate of its own, or none, is there"
    asked = {"full", "no-gates", "no-messages", "published-gates", "mean-pooling", "cosine-ranking", JOINT, "scan"}
    additions = {f"{base}-{name}" for base in ("full", JOINT) for name in ("gpo", "ema", "drop-regions", "drop-words")}
    assert asked | additions <= set(rows)
    assert len({row.label for row in rows.values()}) == len(rows)
    assert len({str(sorted(row.overrides.items())) for row in rows.values()}) == len(rows), "each is another training"


@pytest.mark.parametrize(
    ("row", "presets"),
    [(JOINT, (FIRST,)), (f"{JOINT}-trained-words", (FIRST, TRAINED_WORDS)), ("full-trained-words", (AT_ONCE,))],
)
def test_a_row_is_its_presets_on_the_same_data(full: Params, row: str, presets: tuple[Path, ...]) -> None:
    values = full.to_dict()
    for dotted, value in rows_of(full, REPOSITORY / FIRST, {})[0][row].overrides.items():
        section, key = dotted.split(".")
        values[section] = values[section] | {key: value}
    values["train"]["start_from"] = None
    assert Params.from_dict(values) == compose([REPOSITORY / name for name in (*DATA, *presets)])[0]


def test_a_model_starts_from_a_row_with_the_encoders_that_it_keeps(full: Params) -> None:
    rows = rows_of(full, REPOSITORY / FIRST, {})[0]
    assert all(starts_from_joint(rows[name]) for name in ("full", "no-gates", "full-ema"))
    for name, row in rows.items():
        alone = row.overrides.get("model.matcher", "camp") != "camp" or name.endswith("-trained-words")
        assert starts_from_joint(row) is not alone, name
        assert alone or "model.transformer_frozen" not in row.overrides, "it has the encoders it starts from"


def test_a_row_that_a_model_cannot_have_is_left_out_with_its_reason(full: Params) -> None:
    """A joint embedding whose loss has all negatives anyway; a full model of one epoch; regions without places."""
    full = full.replace(train=full.train.replace(epochs=1))
    names, obstacles = rows_of(full, REPOSITORY / FIRST, {})
    assert not names.keys() & obstacles.keys()
    assert "train.all_negatives_epochs: 1, but train.loss bce" in obstacles[f"{JOINT}-all-negatives"]
    assert obstacles["full-all-negatives"] == "train.epochs: 1 leaves none after those on all negatives"
    assert obstacles["counts"].startswith("model.gate_evidence: true reads where regions lie")
    longer = full.replace(train=full.train.replace(epochs=2))
    assert "full-all-negatives" in rows_of(longer, REPOSITORY / FIRST, {})[0]


def test_what_is_set_for_every_row_is_what_every_row_has(full: Params) -> None:
    """Presets and the peers' recipe yield to it, what a row is named after does not."""
    base = {"train.epochs": 2, "train.batch_size": 96, "train.ema_decay": 0.5, "regions.geometry": True}
    base_full = override_params(full, base)
    rows, obstacles = rows_of(base_full, REPOSITORY / FIRST, base)
    assert "counts" in rows and "counts" not in obstacles
    for name, row in rows.items():
        params = override_params(base_full, row.overrides)
        assert params.train.epochs == (1 if name.startswith("tuned") else 2), name
        assert params.train.batch_size == 96 and params.regions.geometry
        assert params.train.ema_decay == (0.99 if name.endswith(("-ema", "-all-of-these")) else 0.5), name


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ({"train.epochs": 1, "train.validation_share": 0.5}, "rows: 'full' cannot be trained: train.validation_share"),
        (
            {"train.all_negatives_epochs": 1},
            r"best_1_joint\.yaml, with what is set for every row: train\.all_negatives",
        ),
    ],
)
def test_what_is_set_for_every_row_leaves_what_they_are_compared_with(
    base: dict[str, Any], said: str, full: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets").symlink_to(REPOSITORY / "presets")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    rewrite(tmp_path / "params.yaml", full.replace(train=full.train.replace(start_from=None)).to_dict())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        photographs.fn(base=base)


@pytest.mark.parametrize("asked", ["counts", "full-nothing"])
def test_a_row_that_cannot_be_trained_is_refused_with_its_reason(
    asked: str, full: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets").symlink_to(REPOSITORY / "presets")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    rewrite(tmp_path / "params.yaml", full.replace(train=full.train.replace(start_from=None)).to_dict())
    monkeypatch.chdir(tmp_path)
    reason = "cannot be trained: model.gate_evidence" if asked == "counts" else "is not one of full, no-gates"
    with pytest.raises(InputError, match=f"rows: '{asked}' {reason}"):
        photographs.fn(rows=[asked])


def test_a_preset_that_is_wrong_is_named(tmp_path: Path, full: Params) -> None:
    (tmp_path / "wrong.yaml").write_text("model: {matcher: clip}\n")
    with pytest.raises(InputError, match=r"wrong\.yaml: model\.matcher: 'clip' is not one of"):
        rows_of(full, tmp_path / "wrong.yaml", {})


def test_an_addition_is_measured_against_the_model_that_it_is_added_to() -> None:
    """An image missed costs 15 of 600: see `outcome`."""
    missed = {JOINT: 8, f"{JOINT}-ema": 4, "full": 6, "full-ema": 8, f"{JOINT}-trained-words": 2}
    rows = {row["addition"]: row for row in effects({name: [outcome(number)] * 2 for name, number in missed.items()})}
    assert set(rows) == {"averaged weights", "transformer trained"}
    assert rows["averaged weights"]["joint embedding"].startswith("+60.0 [+")
    assert rows["averaged weights"]["full model"].startswith("-30.0 [-")
    assert rows["transformer trained"]["joint embedding"].startswith("+90.0 [+")
    assert rows["transformer trained"]["full model"] == ""


def test_the_page_says_what_the_joint_term_is_worth() -> None:
    missed = {JOINT: 8, "full": 6, "tuned": 4, "tuned-without-term": 6}
    missed |= {f"{JOINT}-trained-words": 3, "full-trained-words": 2, "no-gates-trained-words": 4}
    outcomes = {name: [outcome(number)] * 2 for name, number in missed.items()}
    said = _remarks(outcomes, Params())
    assert "Worth of the joint term if the encoders continue to be trained: +30.0 [+" in said
    assert "trained with the transformer, the full model minus the joint embedding: +15.0 [" in said
    assert "trained with the transformer, the full model minus the same without gates: +30.0 [" in said


@pytest.mark.parametrize(("annotations", "has_them"), [("dataset_flickr8k.json", True), ("dataset_coco.json", False)])
def test_published_results_stand_beside_those_on_the_same_data(annotations: str, has_them: bool) -> None:
    """Whatever params.yaml names: with --set, the rows have other data."""
    params = override_params(Params(), {"dataset.karpathy.annotations": annotations})
    said = _remarks({JOINT: [outcome(8)] * 2, "full": [outcome(6)] * 2}, params)
    assert ("trained on Flickr8k alone" in said) == has_them
