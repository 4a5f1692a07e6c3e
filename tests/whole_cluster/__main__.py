"""Plays whole clusters under faults: `python -m tests.whole_cluster --seeds 500 [--seed N]`.

Run after run, each under the next seed, on every core. The first that fails ends it, and is told
with the command that plays it again with its trace.
"""

from __future__ import annotations

import json
import os
import time

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.support import seed_of_run
from tests.whole_cluster.many import Played, Sum, outcomes

ANSWERS = ("answered COMPLETED", "answered COMMITTED_POSTING", "answered REFUSED")


@click.command()
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--seed", type=int, help="Of the first run; the next has the next. [random]")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1))
@click.option("--brief", is_flag=True, help="Runs of a tenth of the work.")
@click.option("--twice", is_flag=True, help="Play each run twice, and compare the traces.")
@click.option("--trace", is_flag=True, help="Show everything that happened in the last run.")
@click.option("--json", "as_json", is_flag=True, help="Tell the sums to a program.")
def main(
    *,
    seeds: int,
    seed: int | None,
    jobs: int,
    brief: bool,
    twice: bool,
    trace: bool,
    as_json: bool,
) -> None:
    """Play whole clusters under faults, and check every promise."""
    console = Console(stderr=as_json)
    first = seed_of_run() if seed is None else seed
    done, started_s = Sum(), time.monotonic()
    console.print(f"{seeds:,} clusters from seed {first}")
    columns = TextColumn("clusters"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    played = None
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=seeds)
        try:
            every = range(first, first + seeds)
            for played in outcomes(every, jobs, brief=brief, trace=trace, twice=twice):
                if played.outcome is None:
                    progress.stop()
                    _tell(console, played)
                done.add(played)
                progress.update(bar, advance=1)
        except KeyboardInterrupt:
            console.print("stopped")
    if trace and played is not None and played.outcome is not None:
        console.print("\n".join(played.outcome.lines), markup=False, highlight=False)
    seconds = time.monotonic() - started_s
    if as_json:
        click.echo(json.dumps(_rows(done, seconds)))
    else:
        console.print(_table(done, seconds))


def _tell(console: Console, played: Played) -> None:
    """Tells of a run that failed, and ends."""
    console.print(played.why, markup=False, highlight=False)
    raise click.ClickException(f"seed {played.seed}: a promise was broken")


def _rows(done: Sum, seconds: float) -> dict[str, float]:
    answered = sum(done.counts[each] for each in ANSWERS)
    cpu_s = max(done.cpu_s, 1e-9)
    return {
        "clusters": done.runs,
        "virtual hours": round(done.virtual_s / 3600, 1),
        "virtual hours in a minute of CPU": round(done.virtual_s / 60 / cpu_s, 1),
        "steps in a second of CPU": round(done.steps / cpu_s),
        "transfers and groups answered": answered,
        "answered in a second of CPU": round(answered / cpu_s, 1),
        "CPU seconds": round(done.cpu_s, 1),
        "seconds": round(seconds, 1),
        **{name: done.counts[name] for name in sorted(done.counts)},
    }


def _table(done: Sum, seconds: float) -> Table:
    table = Table(show_header=False, title="every promise held")
    table.add_column()
    table.add_column(justify="right")
    for name, number in _rows(done, seconds).items():
        table.add_row(name, f"{number:,}")
    table.add_row("hash of all traces", done.digest.hex())
    return table


if __name__ == "__main__":
    main()
