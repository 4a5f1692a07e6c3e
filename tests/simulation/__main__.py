"""Plays many schedules: `python -m tests.simulation --schedules 20000 [--seed N]`.

Schedule after schedule, each under the next seed, on every core. The first that fails ends it, and
is told with its seed; `--schedules 1 --trace` then shows it event by event.
"""

from __future__ import annotations

import os
import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.many import Sum, outcomes
from tests.simulation.scenario import Outcome
from tests.support import seed_of_run


@click.command()
@click.option("--schedules", default=20_000, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=int, help="Of the first schedule; the next has the next. [random]")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1))
@click.option("--trace", is_flag=True, help="Show every event of the last schedule.")
def main(*, schedules: int, seed: int | None, jobs: int, trace: bool) -> None:
    """Play schedules of coordinators and shards against each other."""
    console = Console()
    first = seed_of_run() if seed is None else seed
    seeds, done, started = range(first, first + schedules), Sum(), time.monotonic()
    console.print(f"{schedules:,} schedules from seed {first}")
    columns = TextColumn("schedules"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    outcome: Outcome | str = ""
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=schedules)
        for at, outcome in zip(seeds, outcomes(seeds, jobs, trace=trace), strict=True):
            if isinstance(outcome, str):
                progress.stop()
                console.print(outcome, markup=False, highlight=False)
                raise click.ClickException(f"seed {at}: a promise was broken")
            done.add(outcome)
            progress.update(bar, advance=1)
    if trace and isinstance(outcome, Outcome):
        console.print("\n".join(outcome.lines), markup=False, highlight=False)
    console.print(table_of(done, time.monotonic() - started))


def table_of(done: Sum, seconds: float) -> Table:
    """The sums, for people."""
    table = Table(show_header=False, title="every promise held")
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "schedules": done.schedules,
        "events": done.events,
        "events a second": round(done.events / seconds),
        "messages": done.messages,
        "crashes": done.crashes,
        "attempts begun": done.transactions,
        "attempts committed": done.committed,
        **{name: done.counts[name] for name in sorted(done.counts)},
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    table.add_row("seconds", f"{seconds:.1f}")
    table.add_row("hash of all traces", done.digest.hex())
    return table


if __name__ == "__main__":
    main()
