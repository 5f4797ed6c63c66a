"""What is known of variants before one of them runs."""

import json
import shutil
import subprocess
import threading
import time
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides

from pipelines.experiments import _names
from pipelines.variants import SharedInputs, grid_of, name_for_git, override_params, set_param, variants_of
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params
from stages.tracking.machine import uncommitted_changes
from tests.pipelines.conftest import ROOT


@pytest.mark.parametrize("text", ['{"model.gate": ["none"', '["none"]', "model.gate=none"])
def test_a_grid_that_is_no_json_is_an_error_that_shows_one(text):
    with pytest.raises(ArgumentTypeError, match=r"expected \{\"model\.pooling\": \["):
        grid_of(text)


@pytest.mark.parametrize(
    "text",
    ['{"train.seed": [0], "model.gate": ["none"], "train.seed": [2]}', '{"a": [{"train.seed": 1, "train.seed": 2}]}'],
)
def test_a_grid_with_a_key_twice_is_refused(text):
    with pytest.raises(ArgumentTypeError, match=r"train\.seed: is there twice; expected it once"):
        grid_of(text)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        ({"model": {"dim": 64}}, r"model: is a whole section; expected keys of it with dots, such as model\.word_dim"),
        ({"dataset.scenes": {"val": 3}}, r"dataset\.scenes: is a whole section; .* such as dataset\.scenes\.train"),
        ({"train": None}, "train: is a whole section"),
    ],
)
def test_a_section_is_not_set_as_a_whole(overrides, why):
    """All its other keys would become the defaults of the classes."""
    with pytest.raises(InputError, match=why):
        override_params(Params(), overrides)
    assert override_params(Params(), {"train.learning_rates": {"matcher": 2}}).train.learning_rates == {"matcher": 2}


def test_no_variant_takes_the_place_of_another():
    with pytest.raises(InputError, match=r"grid: \{'train\.seed': 0\} and \{'train\.seed': '0'\} are both seed-0"):
        variants_of({"train.seed": [0, "0"]})


@pytest.mark.parametrize(
    "values",
    [
        {"train.start_from": ["../other/models/first"]},
        {"train.word_vectors": ["vectors.lock"]},
        {"train.start_from": [".hidden/.5.", "..."]},
        {"train.freeze": [[f"caption_encoder.layer.{number}." for number in range(20)]]},
    ],
)
def test_git_accepts_the_name_of_every_experiment(values, tmp_path):
    """As a ref below refs/exps, where DVC keeps it."""
    for command in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm1", "--allow-empty"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    for variant in variants_of(values):
        ref = f"refs/exps/ab/cdef/{name_for_git('sweep', '0123456789', variant)}"
        subprocess.run(["git", "-C", str(tmp_path), "update-ref", ref, "HEAD"], check=True)
    assert name_for_git("sweep", "0123456789", "learning_rate-0.001") == "sweep-01234567-learning-rate-0.001"


def test_an_experiment_has_another_name_once_a_file_that_its_params_name_holds_something_else(repository):
    """Else a sweep would give the results of what lay there before. DVC sees a path alone, of params.yaml too."""
    Path("dvc.yaml").write_text("stages:\n  train: {cmd: python train.py, params: [train], outs: [train.txt]}\n")
    Path("models").mkdir()
    for name in ("first", "second"):
        Path("models", name).write_text("as trained")
    variants = variants_of({"train.start_from": ["models/first", "models/second"]})

    def names_now():
        return _names("sweep", variants, None)[:2]

    before, key = names_now()
    assert names_now() == (before, key)
    Path("models/first").write_text("trained again")
    after, other_key = names_now()
    assert [after[name] != before[name] for name in variants] == [True, False]
    assert other_key != key
    params = Params.load()
    present = params.replace(evaluate=params.evaluate.replace(ensemble=["models/second"]))
    document.rewrite(Path("params.yaml"), present.to_dict())
    before, _ = names_now()
    Path("models/second").write_text("trained again")
    assert not set(names_now()[0].values()) & set(before.values())
    Path("models/second").unlink()
    with pytest.raises(InputError, match=r"start_from-models/first: .*evaluate\.ensemble\[0\]: models/second"):
        names_now()


