"""The long runs: `python -m tests.crash [faults|power|damage] [--seed N] [--json]`.

`faults` ends a driver, or fails it, at every system call that it makes; `power` cuts the power
under one; `damage` changes bytes of what it left. Each says at its end how much it did; the first
broken promise ends it, and is told with what replays it.
"""

import json
import logging
import time
from collections.abc import Generator
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from cluster.logs import configure
from tests.crash import faults as injected
from tests.crash.damage import DamageCount, damages
from tests.crash.disks import FILE_SYSTEMS
from tests.crash.disks import why_not as no_disk
from tests.crash.power import PowerCount, failed_syncs
from tests.crash.power import cuts as power_cuts
from tests.crash.sweeps import sweep
from tests.crash.trial import Count
from tests.support import seed_of_run


@click.group()
def main() -> None:
    """Attack a real shard node's log and state."""


@main.command()
@click.option("--seed", type=int, help="Of all trials. [random]")
@click.option("--every", default=1, show_default=True, help="Run one fault in so many.")
@click.option("--skip", default=0, show_default=True, help="Leave out so many at the beginning.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def faults(*, seed: int | None, every: int, skip: int, as_json: bool) -> None:
    """Kill, EIO and ENOSPC at every write and sync of log and state."""
    if reason := injected.why_not():
        raise click.ClickException(reason)
    seed, count = seed_of_run() if seed is None else seed, Count()
    show("faults", seed, sweep(seed, count, every, skip), count, as_json=as_json)


@main.command()
@click.option("--seed", type=int, help="Of all cuts. [random]")
@click.option("--cuts", default=100, show_default=True, help="On each file system.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def power(*, seed: int | None, cuts: int, as_json: bool) -> None:
    """Cut the power of ext4 and XFS disks at random moments under load, and after failed syncs."""
    reasons = [why for each in FILE_SYSTEMS if (why := no_disk(each))]
    if reasons := [*reasons, *filter(None, [injected.why_not()])]:
        raise click.ClickException("; ".join(reasons))
    seed, count = seed_of_run() if seed is None else seed, PowerCount()

    def steps() -> Generator[int]:
        yield 2 * cuts * len(FILE_SYSTEMS)
        for each in FILE_SYSTEMS:
            yield from power_cuts(each, seed, cuts, count)
            yield from failed_syncs(each, seed, cuts, count)

    show("power cuts", seed, steps(), count, as_json=as_json)


@main.command()
@click.option("--seed", type=int, help="Of all damages. [random]")
@click.option("--trials", default=2_000, show_default=True, help="Damages, each of a fresh copy.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def damage(*, seed: int | None, trials: int, as_json: bool) -> None:
    """Change bytes anywhere in a log and a state, and open them."""
    seed, count = seed_of_run() if seed is None else seed, DamageCount()
    show("damages", seed, damages(seed, trials, count), count, as_json=as_json)


class Counts(Protocol):
    """What a run came to."""

    def rows(self) -> dict[str, int]:
        """For people and programs."""
        ...


def show(what: str, seed: int, steps: Generator[int], count: Counts, *, as_json: bool) -> None:
    """Run to the end, or to Ctrl-C, with a bar; then say what was done."""
    configure("crash", what, "human", logging.ERROR)  # the engines here are not what is looked at
    console, started = Console(stderr=True), time.monotonic()
    console.print(f"{what} from seed {seed}")
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    title = "every promise held"
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=next(steps))
        try:
            for _ in steps:
                progress.update(bar, advance=1)
        except KeyboardInterrupt:
            title = "interrupted; so far every promise held"
        finally:
            steps.close()
    rows = {"seed": seed, **count.rows(), "seconds": round(time.monotonic() - started, 1)}
    if as_json:
        click.echo(json.dumps(rows))
        return
    table = Table(show_header=False, title=title)
    table.add_column()
    table.add_column(justify="right")
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if name != "seed" else str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
