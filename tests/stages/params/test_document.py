"""One dialect of YAML: what is written is read back as it was, by us and by DVC, and what DVC writes is read."""

from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import dumps_yaml, load_yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.forms import form, write_params
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params

WORDS = [
    "1e-05",
    "yes",
    "no",
    "1e3",
    "0x10",
    "null",
    "2001-01-01",
    "",
    "~",
    "on",
    "=",
    "<<",
    ".5e3",
    "0b1",
    "010",
    "1_0",
]
TEXTS = st.one_of(
    st.sampled_from(WORDS), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
)


def fields(kind: type) -> list[str]:
    """Dotted names of the params of a type that nothing narrows."""
    params = Params()
    return [f"{section}.{key}" for section, values in params for key, value in values if type(value) is kind]


FLOATS = [name for name in fields(float) if name not in ("train.gate_temperature", "train.joint_temperature")]
FREE_TEXTS = ("dataset.root", "captions.lexicon", "detector.architecture", "train.start_from", "train.word_vectors")


@pytest.fixture
def path(repository: Path, tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_bytes((repository / "params.yaml").read_bytes())
    return tmp_path / "params.yaml"


def changed(params: Params, dotted: str, value: Any) -> Params:
    section, key = dotted.split(".")
    return params.replace(**{section: getattr(params, section).replace(**{key: value})})


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_number_and_text_comes_back_as_it_was(path: Path, data: st.DataObject) -> None:
    params = changed(Params.load(path), "captions.train_foils", True)
    for name in FLOATS:
        above_zero = name in ("train.joint_temperature", "train.validation_share")
        below_one = name in ("train.ema_decay", "train.dropout", "train.region_dropout")
        numbers = st.floats(0, 1, allow_subnormal=False, exclude_min=above_zero, exclude_max=below_one)
        params = changed(params, name, data.draw(numbers, label=name))
    for name in FREE_TEXTS:
        if name == "detector.architecture":
            params = params.replace(detector=params.detector.replace(architecture=data.draw(TEXTS), weights="random"))
        else:
            params = changed(params, name, data.draw(TEXTS, label=name))
    params = changed(params, "train.freeze", tuple(data.draw(st.lists(TEXTS, max_size=3))))
    write_params(form(params).model_validate(params.to_dict()), path)
    assert Params.load(path) == params
    assert load_yaml(path) == params.to_dict()  # as DVC reads it


@pytest.mark.parametrize("text", ["a\x85b", "a\u2028b", "'", '"', "a: b", "1", "null", " a", "é\\", "# a"])
def test_a_text_that_stays_is_written_again_as_it_was(path: Path, text: str) -> None:
    params = changed(changed(Params(), "train.freeze", (text, "model")), "train.start_from", text or None)
    for epochs in (3, 4, 5):
        params = changed(params, "train.epochs", epochs)
        document.rewrite(path, params.to_dict())
        assert Params.load(path) == params


@given(st.floats(allow_nan=False, allow_infinity=False) | TEXTS)
def test_what_dvc_writes_is_read(value: float | str) -> None:
    if isinstance(value, str) and "\x85" in value:
        return  # DVC's own writer loses it
    assert document.parse(dumps_yaml({"a": value})) == {"a": value}


def test_small_numbers_and_words_of_other_dialects(path: Path) -> None:
    path.write_text("train: {learning_rate: 1e-05, word_vectors: yes}\n")
    params = Params.load(path)
    assert (params.train.learning_rate, params.train.word_vectors) == (1e-05, "yes")


@pytest.mark.parametrize(
    "text", ["a: [1", "\t", "2001-99-99", "a: 1\n---\nb: 2", "[" * 1000, "a: !x", "*a", "a: &a [*a]"]
)
def test_what_is_no_yaml_is_an_error_of_one_short_line(text: str) -> None:
    with pytest.raises(ValueError, match="^is not YAML: ") as caught:
        document.parse(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["train:\n  seed: {}\n", "train:\n  seed: [1, {}]\n", "train: {{seed: -{}}}\n"])
def test_a_number_that_is_too_long_is_an_error_with_its_key(path: Path, text: str) -> None:
    path.write_text(text.format("0x1" + "0" * 5000))
    with pytest.raises(InputError, match=r"params.yaml: is not YAML: train\.seed\S*: is a number of 20,001 bits"):
        document.read(path)


def test_aliases_that_hold_nothing_of_themselves_are_read() -> None:
    doubled = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(64))
    assert document.parse(doubled)["a1"] == [["x"], ["x"]]


def test_a_number_with_an_exponent_is_written_again_as_it_was(path: Path) -> None:
    params = changed(Params.load(path), "train.learning_rate", 7.764485409352114e-305)
    for epochs in (1, 2):  # at the second writing the number stands in the file and is no change
        params = changed(params, "train.epochs", epochs)
        write_params(form(params).model_validate(params.to_dict()), path)
        assert Params.load(path) == params


@pytest.mark.parametrize("shares", [{"matcher.joint": 10.0}, {"matcher": 0.5, "caption_encoder": 2.0}])
def test_a_mapping_is_filled_and_emptied_again_below_its_comment(path: Path, shares: dict[str, float]) -> None:
    path.write_text("train:\n  learning_rates: {}   # share of learning_rate\n  warmup_steps: 50\n")
    before, empty = path.read_text(), document.read(path)
    filled = {"train": empty["train"] | {"learning_rates": shares}}
    document.rewrite(path, filled)
    assert document.read(path) == filled
    document.rewrite(path, empty)
    assert path.read_text() == before
