"""Plays the property tests for long: `python -m tests.properties --rounds 50 [--seed N]`.

A test run plays each of them once, on the sources. Here every round plays them all under the next
seed, on every core, and on the compiled cores where there are any. The first that fails ends it,
and is told with its seed: that test alone, with the seed in the environment, replays it.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console
from rich.table import Table

from scripts import compiled
from scripts.progress import progress
from shard_node import ledger
from tests.support import SEED_VARIABLE, seed_of_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PROPERTIES: Final = {
    "test_shard_stateful": ("test_a_shard_is_the_naive_shard", "test_long_lives_of_a_shard"),
    "test_ledger_stateful": ("test_the_ledger_is_the_naive_ledger",),
    "test_participant_stateful": (
        "test_whatever_is_asked_the_log_stays_lawful",
        "test_long_schedules_stay_lawful",
    ),
    "test_chunking": (
        "test_two_ways_of_cutting_give_one_state",
        "test_a_file_has_the_rows_that_memory_has",
        "test_every_key_is_known_after_every_restart",
        "test_a_checkpoint_has_what_its_very_first_record_changed",
    ),
    "test_round_trips": (
        "test_rows_of_accounts",
        "test_rows_of_periods",
        "test_rows_of_clearing",
        "test_rows_of_transactions",
        "test_checkpoints_headers_and_seals",
        "test_blocks_of_every_kind_of_record_are_replayed_from_their_bytes",
        "test_calls_of_two_phase_commit_are_taken_apart_as_they_were_put_together",
        "test_calls_of_groups_are_taken_apart_as_they_were_put_together",
        "test_decisions",
        "test_what_the_membership_keeps",
    ),
    "test_account_table": ("test_random_changes",),
    "test_ended": ("test_random_changes",),
    "test_key_table": ("test_random_changes",),
}
"""By module of `tests.unit`."""

Task = tuple[str, str, int]
"""Module, test, seed."""


@click.command()
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1))
@click.option("--seed", type=int, help="Of the first round; the next has the next. [random]")
@click.option("--jobs", default=os.cpu_count() or 1, show_default=True, type=click.IntRange(1))
@click.option("--sources", is_flag=True, help="Play them on the sources, compiled or not.")
@click.option("--json", "as_json", is_flag=True, help="Say it for programs.")
def main(*, rounds: int, seed: int | None, jobs: int, sources: bool, as_json: bool) -> None:
    """Play every property test under many seeds."""
    console = Console(stderr=as_json)
    if not sources and not is_compiled():
        play_on_compiled_cores()
    console.print("on compiled cores" if is_compiled() else "on the sources")
    first = seed_of_run() if seed is None else seed
    tasks = [
        (module, test, first + number)
        for number in range(rounds)
        for module, tests in PROPERTIES.items()
        for test in tests
    ]
    console.print(f"{rounds} rounds from seed {first}, {jobs} at a time")
    seconds = {(module, test): 0.0 for module, tests in PROPERTIES.items() for test in tests}
    started = time.monotonic()
    with progress(console, "property tests", len(tasks)) as advance:
        for (module, test, at), (took_s, failure) in zip(tasks, played(tasks, jobs), strict=True):
            if failure:
                console.print(failure, markup=False, highlight=False)
                again = f"{SEED_VARIABLE}={at} pytest tests/unit/{module}.py -k {test}"
                raise click.ClickException(f"{again} replays it")
            seconds[module, test] += took_s
            advance(1)
    took_s = time.monotonic() - started
    if as_json:
        done = {"rounds": rounds, "seed": first, "seconds": round(took_s, 1), "tests": len(seconds)}
        json.dump(done, sys.stdout)
        return
    table = Table("property", "times", "seconds", title="every property held")
    for (module, test), took in sorted(seconds.items(), key=lambda row: -row[1]):
        name = f"{module}: {test.removeprefix('test_')}".replace("_", " ")
        table.add_row(name.removeprefix("test "), str(rounds), f"{took:.1f}")
    console.print(table)
    console.print(f"{len(tasks):,} in {took_s:.0f} s")


def is_compiled() -> bool:
    """Whether it is compiled cores that this process runs."""
    return not (ledger.__file__ or "").endswith(".py")


def play_on_compiled_cores() -> None:
    """Begins anew where the compiled cores come first; returns when there are none."""
    environment = dict(compiled.environment())
    if environment.get("PYTHONPATH") == str(compiled.folder()):
        command = [sys.executable, "-m", "tests.properties", *sys.argv[1:]]
        os.execve(sys.executable, command, environment)


def played(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[float, str]]:
    """Of each task in order: how long it took, and what went wrong, if anything did."""
    if jobs == 1:
        yield from map(play, tasks)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        try:
            yield from pool.map(play, tasks)
        finally:
            pool.shutdown(cancel_futures=True)


def play(task: Task) -> tuple[float, str]:
    """Plays one test under a seed."""
    module, name, seed = task
    started = time.monotonic()
    test = getattr(import_module(f"tests.unit.{module}"), name)
    with tempfile.TemporaryDirectory(prefix="doubloon-properties-") as folder:
        given: dict[str, Any] = {
            "seed": seed,
            "rng": random.Random(seed),
            "tmp_path": Path(folder),
        }
        wanted = {each: given[each] for each in inspect.signature(test).parameters}
        try:
            partial(test, **wanted)()
        except Exception:  # noqa: BLE001 - whatever it is, it is told with its seed
            return time.monotonic() - started, traceback.format_exc()
    return time.monotonic() - started, ""


if __name__ == "__main__":
    main()
