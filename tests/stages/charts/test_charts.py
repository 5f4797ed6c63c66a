"""The charts of the report and of a study."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from stages.charts.gates import gate_epochs, histogram
from stages.charts.intervals import Interval, interval_chart
from stages.charts.lines import Line, in_buckets, line_chart
from stages.charts.svg import standalone_svg, ticks


def test_ticks_are_round_and_span_the_range():
    assert ticks(0, 100) == [0, 25, 50, 75, 100]
    assert ticks(0.2, 0.9)[0] <= 0.2 and ticks(0.2, 0.9)[-1] >= 0.9
    assert ticks(3, 3)[0] <= 3 < ticks(3, 3)[-1]


def test_long_series_keep_their_mean_and_extremes():
    ys = np.random.default_rng(0).normal(size=1000)
    line = in_buckets("loss", list(range(1000)), list(ys), buckets=50)
    assert len(line.xs) == 50 and np.mean(line.ys) == pytest.approx(ys.mean())
    assert line.band is not None and max(line.band[1]) == ys.max() and min(line.band[0]) == ys.min()


def test_charts_escape_names_say_their_numbers_and_put_points_where_they_belong():
    svg = line_chart([Line("<b>", [1, 2], [0.0, 10.0])], "a & b", "epoch", (0, 10), mark=(2, "kept"))
    assert "<b>" not in svg and "&lt;b&gt; ends at 10" in svg and "kept" in svg
    (points,) = re.findall(r'points="([^"]+)"', svg)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in points.split())
    assert x0 < x1 and y0 > y1
    bars = re.findall(r'class="bar s0" x="([\d.]+)"', histogram([("n", [0.0, 0.99, 1.0])], "t", "x", bins=10))
    assert len(bars) == 2
    assert line_chart([], "t", "x") == "" and histogram([("n", [])], "t", "x") == ""


def test_gates_by_epoch_are_a_column_of_cells_for_each_epoch():
    curve = {"epoch": [1, 1, 2, 2], "gate": [0.25, 0.75, 0.25, 0.75], "words_positive": [4, 2, 0, 6],
             "words_negative": [6, 0, 6, 0]}  # fmt: skip
    (side, svg), *others = gate_epochs(curve).items()
    assert side == "words" and not others
    cells = [
        (kind, float(x), float(y), float(shade))
        for kind, x, y, shade in re.findall(r'class="bar s(\d)" x="([\d.]+)" y="([\d.]+)" opacity="([\d.]+)"', svg)
    ]
    low, high = max(y for *_, y, _ in cells), min(y for *_, y, _ in cells)
    first, second = sorted({x for kind, x, *_ in cells if kind == "0"})
    assert [cell[1:] for cell in cells if cell[0] == "0"] == [(first, low, 1), (first, high, 0.5), (second, high, 1)]
    assert [cell[2:] for cell in cells if cell[0] == "1"] == [(low, 1), (low, 1)]
    assert gate_epochs({}) == {}


def test_intervals_are_rows_to_scale_near_zero_and_by_logarithm_beyond():
    intervals = [Interval("a < b", -10, 10, 30), Interval("far", 400, 450, 500), Interval("worse", -120, -100, -80)]
    svg = interval_chart(intervals, "Difference", "rsum")
    rows = re.findall(r'class="line s2" x1="([\d.]+)" x2="([\d.]+)" y1="([\d.]+)"', svg)
    dots = [float(x) for x in re.findall(r'class="dot s2" cx="([\d.]+)"', svg)]
    (zero,) = re.findall(r'class="axis" x1="([\d.]+)"', svg)
    lows, highs, ys = zip(*((float(value) for value in row) for row in rows), strict=True)
    assert list(ys) == sorted(ys) and len(set(ys)) == 3
    assert dots[0] - float(zero) == pytest.approx((highs[0] - lows[0]) / 4, abs=0.1)  # 10 of -10 to 30
    tenfold = highs[1] - float(zero), dots[2] - float(zero)
    assert tenfold[0] == pytest.approx(-tenfold[1] * 2 / (1 + np.log10(2)), abs=0.2)  # 500 is a decade above 50
    assert "a &lt; b: +10.0 [-10.0, +30.0]" in svg


def test_a_long_name_beside_an_interval_is_not_cut_off():
    name = "joint embedding, trained with the upper half of the transformer"
    svg = interval_chart([Interval(name, 1, 2, 3), Interval("short", 1, 2, 3)], "Difference", "rsum")
    ends = re.findall(r'x="([\d.]+)" y="[\d.]+" text-anchor="end"', svg)
    assert len(ends) == 2 and min(map(float, ends)) >= 6 * len(name)


def test_a_chart_alone_is_a_whole_svg_file_with_its_colours():
    line = Line("words & regions", [1, 2], [0.5, 0.75])
    root = ElementTree.fromstring(standalone_svg(line_chart([line], "a > b", "epoch", (0, 1), names=200)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox") == "0 0 490 260"
    assert root.get("aria-label") == "a > b: words & regions ends at 0.75"
    assert ".s0" in (root.find("{*}style").text or "") and root.find("{*}polyline") is not None
