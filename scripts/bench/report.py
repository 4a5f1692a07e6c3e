"""Figures as tables: on the terminal, and as Markdown for the documents. Reads the JSON form."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.results import FORMAT

TABLE_WIDTH = 120  # where there is no terminal to ask
ROLES = (
    "client", "router", "coordinator", "shard", "checkpoint", "scrub", "etcd", "postgres", "redis",
)  # fmt: skip


def check_format(report: dict[str, Any]) -> None:
    """Refuse a file of another format.

    Raises:
        ValueError: it is one.
    """
    if report.get("format") != FORMAT:
        raise ValueError(f"format {report.get('format')!r}; this version reads {FORMAT}")


def number(value: float, unit: str = "") -> str:
    """Return a number with as many digits as mean something."""
    if abs(value) >= 1_000:
        shown = f"{value:,.0f}"
    elif abs(value) >= 100:
        shown = f"{value:.0f}"
    elif abs(value) >= 10:
        shown = f"{value:.1f}"
    else:
        shown = f"{value:.2f}"
    return f"{shown}/s" if unit == "/s" else f"{shown} {unit}".strip()


def bar_text(bar: dict[str, Any] | None) -> str:
    """Return a bar as a reader says it: `≥ 300,000, missed`."""
    if bar is None:
        return ""
    sign = "≥" if bar["direction"] == "at least" else "≤"
    return f"{bar['number']}: {sign} {number(bar['value'])} {'met' if bar['met'] else 'MISSED'}"


def figure_rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Yield (case, figure, median, spread, bar) of everything measured."""
    for case in report["cases"]:
        shown = case["name"]
        if case["skipped"]:
            yield shown, case["what"], case["skipped"], "", ""
        for figure in case["figures"]:
            values = figure["values"]
            spread = f"{number(figure['min'])} – {number(figure['max'])}" if len(values) > 1 else ""
            median = number(figure["median"], figure["unit"])
            yield shown, figure["name"], median, spread, bar_text(figure["bar"])
            shown = ""


