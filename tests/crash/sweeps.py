"""Every fault at every system call: the long run of `faults`."""

import asyncio
import random
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path

from tests.crash.driver import Plan
from tests.crash.faults import ACTIONS, FILES, SYSCALLS, Fault
from tests.crash.trial import Count, calls_of, trial

COMMANDS = 12  # of each stream: some thirty syncs of the log, some ten checkpoints
SECOND_AT_MAX = 12  # the fault of the restart comes soon, so that restarts are hit as well


def every_fault(calls: Mapping[tuple[str, str], int]) -> list[Fault]:
    """Each action at each call that an undisturbed driver makes."""
    return [
        Fault(action, file, syscall, at)
        for action in ACTIONS
        for file in FILES
        for syscall in SYSCALLS
        for at in range(1, calls[file, syscall] + 1)
    ]


def with_another(fault: Fault, rng: random.Random) -> list[Fault]:
    """The fault, and one that strikes the restart after it."""
    at = rng.randint(1, SECOND_AT_MAX)
    return [fault, Fault(rng.choice(ACTIONS), rng.choice(FILES), rng.choice(SYSCALLS), at)]


def sweep(seed: int, count: Count, every: int = 1, skip: int = 0) -> Generator[int]:
    """Run every fault, or one in so many; yields how many there are, then once after each."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="doubloon-crash-") as folder:
        faults = every_fault(calls_of(Path(folder), Plan("", seed, 1, COMMANDS)))[skip::every]
        yield len(faults)
        for number, fault in enumerate(faults):
            with tempfile.TemporaryDirectory(prefix="trial-", dir=folder) as part:
                both = with_another(fault, rng)
                asyncio.run(trial(Path(part), seed + number, both, COMMANDS, count))
            yield number
