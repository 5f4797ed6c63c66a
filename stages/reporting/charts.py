"""Line charts and histograms as inline SVG that takes its colours from the page's theme.

Every chart names its lines beside them and gives them different dashes, so no reading needs colour.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 400.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 110.0, 24.0, 42.0
DASHES = ("", "7 4", "2 4", "10 3 2 3")
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Line:
    """One line of a chart: `xs` ascending, `ys` of the same length; `band` is a (low, high) range around `ys`."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values that span [low, high], both ends included."""
    if high <= low:
        high = low + 1.0
    rough = (high - low) / max(count - 1, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(step * i, 10) for i in range(first, last + 1)]


def in_buckets(xs: Sequence[float], ys: Sequence[float], buckets: int = 120) -> Line:
    """A long series as the mean, lowest and highest of at most `buckets` equal stretches."""
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    parts = [part for part in np.array_split(np.arange(len(x)), min(buckets, max(len(x), 1))) if len(part)]
    low, high = [float(y[part].min()) for part in parts], [float(y[part].max()) for part in parts]
    return Line("", [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts], (low, high))


def _spread(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Label positions moved apart to at least `gap` where there is room, in their order, within [low, high]."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    floor = low
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _points(xs: Sequence[float], ys: Sequence[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def _axes(x_ticks: list[float], y_ticks: list[float], x_label: str, x_at: Scale, y_at: Scale) -> list[str]:
    parts = []
    for value in y_ticks:
        y = y_at(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{y + 4.5:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        parts.append(
            f'<text class="tick" x="{x_at(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
) -> Markup:
    """A line chart; `mark` draws a labelled upright at one x. Lines without a point are left out."""
    lines = [line for line in lines if len(line.xs)]
    if not lines:
        return Markup("")
    every_y = [y for line in lines for y in (*line.ys, *(line.band[1] if line.band else ()))]
    x_low, x_high = min(line.xs[0] for line in lines), max(line.xs[-1] for line in lines)
    # Steps and epochs are whole numbers.
    x_ticks = [value for value in ticks(x_low, x_high) if x_low <= value <= x_high and value % 1 == 0] or [x_low]
    x_high = x_high if x_high > x_low else x_low + 1
    y_ticks = ticks(*(y_range or (min(0.0, *every_y), max(every_y))))

    def x_at(value: float) -> float:
        return LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y_at(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = _axes(x_ticks, y_ticks, x_label, x_at, y_at)
    if mark is not None and x_low <= mark[0] <= x_high:
        x = x_at(mark[0])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{TOP - 7}" text-anchor="middle">{escape(mark[1])}</text>')
    labels = _spread([y_at(line.ys[-1]) for line in lines], 17, TOP + 6, HEIGHT - BOTTOM)
    for index, (line, label_y) in enumerate(zip(lines, labels, strict=True)):
        xs = [x_at(x) for x in line.xs]
        if line.band is not None:
            edge = _points(xs, [y_at(y) for y in line.band[1]])
            back = _points(xs[::-1], [y_at(y) for y in line.band[0]][::-1])
            parts.append(f'<polygon class="band s{index}" points="{edge} {back}"/>')
        ys = [y_at(y) for y in line.ys]
        dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if index else ""
        parts.append(f'<polyline class="line s{index}"{dash} points="{_points(xs, ys)}"/>')
        parts.append(f'<circle class="dot s{index}" cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="3.5"/>')
        parts.append(
            f'<text class="name s{index}" x="{WIDTH - RIGHT + 10}" y="{label_y + 4.5:.1f}">{escape(line.name)}</text>'
        )
    spoken = "; ".join(f"{line.name} ends at {line.ys[-1]:.4g}" for line in lines)
    return _svg(parts, f"{title}: {spoken}", WIDTH, HEIGHT)


def histogram(rows: Sequence[tuple[str, Sequence[float]]], title: str, x_label: str, bins: int = 40) -> Markup:
    """Shares of values in [0, 1], one row of bars for each (name, values), on one axis, each row to its own height."""
    rows = [(name, values) for name, values in rows if len(values)]
    if not rows:
        return Markup("")
    width, margin, row_height = 480.0, 12.0, 78.0
    height = row_height * len(rows) + BOTTOM
    scale = width - 2 * margin
    parts = []
    for index, (name, values) in enumerate(rows):
        base = row_height * (index + 1)
        counts, _ = np.histogram(np.clip(values, 0, 1), bins=bins, range=(0, 1))
        tallest = max(int(counts.max()), 1)
        for at, count in enumerate(counts):
            if count:
                bar = max(count / tallest * (row_height - 34), 1.0)
                parts.append(
                    f'<rect class="bar s{index}" x="{margin + at / bins * scale + 0.5:.1f}" y="{base - bar:.1f}" '
                    f'width="{scale / bins - 1:.1f}" height="{bar:.1f}"/>'
                )
        mean = float(np.mean(values))
        x = margin + mean * scale
        parts.append(f'<line class="axis" x1="{margin}" x2="{width - margin}" y1="{base}" y2="{base}"/>')
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{base - row_height + 28}" y2="{base}"/>')
        parts.append(
            f'<text class="name s{index}" x="{margin}" y="{base - row_height + 22}">{escape(name)}'
            f'<tspan class="plain"> mean {mean:.3f}</tspan></text>'
        )
    for value, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        x = margin + value * scale
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 24}" text-anchor="{anchor}">{value:g}</text>')
    parts.append(f'<text class="tick" x="{width / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    spoken = "; ".join(f"{name}: mean {float(np.mean(values)):.3g}" for name, values in rows)
    return _svg(parts, f"{title}: {spoken}", width, height)


GATE_KINDS = {"positive": "Matching", "negative": "Random mismatch", "hardest": "Hardest mismatch"}
GATE_SIDES = {"words": "words", "content": "content words", "regions": "regions"}
_PLAIN_CSS = """body { font: 14px sans-serif; color: #1d1e22; margin: 24px; } svg { width: 480px; display: block; }
.bar.s0 { fill: #0b6b58; } .bar.s1 { fill: #b4470f; } .bar.s2 { fill: #3551c4; } .axis { stroke: #5d616b; }
.mark { stroke: #5d616b; stroke-dasharray: 3 3; } .tick, .plain { fill: #5d616b; } .name { font-weight: 600; }
.plain { font-weight: 400; }"""


def gate_histograms(pairs: Mapping[str, Sequence[Any]]) -> dict[str, Markup]:
    """A histogram of the mean gate over words, content words and regions, where there are any.

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
    """How the mean gates of matching and of random pairs lie after each epoch, by side, where there are any.

    A column of cells for each epoch, from gate 0 at the bottom to 1; the more pairs, the darker.

    Args:
        curve: columns of val_gates.csv: epoch, the middle of a bin, and the number of pairs in it.
    """
    width, gap, base, tall = 480.0, 34.0, 150.0, 122.0
    panel = (width - LEFT - gap) / 2
    epochs, bins = sorted(set(curve.get("epoch", ()))), sorted(set(curve.get("gate", ())))
    drawn = {}
    for side, name in GATE_SIDES.items():
        parts = []
        for index, kind in enumerate(("positive", "negative")):
            if f"{side}_{kind}" not in curve:
                continue
            left, step = LEFT + index * (panel + gap), panel / len(epochs)
            # [epochs, bins], written in that order
            counts = np.reshape(curve[f"{side}_{kind}"], (len(epochs), len(bins)))
            for row, column in zip(*np.nonzero(counts), strict=True):
                y = base - (column + 1) / len(bins) * tall
                share = counts[row, column] / counts[row].max()
                parts.append(
                    f'<rect class="bar s{index}" x="{left + row * step:.1f}" y="{y:.1f}" opacity="{share:.2f}" '
                    f'width="{max(step - 1, 1):.1f}" height="{tall / len(bins):.1f}"/>'
                )
            for row in sorted({0, len(epochs) - 1}):
                x = left + (row + 0.5) * step
                parts.append(
                    f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{epochs[row]:g}</text>'
                )
            parts.append(f'<line class="axis" x1="{left}" x2="{left + panel}" y1="{base}" y2="{base}"/>')
            parts.append(f'<text class="name s{index}" x="{left}" y="18">{GATE_KINDS[kind]}</text>')
        if not parts:
            continue
        for value in (0, 0.5, 1):
            y = base - value * tall + 4
            parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<text class="tick" x="{width / 2}" y="{base + 34}" text-anchor="middle">epoch</text>')
        drawn[side] = _svg(
            parts, f"Mean gates over a pair's {name} after each of {len(epochs)} epochs", width, base + 40
        )
    return drawn


def histogram_page(title: str, pairs: Mapping[str, Sequence[Any]]) -> str:
    """`gate_histograms` as an HTML page of its own; it says so where a model has no gates."""
    drawn = list(gate_histograms(pairs).values()) or [Markup("<p>This model has no gates.</p>")]
    page = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{0}</title><style>{1}</style></head>\n'
        "<body><h1>{0}</h1>\n{2}\n</body></html>\n"
    )
    return str(page.format(title, Markup(_PLAIN_CSS), Markup("\n").join(drawn)))


def _svg(parts: list[str], spoken: str, width: float, height: float) -> Markup:
    # `parts` is made here of numbers and escaped texts only.
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(spoken)}">'
        + "".join(parts)
        + "</svg>"
    )
