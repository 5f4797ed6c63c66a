"""Conclusions from a study's numbers: answers to the paper's five questions, and what we now believe."""

from collections.abc import Sequence

from pipelines.study import Difference, Outcome, Study, difference_of, spread

PEERS = (
    "joint-embedding",
    "scan",
    "scan-image-to-text",
    "scan-both",
    "vse-infinity",
    "sgraf-saf",
    "sgraf-sgr",
    "sgraf-both",
)
QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Messages between words and regions improve fine-grained alignment",
        ("no-messages", "no-messages-large", "image-to-text", "text-to-image", *PEERS),
    ),
    (
        "Irrelevant and mismatched features are suppressed",
        ("no-residual", "gate-context", "gates-unapplied", "gates-open", "gates-of-another", "published-gates"),
    ),
    ("A score learnt from fused features beats similarity in a joint space", ("cosine-bce", "cosine-ranking")),
    (
        "Hardest-negative BCE beats the ranking loss",
        ("mlp-ranking", "all-negatives", "as-encoded", "no-curriculum", "warm-up"),
    ),
    (
        "Adaptive gates beat fixed fusion",
        ("no-gates", "gates-unapplied", "gates-open", "gates-of-another", "elementwise-gates"),
    ),
)
MIN_TRAINED_RSUM = 60.0
"""A model with an rsum below this has hardly begun to learn: a tenth of the maximum."""
TESTED_DIFFERENTLY = ("gates-open", "gates-of-another")
"""Rows that test the full model's own training differently: their scores say nothing about how training went."""
CLAIMS: dict[str, str] = {
    "no-messages": "Messages are worth",
    "no-messages-large": "Messages, against as many parameters without them, are worth",
    "no-gates": "Gates, supervised as in the full model, are worth",
    "gates-unapplied": "Gates that are applied, against gates that are only supervised, are worth",
    "gates-open": "Gates of a trained model, against the same held open, are worth",
    "gates-of-another": "Gates of a trained model, against those of another pair, are worth",
    "published-gates": "Supervision of the gates is worth",
    "elementwise-gates": "One gate for a vector, against one for each of its channels, is worth",
    "cosine-bce": "A learnt score, against a cosine, is worth",
    "mlp-ranking": "Cross-entropy of the hardest negatives, against the ranking loss, is worth",
    "as-encoded": "Giving all regions and words the same length before messages and gates is worth",
    "no-curriculum": "Beginning on easier negatives is worth",
    "joint-term": "Not training a joint embedding, which an index needs, on the same encoders is worth",
}
"""Row -> what the difference between the full model and this row measures, as the start of a sentence."""
BELIEFS: tuple[tuple[str, ...], ...] = (
    ("no-messages", "no-messages-large"),
    ("no-gates", "gates-unapplied"),
    ("gates-open", "gates-of-another"),
    ("published-gates", "unsupervised gates"),
    ("elementwise-gates",),
    ("cosine-bce", "mlp-ranking"),
    ("as-encoded", "no-curriculum"),
    ("joint-term", "encoders taught"),
    ("best peer",),
    ("counts",),
)
"""Each line of what we believe: the claims, and the sentences of `conclusions`, on one subject."""
ENCODERS_TAUGHT = ("published-gates-joint-term", "no-gates-joint-term")
"""Rows with and without gates; both also train a joint embedding, an extra signal for the encoders alone."""


def title(study: Study) -> str:
    """Names the questions that the study's rows answer."""
    rows = study.differences.keys()
    asked = [str(number) for number, (_, names) in enumerate(QUESTIONS, start=1) if rows & {*names}]
    if len(asked) == len(QUESTIONS):
        return "The paper's five questions"
    if not asked:
        return "The full model"
    return f"Question{'s' * (len(asked) > 1)} {' and '.join(asked)} of the paper's five"


def conclusions(study: Study) -> list[str]:
    """The worth of each part of the model, the best peer, unsupervised gates, and what counts and locations change."""
    outcomes, differences = study.outcomes, study.differences
    said = {
        row: f"{claim} {_worth(differences[row])}{_caveat(study, row)}."
        for row, claim in CLAIMS.items()
        if row in differences
    }
    if differences.keys() >= {*ENCODERS_TAUGHT}:
        worth = _worth(difference_of(*(outcomes[row] for row in ENCODERS_TAUGHT)))
        said["encoders taught"] = (
            f"Gates without supervision, where a joint embedding teaches the encoders, are worth {worth}."
        )
    if peers := [row for row in PEERS if row in differences]:
        best = min(peers, key=lambda row: differences[row].mean)
        said["best peer"] = (
            f"Of the baselines, listed under question 1, *{study.labels[best]}* has the highest rsum: the "
            f"full model is {_verdict_text(differences[best])}."
        )
    said |= {"unsupervised gates": _unsupervised_gates(study), "counts": _counts(study)}
    lines = [" ".join(sentences) for line in BELIEFS if (sentences := [said[key] for key in line if said.get(key)])]
    return ["## What we believe now\n", "".join(f"- {line}\n" for line in lines)] if lines else []


