import itertools

import pytest

from stages.params.train import TrainParams
from stages.training.schedule import learning_rate


def rates(steps, **values):
    params = TrainParams(learning_rate=1.0, **values)
    return [learning_rate(params, step, steps_per_epoch=10) for step in steps]


def test_warm_up_rises_to_the_full_rate():
    assert rates(range(5), schedule="constant", warmup_steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_step_takes_a_tenth_every_few_epochs():
    assert rates([0, 19, 20, 39, 40], schedule="step", step_epochs=2) == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_cosine_ends_at_zero_and_is_half_in_the_middle():
    values = rates(range(40), schedule="cosine", epochs=4)
    assert values[19] == pytest.approx(0.5) and values[-1] == pytest.approx(0.0)
    assert all(a > b for a, b in itertools.pairwise(values))


def test_cosine_after_a_warm_up():
    values = rates(range(40), schedule="cosine", epochs=4, warmup_steps=20)
    assert values[19] == 1.0 and values[29] == pytest.approx(0.5) and values[39] == pytest.approx(0.0)


def test_a_warm_up_longer_than_the_training_is_harmless():
    assert rates([39], schedule="cosine", epochs=4, warmup_steps=80) == [0.5]
