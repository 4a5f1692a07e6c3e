"""Pictures of a balance: well-formed, complete, and without surprises on odd series."""

import re
from xml.etree import ElementTree as ET

import pytest

from scripts.chart import Series, svg, terminal_plot
from scripts.naive import HOUR_US

START_US = 1_772_366_400_000_000


def series_of(*balances_minor: int, title: str = "account 7, GOLD", scale: int = 2) -> Series:
    times = [START_US + hour * HOUR_US for hour in range(len(balances_minor))]
    return Series(title, scale, times, balances_minor)


ODD = [
    pytest.param(series_of(0), id="one point"),
    pytest.param(series_of(0, 0, 0), id="always empty"),
    pytest.param(series_of(5, 5, 5), id="flat"),
    pytest.param(series_of(-100, 50, -20), id="below zero"),
    pytest.param(series_of(2**62, -(2**62)), id="huge"),
    pytest.param(series_of(*range(720), scale=0), id="a month of hours"),
]


@pytest.mark.parametrize("series", ODD)
def test_svg_is_well_formed_and_draws_every_point_inside(series: Series) -> None:
    root = ET.fromstring(svg(series))
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    line = next(e.attrib["d"] for e in root.iter() if e.attrib.get("fill") == "none")
    xs = [float(x) for x in re.findall(r"H([-\d.]+)", line)]
    ys = [float(y) for y in re.findall(r"V([-\d.]+)", line)]
    assert len(xs) == len(ys) == len(series.balances_minor)
    assert xs == sorted(xs)
    assert all(0 <= x <= width for x in xs)
    assert all(0 <= y <= height for y in ys)


def test_svg_rises_where_the_balance_rises() -> None:
    line = re.findall(r'd="(M[^"]*)" fill="none"', svg(series_of(1, 9, 3)))[0]
    low, high, middle = (float(y) for y in re.findall(r"V([-\d.]+)", line))
    assert high < middle < low, "y grows downwards"


def test_svg_spells_titles_safely() -> None:
    root = ET.fromstring(svg(series_of(1, title="a < b & c")))
    texts = [element.text for element in root.iter()]
    assert texts.count("a < b & c") == 2


@pytest.mark.parametrize("series", ODD)
def test_terminal_plot_fits_and_has_no_colour(series: Series) -> None:
    lines = terminal_plot(series, width=70, height=12).splitlines()
    assert len(lines) == 12
    assert all(len(line) <= 70 for line in lines)
    assert "\x1b" not in "".join(lines)
    assert series.title in lines[0]
