"""Clearing positions as of a logical time, against a list of everything that was ever posted."""

import random

import pytest

from shard_node.clearing import (
    REMEMBERED_S,
    SECOND_US,
    Clearing,
    Pair,
    clearing_row,
    read_clearing_row,
)
from tests.support.crossing import COMMITTED, YES, CrossingRig, Move
from tests.support.ledgers import BANK

GOLD: Pair = (8, 1)
START_S = 1_000_000


def naive(posted: list[tuple[Pair, int, int]], time_us: int) -> dict[Pair, int]:
    sums: dict[Pair, int] = {}
    for pair, amount_minor, decided_us in posted:
        if decided_us < time_us:
            sums[pair] = sums.get(pair, 0) + amount_minor
    return without_zeros(sums)


def without_zeros(positions: dict[Pair, int] | None) -> dict[Pair, int]:
    assert positions is not None
    return {pair: minor for pair, minor in positions.items() if minor}


def test_positions_are_those_of_a_naive_list(rng: random.Random) -> None:
    clearing, posted, now_us = Clearing(), list[tuple[Pair, int, int]](), START_S * SECOND_US
    for _ in range(1_000):
        now_us += rng.choice((0, 1, 1_000, SECOND_US // 3, SECOND_US, 7 * SECOND_US))
        # Most legs are posted at once; some were decided long before; some clocks are ahead.
        decided_us = now_us - rng.choice((0, 0, 5, SECOND_US, 30 * SECOND_US, -SECOND_US // 2))
        pair = (rng.randint(8, 10), rng.randint(1, 2))
        posted.append((pair, rng.randint(-50, 50), decided_us))
        clearing.post(*posted[-1])
        time_us = (now_us // SECOND_US - rng.randint(-2, 60)) * SECOND_US
        assert without_zeros(clearing.at(time_us)) == naive(posted, time_us)
    assert without_zeros(clearing.positions) == naive(posted, 2**62)
    kept = [len(each.by_second) for each in clearing._positions.values()]
    assert max(kept) <= REMEMBERED_S + 1


def test_a_checkpoint_may_have_what_was_decided_after_it() -> None:
    """A home whose clock is ahead decides later than a participant posts, checkpoints, restarts."""
    before, posted = Clearing(), [(GOLD, 5, 9 * SECOND_US), (GOLD, 7, 12 * SECOND_US)]
    for leg in posted:
        before.post(*leg)
    after = Clearing()
    for pair, minor in before.positions.items():
        after.restore(pair, minor)
    after.start(9 * SECOND_US)
    for leg in posted:
        after.recall(*leg)
    for second in (10, 11, 12, 13):
        assert after.at(second * SECOND_US) == before.at(second * SECOND_US)
    assert after.positions == before.positions


def test_the_time_is_exclusive() -> None:
    clearing = Clearing()
    clearing.post(GOLD, 5, 9 * SECOND_US)
    clearing.post(GOLD, 7, 10 * SECOND_US - 1)
    clearing.post(GOLD, 11, 10 * SECOND_US)
    assert clearing.at(9 * SECOND_US) == {}
    assert clearing.at(10 * SECOND_US) == {GOLD: 12}
    assert clearing.at(11 * SECOND_US) == {GOLD: 23}


def test_what_is_too_long_ago_is_not_told() -> None:
    clearing = Clearing()
    for second in (100, 101, 100 + REMEMBERED_S, 101 + REMEMBERED_S):
        clearing.post(GOLD, 1, second * SECOND_US)
    assert clearing.at(101 * SECOND_US) is None, "its second was merged into the base"
    assert clearing.at(102 * SECOND_US) == {GOLD: 2}
    clearing.post(GOLD, 1, 50 * SECOND_US)
    assert clearing.at(102 * SECOND_US) == {GOLD: 3}
    assert clearing.positions == {GOLD: 5}


def test_a_checkpoint_has_no_past() -> None:
    clearing = Clearing()
    clearing.restore(GOLD, 9)
    clearing.start(100 * SECOND_US + 1)
    assert clearing.at(100 * SECOND_US) is None
    assert clearing.at(101 * SECOND_US) == {GOLD: 9}
    clearing.post(GOLD, 1, 100 * SECOND_US + 2)
    clearing.post(GOLD, 2, 101 * SECOND_US)
    assert clearing.at(101 * SECOND_US) == {GOLD: 10}
    assert clearing.at(102 * SECOND_US) == {GOLD: 12}


@pytest.mark.parametrize("minor", [0, 1, -1, 2**63, -(2**63) - 1, 2**100])
def test_rows_hold_more_than_64_bits(minor: int) -> None:
    assert read_clearing_row(*clearing_row((65_535, 3), minor)) == ((65_535, 3), minor)


def test_both_sides_count_by_the_time_of_the_decision_also_after_restarts() -> None:
    rig = CrossingRig()
    rig.open_bank()
    second_us = rig.stamp_us - rig.stamp_us % SECOND_US
    paid = rig.attempt(3, Move(8_001, BANK, 40))
    assert rig.prepare(paid) == YES
    rig.checkpoint()
    rig.let_time_pass(SECOND_US)
    assert rig.commit_home(rig.attempt(4, Move(BANK, 8_002, 7)))[:2] == COMMITTED
    rig.let_time_pass(2 * SECOND_US)
    rig.commit_prepared(paid, second_us + SECOND_US + 5)  # the home had decided it long ago
    for restart in (rig.seal, rig.sync, rig.crash):
        restart()
        at = rig.ledger.clearing.at
        assert at(second_us + SECOND_US) == {}
        assert at(second_us + 2 * SECOND_US) == {GOLD: 7 - 40}
        assert at(second_us + 9 * SECOND_US) == {GOLD: 7 - 40}
    rig.checkpoint()
    rig.crash()
    assert rig.ledger.clearing.at(second_us + 3 * SECOND_US) is None
    assert rig.ledger.clearing.at(second_us + 4 * SECOND_US) == {GOLD: 7 - 40}
