import itertools

import pytest

from stages.params.train import TrainParams
from stages.training.loss import candidates
from stages.training.schedule import learning_rate, schedule_warnings

NEVER = "the hardest of all negatives is never looked for"


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


def test_a_single_step_of_a_cosine_has_its_rate():
    assert learning_rate(TrainParams(epochs=1, schedule="cosine", learning_rate=0.1), 0, 1) == 0.1


def test_cosine_after_a_warm_up():
    values = rates(range(40), schedule="cosine", epochs=4, warmup_steps=8)
    assert values[7] == 1.0 and values[23] == pytest.approx(0.5) and values[39] == pytest.approx(0.0)


def test_a_warm_up_takes_a_quarter_of_all_steps_at_most():
    values = rates(range(40), schedule="cosine", epochs=4, warmup_steps=80)
    assert values[4] == 0.5 and values[9] == 1.0 and values[24] == pytest.approx(0.5) and values[39] < 1e-9
    assert rates([0], epochs=1, warmup_steps=10)[0] == 0.5, "two of ten steps"
    params = TrainParams(learning_rate=1.0, epochs=1, warmup_steps=50)
    assert [learning_rate(params, 0, steps) for steps in (1, 3)] == [1, 1], "no room for any"


def test_the_curriculum_goes_from_one_negative_to_all_by_a_power_of_the_batch():
    params = TrainParams(batch_size=64, random_negative_steps=2, curriculum_steps=3)
    assert [candidates(params, step) for step in range(7)] == [1, 1, 1, 4, 16, 0, 0], "0: the hardest of all"
    assert [candidates(TrainParams(batch_size=64, curriculum_steps=2), step) for step in range(3)] == [1, 8, 0]
    assert [candidates(TrainParams(random_negative_steps=1), step) for step in range(2)] == [1, 0]
    assert candidates(TrainParams(), 0) == 0


def test_the_curriculum_ends_with_all_negatives_of_a_part_where_parts_are_searched():
    params = TrainParams(batch_size=200, mining_batch=128, curriculum_steps=2)
    assert [candidates(params, step) for step in range(3)] == [1, 10, 0], "two parts of 100 pairs"
    assert candidates(params.replace(mining_batch=200), 1) == candidates(params.replace(mining_batch=0), 1) == 14


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"warmup_steps": 10, "curriculum_steps": 19, "random_negative_steps": 20}, []),
        ({"warmup_steps": 50}, ["train.warmup_steps: 50 of 40 steps in all; the warm-up takes 10, a quarter"]),
        ({"curriculum_steps": 40}, ["train.curriculum_steps: 40 of 40 steps in all; " + NEVER]),
        ({"random_negative_steps": 400}, ["train.random_negative_steps: 400 of 40 steps in all; " + NEVER]),
        ({"random_negative_steps": 20, "curriculum_steps": 20},
         ["train.random_negative_steps and train.curriculum_steps: 40 of 40 steps in all; " + NEVER]),
        ({"loss": "bce", "curriculum_steps": 5},
         ["train.curriculum_steps: 5 steps do nothing: train.loss bce has all negatives in every step"]),
        ({"loss": "triplet", "all_negatives_epochs": 4},
         ["train.all_negatives_epochs: 4 of 4 epochs in all; the hardest negative is never looked for"]),
    ],
)  # fmt: skip
def test_what_a_training_is_too_short_for_is_said(values, said):
    assert list(schedule_warnings(TrainParams(epochs=4, **values), steps_per_epoch=10)) == said
