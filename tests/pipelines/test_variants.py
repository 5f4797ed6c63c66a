"""What is known of variants before one of them runs."""

import subprocess
import threading
from argparse import ArgumentTypeError
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipelines.experiments import _names
from pipelines.variants import SharedInputs, grid_of, name_for_git, variants_of
from stages.errors import InputError
from stages.params import document
from stages.params.pipeline import Params


@pytest.mark.parametrize("text", ['{"model.gate": ["none"', '["none"]', "model.gate=none"])
def test_a_grid_that_is_no_json_is_an_error_that_shows_one(text):
    with pytest.raises(ArgumentTypeError, match=r"expected \{\"model\.pooling\": \["):
        grid_of(text)


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
