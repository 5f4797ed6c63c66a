"""Generates the page of a study, its outcomes as tables and answers, and its charts."""

import contextlib
import itertools
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camp_model.files import check_writable, replacing
from pipelines.study import SPLIT, Study
from pipelines.study_answers import (
    MIN_TRAINED_RSUM,
    TESTED_DIFFERENTLY,
    answers,
    cell,
    conclusions,
    count_untrained_seeds,
    foil,
    interval,
    mean_gate,
    title,
)
from pipelines.summary import table
from stages.charts.intervals import Interval, interval_chart
from stages.charts.lines import Line, line_chart
from stages.charts.svg import chart_svg, standalone_svg
from stages.errors import InputError, shown

BALANCED = ("count", "relation")
"""Kinds of foils whose words differ in frequency, or are favoured by training on foils."""
GATE_ROWS = ("words", "gate"), ("content words", "gate_content"), ("regions", "region_gate")


@dataclass(frozen=True)
class Page:
    """The parts of a page that differ between studies."""

    title: str | None = None
    """None: a title made from the questions that its rows answer."""
    command: str = "python -m pipelines.ablation"
    remarks: str = ""
    """Markdown below the table of recalls."""
    further: str = ""
    """Markdown above the section "Fine print"."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Default rows that the params cannot have -> the reason."""


def check_document(document: str) -> None:
    """Raise InputError if the page or its charts could not be written: they are after hours of training."""
    path = Path(document)
    try:
        if not path.name or path.is_dir() or any(parent.is_file() for parent in path.parents):
            raise InputError(f"document: {document!r:.80} does not name a file; expected one such as docs/study.md")
        for file in (path, *_charts(path)):
            check_writable(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"document: {shown(document)}: cannot be written ({reason}); expected a file such as docs/study.md"
        ) from None


def _charts(path: Path) -> tuple[Path, Path]:
    """The files of the charts of differences and of gates, beside the document."""
    return path.with_name(f"{path.stem}-differences.svg"), path.with_name(f"{path.stem}-gates.svg")


def write_document(path: Path, study: Study, page: Page) -> None:
    """Write the document and, in the same folder, its two charts: all three or, on a full disk, none."""
    differences, gates = _charts(path)
    texts = {differences: _draw_differences(study), gates: _draw_gates(study), path: _text(path, study, page)}
    with contextlib.ExitStack() as written:
        for file, text in texts.items():
            written.enter_context(replacing(file)).write_text(text, encoding="utf-8")


def _text(path: Path, study: Study, page: Page) -> str:
    settings = ", ".join(f"`{key}: {value}`" for key, value in study.base.items())
    sections = [
        f"# {page.title or f'{title(study)}, answered by this pipeline'}\n",
        f"`{page.command}` wrote this page; do not edit it. One row per model, one change at a time; "
        f"{_seeds(study)}{_further_seeds(study)}. Every model is selected on the validation split and "
        f"measured once on the {SPLIT} split.\n",
        f"![Difference in rsum to the full model]({path.stem}-differences.svg)\n",
        table(_recall_rows(study)),
        "The difference is the full model minus the row, on the same images, with its 95 % interval, a bootstrap over "
        f"images{_over_seeds(study)}: if it contains 0, the difference is not significant. Intervals are not "
        "corrected for multiple comparisons: by chance, one in twenty misses the true difference.\n",
        *_untrained_rows(study),
        *([page.remarks] if page.remarks else []),
        *conclusions(study),
        "## The answers\n",
        *answers(study),
        "## Gates\n",
        "Mean gate of matching pairs, of random negative pairs, and of the hardest negative of each caption. Content "
        "words name an object, a colour, a size or a texture. AUC: how often a matching pair's mean word gate is above "
        "a random negative pair's. The paper reports 0.971 on matching pairs and 2.7e-9 on negative ones.\n",
        table(_gate_rows(study)),
        *_floor(study),
        f"![Mean word gates by epoch]({path.stem}-gates.svg)\n",
        "## Subtle mismatch\n",
        "One word of a test caption is changed so that it is no longer true of the picture. How often the true caption "
        "scores higher than its foil, in percent, by the kind of the word. *Balanced*: foils are weighted so that a "
        "model that reads only the two words gets 50 %; the first row then has their effective number: as "
        "many foils of equal weight say as much.\n",
        table(_foil_rows(study)),
        "How often the model identifies the changed word, in percent: among the foil's content words, counts and "
        "relations, as the one whose replacement by `<unk>` raises the score most, or the one with the lowest gate:\n",
        table(_guilty_rows(study)),
        *([page.further] if page.further else []),
        "## Fine print\n",
        f"- Data: {study.data}.\n"
        f"- Set for every row that does not set it itself: {settings or 'nothing'}; all else as in `params.yaml`.\n"
        f"{_left_out(page)}"
        f"- Commit {study.commit}; MLflow parent run `{study.run or 'not recorded'}`.\n"
        f"- {_machine()}.\n"
        "- Seeds change the training (weights, order, negatives); data, detector and regions are the same for all.\n",
    ]
    return "\n".join(sections)


def _left_out(page: Page) -> str:
    rows = "; ".join(f"`{name}` ({reason})" for name, reason in page.left_out.items())
    return f"- Rows left out, because `params.yaml` cannot have them: {rows}.\n" if rows else ""


def _seeds(study: Study) -> str:
    if len(study.seeds) == 1:
        return f"one training seed ({study.seeds[0]}), without a deviation"
    return f"mean and standard deviation over {len(study.seeds)} training seeds ({', '.join(map(str, study.seeds))})"


