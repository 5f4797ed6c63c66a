"""The elements of all charts. On a page, charts take their colours from its theme; in their own files, from PLAIN_CSS.

Every chart labels its lines and draws them with different dashes, so that it can be read without colour.
"""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup, escape

DASHES = ("", "7 4", "2 4", "10 3 2 3")
Scale = Callable[[float], float]
PLAIN_CSS = """.chart { font: 13.5px sans-serif; } .grid { stroke: #e2e3e6; } .axis, .mark { stroke: #5d616b; }
.mark { stroke-dasharray: 3 3; } .tick, .plain { fill: #5d616b; } .name { font-weight: 600; }
.plain { font-weight: 400; } .line { fill: none; stroke-width: 2; } .band { opacity: .17; }
.s0 { stroke: #0b6b58; } .s1 { stroke: #b4470f; } .s2 { stroke: #3551c4; }
.s3 { stroke: #8a3ea8; } .s4 { stroke: #7a6a00; } .s5 { stroke: #4f5866; } .s0:not(.line) { fill: #0b6b58; }
.s1:not(.line) { fill: #b4470f; } .s2:not(.line) { fill: #3551c4; } .s3:not(.line) { fill: #8a3ea8; }
.s4:not(.line) { fill: #7a6a00; } .s5:not(.line) { fill: #4f5866; }
.name, .bar, .dot, .band { stroke: none; }"""


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


def spread_apart(positions: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart to at least `gap` if there is room, in their order, within [low, high]."""
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


def points(xs: Sequence[float], ys: Sequence[float]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))


def tick(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """A small label on an axis."""
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def chart_svg(elements: list[str], spoken: str, width: float, height: float) -> Markup:
    """A chart as SVG for a page; `spoken` is the text for screen readers."""
    # `elements` consists only of numbers and escaped texts.
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(spoken)}">'
        + "".join(elements)
        + "</svg>"
    )


def standalone_svg(chart: Markup) -> str:
    """A chart as a separate SVG file, on white."""
    opening = Markup('<?xml version="1.0" encoding="utf-8"?>\n<svg xmlns="http://www.w3.org/2000/svg" ')
    style = Markup('><style>{}</style><rect width="100%" height="100%" fill="white"/>').format(Markup(PLAIN_CSS))
    head, _, rest = chart.removeprefix("<svg ").partition(">")
    return f"{opening}{head}{style}{rest}\n"