def _unsupervised_gates(study: Study) -> str:
    """How gates without supervision open; empty if no row has them."""
    seeds = study.outcomes.get("published-gates", ())
    if not (auc := mean_gate(seeds, "gate_auc", 3)):
        return ""
    means = [mean_gate(seeds, f"gate_{kind}_mean", 3) for kind in ("positive", "negative")]
    shut = sum((outcome.gates["gate_auc"] or 0) < 0.5 for outcome in seeds)
    less = f"; with {shut} of {len(seeds)} seeds they open less on matching pairs" if shut else ""
    return (
        f"Gates without supervision have a mean of {means[0]} on matching pairs and of {means[1]} on random ones, "
        f"AUC {auc}{less}."
    )


def _counts(study: Study) -> str:
    """What counts and locations as evidence change; empty if a row has no foils of both kinds."""
    if "counts" not in study.outcomes:
        return ""
    # "counts" is also trained with foils; the effect of foils alone is not due to the evidence.
    rows = [row for row in ("counts", "full", "foils") if row in study.outcomes]
    count, relation = (
        [foil(study.outcomes[row], kind, "true_first_balanced") for row in rows] for kind in ("count", "relation")
    )
    if not all(count) or not all(relation):
        return ""
    alone = f"; trained with foils alone: {count[2]} % and {relation[2]} %" if "foils" in rows else ""
    return (
        "With counts and locations as evidence and training on foils, captions score higher than foils with another "
        f"count in {count[0]} % of cases, and with another relation in {relation[0]} % (the full model: {count[1]} % "
        f"and {relation[1]} %{alone}; balanced, so that guessing gives 50 %); in rsum the full model is "
        f"{_verdict_text(study.differences['counts'])}."
    )


def count_untrained_seeds(study: Study, row: str) -> int:
    """The number of a row's seeds whose rsum ended below `MIN_TRAINED_RSUM`, or below half that of its best seed."""
    if row in TESTED_DIFFERENTLY:
        return 0
    rsums = [outcome.recall["rsum"] for outcome in study.outcomes[row]]
    return sum(rsum < max(MIN_TRAINED_RSUM, max(rsums) / 2) for rsum in rsums)


def _caveat(study: Study, row: str) -> str:
    seeds, slow = study.outcomes[row], count_untrained_seeds(study, row)
    best = max(outcome.recall["rsum"] for outcome in seeds)
    reached = f", the best reached {best:.1f}" if best >= MIN_TRAINED_RSUM else ""
    return f" ({slow} of {len(seeds)} seeds without it hardly learnt{reached})" if slow else ""


def _worth(difference: Difference) -> str:
    worth = f"{interval(difference)} rsum"
    return f"{worth}, which is not significant" if difference.verdict == "not significant" else worth


def answers(study: Study) -> list[str]:
    """A section for each question that rows of the study answer."""
    sections = []
    for number, (claim, names) in enumerate(QUESTIONS, start=1):
        known = [name for name in names if name in study.differences]
        if not known:
            continue
        lines = [
            f"- against *{study.labels[name]}*: the full model is {_verdict_text(study.differences[name])}"
            for name in known
        ]
        if number in (2, 5):
            lines += _suppression(study, ("full", *known))
        if number == 1:
            lines += [
                f"- *{study.labels[name]}*: the true caption beats its foil in {foil(study.outcomes[name])} % of cases"
                for name in ("full", *known)
            ]
        sections.append(f"### {number}. {claim}\n\n" + "\n".join(lines) + "\n")
    return sections


def _verdict_text(difference: Difference) -> str:
    if difference.verdict == "not significant":
        return f"not significantly different ({interval(difference)} rsum)"
    amount = -difference if difference.verdict == "worse" else difference
    return f"{difference.verdict} by {interval(amount)} rsum"


def _suppression(study: Study, names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        means = [
            mean_gate(study.outcomes[name], f"gate_{kind}_mean", 3) for kind in ("positive", "negative", "hardest")
        ]
        if all(means):
            lines.append(
                f"- *{study.labels[name]}*: mean word gate {means[0]} on matching pairs, {means[1]} on random "
                f"negatives, {means[2]} on the hardest"
            )
    return lines


def mean_gate(outcomes: Sequence[Outcome], key: str, digits: int) -> str:
    return cell([outcome.gates.get(key) for outcome in outcomes], digits)


def foil(outcomes: Sequence[Outcome], kind: str = "all", key: str = "true_first") -> str:
    return cell([outcome.foils.get(kind, {}).get(key) for outcome in outcomes])


def cell(values: Sequence[float | None], digits: int = 1) -> str:
    if (known := spread(values)) is None:
        return ""
    mean, deviation = known
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation is not None else "")


def interval(difference: Difference) -> str:
    return f"{difference.mean:+z.1f} [{difference.low:+z.1f}, {difference.high:+z.1f}]"  # z: no -0.0
