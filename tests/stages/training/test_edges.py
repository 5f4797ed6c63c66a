"""Numbers that params allow, but no training can compute with."""

import pytest

from stages.training.data import steps_per_epoch
from stages.training.loop import TrainingError


def test_before_any_weight_has_changed_no_learning_rate_is_to_blame(make_data, params, run_train):
    with pytest.raises(TrainingError, match=r"the loss of step 1 is not finite; no weight has changed yet; .*fp32 can"):
        run_train(params(loss="triplet", margin=1e39), make_data(images=12))


def test_the_largest_rates_end_with_the_step(make_data, params, run_train):
    """Not with AdamW's own error, that a value is too large for its type."""
    rates = {"learning_rate": 1e10, "learning_rates": {"matcher": 1e10}, "weight_decay": 1e10}
    with pytest.raises(TrainingError, match=r"of step [2-9] is not finite; a lower train\.learning_rate"):
        run_train(params(**rates), make_data(images=24))


def test_an_epoch_has_a_step_however_large_a_batch_may_be():
    assert steps_per_epoch(60, 10**400, 1) == steps_per_epoch(60, 60, 1) == 1
