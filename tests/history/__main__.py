"""Torments real clusters: `python -m tests.history --minutes 10 [--seed N]`.

Round after round, each a fresh cluster under the next seed. The first history that breaks a promise
ends it: what it breaks is told, with the seed and with all that befell the cluster. The same seed
brings the same clients and faults again, though not the same moments.

Networks fail only where the rig may make namespaces, and clocks only where there is libfaketime;
where they cannot, it says so.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from scripts.progress import progress
from tests.history import clocks, namespaces
from tests.history.faults import COURSES, LONG_S, QUICK, SHORT_S
from tests.history.mutants import MUTANTS
from tests.history.rig import SETTLE_S, Plan, Round, play
from tests.support import seed_of_run

BUG_SETTLES_S = 40.0  # a cluster with a bug may never come to rest, and need not
SHOWN_MAX = 10  # violations of one rule that are told


@dataclass
class Sum:
    """What all rounds came to."""

    rounds: int = 0
    operations: int = 0
    records: int = 0
    checked_s: float = 0.0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    unanswered: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, done: Round) -> None:
        """Add a round."""
        self.rounds += 1
        self.operations += done.history.operations
        self.records += len(done.ledger.outcomes)
        self.checked_s += done.checked_s
        self.faults += done.faults
        self.unanswered += done.unanswered


@click.command()
@click.option("--minutes", default=10.0, show_default=True, type=click.FloatRange(0, min_open=True))
@click.option("--round-seconds", default=60.0, show_default=True, type=click.FloatRange(1))
@click.option("--seed", type=int, help="Of the first round; the next has the next. [random]")
@click.option("--quick", is_flag=True, help="Only faults that are over within a few seconds.")
@click.option("--fault", "only", multiple=True, type=click.Choice([*COURSES]), help="Only these.")
@click.option("--bug", type=click.Choice([*MUTANTS]), help="Plant a bug, which should be found.")
@click.option("--keep", type=click.Path(path_type=Path), help="Leave data and logs here.")
@click.option("--trace", is_flag=True, help="Say what befell each cluster, and when.")
@click.option("--json", "as_json", is_flag=True, help="Say what it came to for programs.")
@click.option("--inside", is_flag=True, hidden=True)
def main(
    *,
    minutes: float,
    round_seconds: float,
    seed: int | None,
    quick: bool,
    only: tuple[str, ...],
    bug: str | None,
    keep: Path | None,
    trace: bool,
    as_json: bool,
    inside: bool,
) -> None:
    """Play rounds until the time is over, or a promise is broken."""
    console = Console(stderr=as_json)
    no_network = "" if inside else namespaces.missing()
    if not inside and not no_network:
        command = (*namespaces.INSIDE, sys.executable, "-m", "tests.history", "--inside")
        os.execvp(command[0], [*command, *sys.argv[1:]])
    no_clocks = clocks.missing()
    for what, why in (("networks do not fail", no_network), ("clocks stay true", no_clocks)):
        if why:
            console.print(f"{what}: {why}")
    first = seed_of_run() if seed is None else seed
    plans = Plan(
        first,
        min(round_seconds, minutes * 60),
        only or (MUTANTS[bug].kinds if bug else QUICK if quick else tuple(COURSES)),
        SHORT_S if quick else LONG_S,
        BUG_SETTLES_S if bug else SETTLE_S,
        has_network=not no_network,
        has_clocks=not no_clocks,
        bug=bug,
    )
    console.print(f"{minutes:g} minutes from seed {first}")
    done = play_rounds(console, plans, minutes * 60, keep, trace=trace)
    if as_json:
        click.echo(json.dumps(vars(done)))
    else:
        console.print(table_of(done))
    if done.violations:
        sys.exit(1)


def play_rounds(
    console: Console, plan: Plan, seconds: float, keep: Path | None, *, trace: bool = False
) -> Sum:
    """Play until the time is over; a broken promise, or a Ctrl-C, ends it sooner."""
    done, started_s = Sum(), time.monotonic()
    try:
        with progress(console, "seconds", round(seconds)) as advance, ExitStack() as folders:
            shown = 0.0
            while done.seconds < seconds and not done.violations:
                folder = keep or Path(folders.enter_context(tempfile.TemporaryDirectory()))
                one = asyncio.run(play(plan, folder / str(plan.seed)))
                done.add(one)
                done.seconds = time.monotonic() - started_s
                advance(round(min(done.seconds, seconds) - shown))
                shown = min(done.seconds, seconds)
                if trace or one.violations or one.stuck:
                    console.print("\n".join(one.said), markup=False, highlight=False)
                if one.violations or one.stuck:
                    tell(console, plan.seed, one)
                    done.violations = [f"{each.rule.name}: {each.what}" for each in one.violations]
                    done.violations += [f"stuck: {one.stuck}"] if one.stuck else []
                plan = plan.next()
    except KeyboardInterrupt:
        console.print("interrupted")
    return done


def tell(console: Console, seed: int, one: Round) -> None:
    """Say which promises a round broke."""
    if one.stuck:
        console.print(f"the cluster did not come to rest: {one.stuck}", markup=False)
    by_rule = Counter(each.rule for each in one.violations)
    console.print(f"seed {seed}: a promise was broken")
    for rule, count in by_rule.items():
        console.print(f"{rule.name}: {rule.value} ({count:,})", markup=False)
        some = [each.what for each in one.violations if each.rule is rule]
        for what in some[:SHOWN_MAX]:
            console.print(f"  {what}", markup=False, highlight=False)


def table_of(done: Sum) -> Table:
    """The sums, for people."""
    table = Table(show_header=False, title="broken" if done.violations else "every promise held")
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "histories checked": done.rounds,
        "operations": done.operations,
        "records in the logs": done.records,
        "operations checked a second": round(done.operations / max(done.checked_s, 1e-9)),
        **{name: done.faults[name] for name in sorted(done.faults)},
        **{f"not answered: {name}": done.unanswered[name] for name in sorted(done.unanswered)},
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    table.add_row("seconds", f"{done.seconds:.1f}")
    return table


if __name__ == "__main__":
    main()
