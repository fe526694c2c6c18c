"""Curves of the page: what is drawn where, and how it is labelled."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from mtlcore.report.charts.axes import number_text, ticks
from mtlcore.report.charts.drawing import Chart
from mtlcore.report.charts.lines import Line, over_seeds
from mtlcore.report.charts.series import families, series
from mtlcore.report.html.figures import figure


def test_bands_are_the_standard_deviation_over_seeds() -> None:
    line = over_seeds("x", 0, [[(1, 1.0), (2, 5.0)], [(1, 2.0), (2, math.nan)], [(1, 3.0), (2, 1)]])
    assert line.points[0] == (1, 2.0)
    assert line.band[0] == (1.0, 3.0)
    assert math.isnan(line.points[1][1])
    assert not over_seeds("x", 0, [[(1, 1.0)]]).band
    # A point that one run lacks is left out: means of different runs would jump.
    assert over_seeds("x", 0, [[(1, 1.0), (2, 9.0)], [(1, 3.0)]]).points == ((1, 2.0),)


def test_families_of_metrics() -> None:
    recorded = [
        ("depth", "loss"), ("depth", "weight"), ("segmentation", "weight/chair"),
        ("segmentation", "weight/sofa"), ("depth|normals", "cosine"), (None, "learning_rate"),
        (None, "degenerate"),
    ]  # fmt: skip
    records = [
        {"step": step, "epoch": 1, "split": "train", "task": task, "metric": metric,
         "value": 0.5, "seconds": 1.0}
        for step in (1, 2) for task, metric in recorded
    ]  # fmt: skip
    found = families(series(records))
    assert set(found) == {
        ("weight", None), ("weight", "segmentation"), ("cosine", None), ("learning_rate", None),
        ("degenerate", None),
    }  # fmt: skip
    assert list(found["weight", "segmentation"]) == ["chair", "sofa"]
    assert list(found["cosine", None]) == ["depth and normals"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (-1, 1, [-1, -0.5, 0, 0.5, 1]), (3, 3, [3]),
     (0.00011, 0.00029, [0.00015, 0.0002, 0.00025])],
)  # fmt: skip
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_numbers_of_axes() -> None:
    assert [number_text(x) for x in (-0.5, 1234, 1e-5, 2e7, 0.3)] == [
        "\N{MINUS SIGN}0.5", "1234", "1e\N{MINUS SIGN}5", "2e7", "0.3",
    ]  # fmt: skip


def elements(text: str, tag: str, **wanted: str) -> list[Element]:
    return [
        found for found in ElementTree.fromstring(text).iter(tag)
        if all(found.get(key) == value for key, value in wanted.items())
    ]  # fmt: skip


def curve(text: str, kind: str = "line c0 s0") -> list[tuple[float, float]]:
    (found,) = elements(text, "path", **{"class": kind})
    pairs = re.findall(r"(-?[\d.]+) (-?[\d.]+)", found.attrib["d"])
    return [(float(x), float(y)) for x, y in pairs]


def chart(title: str, lines: Sequence[Line], **options: Any) -> str:
    return figure(Chart(title=title, lines=lines, **options))


def test_higher_values_are_drawn_higher() -> None:
    points = tuple((float(x), float(x * x)) for x in range(10))
    places = curve(chart("t", [Line(label="a", look=0, points=points)]))
    assert len(places) == 10
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    heights = [-y for _, y in places]
    rise = np.diff(heights) / np.diff([y for _, y in points])
    assert np.allclose(rise, rise[0], rtol=0.1)


def test_gaps_part_a_curve_and_lonely_points_are_dots() -> None:
    ys = [1.0, 2.0, math.nan, 3.0, math.inf, *[1.0] * 40]
    text = chart("t", [Line(label="a", look=0, points=tuple(enumerate(ys)))])
    assert elements(text, "path")[0].attrib["d"].count("M") == 2
    assert len(elements(text, "circle")) == 1


def test_many_decades_have_a_logarithmic_scale_where_values_are_of_steps() -> None:
    points = tuple((float(x), 10.0**-x) for x in range(5))
    line = Line(label="a", look=0, points=points)
    heights = np.diff([y for _, y in curve(chart("t", [line], may_be_logarithmic=True))])
    assert np.allclose(heights, heights[0], atol=0.2)
    assert "log scale" in chart("t", [line], may_be_logarithmic=True)
    assert "log scale" not in chart("t", [line])


def test_steps_are_drawn_with_their_running_mean() -> None:
    points = tuple((float(x), float(x % 2)) for x in range(200))
    text = chart("t", [Line(label="a", look=0, points=points)], smooth=True)
    raw = [y for _, y in curve(text, "line c0 s0 faint")]
    calm = [y for _, y in curve(text)][10:-10]
    assert np.ptp(raw) > 100
    assert np.ptp(calm) < 0.15 * np.ptp(raw)


def test_labels_do_not_lie_on_each_other() -> None:
    lines = [Line(label=f"n{n}", look=n, points=((0, 0), (1, 1 + n / 1000))) for n in range(12)]
    text = chart("t", lines)
    tops = sorted(float(e.attrib["y"]) for e in elements(text, "text", **{"class": "name"}))
    assert len(tops) == 12
    assert min(np.diff(tops)) > 12
    assert tops[0] > 0
    assert tops[-1] < 220
    assert len({found.get("class") for found in elements(text, "polyline")}) == 12
    assert not elements(text, "ul")


@pytest.mark.parametrize("names", [[f"n{n}" for n in range(30)], ["a" * 20 + x for x in "bc"]])
def test_a_legend_names_what_labels_cannot(names: list[str]) -> None:
    lines = [Line(label=name, look=n, points=((0, 0), (1, n))) for n, name in enumerate(names)]
    text = chart("t", lines)
    assert not elements(text, "text", **{"class": "name"})
    words = [word.strip() for word in ElementTree.fromstring(text).itertext()]
    assert [word for word in words if word in names] == names
