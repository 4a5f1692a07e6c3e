"""A balance over time as a picture: on the terminal, and as an SVG file.

Pure: texts out. The SVG is written by hand, since one step line with two axes is less text than the
configuration of a plotting library, and needs no dependency of tens of megabytes.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import plotext

from scripts.units import show_amount


class Series(NamedTuple):
    """What to draw.

    Attributes:
        title: such as `account 1000042, GOLD`.
        scale: decimals of a major unit.
        times_us: ascending, microseconds; at least one.
        balances_minor: as many.
    """

    title: str
    scale: int
    times_us: Sequence[int]
    balances_minor: Sequence[int]


_TICKS = 6
_WIDTH, _HEIGHT = 960, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 100, 24, 44, 40


def terminal_plot(series: Series, width: int = 100, height: int = 18) -> str:
    """Return a line plot in block characters, without colours, `width` columns wide."""
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.title(series.title)
    points = list(range(len(series.times_us)))
    major = [balance_minor / 10**series.scale for balance_minor in series.balances_minor]
    signal = figure.signal(points, major, marker="hd")
    signal.lines()
    figure.draw(signal)
    ticks = _spread(points)
    figure.ruler("x").ticks(ticks, [_day(series.times_us[i]) for i in ticks])
    levels = _levels(min(series.balances_minor), max(series.balances_minor))
    labels = [show_amount(level, series.scale) for level in levels]
    figure.ruler("y").ticks([level / 10**series.scale for level in levels], labels)
    text: Any = figure.build().string(colorless=True)
    return "\n".join(line.rstrip() for line in str(text).splitlines())


def svg(series: Series) -> str:
    """Return the text of an SVG file: the balance as a step line over a filled area."""
    low, high = min(0, *series.balances_minor), max(1, *series.balances_minor)
    first, last = series.times_us[0], max(series.times_us[-1], series.times_us[0] + 1)

    def x(time_us: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (time_us - first) / (last - first)

    def y(balance_minor: int) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - balance_minor) / (high - low)

    steps = [f"M{x(first):.1f},{y(series.balances_minor[0]):.1f}"]
    for time_us, balance_minor in zip(series.times_us, series.balances_minor, strict=True):
        steps.append(f"H{x(time_us):.1f}V{y(balance_minor):.1f}")
    line = "".join(steps)
    area = f"{line}V{y(0):.1f}H{x(first):.1f}Z"
    grid = []
    for level in _levels(low, high):
        grid.append(f'<path d="M{_LEFT},{y(level):.1f}H{_WIDTH - _RIGHT}" stroke="#e2e2e8"/>')
        label = show_amount(level, series.scale)
        grid.append(
            f'<text x="{_LEFT - 8}" y="{y(level) + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for index in _spread(range(len(series.times_us))):
        time_us = series.times_us[index]
        place = f'x="{x(time_us):.1f}" y="{_HEIGHT - _BOTTOM + 20}"'
        grid.append(f'<text {place} text-anchor="middle">{_day(time_us)}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"',
            'font-family="sans-serif" font-size="12" fill="#555">',
            f"<title>{escape(series.title)}</title>",
            '<rect width="100%" height="100%" fill="#fff"/>',
            f'<text x="{_LEFT}" y="26" font-size="16" fill="#222">{escape(series.title)}</text>',
            *grid,
            f'<path d="{area}" fill="#d9a514" fill-opacity="0.2"/>',
            f'<path d="{line}" fill="none" stroke="#b8860b" stroke-width="1.5"/>',
            "</svg>\n",
        ]
    )


def _spread(points: Sequence[int]) -> list[int]:
    """Return up to `_TICKS` of the points, evenly spread, both ends included."""
    last = len(points) - 1
    return sorted({points[last * tick // (_TICKS - 1)] for tick in range(_TICKS)})


def _levels(low: int, high: int) -> list[int]:
    """Return the multiples of a round number from `low` to `high`: about `_TICKS`, at least one."""
    step = _round_step((high - low) // (_TICKS - 1))
    first = -(-low // step) * step
    return list(range(first, high + 1, step)) or [low]


def _round_step(at_least: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, 50 … that is not below `at_least`."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= at_least:
                return digit * power
        power *= 10


def _day(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%b %d")
