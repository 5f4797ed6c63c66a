"""The page of a study and its pictures: its outcomes as tables and answers. Generated, never typed."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camp_model.files import write_text
from pipelines.study import SPLIT, Difference, Outcome, compare, spread
from pipelines.summary import table
from stages.charts.intervals import Interval, interval_chart
from stages.charts.lines import Line, line_chart
from stages.charts.svg import chart_svg, standalone

Outcomes = Mapping[str, Sequence[Outcome]]
"""Variant -> one outcome per seed; `full` is among them."""

PEERS = ("scan-image-to-text", "scan-both", "vse-infinity", "sgraf-saf", "sgraf-sgr", "sgraf-both")
QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Messages between words and regions improve fine-grained alignment",
        ("no-messages", "image-to-text", "text-to-image", "joint-embedding", "scan", *PEERS),
    ),
    (
        "Irrelevant and mismatched features are suppressed",
        ("no-residual", "gate-context", "no-supervision", "published-gates"),
    ),
    ("A score learnt from fused features beats similarity in a joint space", ("cosine-bce", "cosine-ranking")),
    ("Hardest-negative BCE beats the ranking loss", ("mlp-ranking", "all-negatives", "warm-up")),
    ("Adaptive gates beat fixed fusion", ("no-gates", "elementwise-gates")),
)
BEGUN = 60.0
"""An rsum below which a model has hardly begun to learn: a tenth of what there is."""
GATE_ROWS = ("words", "gate"), ("content words", "gate_content"), ("regions", "region_gate")


@dataclass(frozen=True)
class StudyInput:
    """What the study ran on."""

    labels: Mapping[str, str]
    seeds: Sequence[int]
    base: Mapping[str, Any]
    """Params that the study sets for every row."""
    data: str
    """Where the images and captions come from, and how many they are."""
    commit: str
    true_by_chance: float | None
    """Share of the content words of random negative pairs that are true of the picture; None where it is not known."""
    run: str | None
    """Key of the MLflow run that all trainings are nested under."""


@dataclass(frozen=True)
class Page:
    """What one study's page says that another's does not."""

    title: str | None = None
    """None: the questions that its rows answer."""
    command: str = "python -m pipelines.ablation"
    remarks: str = ""
    """Markdown below the table of recalls."""


def write_document(path: Path, outcomes: Outcomes, study: StudyInput, page: Page = Page()) -> None:
    """Write the document and, beside it, its two pictures."""
    differences = compare(outcomes)
    write_text(path.with_name(f"{path.stem}-differences.svg"), _draw_differences(differences, study))
    write_text(path.with_name(f"{path.stem}-gates.svg"), _draw_gates(outcomes, study))
    write_text(path, _text(path, outcomes, differences, study, page))


def _text(path: Path, outcomes: Outcomes, differences: Mapping[str, Difference], study: StudyInput, page: Page) -> str:
    settings = ", ".join(f"`{key}: {value}`" for key, value in study.base.items())
    sections = [
        f"# {page.title or f'{_title(differences)}, answered by this pipeline'}\n",
        f"`{page.command}` wrote this page; do not edit it. One row per model, one change at a time; mean "
        f"and standard deviation over {len(study.seeds)} training seeds ({', '.join(map(str, study.seeds))}). Every "
        f"model is selected on the validation split and measured once on the {SPLIT} split.\n",
        f"![Difference in rsum to the full model]({path.stem}-differences.svg)\n",
        table(_recall_rows(outcomes, differences, study)),
        "The difference is the full model minus the row, on the same images, with its 95 % bootstrap interval over "
        "images and seeds: where it holds 0, no difference was found.\n",
        *_hardly_begun(outcomes, study),
        *([page.remarks] if page.remarks else []),
        "## The answers\n",
        *_answers(outcomes, differences, study),
        "## Gates\n",
        "Mean gate of matching pairs, of random negative pairs, and of the hardest negative of each caption. Content "
        "words name an object, a colour, a size or a texture. AUC: how often a matching pair's mean word gate is above "
        "a random negative pair's. The paper reports 0.971 on matching pairs and 2.7e-9 on negative ones.\n",
        table(_gate_rows(outcomes, study)),
        *_floor(study),
        f"![Mean word gates by epoch]({path.stem}-gates.svg)\n",
        "## Subtle mismatch\n",
        "One word of a test caption is changed so that it is no longer true of the picture. How often the true caption "
        "scores higher than its foil, in percent, by the kind of the word:\n",
        table(_foil_rows(outcomes, study)),
        "Which word is held responsible: among the foil's content words, counts and relations, the one whose removal "
        "(`<unk>`) raises the score most, or the one with the lowest gate; how often that is the changed word, in "
        "percent:\n",
        table(_guilty_rows(outcomes, study)),
        "## Fine print\n",
        f"- Data: {study.data}.\n- Set for every row: {settings or 'nothing'}; all else as in `params.yaml`.\n"
        f"- Commit {study.commit}; MLflow parent run `{study.run or 'not recorded'}`.\n"
        f"- {_machine()}.\n"
        "- Seeds change the training (weights, order, negatives); data, detector and regions are the same for all.\n",
    ]
    return "\n".join(sections)


def _title(differences: Mapping[str, Difference]) -> str:
    asked = [str(number) for number, (_, names) in enumerate(QUESTIONS, start=1) if differences.keys() & {*names}]
    if len(asked) == len(QUESTIONS):
        return "The paper's five questions"
    if not asked:
        return "The full model"
    return f"Question{'s' * (len(asked) > 1)} {' and '.join(asked)} of the paper's five"


def _recall_rows(outcomes: Outcomes, differences: Mapping[str, Difference], study: StudyInput) -> list[dict[str, Any]]:
    rows = []
    for name, of_variant in outcomes.items():
        recall = {key: [outcome.recall[key] for outcome in of_variant] for key in ("rsum", "i2t_r1", "t2i_r1")}
        rows.append({
            "model": study.labels[name],
            "rsum": _cell(recall["rsum"]), "i2t R@1": _cell(recall["i2t_r1"]), "t2i R@1": _cell(recall["t2i_r1"]),
            "full minus this, rsum": "" if name == "full" else _interval(differences[name]),
        })  # fmt: skip
    return rows


def _hardly_begun(outcomes: Outcomes, study: StudyInput) -> list[str]:
    names = [
        f"*{study.labels[name]}* ({slow} of {len(of_variant)} seeds)"
        for name, of_variant in outcomes.items()
        if (slow := sum(outcome.recall["rsum"] < BEGUN for outcome in of_variant))
    ]
    if not names:
        return []
    return [
        f"Not begun to learn (an rsum below {BEGUN:g}) when training ended: {', '.join(names)}. There a difference "
        "says that the full model learns within this number of epochs, not where the other would end with more.\n"
    ]


def _answers(outcomes: Outcomes, differences: Mapping[str, Difference], study: StudyInput) -> list[str]:
    sections = []
    for number, (claim, names) in enumerate(QUESTIONS, start=1):
        known = [name for name in names if name in differences]
        if not known:
            continue
        lines = [f"- against *{study.labels[name]}*: the full model is {_say(differences[name])}" for name in known]
        if number in (2, 5):
            lines += _suppression(outcomes, study, ("full", *known))
        if number == 1:
            lines += [f"- *{study.labels[name]}*: the true caption beats its foil in {_foil(outcomes[name])} % of cases"
                      for name in ("full", *known)]  # fmt: skip
        sections.append(f"### {number}. {claim}\n\n" + "\n".join(lines) + "\n")
    return sections


def _say(difference: Difference) -> str:
    if difference.verdict == "no difference found":
        return f"not told apart ({_interval(difference)} rsum)"
    return f"{difference.verdict} by {_interval(difference)} rsum"


def _suppression(outcomes: Outcomes, study: StudyInput, names: Sequence[str]) -> list[str]:
    lines = []
    for name in names:
        means = [_mean_gate(outcomes[name], f"gate_{kind}_mean", 3) for kind in ("positive", "negative", "hardest")]
        if all(means):
            lines.append(
                f"- *{study.labels[name]}*: mean word gate {means[0]} on matching pairs, {means[1]} on random "
                f"negatives, {means[2]} on the hardest"
            )
    return lines


def _gate_rows(outcomes: Outcomes, study: StudyInput) -> list[dict[str, Any]]:
    rows = []
    for name, of_variant in outcomes.items():
        for side, prefix in GATE_ROWS:
            cells = {
                head: _mean_gate(of_variant, f"{prefix}_{key}", 3)
                for head, key in (("matching", "positive_mean"), ("random negative", "negative_mean"),
                                  ("hardest negative", "hardest_mean"), ("AUC, random", "auc"),
                                  ("AUC, hardest", "hardest_auc"))
            }  # fmt: skip
            if all(cells.values()):
                rows.append({"model": study.labels[name], "gates of": side, **cells})
    return rows


def _floor(study: StudyInput) -> list[str]:
    if study.true_by_chance is None:
        return []
    return [
        f"Of the content words of a random negative pair {100 * study.true_by_chance:.1f} % are true of the picture "
        "all the same: what their phrase names is in it. A gate that is right about every phrase is open there, so a "
        f"mean below {study.true_by_chance:.3f} would take gates that know the rest of the caption, too.\n"
    ]


def _mean_gate(outcomes: Sequence[Outcome], key: str, digits: int) -> str:
    return _cell([outcome.gates.get(key) for outcome in outcomes], digits)


def _kinds(outcomes: Outcomes) -> list[str]:
    return list(dict.fromkeys(kind for of_variant in outcomes.values() for o in of_variant for kind in o.foils))


def _foil_rows(outcomes: Outcomes, study: StudyInput) -> list[dict[str, Any]]:
    kinds = _kinds(outcomes)
    first = next(iter(outcomes.values()))[0].foils
    rows: list[dict[str, Any]] = [{"model": "*foils*", **{kind: first.get(kind, {}).get("foils", 0) for kind in kinds}}]
    for name, of_variant in outcomes.items():
        cells = {kind: _foil(of_variant, kind) for kind in kinds}
        rows.append({"model": study.labels[name], **cells})
    return rows


def _foil(outcomes: Sequence[Outcome], kind: str = "all", key: str = "true_first") -> str:
    return _cell([outcome.foils.get(kind, {}).get(key) for outcome in outcomes])


def _guilty_rows(outcomes: Outcomes, study: StudyInput) -> list[dict[str, Any]]:
    return [
        {
            "model": study.labels[name],
            "by score": _foil(of_variant, key="guilty_by_score"),
            "by gate": _foil(of_variant, key="guilty_by_gate"),
            "by chance": _foil(of_variant, key="chance"),
        }
        for name, of_variant in outcomes.items()
    ]


def _cell(values: Sequence[float | None], digits: int = 1) -> str:
    found = spread(values)
    return "" if found is None else f"{found[0]:.{digits}f} ± {found[1]:.{digits}f}"


def _interval(difference: Difference) -> str:
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}]"


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"Hardware of the machine that wrote this: {os.cpu_count()} cores, {cpu}"


def _draw_differences(differences: Mapping[str, Difference], study: StudyInput) -> str:
    intervals = [
        Interval(study.labels[name], difference.low, difference.mean, difference.high)
        for name, difference in differences.items()
    ]
    label = "rsum, full model minus this one (right: the full model is better)"
    return standalone(interval_chart(intervals, "Difference in rsum to the full model", label))


def _draw_gates(outcomes: Outcomes, study: StudyInput) -> str:
    """Mean over the seeds, and a band from the lowest to the highest."""
    lines = []
    for name in ("full", "gate-context", "published-gates"):
        curves = [outcome.curve for outcome in outcomes.get(name, ()) if "gate_positive_mean" in outcome.curve]
        for column, kind in (("gate_positive_mean", "matching"), ("gate_negative_mean", "random negative")):
            by_epoch = list(zip(*(curve[column] for curve in curves), strict=False))
            lines.append(
                Line(
                    f"{study.labels[name]}, {kind}" if curves else "",
                    list(range(1, len(by_epoch) + 1)),
                    [sum(values) / len(values) for values in by_epoch],
                    ([min(values) for values in by_epoch], [max(values) for values in by_epoch]),
                )
            )
    title = "Mean word gate on validation, by epoch"
    return standalone(line_chart(lines, title, "epoch", (0, 1), names=330) or chart_svg([], title, 400, 40))