def test_a_changed_file_of_any_encoding_counts(repository):
    Path("words.txt").write_bytes(b"caf\xc3\xa9\n")
    subprocess.run(["git", "add", "words.txt"], check=True)
    seen = set()
    for content in (b"caf\xc3\xa9\n", b"caf\xe9\n", b"\0\1", b"\0\2"):
        Path("words.txt").write_bytes(content)
        seen.add(SharedInputs.of([]).sha256)
    assert len(seen) == 4
    before = SharedInputs.of([])
    subprocess.run(["git", "commit", "-qam", "as it is"], check=True)
    before.check("any")  # a commit alone changes nothing
    Path("notes.md").write_text("new")
    before.check("any")
    Path("words.txt").unlink()
    with pytest.raises(InputError, match=r"any: code or params have changed since.*: \['words\.txt'\]; "):
        before.check("any")


def test_a_change_in_the_second_in_which_git_read_the_file_counts(repository):
    """DVC rewrites params.yaml then, as it restores a person's changes; git looks at seconds, and here at no size."""
    params, before = Path("params.yaml"), SharedInputs.of([])
    content, new = params.read_bytes(), Path("stages/new.py")
    new.parent.mkdir()
    new.touch()
    while not 0.1 < time.time() % 1 < 0.3:
        time.sleep(0.05)
    params.write_bytes(content)
    subprocess.run(["git", "add", "params.yaml"], check=True)
    params.write_bytes(content.replace(b"patience: 5", b"patience: 4"))
    time.sleep(1)
    assert b"+  patience: 4" in uncommitted_changes()
    with pytest.raises(InputError, match=r"have changed since.*: \['params\.yaml'\]; "):
        before.check("any")


def test_the_params_that_dvc_writes_here_while_it_begins_another_experiment_are_no_change(repository):
    before = SharedInputs.of([])
    params = Path("params.yaml")
    content = params.read_bytes()

    def restore(lock):
        params.write_bytes(content)
        lock.unlock()

    with Repo() as repo:
        repo.lock.lock()
        params.write_bytes(content + b"# of another experiment\n")
        timer = threading.Timer(0.5, restore, [repo.lock])
        timer.start()
        before.check("any")
        timer.join()


def test_variants_of():
    assert variants_of({"model.gate": ["none"], "train.seed": [0, 1]}) == {
        "gate-none-seed-0": {"model.gate": "none", "train.seed": 0},
        "gate-none-seed-1": {"model.gate": "none", "train.seed": 1},
    }
    with pytest.raises(InputError, match=r"model\.gate"):
        variants_of({"model.gate": []})
    kinds = variants_of({"train.foil_kinds": [["count"], ["count", "relation"]], "train.start_from": ["models/a b"]})
    assert list(kinds) == ["foil_kinds-count-start_from-models/a_b", "foil_kinds-count_relation-start_from-models/a_b"]


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "value",
    [
        {},
        {"caption_encoder.transformer": 0.02, "matcher.messages": 3},
        {"a: b, {c}": [1, {"d": None}]},
        ["a.b", 'say "no"', "back\\slash", '\\"', "at the end\\", "é", ""],
        None,
        True,
        -1e-5,
        "gru",
    ],
)
@pytest.mark.parametrize("before", [{"learning_rates": {"matcher.joint": 10}}, {"learning_rates": [1]}, {}])
def test_an_experiment_gets_the_very_value_whatever_stood_there(value, before, tmp_path, monkeypatch):
    """As DVC reads the arguments, whose own way with a mapping is to merge it with what is there, and with a key that
    params.yaml leaves out to refuse it."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps({"train": {**before, "epochs": 3}}))
    given = set_param("train.learning_rates", value)
    assert given[::2] == ["--set-param"] * (len(given) // 2)
    (overrides,) = to_path_overrides(given[1::2]).values()
    apply_overrides("params.yaml", overrides)
    expected = {"epochs": 3} if value == {} else {"learning_rates": value, "epochs": 3}
    assert document.read(Path("params.yaml")) == {"train": expected}


def test_an_experiment_empties_a_mapping_of_params_yaml(tmp_path, monkeypatch):
    """Of one over several lines, DVC would leave a `{}` below the key's comment, where it is no YAML."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    wanted = Params.load()
    assert wanted.train.learning_rates == Params().train.learning_rates == {}
    params = wanted.replace(train=wanted.train.replace(learning_rates={"matcher": 2.0}))
    document.rewrite(Path("params.yaml"), params.to_dict())
    assert Params.load() == params
    (overrides,) = to_path_overrides(set_param("train.learning_rates", {})[1::2]).values()
    apply_overrides("params.yaml", overrides)
    assert Params.load() == wanted
