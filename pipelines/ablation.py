"""The flow `ablation`: a study of the paper's five questions that changes one thing of the full model at a time.

python -m pipelines.ablation --jobs 2 --set train.epochs=5
"""

import argparse
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger

from pipelines.commands import prefect_command
from pipelines.experiments import run_in_parallel
from pipelines.pairs import by_name
from pipelines.study import SPLIT, read_outcome, read_study
from pipelines.study_document import Page, check_document, write_document
from pipelines.study_rates import rates_markdown, with_rates
from pipelines.variants import check_evaluated, override_params, params_of, warn_of_kept_params, warn_of_left_out
from stages.errors import InputError
from stages.params.document import parse
from stages.params.pipeline import Params


@dataclass(frozen=True)
class Variant:
    """One row of the study."""

    label: str
    overrides: dict[str, Any] = field(default_factory=dict)
    """Dotted keys of params.yaml and their new values."""


NO_SUPERVISION = {"train.gate_supervision": 0.0}
"""For models without gates, or with gates as published, which are not supervised."""
NO_WORD_GATES = {"model.gate_context": 0.0}
"""For models without gates of words, which have no context."""
FOILS = {"captions.train_foils": True, "train.foil_weight": 0.25}
"""Training with foils: captions with one word, a count or a relation, changed."""
JOINT_TERM = {"train.joint_weight": 1.0}
"""Also trains a joint embedding, which an index of vectors needs to search pictures."""
RANKING = {"train.loss": "triplet", "train.margin": 0.2, **NO_SUPERVISION}
"""The ranking loss that the models of other authors were published with."""
STUDY: dict[str, Variant] = {
    "full": Variant("full model"),
    "no-messages": Variant("without messages", {"model.message_passing": "none", **NO_WORD_GATES, **NO_SUPERVISION}),
    "no-messages-large": Variant(
        "without messages, as many parameters",
        {"model.message_passing": "none", "model.dim": 240, **NO_WORD_GATES, **NO_SUPERVISION},
    ),
    "image-to-text": Variant("image-to-text messages only", {"model.message_passing": "image_to_text"}),
    "text-to-image": Variant(
        "text-to-image messages only", {"model.message_passing": "text_to_image", **NO_WORD_GATES}
    ),
    "no-gates": Variant("without gates", {"model.gate": "none", **NO_WORD_GATES, **NO_SUPERVISION}),
    "gates-unapplied": Variant("gates supervised, but not applied", {"model.gate": "unapplied"}),
    # Trained like `full`, so DVC reuses its training.
    "gates-open": Variant("gates learnt, but held open when tested", {"evaluate.gates": "open"}),
    "gates-of-another": Variant("gates learnt, but another pair's when tested", {"evaluate.gates": "another"}),
    "elementwise-gates": Variant("elementwise gates", {"model.gate": "elementwise"}),
    "no-residual": Variant("without residual", {"model.residual": False}),
    "sum-fusion": Variant("sum fusion", {"model.fusion": "sum"}),
    "mean-pooling": Variant("mean pooling", {"model.pooling": "mean"}),
    "mlp-pooling": Variant("released MLP pooling", {"model.pooling": "mlp"}),
    "cosine-ranking": Variant("cosine, ranking loss", {"model.matching": "cosine", "train.loss": "triplet"}),
    "cosine-bce": Variant("cosine, hardest-negative BCE", {"model.matching": "cosine"}),
    "mlp-ranking": Variant("MLP, ranking loss", {"train.loss": "triplet"}),
    # Splits the 4,096 pairs of a batch into parts that fit a cache: same gradient, but faster.
    "all-negatives": Variant("MLP, all-negatives BCE", {"train.loss": "bce", "train.micro_batch": 256}),
    "as-encoded": Variant("regions and words as long as encoded", {"model.feature_norm": 0.0}),
    "no-curriculum": Variant("hardest negatives from the first step", {"train.curriculum_steps": 0}),
    "warm-up": Variant(
        "150 steps on random negatives first", {"train.random_negative_steps": 150, "train.curriculum_steps": 0}
    ),
    "gate-context": Variant("gates in the context of their caption", {"model.gate_context": 3.0}),
    "joint-term": Variant("with a joint embedding on the same encoders", JOINT_TERM),
    "joint-score": Variant("the same, its cosine in the score", {**JOINT_TERM, "model.joint_score": True}),
    "published-gates-joint-term": Variant(
        "gates as published, with a joint embedding", {**NO_SUPERVISION, **JOINT_TERM}
    ),
    "no-gates-joint-term": Variant(
        "without gates, with a joint embedding", {"model.gate": "none", **NO_WORD_GATES, **NO_SUPERVISION, **JOINT_TERM}
    ),
    "foils": Variant("trained with foils", FOILS),
    "counts": Variant("counts and locations decide gates", {"model.gate_evidence": True, **FOILS}),
    "published-gates": Variant(
        "gates as published: without supervision", {"model.gate_context": 0.0, **NO_SUPERVISION}
    ),
    "joint-embedding": Variant(
        "baseline: joint embedding (VSE++ style)", {"model.matcher": "joint", "train.loss": "triplet", **NO_SUPERVISION}
    ),
    "scan": Variant(
        "baseline: SCAN, text to image",
        {"model.matcher": "scan", "train.loss": "triplet", **NO_SUPERVISION},
    ),
    "scan-image-to-text": Variant(
        "baseline: SCAN, image to text",
        {"model.matcher": "scan", "model.scan_direction": "image_to_text", **RANKING},
    ),
    "scan-both": Variant(
        "baseline: SCAN, both ways", {"model.matcher": "scan", "model.scan_direction": "both", **RANKING}
    ),
    "vse-infinity": Variant(
        "baseline: VSE-infinity",
        {
            "model.matcher": "joint",
            "model.pooling": "gpo",
            **RANKING,
            "train.random_negative_steps": 0,
            "train.curriculum_steps": 0,
            "train.all_negatives_epochs": 1,
            "train.drop_regions": 0.2,
            "train.drop_words": 0.2,
        },
    ),
    **{
        f"sgraf-{kind}": Variant(f"baseline: SGRAF, {name}", {"model.matcher": "sgraf", "model.sgraf": kind, **RANKING})
        for kind, name in (("saf", "SAF"), ("sgr", "SGR"), ("both", "SAF and SGR"))
    },
}
FURTHER = frozenset({
    "image-to-text", "text-to-image", "elementwise-gates", "no-residual", "sum-fusion", "mean-pooling", "mlp-pooling",
    "cosine-ranking", "all-negatives", "as-encoded", "warm-up", "joint-score", "scan-image-to-text", "scan-both",
    "sgraf-sgr", "sgraf-both",
})  # fmt: skip
"""Rows trained only with `--all`: slow ones, and those that answer no question on their own. The other rows take an
hour and a half on two cores."""
CLOSE = ("full", "cosine-bce", "mlp-ranking")
"""Rows that three seeds may not distinguish; `more_seeds` applies to them."""
ALL_ROWS = {name: variant.overrides for name, variant in STUDY.items()}
OVERRIDES = {name: overrides for name, overrides in ALL_ROWS.items() if name not in FURTHER}


