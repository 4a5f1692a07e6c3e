"""`python -m scripts.bench`: run cases, show the tables, write the JSON file and the picture."""

import asyncio
import json
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console

from scripts.bench import cases, report
from scripts.bench.cases.case import TINY_SCALE, Case, Plan
from scripts.bench.machine import facts, keep_to_cores
from scripts.bench.pictures import draw
from scripts.bench.results import FORMAT
from scripts.bench.rig import Rigs

EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Asked:
    """The command line."""

    scale: float
    repeats: int
    seed: int
    console: Console
    install_peers: bool
    save: Path | None


async def run(chosen: list[Case], asked: Asked) -> dict[str, Any]:
    """Run the cases one after the other; what is done is on file even if a later one fails."""
    made: dict[str, Any] = {
        "format": FORMAT,
        "machine": facts(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": asked.seed,
        "scale": asked.scale,
        "repeats": asked.repeats,
        "cases": [],
    }
    console = asked.console
    this = asyncio.current_task()
    assert this is not None, "a coroutine runs in a task"
    # As Ctrl-C does: whoever ends this process wants what it started to end as well.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    async with Rigs(shared=asked.scale < TINY_SCALE) as rigs:
        plan = Plan(asked.scale, asked.repeats, asked.seed, console, rigs, asked.install_peers)
        made["accounts"] = plan.accounts
        for at, case in enumerate(chosen, 1):
            console.print(f"[{at}/{len(chosen)}] {case.name}: {case.what}", markup=False)
            outcome = await case.run(plan)
            plan.outcomes[case.name] = outcome
            made["cases"].append(outcome.to_json())
            if asked.save is not None:
                await asyncio.to_thread(write, made, asked.save)
    return made


def write(made: dict[str, Any], save: Path) -> None:
    """Write the JSON file."""
    save.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


@click.command()
@click.option("--only", default="", metavar="NAME,NAME", help="Just these cases; see --list.")
@click.option("--list", "listing", is_flag=True, help="Name the cases and end.")
@click.option("--scale", type=click.FloatRange(0.0001, 10), default=1.0, show_default=True,
              help="Of all amounts of work; 1 = what the bars are about.")  # fmt: skip
@click.option("--repeats", type=click.IntRange(1, 100), default=5, show_default=True)
@click.option("--seed", type=int, default=1993, show_default=True)
@click.option("--json", "save", type=click.Path(dir_okay=False, path_type=Path),
              help="Write everything to this file, after each case.")  # fmt: skip
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw it, as .svg or .png.")  # fmt: skip
@click.option("--install-peers", is_flag=True, help="Install what is missing of PostgreSQL and "
              "Redis with apt-get; root only.")  # fmt: skip
@click.option("--all-cores", is_flag=True, help="Do not keep to two cores.")
def main(
    *, only: str, listing: bool, scale: float, repeats: int, seed: int, save: Path | None,
    picture: Path | None, install_peers: bool, all_cores: bool,
) -> None:  # fmt: skip
    """Measure clusters of real processes on this machine, beside bars, floors and peers."""
    if listing:
        for case in cases.ALL:
            click.echo(f"{case.name:22}{case.what}{'' if case.by_default else ' (by name only)'}")
        return
    try:
        chosen = cases.named(only)
    except KeyError as error:
        raise click.BadParameter(f"no case {error.args[0]!r}", param_hint="--only") from error
    if not all_cores:
        keep_to_cores()
    console = Console(stderr=True)
    try:
        made = uvloop.run(run(chosen, Asked(scale, repeats, seed, console, install_peers, save)))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; nothing is left running")
        sys.exit(EXIT_INTERRUPTED)
    if picture is not None:
        draw(made, picture)
    shown = Console()
    report.show(made, shown if shown.is_terminal else Console(width=report.TABLE_WIDTH))


if __name__ == "__main__":
    main()