def cost_rows(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield what each case cost: rate, syncs, disk, processor by role, memory, longest turn."""
    for case in report["cases"]:
        usage = case["usage"]
        if usage is None:
            continue
        costs = usage["cpu_us_per_transfer"]
        memory = {
            name: held / 2**20
            for name, held in usage["rss_anon_bytes"].items()
            if name.partition("-")[0] in {"shard", "router", "client"}
        }
        turns, turns_cpu = usage["longest_turn_ms"], usage["turn_cpu_ms"]
        yield (
            case["name"],
            number(usage["syncs_per_s"]),
            number(usage["disk_bytes_per_transfer"]),
            *(number(costs[role]) if role in costs else "" for role in ROLES[:7]),
            number(max((memory[m] for m in memory if m.startswith("shard")), default=0)),
            number(max(turns.values(), default=0)),
            number(max(turns_cpu.values(), default=0)),
            f"{usage['others_cpu_s'] / usage['seconds'] * 100:.0f} %",
        )


COST_COLUMNS = (
    "case", "syncs/s", "disk B each", "client", "router", "coordinator", "shard", "checkpoint",
    "scrub", "etcd", "shard MiB", "turn ms", "of CPU", "others",
)  # fmt: skip


def ratio_rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (ours, theirs, how many times as fast) for every pair that can be compared."""
    found = {
        (case["name"], figure["name"]): figure["median"]
        for case in report["cases"]
        for figure in case["figures"]
    }
    for ours, theirs in RATIOS:
        if ours in found and theirs in found and found[theirs]:
            yield " ".join(ours), " ".join(theirs), f"{found[ours] / found[theirs]:.2f} ×"


STAGES = (
    ("client: make, call, read results", "client", ("crossing-0", "shards-1", "two-shards")),
    ("router: take apart, pack, put together", "router", ("crossing-0", "shards-1", "two-shards")),
    ("router, when all cross", "router", ("crossing-100",)),
    ("coordinator: two-phase commit", "coordinator", ("crossing-100",)),
    ("shard: decide, block, hash, append, sync", "shard", ("node", "crossing-0")),
    ("both shards, when all cross", "shard", ("crossing-100",)),
    ("checkpoint, beside the path", "checkpoint", ("node", "crossing-0")),
)
"""What a transfer passes, in whose processor time, and the cases that tell it, the best first."""


def stage_rows(report: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield (stage, µs for each transfer, told by) of the way of a transfer in large batches."""
    used = {case["name"]: case["usage"] for case in report["cases"] if case["usage"]}
    for stage, role, names in STAGES:
        name = next((each for each in names if each in used), None)
        if name is not None:
            yield stage, number(used[name]["cpu_us_per_transfer"].get(role, 0.0)), name
    for case in report["cases"]:
        for figure in case["figures"]:
            if figure["name"] == FULL_BLOCKS:
                stage = "of which LMDB's append and sync of a full block (time, not processor)"
                yield stage, number(1e6 / figure["median"]), case["name"]


FULL_BLOCKS = "records of 128 bytes in blocks of 512 KiB"

RATIOS = (
    (("unary", "transfers"), ("postgres-uniform", "32 clients")),
    (("unary-zipf", "transfers"), ("postgres-zipf", "32 clients")),
    (("unary-two-routers", "transfers"), ("postgres-uniform", "32 clients")),
    (("callers-64", "transfers"), ("postgres-uniform", "32 clients")),
    (("callers-1", "transfers"), ("postgres-uniform", "1 client")),
    (("two-shards", "transfers"), ("postgres-uniform", "arrays of 1,000")),
    (("node", "transfers"), ("postgres-uniform", "arrays of 1,000")),
    (("unary", "transfers"), ("redis-uniform", "50 clients")),
    (("callers-1", "transfers"), ("redis-uniform", "1 client")),
    (("node", "transfers"), ("floor-lmdb", FULL_BLOCKS)),
    (("unary", "transfers"), ("floor-grpc", "unary calls")),
    (("node", "transfers"), ("floor-grpc", "transfers in batches of 8,000")),
)


def headline(report: dict[str, Any]) -> str:
    """Return what the figures belong to."""
    machine = report["machine"]
    cores = "compiled" if machine["compiled"] else "interpreted"
    return (
        f"{machine['processor']}, {machine['cores_used']} of {machine['cores']} cores, "
        f"{machine['system']}, Python {machine['python']}, {cores} ledger; {report['started']}, "
        f"seed {report['seed']}, scale {report['scale']:g}, {report['repeats']} repeats, "
        f"{report['accounts']:,} accounts"
    )


def show(report: dict[str, Any], console: Console) -> None:
    """Print all tables."""
    console.print(headline(report))
    _print(console, "figures", ("case", "figure", "median>", "min – max>", "bar"),
           figure_rows(report))  # fmt: skip
    _print(console, "cost: processor µs for each transfer, by process",
           tuple(f"{name}>" if at else name for at, name in enumerate(COST_COLUMNS)),
           cost_rows(report))  # fmt: skip
    _print(console, "the way of a transfer in large batches", ("stage", "µs>", "told by"),
           stage_rows(report))  # fmt: skip
    _print(console, "ratios", ("ours", "beside", "ratio>"), ratio_rows(report))
    for case in report["cases"]:
        for note in case["notes"]:
            console.print(f"{case['name']}: {note}")


def _print(
    console: Console, title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]
) -> None:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name.rstrip(">"), justify="right" if name.endswith(">") else "left")
    for row in rows:
        style = "bold red" if any("MISSED" in cell for cell in row) else None
        table.add_row(*row, style=style)
    if table.row_count:
        console.print(table)


def markdown(report: dict[str, Any]) -> str:
    """Return all tables as Markdown."""
    parts = [headline(report)]
    for columns, rows in (
        (("case", "figure", "median", "min – max", "bar"), figure_rows(report)),
        (COST_COLUMNS, cost_rows(report)),
        (("stage", "µs", "told by"), stage_rows(report)),
        (("ours", "beside", "ratio"), ratio_rows(report)),
    ):
        lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def with_tables(page: str, report: dict[str, Any]) -> str:
    """Return a page with the tables of a run between its two marks.

    Raises:
        ValueError: the page has no such place.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for tables: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{markdown(report)}\n{END}{after}"
