"""Tunes the learning rate of each row of a study: trains it with several, and selects the best on validation."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.study import Outcome, difference_of
from pipelines.study_answers import interval
from pipelines.summary import table
from stages.errors import InputError

RATE = "train.learning_rate"
Rated = Mapping[str, Mapping[float, Outcome]]
"""Variant -> multiple of the learning rate -> outcome of a training with it; 1 is the study's own rate."""


def with_rates(
    variants: Mapping[str, Mapping[str, Any]], multiples: Sequence[float], rate: float, base: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Combine each variant with multiples of its learning rate: {"full-x0.5": {..., "train.learning_rate": ...}, ...}.

    Args:
        variants: name -> the params that it changes, as dotted keys.
        multiples: factors of the learning rate that a variant would otherwise have.
        rate: the learning rate of params.yaml.
        base: params set for all variants; variants override them.

    Raises:
        InputError: two of them, or one and a variant, would have the same name, and one would not be trained.
    """
    rated: dict[str, dict[str, Any]] = {}
    for name, overrides in variants.items():
        for multiple in multiples:
            if (of_rate := f"{name}-x{multiple:g}") in rated or of_rate in variants:
                raise InputError(
                    f"rates: {multiple}: {of_rate} is there twice; expected rates that differ in six digits"
                )
            rated[of_rate] = {**overrides, RATE: multiple * {RATE: rate, **base, **overrides}[RATE]}
    return rated


def rates_markdown(rated: Rated, labels: Mapping[str, str], seed: int) -> str:
    """A table of each row's rsum with each learning rate, and the full model's difference to it, each at its best rate.

    Args:
        rated: outcomes of `full` and other rows.
        labels: labels of the rows.
        seed: the seed of all these trainings.
    """
    multiples = sorted({multiple for outcomes in rated.values() for multiple in outcomes})
    best = {name: max(outcomes, key=lambda multiple: outcomes[multiple].val_rsum) for name, outcomes in rated.items()}
    rows = []
    for name, outcomes in rated.items():
        chosen = outcomes[best[name]]
        rows.append({
            "model": labels[name],
            **{f"val, x {multiple:g}": f"{outcomes[multiple].val_rsum:.1f}" for multiple in multiples},
            "best": f"x {best[name]:g}",
            "test rsum": f"{chosen.recall['rsum']:.1f}",
            "full minus this, rsum":
                "" if name == "full" else interval(difference_of([rated["full"][best["full"]]], [chosen])),
        })  # fmt: skip
    return (
        "## Each row's own learning rate\n\n"
        f"Seed {seed}, also trained with other learning rates: validation rsum for each multiple of the one above, and "
        "the test rsum of the best on validation. The interval is over images only, because there is one seed. If the "
        "best multiple is the lowest or highest one, a rate beyond it may be better.\n\n" + table(rows)
    )
