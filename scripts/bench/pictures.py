"""Figures as a picture: how fast each case was beside its bar, and where its processor time went.

Reads the JSON form, so a picture can be drawn of a run of another day. matplotlib is a tool of
development: `pip install -e '.[dev]'`, as every make target does.
"""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROW_INCHES = 0.32
WIDTH_INCHES = 11.0
ROLES = {
    "client": "#9aa5b1", "router": "#3b7dd8", "coordinator": "#8e5bd0", "shard": "#b8860b",
    "checkpoint": "#e0c068", "scrub": "#7fb069", "etcd": "#cccccc", "postgres": "#336791",
    "redis": "#c6302b",
}  # fmt: skip
BAR, FIGURE = "#c0392b", "#d9a514"


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture; the file's ending says whether it is an SVG or a PNG."""
    mpl.rcParams["svg.hashsalt"] = "doubloon"  # the same figures, the same file
    rates = [
        (f"{case['name']}: {figure['name']}", figure)
        for case in report["cases"]
        for figure in case["figures"]
        if figure["unit"] == "/s" and figure["median"] > 0
    ]
    costs = [
        (case["name"], case["usage"]["cpu_us_per_transfer"])
        for case in report["cases"]
        if case["usage"] is not None
    ]
    heights = [max(1, len(rates)), max(1, len(costs))]
    made = Figure(figsize=(WIDTH_INCHES, ROW_INCHES * (sum(heights) + 8)), layout="constrained")
    upper, lower = made.subplots(2, 1, height_ratios=heights)
    _draw_rates(upper, rates)
    _draw_costs(lower, costs)
    machine = report["machine"]
    made.suptitle(
        f"{machine['processor']}, {machine['cores_used']} cores, Python {machine['python']}, "
        f"scale {report['scale']:g}, {report['started']}",
        fontsize=9,
    )
    made.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_rates(axes: Axes, rates: list[tuple[str, dict[str, Any]]]) -> None:
    places = range(len(rates), 0, -1)
    medians = [figure["median"] for _, figure in rates]
    spread = [
        [figure["median"] - figure["min"] for _, figure in rates],
        [figure["max"] - figure["median"] for _, figure in rates],
    ]
    axes.barh(places, medians, xerr=spread, color=FIGURE, height=0.7, capsize=2)
    for place, (_, figure) in zip(places, rates, strict=True):
        if figure["bar"] is not None:
            value = figure["bar"]["value"]
            axes.plot([value, value], [place - 0.45, place + 0.45], color=BAR, linewidth=2.5)
    axes.set_xscale("log")
    axes.set_yticks(list(places), [label for label, _ in rates], fontsize=8)
    axes.set_xlabel("a second, medians with min – max; red: the bar")
    axes.grid(axis="x", alpha=0.3)


def _draw_costs(axes: Axes, costs: list[tuple[str, dict[str, float]]]) -> None:
    places = list(range(len(costs), 0, -1))
    so_far = [0.0] * len(costs)
    for role, colour in ROLES.items():
        widths = [used.get(role, 0.0) for _, used in costs]
        if any(widths):
            axes.barh(places, widths, left=so_far, color=colour, height=0.7, label=role)
        so_far = [left + width for left, width in zip(so_far, widths, strict=True)]
    axes.set_yticks(places, [name for name, _ in costs], fontsize=8)
    axes.set_xlabel("processor µs for each transfer, by process")
    axes.set_xscale("symlog", linthresh=10)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8, ncols=4)
