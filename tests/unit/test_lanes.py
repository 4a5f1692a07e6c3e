"""Lanes: what goes together, what waits, and for what."""

import asyncio
import itertools
import random

import pytest

from cluster.packed import BATCH_TRANSFERS_MAX
from coordinator.lanes import PAUSE_FIRST_S, PAUSE_MAX_S, Lane, LaneRules
from tests.support.virtual_time import pass_time, virtual_time

CALL_S = 1.0


class Calls:
    """Takes what a lane sends; each call takes a second."""

    def __init__(self, rules: LaneRules, failing: int = 0) -> None:
        self.sent: list[list[int]] = []
        self.began_s: list[float] = []
        self.failing = failing
        self.lane = Lane(self._send, random.Random(1), rules)

    async def _send(self, batch: list[int]) -> bool:
        self.sent.append(batch)
        self.began_s.append(asyncio.get_running_loop().time())
        await pass_time(CALL_S)
        self.failing -= 1
        return self.failing < 0


@virtual_time
async def test_what_is_put_in_one_turn_goes_together() -> None:
    calls = Calls(LaneRules())
    for number in range(5):
        calls.lane.put(number)
    assert not calls.lane.is_idle
    await pass_time(2 * CALL_S)
    assert calls.sent == [[0, 1, 2, 3, 4]]
    assert calls.lane.is_idle


@virtual_time
async def test_one_small_call_at_a_time_and_large_ones_beside_it() -> None:
    calls = Calls(LaneRules(calls_max=3, small_below=10))
    for number, weight in enumerate([1, 1, 10, 10, 10]):
        calls.lane.put(number, weight)
        await pass_time(0.01)
    assert calls.sent == [[0], [1, 2], [3]], "the second waited; the fifth exceeds three calls"
    await pass_time(CALL_S)
    assert calls.sent[3:] == [[4]]


@pytest.mark.parametrize(
    ("weights", "batches"),
    [
        ([4_096, 4_096, 1], [[0, 1], [2]]),
        ([4_096, 4_097], [[0], [1]]),
        ([BATCH_TRANSFERS_MAX] * 2, [[0], [1]]),
        ([16] * 512, [list(range(512))]),
    ],
)
@virtual_time
async def test_no_call_weighs_more_than_a_batch(
    weights: list[int], batches: list[list[int]]
) -> None:
    calls = Calls(LaneRules())
    for number, weight in enumerate(weights):
        calls.lane.put(number, weight)
    await pass_time(3 * CALL_S)
    assert calls.sent == batches


@virtual_time
async def test_after_a_failure_the_lane_pauses_longer_each_time() -> None:
    calls = Calls(LaneRules(calls_max=1), failing=8)
    for number in range(10):
        calls.lane.put(number, BATCH_TRANSFERS_MAX)
    await pass_time(60)
    pauses_s = [after - before - CALL_S for before, after in itertools.pairwise(calls.began_s)]
    assert PAUSE_FIRST_S / 2 <= pauses_s[0] <= PAUSE_FIRST_S
    assert PAUSE_MAX_S / 2 <= pauses_s[7] <= PAUSE_MAX_S
    assert pauses_s[8] == pytest.approx(0), "the ninth succeeded"


@virtual_time
async def test_a_lane_that_holds_waits_once_for_company() -> None:
    calls = Calls(LaneRules(hold_s=0.5))
    calls.lane.put(0)
    await pass_time(0.4)
    calls.lane.put(1)
    await pass_time(0.2)
    assert calls.sent == [[0, 1]]
    assert calls.began_s == [pytest.approx(0.5)]


@virtual_time
async def test_what_has_no_room_is_dropped_and_said_so() -> None:
    calls = Calls(LaneRules(calls_max=1, queued_max=3))
    assert [calls.lane.put(number) for number in range(5)] == [True, True, True, False, False]
    await pass_time(2 * CALL_S)
    assert calls.sent == [[0, 1, 2]]


@virtual_time
async def test_closing_sends_what_waits_and_ends_the_rest() -> None:
    calls = Calls(LaneRules(calls_max=1, hold_s=100))
    calls.lane.put(0)
    await calls.lane.close(5)
    assert calls.sent == [[0]]
    assert asyncio.get_running_loop().time() == pytest.approx(CALL_S)
    calls.lane.put(1)
    await calls.lane.close(CALL_S / 2)
    assert calls.sent == [[0], [1]]
    assert calls.lane.is_idle


@virtual_time
async def test_a_defect_in_one_call_stops_neither_the_lane_nor_the_next_call() -> None:
    seen = []

    async def send(batch: list[int]) -> bool:
        seen.append(batch)
        if len(seen) == 1:
            raise ValueError("a defect")
        return True

    lane = Lane(send, random.Random(1), LaneRules())
    lane.put(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    lane.put(1)
    await pass_time(1)
    assert seen == [[0], [1]]
