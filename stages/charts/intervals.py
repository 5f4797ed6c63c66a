"""A chart of differences with their intervals, one per row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from stages.charts.svg import chart_svg, tick

NAMES, PLOT, RIGHT, TOP, ROW, BOTTOM = 260.0, 460.0, 24.0, 12.0, 26.0, 44.0
LETTER = 6.5
"""Upper limit of the average width of a letter."""
LINEAR = 50.0
"""Differences up to this are drawn to scale, larger ones by their logarithm: models that have learnt differ by a few
points, one that has not by hundreds."""
TICKS = (-500, -200, -100, -50, -25, 0, 25, 50, 100, 200, 500)


@dataclass(frozen=True)
class Interval:
    """A difference and the ends of its interval."""

    name: str
    low: float
    middle: float
    high: float


def _scaled(value: float) -> float:
    share = value / LINEAR
    return share if abs(share) <= 1 else math.copysign(1 + math.log10(abs(share)), share)


def interval_chart(intervals: Sequence[Interval], title: str, x_label: str) -> Markup:
    """Draw a row for each interval, from the top, and a vertical line at 0."""
    low = _scaled(min([-LINEAR, *(interval.low for interval in intervals)]))
    high = _scaled(max([LINEAR, *(interval.high for interval in intervals)]))
    base = TOP + ROW * len(intervals)
    names = max([NAMES, *(LETTER * len(interval.name) + 20 for interval in intervals)])

    def x_at(value: float) -> float:
        return names + (_scaled(value) - low) / (high - low) * PLOT

    drawn = []
    for value in TICKS:
        if low <= _scaled(value) <= high:
            kind, x = ("axis" if value == 0 else "grid"), x_at(value)
            drawn.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{base}"/>')
            drawn.append(tick(x, base + 18, f"{value:g}"))
    for row, interval in enumerate(intervals):
        y = TOP + ROW * (row + 0.5)
        ends = f'x1="{x_at(interval.low):.1f}" x2="{x_at(interval.high):.1f}"'
        drawn.append(f'<line class="line s2" {ends} y1="{y}" y2="{y}"/>')
        drawn.append(f'<circle class="dot s2" cx="{x_at(interval.middle):.1f}" cy="{y}" r="4"/>')
        drawn.append(tick(names - 12, y + 4.5, interval.name, "end"))
    drawn.append(tick(names + PLOT / 2, base + 38, x_label))
    spoken = "; ".join(f"{i.name}: {i.middle:+z.1f} [{i.low:+z.1f}, {i.high:+z.1f}]" for i in intervals)
    return chart_svg(drawn, f"{title}: {spoken}", names + PLOT + RIGHT, base + BOTTOM)
