"""Plants every bug there is and looks who notices: `python -m tests.mutants [--only NAME]`.

Each mutant runs its rig in a copy of the source tree, and every rig also runs once unharmed. It
fails when a mutant survives, when a rig is red without a mistake or cannot run, and when what a
mutant replaces is not in the source any more.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from contextlib import aclosing
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scripts.progress import progress
from tests.mutants.mutant import StaleMutantError
from tests.mutants.registry import TABLES, mutants
from tests.mutants.running import Bench, Result, Verdict
from tests.support import SEED_VARIABLE, seed_of_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.mutants.mutant import Mutant

INTERRUPTED = 130  # what a shell says of a program that was ended by Ctrl-C


@click.command()
@click.option("--only", multiple=True, help="Those whose name, or table, has this in it.")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=int, help="Of the rigs' random tests. [random]")
@click.option("--list", "only_list", is_flag=True, help="Say what there is and run nothing.")
@click.option("--json", "as_json", is_flag=True, help="Say it for programs.")
def main(
    *, only: Sequence[str], jobs: int, seed: int | None, only_list: bool, as_json: bool
) -> None:
    """Plant bugs, one by one, and look which tests notice."""
    console = Console(stderr=as_json)
    chosen = choose(only)
    if not chosen:
        raise click.UsageError("there is no such mutant: --list shows them")
    seed = seed_of_run() if seed is None else seed
    if only_list:
        console.print(table_of([Result(each, Verdict.FOUND, 0, "") for each in chosen], ran=False))
        return
    # Whoever starts it in the background, where Ctrl-C is ignored, ends it by this.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console.print(f"{len(chosen)} mutants, {SEED_VARIABLE}={seed}, {jobs} at a time")
    started = time.monotonic()
    try:
        results = asyncio.run(run(chosen, jobs, seed, console))
    except StaleMutantError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("given up; nothing is left running")
        sys.exit(INTERRUPTED)
    results.sort(key=lambda each: chosen.index(each.mutant))
    if as_json:
        click.echo(json.dumps([as_dict(each) for each in results], indent=1))
    show(console, results, time.monotonic() - started)
    if any(each.verdict is not Verdict.FOUND for each in results):
        sys.exit(1)


def choose(only: Sequence[str]) -> list[Mutant]:
    """The mutants that are asked for; all, when nothing is."""
    if not only:
        return mutants()
    return [
        mutant
        for table, some in TABLES.items()
        for mutant in some
        if any(each in mutant.name or each == table for each in only)
    ]


async def run(chosen: Sequence[Mutant], jobs: int, seed: int, console: Console) -> list[Result]:
    """Run them, showing how far it is."""
    results = []
    with progress(console, "mutants", len(chosen)) as advance:
        async with aclosing(Bench(jobs, seed).results(chosen)) as coming:
            async for each in coming:
                results.append(each)
                advance(1)
                if each.verdict is not Verdict.FOUND:
                    console.print(f"[red]{each.verdict}[/red] {escape(each.mutant.name)}")
    return results


def show(console: Console, results: Sequence[Result], seconds: float) -> None:
    """Say what came of it, and at length what has to be looked at."""
    console.print(table_of(results))
    for each in results:
        if each.verdict is not Verdict.FOUND:
            console.print(f"\n[bold]{each.verdict}: {escape(each.mutant.name)}[/bold]")
            console.print(escape(each.said), highlight=False)
    found = sum(each.verdict is Verdict.FOUND for each in results)
    console.print(f"{found} of {len(results)} found in {seconds:.0f} s")


def table_of(results: Sequence[Result], *, ran: bool = True) -> Table:
    """The results for people."""
    table = Table(title="planted bugs")
    for column in ("mutant", "breaks", "rig"):
        table.add_column(column, overflow="fold")
    if ran:
        table.add_column("verdict")
        table.add_column("seconds", justify="right")
    for each in results:
        row = [escape(each.mutant.name), each.mutant.promise.value, escape(str(each.mutant.rig))]
        if ran:
            row += [each.verdict.value, f"{each.seconds:.1f}"]
        table.add_row(*row)
    return table


def as_dict(result: Result) -> dict[str, object]:
    """A result for programs."""
    return {
        "mutant": result.mutant.name,
        "promise": result.mutant.promise.value,
        "rig": str(result.mutant.rig),
        "verdict": result.verdict.value.lower(),
        "seconds": round(result.seconds, 2),
        "said": result.said,
    }


if __name__ == "__main__":
    main()
