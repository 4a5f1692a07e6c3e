"""Plays many schedules: `python -m tests.simulation --schedules 20000 [--seed N]`.

Schedule after schedule, each under the next seed, on every core. The first that fails ends it, and
is told with its seed; `--schedules 1 --trace` then shows it event by event.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.simulation.scenario import Outcome, play
from tests.support import seed_of_run

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 50  # schedules that a process takes at a time: a fraction of a second


@dataclass
class Sum:
    """What all schedules came to."""

    schedules: int = 0
    events: int = 0
    messages: int = 0
    crashes: int = 0
    transactions: int = 0
    committed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    digest: bytes = b""

    def add(self, outcome: Outcome) -> None:
        """Adds the next schedule."""
        self.schedules += 1
        self.events += outcome.events
        self.messages += outcome.messages
        self.crashes += outcome.crashes
        self.transactions += outcome.transactions
        self.committed += outcome.committed
        self.counts.update(outcome.counts)
        hashed = hashlib.blake2b(self.digest + outcome.trace_hash.encode(), digest_size=8)
        self.digest = hashed.digest()


def play_or_tell(seed: int, *, trace: bool) -> Outcome | str:
    """A schedule's outcome, or what went wrong with it."""
    try:
        return play(seed, keep_lines=trace)
    except Exception:  # noqa: BLE001 - whatever it is, it is told with its seed
        return traceback.format_exc()


def outcomes(seeds: range, jobs: int, *, trace: bool) -> Iterator[Outcome | str]:
    """Of each seed, in order."""
    one = partial(play_or_tell, trace=trace)
    if jobs == 1 or len(seeds) <= CHUNK:
        yield from map(one, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(one, seeds, CHUNK)


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
