"""Charts of gates: histograms over pairs, and their change from epoch to epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from stages.charts.svg import PLAIN_CSS, chart_svg, tick

LEFT, BOTTOM = 40.0, 42.0
_PAGE_CSS = "body { font: 14px sans-serif; color: #1d1e22; margin: 24px; } svg { width: 480px; display: block; }\n"


def histogram(rows: Sequence[tuple[str, Sequence[float]]], title: str, x_label: str, bins: int = 40) -> Markup:
    """Shares of values in [0, 1]: a row of bars for each (name, values), on a common axis, each with its own scale."""
    rows = [(name, values) for name, values in rows if len(values)]
    if not rows:
        return Markup("")
    width, margin, row_height = 480.0, 12.0, 78.0
    height = row_height * len(rows) + BOTTOM
    scale = width - 2 * margin
    elements = []
    for index, (name, values) in enumerate(rows):
        base = row_height * (index + 1)
        counts, _ = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
        tallest = max(int(counts.max()), 1)
        for at, count in enumerate(counts):
            if count:
                bar = max(count / tallest * (row_height - 34), 1.0)
                elements.append(
                    f'<rect class="bar s{index}" x="{margin + at / bins * scale + 0.5:.1f}" y="{base - bar:.1f}" '
                    f'width="{scale / bins - 1:.1f}" height="{bar:.1f}"/>'
                )
        mean = float(np.mean(values))
        x = margin + mean * scale
        elements.append(f'<line class="axis" x1="{margin}" x2="{width - margin}" y1="{base}" y2="{base}"/>')
        elements.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{base - row_height + 28}" y2="{base}"/>')
        elements.append(
            f'<text class="name s{index}" x="{margin}" y="{base - row_height + 22}">{escape(name)}'
            f'<tspan class="plain"> mean {mean:.3f}</tspan></text>'
        )
    for value, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        elements.append(tick(margin + value * scale, height - 24, f"{value:g}", anchor))
    elements.append(tick(width / 2, height - 6, x_label))
    spoken = "; ".join(f"{name}: mean {float(np.mean(values)):.3g}" for name, values in rows)
    return chart_svg(elements, f"{title}: {spoken}", width, height)


GATE_KINDS = {"positive": "Matching", "negative": "Random mismatch", "hardest": "Hardest mismatch"}
GATE_SIDES = {"words": "words", "content": "content words", "regions": "regions"}


def gate_histograms(pairs: Mapping[str, Sequence[Any]]) -> dict[str, Markup]:
    """A histogram of the mean gate over words, content words and regions, if there are any.

    Args:
        pairs: columns of the table of pairs that evaluation writes.
    """
    drawn = {}
    for side, name in GATE_SIDES.items():
        rows = [
            (title, [v for k, v in zip(pairs["kind"], pairs[side], strict=True) if k == kind and v is not None])
            for kind, title in GATE_KINDS.items()
        ]
        what = f"mean gate over a pair's {name}"
        if svg := histogram(rows, f"Histogram of the {what}", what):
            drawn[side] = svg
    return drawn


def gate_epochs(curve: Mapping[str, Sequence[float]]) -> dict[str, Markup]:
    """The distribution of the mean gates of matching and of random pairs after each epoch, by side, if there are any.

    A column of cells for each epoch, from gate 0 at the bottom to 1; the more pairs, the darker.

    Args:
        curve: columns of val_gates.csv: epoch, the middle of a bin, and the number of pairs in it.
    """
    width, gap, base, tall = 480.0, 34.0, 150.0, 122.0
    panel = (width - LEFT - gap) / 2
    epochs, bins = sorted(set(curve.get("epoch", ()))), sorted(set(curve.get("gate", ())))
    drawn = {}
    for side, name in GATE_SIDES.items():
        elements, last = [], []
        for index, kind in enumerate(("positive", "negative")):
            if f"{side}_{kind}" not in curve:
                continue
            left, step = LEFT + index * (panel + gap), panel / len(epochs)
            # [epochs, bins], written in that order
            counts = np.reshape(curve[f"{side}_{kind}"], (len(epochs), len(bins)))
            if counts[-1].any():
                last.append(f"{GATE_KINDS[kind]} {np.average(bins, weights=counts[-1]):.2f}")
            for row, column in zip(*np.nonzero(counts), strict=True):
                y = base - (column + 1) / len(bins) * tall
                share = counts[row, column] / counts[row].max()
                elements.append(
                    f'<rect class="bar s{index}" x="{left + row * step:.1f}" y="{y:.1f}" opacity="{share:.2f}" '
                    f'width="{max(step - 1, 1):.1f}" height="{tall / len(bins):.1f}"/>'
                )
            for row in sorted({0, len(epochs) - 1}):
                elements.append(tick(left + (row + 0.5) * step, base + 16, f"{epochs[row]:g}"))
            elements.append(f'<line class="axis" x1="{left}" x2="{left + panel}" y1="{base}" y2="{base}"/>')
            elements.append(f'<text class="name s{index}" x="{left}" y="18">{GATE_KINDS[kind]}</text>')
        if not elements:
            continue
        for value in (0, 0.5, 1):
            elements.append(tick(LEFT - 8, base - value * tall + 4, f"{value:g}", "end"))
        elements.append(tick(width / 2, base + 34, "epoch"))
        drawn[side] = chart_svg(
            elements, f"Mean gates over a pair's {name} after each of {len(epochs)} epochs"
            + (f"; after the last, about {', '.join(last)}" if last else ""), width, base + 40,
        )  # fmt: skip
    return drawn


def histogram_page(title: str, pairs: Mapping[str, Sequence[Any]]) -> str:
    """`gate_histograms` as a separate HTML page, which says so if a model has no gates."""
    drawn = list(gate_histograms(pairs).values()) or [Markup("<p>This model has no gates.</p>")]
    page = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{0}</title><style>{1}</style></head>\n'
        "<body><h1>{0}</h1>\n{2}\n</body></html>\n"
    )
    return str(page.format(title, Markup(_PAGE_CSS + PLAIN_CSS), Markup("\n").join(drawn)))
