"""Equal trainings leave equal files, and a damaged one is never gone on with."""

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from camp_model.captions import CaptionTable
from stages.tracking import training_run_of
from stages.training.resume import Resume
from tests.stages.stores import rewrite_captions, rewrite_store


def files_of(*folders: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()}


def test_two_trainings_leave_the_same_bytes(make_data, params, run_train, tmp_path, monkeypatch) -> None:
    """Tracked, each in a repository of its own."""
    monkeypatch.setenv("CAMP_TRACKING", "on")
    monkeypatch.setattr("stages.tracking._deliver", lambda *_: None)  # nobody delivers: the run stays in the spool
    results = []
    for name in ("first", "second"):
        paths = make_data(name)
        (tmp_path / name / ".dvc").mkdir()
        monkeypatch.chdir(tmp_path / name)
        run_train(params(), paths)
        results.append(files_of(paths.model, paths.metrics.parent, paths.plots))
        (run,) = Path(".tracking/spool").iterdir()
        assert [path.read_text() for path in Path(".tracking/trained").iterdir()] == [run.name]
        assert training_run_of(paths.model) == run.name
    first, second = results
    assert {"model.safetensors", "config.json", "vocabulary.json", "fingerprint.json", "train.json"} < set(first)
    assert {name for name in first if first[name] != second[name]} == set()
    assert set(first) == set(second)


def test_the_order_the_shards_and_the_ids_of_images_change_no_weight(make_data, params, run_train) -> None:
    plain, other = make_data("plain", images=20, val_images=10), make_data("other", images=20, val_images=10)
    rewrite_store(other.regions, np.random.default_rng(0).permutation(30).tolist(), 7, "other {}".format)
    for split in ("train", "val"):
        table = other.captions / f"{split}.parquet"
        rewrite_captions(table, range(len(CaptionTable.load(table))), "other {}".format)
    for paths in (plain, other):
        run_train(params(), paths)
    assert (other.plots / "train_loss.csv").read_text() == (plain.plots / "train_loss.csv").read_text()
    expected, found = (load_file(paths.model / "model.safetensors") for paths in (plain, other))
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())


def test_a_state_with_a_changed_byte_starts_anew(make_data, params, run_train, capsys, monkeypatch) -> None:
    expected = make_data("whole")
    run_train(params(), expected)
    paths = make_data()
    with monkeypatch.context() as patch:
        patch.setattr(Resume, "clear", lambda self: None)
        run_train(params(), paths)
    (state,) = paths.work.glob("*/state.safetensors")
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    os.utime(state, (0, 0))  # however old it is
    capsys.readouterr()
    run_train(params(), paths)
    assert "state.safetensors: is damaged" in capsys.readouterr().out
    assert files_of(paths.model) == files_of(expected.model)
