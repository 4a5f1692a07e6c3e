"""Fuzzes the decoders: `python -m tests.hostile.fuzz --seconds 600 [--target NAME]`.

With atheris (`pip install -e '.[fuzz]'`) by coverage, each target in a process of its own; without
it by the seeded mutator, which `--plain` asks for as well. The first input that breaks a target's
contract ends that target, and is told as hexadecimal digits: make a test of it, in `test_found`.
"""

from __future__ import annotations

import importlib.util
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.hostile.mutate import INPUT_BYTES_MAX, mutate
from tests.hostile.targets import TARGETS
from tests.support import ROOT, seed_of_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.hostile.target import Target

STATUS = re.compile(r"#(\d+)\s.*?cov: (\d+) .*?corp: (\d+)/")
EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
INPUT_TIMEOUT_S = 20  # a decoder that takes so long for 16 KiB hangs
MEMORY_MAX_MB = 2_048  # and one that takes so much has no bound
TOLD_LINES = 25  # of a failure: the end of its traceback
LOOK_EVERY = 50  # inputs between two looks at the clock


@dataclass
class Done:
    """What was done with one target; `finding` "" = its contract held.

    Attributes:
        edges: of our code that inputs reached; 0 = not measured.
        inputs: that reached something new, and were kept to be changed further; 0 likewise.
    """

    target: str
    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    inputs: int = 0
    finding: str = ""


@click.command()
@click.option("--seconds", default=300, show_default=True, type=click.IntRange(1), help="In all.")
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)))
@click.option("--seed", type=int, help="[random]")
@click.option("--plain", is_flag=True, help="By the seeded mutator, also where atheris is.")
@click.option("--json", "as_json", is_flag=True, help="Tell the end as JSON.")
def main(
    *, seconds: int, names: tuple[str, ...], seed: int | None, plain: bool, as_json: bool
) -> None:
    """Fuzz the decoders of what comes from disk and wire."""
    console = Console(stderr=True)
    guided = not plain and importlib.util.find_spec("atheris") is not None
    first = seed_of_run() if seed is None else seed
    by = "coverage (atheris)" if guided else "seeded mutation; atheris is not here, or not wanted"
    console.print(f"fuzzing by {by}, seed {first}")
    targets = [TARGETS[name] for name in names or TARGETS]
    share_s = seconds / len(targets)
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    all_done = []
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=seconds)
        for number, target in enumerate(targets):
            done = Done(target.name)
            all_done.append(done)
            run = by_coverage if guided else by_chance
            try:
                for _ in run(target, share_s, first + number, done):
                    found = f"{target.name}: {done.executions:,} inputs, {done.edges:,} edges"
                    spent = number * share_s + min(done.seconds, share_s)
                    progress.update(bar, completed=spent, description=found)
            except KeyboardInterrupt:
                console.print("stopped")
                break
    findings = [done for done in all_done if done.finding]
    for done in findings:
        console.print(f"\n{done.target}:\n{done.finding}", markup=False, highlight=False)
    if as_json:
        click.echo(json.dumps([asdict(done) for done in all_done]))
    else:
        Console().print(table_of(all_done))
    sys.exit(1 if findings else 0)


def by_chance(target: Target, seconds: float, seed: int, done: Done) -> Iterator[None]:
    """Change seeds for so long. Yields every now and then."""
    rng, seeds, started = random.Random(seed), target.seeds(), time.monotonic()
    while done.seconds < seconds:
        data = mutate(rng, seeds, target.stride)
        done.executions += 1
        try:
            target.check(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            done.finding = f"{_end_of(traceback.format_exc())}\ninput: {data.hex()}"
            return
        finally:
            done.seconds = time.monotonic() - started
        if done.executions % LOOK_EVERY == 0:
            yield


def by_coverage(target: Target, seconds: float, seed: int, done: Done) -> Iterator[None]:
    """Run the target under atheris for so long. Yields with every line that it says."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus, findings = Path(folder, "corpus"), Path(folder, "findings")
        corpus.mkdir()
        findings.mkdir()
        for number, data in enumerate(target.seeds()):
            (corpus / f"seed-{number}").write_bytes(data)
        options = (
            f"-max_total_time={max(1, round(seconds))}",
            f"-seed={seed % 2**32 or 1}",
            f"-max_len={INPUT_BYTES_MAX}",
            f"-timeout={INPUT_TIMEOUT_S}",
            f"-rss_limit_mb={MEMORY_MAX_MB}",
            f"-artifact_prefix={findings}/",
            "-print_final_stats=1",
        )
        command = (sys.executable, "-m", "tests.hostile.guided", target.name, *options, str(corpus))
        started = time.monotonic()
        lines: list[str] = []
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child:
            assert child.stdout
            try:
                for line in child.stdout:
                    lines = [*lines[-200:], line.rstrip()]
                    if found := STATUS.search(line):
                        done.executions, done.edges, done.inputs = map(int, found.groups())
                    elif total := EXECUTED.search(line):
                        done.executions = int(total[1])
                    done.seconds = time.monotonic() - started
                    yield
            finally:
                child.terminate()
        if child.returncode:
            inputs = [path.read_bytes().hex() for path in findings.iterdir()]
            done.finding = "\n".join([_end_of("\n".join(lines)), *(f"input: {i}" for i in inputs)])


def _end_of(text: str) -> str:
    return "\n".join(text.splitlines()[-TOLD_LINES:])


def table_of(all_done: list[Done]) -> Table:
    """The sums, for people."""
    table = Table(title="decoders under hostile input")
    table.add_column("target")
    for name in ("inputs", "seconds", "a second", "edges", "kept"):
        table.add_column(name, justify="right")
    table.add_column("contract")
    for done in all_done:
        table.add_row(
            done.target,
            f"{done.executions:,}",
            f"{done.seconds:.0f}",
            f"{done.executions / max(done.seconds, 0.001):,.0f}",
            f"{done.edges:,}" if done.edges else "–",
            f"{done.inputs:,}" if done.inputs else "–",
            "BROKEN" if done.finding else "held",
        )
    return table


if __name__ == "__main__":
    main()
