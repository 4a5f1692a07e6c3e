"""A test of the tests: each planted bug must be noticed, and soon."""

import pytest

from tests.simulation.exhaustive import CASES, Case, overdue_plans, run
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenario import Parts, play

SCHEDULES_MAX = 1_500
"""The rarest is noticed once in some two hundred."""

# Noticed only by a COMMIT that is late and a home that crashed and whose clock was set back: chance
# brings that about once in some thousand schedules, the plans for it every time.
NEEDS_A_PLAN = "resolve to abort without recording it"


@pytest.mark.parametrize("name", [each for each in MUTANTS if each != NEEDS_A_PLAN])
def test_chance_notices(name: str) -> None:
    assert any(is_noticed(seed, MUTANTS[name]) for seed in range(SCHEDULES_MAX))


def test_plans_notice() -> None:
    with pytest.raises(AssertionError, match="COMPLETED and is not posted"):
        run_overdue(CASES["group, calls given up, client is lazy"], MUTANTS[NEEDS_A_PLAN])


def test_there_are_eight_and_none_is_right() -> None:
    assert len(MUTANTS) == 8
    assert all(each != Parts() for each in MUTANTS.values())


def run_overdue(case: Case, parts: Parts) -> None:
    for plan in overdue_plans(case):
        run(case, plan, parts)


def is_noticed(seed: int, parts: Parts) -> bool:
    try:
        play(seed, parts)
    except AssertionError:
        return True
    return False
