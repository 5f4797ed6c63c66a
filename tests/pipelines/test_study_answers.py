"""The sentences of a study's page, about outcomes that are made up."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.ablation import STUDY
from pipelines.study import Difference, Study, spread
from pipelines.study_answers import (
    BELIEFS,
    CLAIMS,
    _verdict_text,
    answers,
    conclusions,
    count_untrained_seeds,
    title,
)
from tests.pipelines.test_study import outcome


def study_of(outcomes):
    return Study(outcomes, {name: name.upper() for name in outcomes}, [0], {}, "made up", "0", None, None)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "The full model"),
        (["counts"], "The full model"),
        (["cosine-bce"], "Question 3 of the paper's five"),
        (["no-gates", "scan"], "Questions 1 and 5 of the paper's five"),
        (["scan", "no-residual", "cosine-bce", "warm-up", "no-gates"], "The paper's five questions"),
    ],
)
def test_a_page_is_named_after_the_questions_that_its_rows_answer(rows, said):
    assert title(study_of({name: [outcome(4)] for name in ("full", *rows)})) == said


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (Difference(3.0, 0.06, 6.0), "better by +3.0 [+0.1, +6.0] rsum"),
        (Difference(-3.0, -6.0, -0.5), "worse by +3.0 [+0.5, +6.0] rsum"),
        # On the page, an interval that contains 0 means not significant, and its reader sees the printed numbers.
        (Difference(3.0, 0.04, 6.0), "not significantly different (+3.0 [+0.0, +6.0] rsum)"),
        (Difference(-3.0, -6.0, -0.04), "not significantly different (-3.0 [-6.0, +0.0] rsum)"),
        (Difference(-0.04, -3.1, 3.0), "not significantly different (+0.0 [-3.1, +3.0] rsum)"),
    ],
)
def test_what_is_said_of_a_difference_is_what_its_printed_interval_allows(difference, said):
    assert _verdict_text(difference) == said


def test_the_best_peer_is_named_where_several_are_better():
    outcomes = {"full": [outcome(8)], "scan": [outcome(2)], "joint-embedding": [outcome(7)]}
    said = "*SCAN* has the highest rsum: the full model is worse by +90.0 [+"
    assert said in conclusions(study_of(outcomes))[1]


def test_each_question_is_answered_by_its_own_rows():
    gates = {f"gate_{kind}_mean": value for kind, value in (("positive", 0.9), ("negative", 0.2), ("hardest", 0.4))}
    outcomes = {
        "full": [outcome(4, **gates)], "scan": [outcome(8)], "cosine-bce": [outcome(4)],
        "gates-open": [outcome(2, **gates)], "no-gates": [outcome(6)],
    }  # fmt: skip
    said = answers(study_of(outcomes))
    foils = [f"- *{name}*: the true caption beats its foil in 82.0 % of cases" for name in ("FULL", "SCAN")]
    gated = [
        f"- *{name}*: mean word gate 0.900 on matching pairs, 0.200 on random negatives, 0.400 on the hardest"
        for name in ("FULL", "GATES-OPEN")
    ]
    lines = [[line.split(" by ")[0] for line in section.splitlines() if line.startswith("-")] for section in said]
    assert [section[:6] for section in said] == ["### 1.", "### 2.", "### 3.", "### 5."]
    assert lines == [
        ["- against *SCAN*: the full model is better", *foils],
        ["- against *GATES-OPEN*: the full model is not significantly different (-30.0 [-75.0, +0.0] rsum)", *gated],
        ["- against *COSINE-BCE*: the full model is not significantly different (+0.0 [+0.0, +0.0] rsum)"],
        ["- against *NO-GATES*: the full model is not significantly different (+30.0 [+0.0, +75.0] rsum)",
         "- against *GATES-OPEN*: the full model is not significantly different (-30.0 [-75.0, +0.0] rsum)", *gated],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rsums", "slow", "said"),
    [
        ([60.0, 120.0], 0, ""),
        ([59.9, 60.0], 1, " (1 of 2 seeds without it hardly learnt, the best reached 60.0)."),
        ([59.9, 30.0], 2, " (2 of 2 seeds without it hardly learnt)."),
        ([200.0, 100.0], 0, ""),
        ([200.0, 99.0], 1, " (1 of 2 seeds without it hardly learnt, the best reached 200.0)."),
    ],
)
def test_what_hardly_learnt_is_below_a_tenth_of_everything_or_half_of_the_best(rsums, slow, said):
    outcomes = {"full": [outcome(4)] * 2, "no-gates": [replace(outcome(4), recall={"rsum": rsum}) for rsum in rsums]}
    assert count_untrained_seeds(study_of(outcomes), "no-gates") == slow
    _, line = conclusions(study_of(outcomes))
    assert line.endswith(" rsum, which is not significant" + (said or ".") + "\n")


@pytest.mark.parametrize(
    ("areas", "less"),
    [
        ([0.96, 0.95], "."),
        ([0.5, 0.9], "."),
        ([0.49, 0.9], "; with 1 of 2 seeds they open less on matching pairs."),
        ([0.02], "; with 1 of 1 seeds they open less on matching pairs."),
    ],
)
def test_unsupervised_gates_are_only_said_to_open_less_where_they_do(areas, less):
    means = {"gate_positive_mean": 0.951, "gate_negative_mean": 0.46}
    gated = [outcome(4, **means, gate_auc=area) for area in areas]
    outcomes = {"full": [outcome(4)] * len(areas), "published-gates": gated}
    said = conclusions(study_of(outcomes))[1].splitlines()[-1]
    worth, gates = said.split(". Gates without", maxsplit=1)
    assert worth.startswith("- Supervision of the gates is worth ") and worth.endswith(
        " rsum, which is not significant"
    )
    assert gates.startswith(" supervision have a mean of 0.951") and "of 0.460" in gates
    deviation = f" ± {np.std(areas, ddof=1):.3f}" if len(areas) > 1 else ""
    assert said.endswith(f"on random ones, AUC {np.mean(areas):.3f}{deviation}{less}")


@pytest.mark.parametrize("lacks", [("counts", "count"), ("counts", "relation"), ("full", "count")])
def test_counts_and_places_are_only_spoken_of_where_both_kinds_of_foils_were_asked(lacks):
    shares = {kind: {"true_first_balanced": 55.0} for kind in ("count", "relation")}
    outcomes = {row: [replace(outcome(4), foils=shares)] for row in ("full", "counts")}
    assert "with another relation in 55.0" in "".join(conclusions(study_of(outcomes)))
    row, kind = lacks
    outcomes[row] = [replace(outcome(4), foils={other: shares[other] for other in shares if other != kind})]
    assert conclusions(study_of(outcomes)) == []


def test_what_we_believe_is_ten_lines_that_have_every_claim_once():
    believed = [key for line in BELIEFS for key in line]
    assert len(BELIEFS) == 10 and len(set(believed)) == len(believed) and {*CLAIMS} <= {*believed}
    outcomes = {name: [outcome(4), outcome(8)] for name in STUDY}
    said = conclusions(study_of(outcomes))[1].splitlines()
    assert all(line.startswith("- ") and ", +" in line for line in said)  # each with the interval that it stands on
    assert all(any(f"{claim} +" in line for line in said) for claim in CLAIMS.values())


def test_a_number_that_one_seed_lacks_has_no_mean():
    assert spread([1.0, None]) is None and spread([]) is None
    assert spread([3.0]) == (3.0, None)
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(np.sqrt(2)))
