"""The mutants themselves: none is stale, the runner tells all ways to fare, and some are found.

Which ones, the run's seed decides: a handful each time. `make mutants` runs them all.
"""

import random
from dataclasses import replace

import pytest

from tests.mutants.mutant import Edit, Mutant, Promise, Rig, StaleMutantError, planted
from tests.mutants.registry import TABLES, THE_TWELVE, mutants
from tests.mutants.running import Bench, Result, Verdict
from tests.support import ROOT, assert_none

SLICE = 3
JOBS = 2
CLOCK = "cluster/clock.py"
# As small as a rig can be: red unless the wall clock tells microseconds.
OF_CLOCK = Rig(("-c", "from cluster.clock import WallClock as W; exit(W().now_us() < 10**15)"))


def test_what_is_replaced_is_in_the_source() -> None:
    """Else a mutant has to be written anew, as the line that it replaces was."""
    stale = []
    for mutant in mutants():
        try:
            mutant.check(ROOT)
        except StaleMutantError as error:
            stale.append(str(error))
    assert_none(stale)


def test_names_are_given_once_and_the_twelve_are_there() -> None:
    assert all(TABLES.values())
    names = [each.name for each in mutants()]
    assert len(set(names)) == len(names)
    assert {each.name for each in mutants() if each.is_of_the_twelve} == THE_TWELVE


def test_every_promise_is_broken_by_some() -> None:
    assert {each.promise for each in mutants()} == set(Promise)


def test_every_rig_of_tests_is_there() -> None:
    for mutant in mutants():
        for node in mutant.rig.arguments[2:] if mutant.rig.is_pytest else ():
            file, _, test = node.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {test.partition('[')[0]}(" in text if test else text


def test_a_stale_mutant_is_told_by_name() -> None:
    for was in ("    return what_is_not_there\n", "    return"):
        stale = planted("stale", Promise.CONTRACT, OF_CLOCK, Edit(CLOCK, was, "pass"))
        with pytest.raises(StaleMutantError, match="stale: "):
            stale.check(ROOT)
    gone = planted("gone", Promise.CONTRACT, OF_CLOCK, Edit("cluster/gone.py", "a", "b"))
    with pytest.raises(StaleMutantError, match=r"there is no cluster/gone\.py"):
        gone.check(ROOT)


async def test_how_a_mutant_may_fare(seed: int) -> None:
    """All five verdicts, of one small rig."""
    wrong_unit = Edit(CLOCK, "time.time_ns() // 1_000\n", "time.time_ns() // 1_000_000\n")
    harmless = Edit(CLOCK, "class WallClock:", "class WallClock:  # harmless")
    unrunnable = Rig(("-c", "exit(2)"))
    found = planted("found", Promise.CONTRACT, OF_CLOCK, wrong_unit)
    red = Rig(("-c", "exit(1)"))
    spins = Rig(("-c", "while True: pass"), seconds_max=0.5)
    cases = {
        Verdict.FOUND: found,
        Verdict.SURVIVED: replace(found, name="survived", edits=(harmless,)),
        Verdict.BROKEN: replace(found, name="broken", rig=unrunnable),
        Verdict.UNSOUND: replace(found, name="unsound", rig=red),
        Verdict.LATE: replace(found, name="late", rig=spins),
    }
    results = await run(list(cases.values()), seed)
    shown = {each.mutant.name: each.verdict for each in results}
    assert shown == {mutant.name: verdict for verdict, mutant in cases.items()}


async def test_some_mutants_are_found(rng: random.Random, seed: int) -> None:
    quick = [each for each in mutants() if each.rig.is_quick]
    results = await run(rng.sample(quick, SLICE), seed)
    assert len(results) == SLICE
    for each in results:
        assert each.verdict is Verdict.FOUND, f"{each.mutant.name}: {each.verdict}\n{each.said}"


async def run(some: list[Mutant], seed: int) -> list[Result]:
    return [each async for each in Bench(JOBS, seed).results(some)]
