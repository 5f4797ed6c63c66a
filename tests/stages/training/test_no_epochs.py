"""With train.epochs: 0 a checkpoint is kept as it is, and measured."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from camp_model.checkpoint import load_checkpoint
from stages.errors import InputError


@pytest.fixture
def trained(make_data, params, run_train, tmp_path):
    """The paths of a training whose model has become models/first."""
    paths = make_data()
    run_train(params(epochs=2), paths)
    paths.model.rename(tmp_path / "first")
    return paths


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.9, "warmup_steps": 9, "validation_share": 0.5}])
def test_the_checkpoint_is_measured_as_its_training_measured_it(trained, params, run_train, tmp_path, capsys, more):
    expected = json.loads(trained.metrics.read_text())
    capsys.readouterr()
    for _ in range(2):  # the second time, the model is there
        run_train(params(epochs=0, start_from=str(tmp_path / "first"), learning_rate=1.0, **more), trained)
    shown = capsys.readouterr()
    assert f"epoch 0: val rsum {expected['val_rsum']:.1f}" in shown.out or more
    assert "warmup" not in shown.out and "step" not in shown.err
    weights, kept = (load_checkpoint(folder)[0].state_dict() for folder in (tmp_path / "first", trained.model))
    assert weights.keys() == kept.keys() and all(torch.equal(weights[name], kept[name]) for name in weights)

    measured = json.loads(trained.metrics.read_text())
    assert (measured["best_epoch"], measured["epochs"], measured["steps"]) == (0, 0, 0)
    assert "train_loss" not in measured
    values = {name for name in expected if name.startswith("val_")}
    assert {name: measured[name] for name in values} == {name: expected[name] for name in values}
    with (trained.plots / "val_recall.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0"]
    assert (trained.plots / "train_loss.csv").read_text().split() == ["step,loss"]


def test_the_loss_and_the_cut_that_the_checkpoint_was_trained_with_are_recorded(trained, params, run_train, tmp_path):
    fingerprint = tmp_path / "first" / "fingerprint.json"
    recorded = {"loss": "triplet", "joint_weight": 0.5, "max_words": 7}
    for facts in (recorded, {}):  # {}: of a model that records none
        fingerprint.write_text(json.dumps(facts))
        run_train(params(epochs=0, start_from=str(tmp_path / "first")), trained)
        kept = json.loads((trained.model / "fingerprint.json").read_text())
        assert {name: kept[name] for name in recorded if name in kept} == facts


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"pooling": "mean"}, r"model\.pooling attention, here mean"),
        ({"dim": 24}, r"model\.dim 16, here 24"),
        ({"joint_score": True}, r"model\.joint_score False, here True"),
    ],
)
def test_a_model_that_would_not_be_the_checkpoints_is_refused(trained, params, run_train, tmp_path, switches, says):
    other = params(epochs=0, start_from=str(tmp_path / "first"))
    other = other.replace(model=other.model.replace(**switches))
    with pytest.raises(InputError, match=rf"epochs: 0 keeps .*first as it is, .* with {says}; expected the same"):
        run_train(other, trained)
    assert not trained.model.exists()


def test_captions_of_the_other_kind_are_refused_and_told_of_where_training_goes_on(
    trained, params, run_train, tmp_path, capsys
):
    fingerprint = tmp_path / "first" / "fingerprint.json"
    fingerprint.write_text(json.dumps({"start_end": True}))
    with pytest.raises(InputError, match=r"with captions\.start_end true, here false; expected the same in params"):
        run_train(params(epochs=0, start_from=str(tmp_path / "first")), trained)
    run_train(params(epochs=1, start_from=str(tmp_path / "first")), replace(trained, model=tmp_path / "second"))
    assert "first: was trained with captions.start_end true, here false" in capsys.readouterr().out
