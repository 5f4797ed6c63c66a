"""The run form is the documentation of the params, and what it gives reaches params.yaml."""

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

import pipelines
from pipelines import forms
from pipelines.deploy import deploy
from pipelines.forms import ParamsForm, current_params, form, write_params
from pipelines.reproduce import reproduce
from stages.errors import InputError
from stages.params import document
from stages.params.model import ModelParams
from stages.params.pipeline import Params
from stages.params.train import TrainParams


@pytest.fixture(autouse=True)
def workspace(tmp_path, monkeypatch):
    shutil.copy(Path(pipelines.__file__).parents[1] / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)


def test_the_schema_carries_types_values_and_descriptions():
    schema = form(Params()).model_json_schema()
    entry = schema["$defs"]["TrainParams"]["properties"]["checkpoint_steps"]
    assert entry["type"] == "integer"
    assert entry["default"] == TrainParams().checkpoint_steps
    assert entry["description"] == "Optimizer steps between two checkpoints for resuming."
    assert schema["properties"].keys() == Params.model_fields.keys()


def test_every_field_of_the_form_is_explained():
    schema = form(Params()).model_json_schema()
    models = [schema, *schema["$defs"].values()]
    fields = [(model["title"], name, entry) for model in models for name, entry in model["properties"].items()]
    assert len(fields) > 70
    sections = {name for name, model in schema["$defs"].items() if model["description"]}  # a section says it itself
    told = [entry.get("description") or entry.get("$ref", "").split("/")[-1] in sections for _, _, entry in fields]
    assert [(title, name) for (title, name, _), said in zip(fields, told, strict=True) if not said] == []
    assert "W[gv; gt]" in schema["$defs"]["ModelParams"]["properties"]["fusion"]["description"]  # from CampConfig


def test_the_form_says_what_a_switch_of_the_model_may_be_and_the_config_holds_to_it():
    fields = form(Params()).model_json_schema()["$defs"]["ModelParams"]["properties"]
    unlimited = {name for name, entry in fields.items() if entry["type"] in ("integer", "number")
                 and not entry.keys() & {"minimum", "enum"}}  # fmt: skip
    assert unlimited == set()
    for name, entry in fields.items():
        for allowed in (*entry.get("enum", ()), *(entry[end] for end in ("minimum", "maximum") if end in entry)):
            bare = {"gate": "none", "residual": False} if allowed == "message" else {}
            ModelParams.from_dict({name: allowed, **bare})
        for end, wrong in (("minimum", -1), ("maximum", 1)):
            if end in entry:
                with pytest.raises(InputError, match=rf"^model\.{name}: "):
                    ModelParams.from_dict({name: entry[end] + wrong})
    assert fields["hops"]["enum"] == [1, 2]


def test_what_is_left_alone_stays_as_it_is():
    before = Path("params.yaml").read_bytes()
    assert write_params(form(current_params())()) == []
    assert Path("params.yaml").read_bytes() == before


def test_what_is_given_is_written_and_comments_stay():
    before = Params.load()
    values = {"model": {"gate": "none"}, "evaluate": {"splits": ["val", "test"]}, "train": {"gate_supervision": 0}}
    given = form(current_params()).model_validate(values)
    assert sorted(write_params(given)) == ["evaluate.splits", "model.gate", "train.gate_supervision"]
    assert Params.load().model.gate == "none"
    assert Params.load().evaluate.splits == ("val", "test")
    assert Params.load().train == before.train.replace(gate_supervision=0.0)
    assert "# scalar | elementwise | none" in Path("params.yaml").read_text()


def test_what_was_edited_after_a_form_was_made_is_not_set_back():
    """As while a flow waits for another run in the workspace; it is given some params, or none."""
    made = form(current_params())
    edited = Params.load()
    document.rewrite(Path("params.yaml"), edited.replace(train=edited.train.replace(epochs=17)).to_dict())
    assert write_params(made()) == []
    assert write_params(made.model_validate({"train": {"patience": 3}})) == ["train.patience"]
    assert (Params.load().train.epochs, Params.load().train.patience) == (17, 3)
    wanted = edited.train.epochs  # given, so it is written, although it is what the form was made with
    assert write_params(made.model_validate({"train": {"epochs": wanted}})) == ["train.epochs"]
    given = reproduce.validate_parameters({"params": {"train": {"patience": 4}}, "stages": []})["params"]
    assert write_params(given) == ["train.patience"] and write_params(ParamsForm()) == []


def test_wrong_values_change_nothing():
    before = Path("params.yaml").read_bytes()
    with pytest.raises(ValidationError, match="gaet"):
        form(current_params()).model_validate({"model": {"gaet": "none"}})
    with pytest.raises(ValidationError, match="model.gate: 'open' is not one of scalar, elementwise, none"):
        form(current_params()).model_validate({"model": {"gate": "open"}})
    assert Path("params.yaml").read_bytes() == before


def test_a_form_that_was_made_without_the_files_values_does_not_replace_them(monkeypatch):
    """params.yaml was wrong when this was imported, and has been mended since."""
    before = Path("params.yaml").read_bytes()
    monkeypatch.setattr(forms, "_PARAMS_ERROR", InputError("params.yaml: train.epochs: -2 is below 0"))
    with pytest.raises(InputError, match=r"params\.yaml: train\.epochs: -2"):
        write_params(Params())
    assert Path("params.yaml").read_bytes() == before


def test_a_form_of_wrong_values_is_not_deployed():
    Path("params.yaml").write_text("train: {epochs: -2}\n")
    with pytest.raises(InputError, match=r"params\.yaml: train\.epochs: -2 is below 0"):
        deploy("camp", "process", Path("prefect.yaml"))


def test_a_value_that_is_a_mapping_is_written_as_it_is_in_the_form():
    """What it had and the form lacks goes, too."""
    for rates in ({"region_encoder": 8.0, "matcher.joint": 50.0}, {"matcher.joint": 50.0}, {}, {"region_encoder": 2.0}):
        given = form(current_params()).model_validate({"train": {"learning_rates": rates}})
        assert write_params(given) == ["train.learning_rates"]
        assert Params.load().train.learning_rates == rates