def _over_seeds(study: Study) -> str:
    """How the intervals account for seeds; that of a row with one seed does not."""
    counts = {len(study.outcomes[name]) for name in study.differences} or {1}
    if counts == {1}:
        return " only, which does not cover other seeds"
    return f" and{', where a row has several seeds,' if 1 in counts else ''} a t distribution over seeds"


def _further_seeds(study: Study) -> str:
    rows = [name for name, of_variant in study.outcomes.items() if len(of_variant) > len(study.seeds)]
    if not rows:
        return ""
    names = ", ".join(f"*{study.labels[name]}*" for name in rows)
    return f", for {names} over {len(study.outcomes[rows[0]])}; differences use the seeds that both models have"


def _recall_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for name, of_variant in study.outcomes.items():
        recall = {key: [outcome.recall[key] for outcome in of_variant] for key in ("rsum", "i2t_r1", "t2i_r1")}
        rows.append({
            "model": study.labels[name],
            "rsum": cell(recall["rsum"]), "i2t R@1": cell(recall["i2t_r1"]), "t2i R@1": cell(recall["t2i_r1"]),
            "full minus this, rsum": "" if name == "full" else interval(study.differences[name]),
        })  # fmt: skip
    return rows


def _untrained_rows(study: Study) -> list[str]:
    names = [
        f"*{study.labels[name]}* ({slow} of {len(of_variant)} seeds)"
        for name, of_variant in study.outcomes.items()
        if (slow := count_untrained_seeds(study, name))
    ]
    if not names:
        return []
    return [
        f"Hardly learnt when training ended (an rsum below {MIN_TRAINED_RSUM:g}, or below half of the row's best "
        f"seed): {', '.join(names)}. A difference to these rows says that the full model learns within this number of "
        "epochs, not what the other would reach with more.\n"
    ]


def _gate_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for name, of_variant in study.outcomes.items():
        for side, prefix in GATE_ROWS:
            cells = {
                head: mean_gate(of_variant, f"{prefix}_{key}", 3)
                for head, key in (("matching", "positive_mean"), ("random negative", "negative_mean"),
                                  ("hardest negative", "hardest_mean"), ("AUC, random", "auc"),
                                  ("AUC, hardest", "hardest_auc"))
            }  # fmt: skip
            if all(cells.values()):
                rows.append({"model": study.labels[name], "gates of": side, **cells})
    return rows


def _floor(study: Study) -> list[str]:
    if study.true_by_chance is None:
        return []
    return [
        f"{100 * study.true_by_chance:.1f} % of the content words of random negative pairs are nevertheless true of "
        "the picture: it contains what their phrase names. A gate that judges every phrase correctly is open there, so "
        f"a mean below {study.true_by_chance:.3f} needs gates that also know the rest of the caption.\n"
    ]


def _foil_rows(study: Study) -> list[dict[str, Any]]:
    columns = {}  # head -> kind, key
    counts: dict[str, float | None] = {}
    first = next(iter(study.outcomes.values()))[0].foils
    for kind in dict.fromkeys(kind for seeds in study.outcomes.values() for outcome in seeds for kind in outcome.foils):
        columns[kind] = kind, "true_first"
        counts[kind] = first.get(kind, {}).get("foils", 0)
        if kind in BALANCED:
            columns[head := f"{kind}, balanced"] = kind, "true_first_balanced"
            counts[head] = first.get(kind, {}).get("foils_balanced", 0)
    rows: list[dict[str, Any]] = [{"model": "*foils*", **counts}]
    for name, of_variant in study.outcomes.items():
        cells = {head: foil(of_variant, *column) for head, column in columns.items()}
        rows.append({"model": study.labels[name], **cells})
    return rows


def _guilty_rows(study: Study) -> list[dict[str, Any]]:
    return [
        {
            "model": study.labels[name],
            "by score": foil(of_variant, key="guilty_by_score"),
            "by gate": foil(of_variant, key="guilty_by_gate"),
            "by chance": foil(of_variant, key="chance"),
        }
        for name, of_variant in study.outcomes.items()
    ]


def _machine() -> str:
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"Hardware of the machine that wrote this: {os.cpu_count()} cores, {cpu}"


def _draw_differences(study: Study) -> str:
    intervals = [
        Interval(study.labels[name], difference.low, difference.mean, difference.high)
        for name, difference in study.differences.items()
        if name not in TESTED_DIFFERENTLY  # hundreds beside tens: the other rows would look alike in the chart
    ]
    label = "rsum, full model minus this one (right: the full model is better)"
    return standalone_svg(interval_chart(intervals, "Difference in rsum to the full model", label))


def _draw_gates(study: Study) -> str:
    """Draw, per epoch, the mean over the seeds still training, and a band from the lowest to the highest."""
    lines = []
    for name in ("full", "gate-context", "published-gates"):
        of_seeds = [outcome.curve for outcome in study.outcomes.get(name, ())]
        # The column of a model without word gates is empty.
        curves = [curve for curve in of_seeds if "gate_positive_mean" in curve.dropna(axis="columns", how="all")]
        for column, kind in (("gate_positive_mean", "matching"), ("gate_negative_mean", "random negative")):
            epochs = itertools.zip_longest(*(curve[column] for curve in curves))
            by_epoch = [[value for value in values if value is not None] for values in epochs]
            lines.append(
                Line(
                    f"{study.labels[name]}, {kind}" if curves else "",
                    list(range(1, len(by_epoch) + 1)),
                    [sum(values) / len(values) for values in by_epoch],
                    ([min(values) for values in by_epoch], [max(values) for values in by_epoch]),
                )
            )
    title = "Mean word gate on validation, by epoch"
    longest = 7 * max(len(line.name) for line in lines)
    return standalone_svg(line_chart(lines, title, "epoch", (0, 1), names=longest) or chart_svg([], title, 400, 40))
