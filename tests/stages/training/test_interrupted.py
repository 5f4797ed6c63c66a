"""What interrupts a training outside its steps: damage of its best weights, and SIGTERM during a validation."""

import pytest

from camp_model.checkpoint import load_checkpoint
from stages.training import loop
from stages.training.loop import Stopped
from tests.stages.training.killing import EVERYTHING, Killed, kill_after

EPOCH_STEPS = 3


@pytest.mark.parametrize("damage", ["torn weights", "other bytes", "no vocabulary"])
def test_a_state_whose_best_weights_are_damaged_starts_anew_and_says_so(damage, make_data, params, run_train, capsys):
    """Otherwise they would be published when training ends, long after."""
    paths = make_data(images=15)
    with pytest.raises(Killed):
        run_train(params(**EVERYTHING), paths, stop=kill_after(8))
    (best,) = paths.work.glob("*/best-*")
    weights = best / "model.safetensors"
    content = weights.read_bytes()
    if damage == "no vocabulary":
        (best / "vocabulary.json").write_text("")
    else:
        weights.write_bytes(content[:-10] if damage == "torn weights" else content[:-10] + bytes(10))
    run_train(params(**EVERYTHING), paths)
    printed = capsys.readouterr().out
    assert str(best) in printed and f"which {best.parent / 'state.safetensors'} needs; training starts over" in printed
    assert "continuing" not in printed
    load_checkpoint(paths.model)


def test_sigterm_ends_a_validation_and_loses_no_step(make_data, params, run_train, capsys, monkeypatch):
    """The last step of an epoch is not saved by itself; a validation may take hours."""
    paths, settings = make_data(images=15), EVERYTHING | {"checkpoint_steps": 1000}
    whole = make_data("whole", images=15)
    run_train(params(**settings), whole)
    asked = []

    def during_validation():
        """Asked after each step of the first epoch, and then while pairs are scored."""
        asked.append(None)
        return len(asked) > EPOCH_STEPS

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(loop, "ASK_SECONDS", 0.0)
        run_train(params(**settings), paths, stop=during_validation)
    capsys.readouterr()
    run_train(params(**settings), paths)
    assert f"continuing after step {EPOCH_STEPS} of" in capsys.readouterr().out
    for name in ("train_loss.csv", "val_recall.csv"):
        assert (paths.plots / name).read_bytes() == (whole.plots / name).read_bytes()
