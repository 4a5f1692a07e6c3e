"""The promises hold in a thousand random schedules, and under every single fault there is."""

import pytest

from tests.simulation.exhaustive import CASES, Case, plans, run
from tests.simulation.scenario import play

SCHEDULES = 1_000
DETERMINISM_SCHEDULES = 20


def test_a_thousand_schedules(seed: int) -> None:
    committed = sum(play(each).committed for each in range(seed, seed + SCHEDULES))
    assert committed > SCHEDULES // 2, "hardly anything happens in them"


def test_a_seed_is_a_trace(seed: int) -> None:
    seeds = range(seed, seed + DETERMINISM_SCHEDULES)
    hashes = [play(each).trace_hash for each in seeds]
    assert hashes == [play(each).trace_hash for each in seeds]
    assert len(set(hashes)) == DETERMINISM_SCHEDULES


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_single_fault(case: Case) -> None:
    for plan in plans(case):
        run(case, plan)
