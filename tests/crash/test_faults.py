"""A seeded sample of `python -m tests.crash faults`: kills and failing writes, and restarts."""

import random
from pathlib import Path

import pytest

from shard_node.damage import DamagedStateError
from tests.crash.faults import ACTIONS, EIO, KILL, Fault, why_not
from tests.crash.mutants import ACKNOWLEDGES_EARLY, CHECKPOINTS_AHEAD, IGNORES_SYNC_ERRORS
from tests.crash.trial import Count, trial
from tests.crash.verdict import NodeStoppedError

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

COMMANDS = 8  # of each stream
MUTANT_SEED = 1

# What each action strikes in the sample, and where: a sync of the log, a write of the state.
SAMPLE = (("log", "fdatasync", 12), ("log", "pwrite64", 30), ("state", "pwrite64", 8))


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_fault_and_another_in_the_restart_lose_nothing(
    action: str, tmp_path: Path, rng: random.Random, seed: int
) -> None:
    file, syscall, most = rng.choice(SAMPLE)
    first = Fault(action, file, syscall, rng.randint(1, most))
    second = Fault(rng.choice(ACTIONS), "log", "fdatasync", rng.randint(4, 8))
    count = Count()
    struck = await trial(tmp_path / "data", seed, [first, second], COMMANDS, count)
    assert any(struck), "neither struck, so nothing was tried"
    assert count.commands > 0, "nothing was acknowledged before"


@pytest.mark.parametrize(
    ("mutant", "action", "syncs"),
    [
        (IGNORES_SYNC_ERRORS, EIO, (4,)),
        (ACKNOWLEDGES_EARLY, KILL, (3, 4, 5, 6, 7)),  # where something was acknowledged
        (CHECKPOINTS_AHEAD, KILL, (10, 8, 12, 6)),  # right behind such a checkpoint
    ],
)
async def test_planted_bugs_are_noticed(
    mutant: str, action: str, syncs: tuple[int, ...], tmp_path: Path
) -> None:
    for at in syncs:
        fault = Fault(action, "log", "fdatasync", at)
        try:
            await trial(tmp_path / str(at), MUTANT_SEED, [fault], COMMANDS, Count(), mutant)
        except (AssertionError, DamagedStateError, NodeStoppedError):
            return
    pytest.fail(f"{mutant}: not noticed")
