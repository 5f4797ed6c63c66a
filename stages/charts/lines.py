"""Line charts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from stages.charts.svg import DASHES, Scale, chart_svg, points, spread_apart, tick, ticks

HEIGHT = 260.0
PLOT = 250.0
"""Width of the plotting area."""
LEFT, TOP, BOTTOM = 40.0, 24.0, 42.0


@dataclass(frozen=True)
class Line:
    """One line of a chart: `xs` ascending, `ys` of the same length; `band` is a (low, high) range around `ys`."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


def in_buckets(name: str, xs: Sequence[float], ys: Sequence[float], buckets: int = 120) -> Line:
    """Reduce a long series to a line of the means of at most `buckets` equal parts, with their extremes as its band."""
    x, y = np.asarray(xs, dtype=float), np.asarray(ys, dtype=float)
    split = [rows for rows in np.array_split(np.arange(len(x)), min(buckets, max(len(x), 1))) if len(rows)]
    low, high = [float(y[rows].min()) for rows in split], [float(y[rows].max()) for rows in split]
    return Line(name, [float(x[rows].mean()) for rows in split], [float(y[rows].mean()) for rows in split], (low, high))


def _axes(x_ticks: list[float], y_ticks: list[float], x_label: str, x_at: Scale, y_at: Scale) -> list[str]:
    elements = []
    for value in y_ticks:
        y = y_at(value)
        elements.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + PLOT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        elements.append(tick(LEFT - 7, y + 4.5, f"{value:g}", "end"))
    elements += [tick(x_at(value), HEIGHT - BOTTOM + 18, f"{value:g}") for value in x_ticks]
    elements.append(tick(LEFT + PLOT / 2, HEIGHT - 6, x_label))
    return elements


def line_chart(
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_range: tuple[float, float] | None = None,
    mark: tuple[float, str] | None = None,
    names: float = 110.0,
) -> Markup:
    """Draw a line chart; `mark` draws a labelled vertical line at one x. Lines without points are left out.

    Args:
        names: width reserved for the lines' names on the right.
    """
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
        return LEFT + (value - x_low) / (x_high - x_low) * PLOT

    def y_at(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    elements = _axes(x_ticks, y_ticks, x_label, x_at, y_at)
    if mark is not None and x_low <= mark[0] <= x_high:
        x = x_at(mark[0])
        elements.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        elements.append(tick(x, TOP - 7, mark[1]))
    labels = spread_apart([y_at(line.ys[-1]) for line in lines], 17, TOP + 6, HEIGHT - BOTTOM)
    for index, (line, label_y) in enumerate(zip(lines, labels, strict=True)):
        xs = [x_at(x) for x in line.xs]
        if line.band is not None:
            edge = points(xs, [y_at(y) for y in line.band[1]])
            back = points(xs[::-1], [y_at(y) for y in line.band[0]][::-1])
            elements.append(f'<polygon class="band s{index}" points="{edge} {back}"/>')
        ys = [y_at(y) for y in line.ys]
        dash = f' stroke-dasharray="{DASHES[index % len(DASHES)]}"' if index else ""
        elements.append(f'<polyline class="line s{index}"{dash} points="{points(xs, ys)}"/>')
        elements.append(f'<circle class="dot s{index}" cx="{xs[-1]:.1f}" cy="{ys[-1]:.1f}" r="3.5"/>')
        elements.append(
            f'<text class="name s{index}" x="{LEFT + PLOT + 10}" y="{label_y + 4.5:.1f}">{escape(line.name)}</text>'
        )
    spoken = "; ".join(f"{line.name} ends at {line.ys[-1]:.4g}" for line in lines)
    return chart_svg(elements, f"{title}: {spoken}", LEFT + PLOT + names, HEIGHT)