def possible_rows(
    variants: dict[str, dict[str, Any]], base: dict[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows that params.yaml with `base` can have, and the reason why it cannot have each other one.

    No row makes up for what it lacks: with a second change, such as of the features that all others share, its
    difference to `full` would not be what it is named after. `full` stays in any case: nothing replaces it.
    """
    present, reasons = Params.load(), {}
    for name, overrides in variants.items():
        try:
            override_params(present, {**base, **overrides})
        except InputError as error:
            if name != "full":
                reasons[name] = str(error)
    return {name: overrides for name, overrides in variants.items() if name not in reasons}, reasons


def check_seeds(seeds: list[int], more_seeds: list[int] = []) -> None:  # noqa: B006
    """Raise InputError if there is no seed, or one is given twice and would count twice."""
    if not seeds:
        raise InputError("seeds: is empty; expected at least one")
    if twice := [seed for seed, times in Counter([*seeds, *more_seeds]).items() if times > 1]:
        raise InputError(f"seeds: {twice[0]} is there twice; expected every seed once")


def with_seeds(
    variants: dict[str, dict[str, Any]], seeds: list[int], base: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Combine each variant with each training seed; it overrides `base`: {"full-s0": {..., "train.seed": 0}, ...}.

    Raises:
        InputError: `base` has a seed too.
    """
    if "train.seed" in base:
        raise InputError("train.seed: cannot be set for every row; expected seeds, of which every row has all")
    return {
        f"{name}-s{seed}": {**base, **overrides, "train.seed": seed}
        for seed in seeds  # outer loop: a study that is ended early has all rows of its first seeds
        for name, overrides in variants.items()
    }


@flow(name="ablation")
def ablation(
    variants: dict[str, dict[str, Any]] = OVERRIDES,
    seeds: list[int] = [0, 1, 2],  # noqa: B006
    more_seeds: list[int] = [],  # noqa: B006
    rates: list[float] = [],  # noqa: B006
    base: dict[str, Any] = {},  # noqa: B006
    jobs: int = 1,
    promote: bool = False,
    document: str = "docs/study.md",
) -> list[dict[str, Any]]:
    """The study: train variants of the model with several seeds, rank them, and write the comparison.

    Args:
        variants: name -> the params that it changes, as dotted keys; the others are compared with `full`. Of the
            default rows, those that params.yaml cannot have are left out; others are refused.
        seeds: training seeds of every variant.
        more_seeds: further seeds for the rows that are close to each other (`CLOSE`).
        rates: multiples of its learning rate; every variant is also trained with these, with the first seed only.
        base: params set for all variants that do not set them themselves.
        jobs: experiments that run at the same time.
        promote: make the best model the `champion` in MLflow, if it is better than that on the same val.
        document: file to write the comparison to; empty: none is written.
    """
    if document:
        check_document(document)
        if "full" not in variants:
            raise InputError("variants: full: is missing; expected the model that the others are compared with")
    check_seeds(seeds, more_seeds)
    left_out: dict[str, str] = {}
    if variants in (OVERRIDES, ALL_ROWS):  # nobody named a row
        variants, left_out = possible_rows(variants, base)
    params = params_of(with_seeds(variants, seeds[:1], base))
    if document:
        check_evaluated(params, SPLIT)
    warn_of_kept_params(variants, base)
    warn_of_left_out(left_out)
    close = {name: overrides for name, overrides in variants.items() if name in CLOSE}
    rated = with_rates(variants, rates, Params.load().train.learning_rate, base)
    trainings = (
        with_seeds(variants, seeds, base) | with_seeds(close, more_seeds, base) | with_seeds(rated, seeds[:1], base)
    )
    rows, names, parent = run_in_parallel("ablation", trainings, jobs, promote, "evaluate")
    if document:
        seeds_of = {name: [*seeds, *more_seeds] if name in close else seeds for name in variants}
        labels = {name: STUDY[name].label if name in STUDY else name for name in variants}
        experiments = {name: [names[f"{name}-s{seed}"] for seed in of_row] for name, of_row in seeds_of.items()}
        study = read_study(experiments, labels, seeds, base, parent)
        page = Page(left_out=left_out)
        if rates:
            by_rate = {
                name: {1.0: study.outcomes[name][0]}
                | {rate: read_outcome(names[f"{name}-x{rate:g}-s{seeds[0]}"]) for rate in rates}
                for name in variants
            }
            page = replace(page, further=rates_markdown(by_rate, labels, seeds[0]))
        write_document(Path(document), study, page)
        get_run_logger().info("written: %s", document)
    return rows


def setting(text: str) -> tuple[str, Any]:
    """Parse KEY=VALUE; the value is YAML."""
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"{text!r}; expected KEY=VALUE")
    try:
        return key, parse(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{key}: {error}") from None


def study_parser(description: str, document: str) -> argparse.ArgumentParser:
    """A parser with the options that every study has; `document` is the default of the page."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED",
                        help="training seeds of every row (default: 0 1 2)")  # fmt: skip
    parser.add_argument("--set", action="append", type=setting, default=[], metavar="KEY=VALUE",
                        help="a param of every row that does not set it itself, such as train.epochs=5")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=1, help="trainings that run at the same time (default: 1)")
    parser.add_argument("--document", default=document, help="file to write (default: %(default)s)")
    return parser


def main() -> None:
    parser = study_parser("The study: the paper's ablations and baselines, with several seeds.", "docs/study.md")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--only", nargs="+", choices=list(STUDY), help="these rows; full is needed", metavar="NAME")
    rows.add_argument("--all", action="store_true", help="every row (default: those that take an hour and a half)")
    parser.add_argument("--more-seeds", nargs="+", type=int, default=[], metavar="SEED",
                        help=f"further training seeds, of the rows {', '.join(CLOSE)}")  # fmt: skip
    parser.add_argument("--rates", nargs="+", type=float, default=[], metavar="X",
                        help="also train every row with X times its learning rate, first seed only")  # fmt: skip
    parser.add_argument("--promote", action="store_true", help="make the best the champion, if better on the same val")
    arguments = parser.parse_args()
    named = {name: ALL_ROWS[name] for name in arguments.only or ()}
    variants = named or (ALL_ROWS if arguments.all else OVERRIDES)
    with prefect_command():
        ablation(variants, arguments.seeds, arguments.more_seeds, arguments.rates, by_name(arguments.set),
                 arguments.jobs, arguments.promote, arguments.document)  # fmt: skip


if __name__ == "__main__":
    main()
