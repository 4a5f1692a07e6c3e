"""More offered than the shards can do: what is begun is finished, and the rest waits unbegun."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from cluster.clock import HybridClock
from cluster.packed import GROUP_RESULT, MEMBER_BODY
from coordinator.actions import FaultKind, Status
from coordinator.rounds import Rounds
from coordinator.transactions import take_apart
from coordinator.window import WindowRules
from tests.support.memory_shards import LATENCY_S
from tests.support.paced_shards import PacedShards
from tests.support.rounds import A1, A2, A3, AMPLE_S, SEED, TOPOLOGY, Result, transfer
from tests.support.transaction_shards import LoopClock
from tests.support.virtual_time import pass_time, virtual_time

LIFE_S = 1.0
STEP_S = 1 / 1_200
# Three steps of three shards, when all pairs of them are as busy.
CAPACITY_PER_S = 1_200
ALL_PAIRS = [(A1, A2), (A2, A1), (A1, A3), (A3, A1), (A2, A3), (A3, A2)]
AMPLE_MINOR = 10**9
# So large that everything begins at once, as it would without windows.
NO_WINDOW = WindowRules(LIFE_S, first=10**6, least=10**6, most=10**6)
CLIENT_S = 3.0

NOT_IN_TIME = (Status.FAULT, FaultKind.UNAVAILABLE, False)
HAPPENED = {Status.COMPLETED, Status.COMMITTED_POSTING}


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Paced:
    """A coordinator's rounds in front of shards that need their time."""

    def __init__(self, rules: WindowRules | None) -> None:
        self.shards = PacedShards(TOPOLOGY, STEP_S)
        self.shards.open([*A1, *A2, *A3], AMPLE_MINOR)
        rng = random.Random(SEED)
        clock = HybridClock(LoopClock())
        life_us = round(LIFE_S * 1e6)
        self.rounds = Rounds(
            self.shards, clock, rng, rng.randbytes, life_us=life_us, window_rules=rules
        )

    async def execute(self, members: Sequence[bytes], timeout_s: float = CLIENT_S) -> list[Result]:
        items = take_apart(b"".join(members), b"")
        results = await self.rounds.execute(items, TOPOLOGY.version, now_s() + timeout_s)
        return list(GROUP_RESULT.iter_unpack(results))

    async def call_for_ever(self, caller: int, each: int) -> None:
        """Keep so many transfers in progress; ask again, by the same keys, what was not done."""
        number, asked = caller * 1_000_000, list[bytes]()
        while True:
            while len(asked) < each:
                number += 1
                sources, destinations = ALL_PAIRS[number % len(ALL_PAIRS)]
                asked.append(transfer(number, sources[number % 8], destinations[number % 7]))
            results = await self.execute(asked)
            asked = [
                member
                for member, result in zip(asked, results, strict=True)
                if result[0] not in HAPPENED
            ]


@asynccontextmanager
async def paced(rules: WindowRules | None = None) -> AsyncIterator[Paced]:
    """In the end nothing is in progress."""
    it = Paced(rules)
    yield it
    await it.rounds.close(AMPLE_S)
    await pass_time(AMPLE_S)
    assert it.rounds.in_progress == 0


@asynccontextmanager
async def ten_lives_worth(it: Paced) -> AsyncIterator[None]:
    """Ten times what the shards can do in a life, offered by four callers."""
    each = round(10 * CAPACITY_PER_S * LIFE_S / 4)
    callers = [asyncio.ensure_future(it.call_for_ever(number, each)) for number in range(4)]
    yield
    for caller in callers:
        caller.cancel()
    await asyncio.gather(*callers, return_exceptions=True)


@virtual_time
async def test_ten_times_what_a_life_has_room_for_is_done_at_the_shards_pace() -> None:
    async with paced() as it, ten_lives_worth(it):
        await pass_time(7)  # while windows are learned that are larger than all the shards' lives
        before = it.shards.committed
        await pass_time(4)
        assert it.shards.committed - before > 0.7 * 4 * CAPACITY_PER_S


@virtual_time
async def test_without_windows_next_to_nothing_of_it_is() -> None:
    async with paced(NO_WINDOW) as it, ten_lives_worth(it):
        await pass_time(5)
        assert it.shards.committed < 0.05 * 5 * CAPACITY_PER_S


@virtual_time
async def test_a_slow_route_does_not_hold_up_another() -> None:
    async with paced() as it:
        it.shards.step_s[3] = 1.0
        slow = asyncio.ensure_future(
            it.execute([transfer(number, A1[0], A3[0]) for number in range(5_000)])
        )
        await pass_time(0.5)
        for number in range(10_000, 10_020):
            began_s = now_s()
            assert (await it.execute([transfer(number, A1[1], A2[1])]))[0][0] == Status.COMPLETED
            assert now_s() - began_s == pytest.approx(3 * (LATENCY_S + STEP_S))
        assert not slow.done()
        await slow


@virtual_time
async def test_what_never_began_is_a_definite_fault_and_no_shard_ever_saw_it() -> None:
    rules = WindowRules(LIFE_S, first=10, least=10, most=10)
    async with paced(rules) as it:
        it.shards.step_s[2] = 1.0
        members = [transfer(number, A1[0], A2[0]) for number in range(1_000)]
        results = await it.execute(members, timeout_s=0.5)
        assert {(each[0], each[1], bool(each[5])) for each in results} == {NOT_IN_TIME}
        assert now_s() == pytest.approx(0.5, abs=0.02)
        assert it.rounds.in_progress == 0
        await pass_time(AMPLE_S)
        asked = [count for _, method, count in it.shards.calls if method == "Prepare"]
        assert asked == [10]


@virtual_time
async def test_what_waits_for_a_caller_that_went_away_is_dropped_at_once() -> None:
    rules = WindowRules(LIFE_S, first=10, least=10, most=10)
    async with paced(rules) as it:
        members = [transfer(number, A1[0], A2[0]) for number in range(1_000)]
        gone = asyncio.ensure_future(it.execute(members, timeout_s=AMPLE_S))
        await pass_time(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert it.rounds.in_progress == 0
        began_s = now_s()
        results = await it.execute(members[500:510])
        assert {each[0] for each in results} == {Status.COMPLETED}
        assert now_s() - began_s < 0.1
        assert sum(count for _, method, count in it.shards.calls if method == "CommitHome") == 10


@virtual_time
async def test_a_coordinator_that_closes_says_so_to_what_waits() -> None:
    rules = WindowRules(LIFE_S, first=10, least=10, most=10)
    async with paced(rules) as it:
        members = [transfer(number, A1[0], A2[0]) for number in range(1_000)]
        asked = asyncio.ensure_future(it.execute(members, timeout_s=AMPLE_S))
        await pass_time(0)
        await it.rounds.close(1.0)
        results = await asked
        assert now_s() < 1.0
        statuses = [each[0] for each in results]
        assert statuses == [Status.COMPLETED] * 10 + [Status.FAULT] * 990
        assert {(each[0], each[1], bool(each[5])) for each in results[10:]} == {NOT_IN_TIME}


@pytest.mark.parametrize("seed", range(5))
@virtual_time
async def test_everything_is_answered_once_and_happens_as_it_was_answered(seed: int) -> None:
    rng = random.Random(seed)
    rules = WindowRules(LIFE_S, first=rng.randint(1, 50), least=4, most=200)
    async with paced(rules) as it:
        for shard in it.shards.step_s:
            it.shards.step_s[shard] = rng.choice([STEP_S / 10, STEP_S, 20 * STEP_S])

        async def call(caller: int) -> list[tuple[bytes, Result]]:
            await pass_time(rng.random())
            pairs = rng.choices(ALL_PAIRS, k=rng.randint(1, 300))
            members = [
                transfer(caller * 1_000 + number, rng.choice(sources), rng.choice(destinations))
                for number, (sources, destinations) in enumerate(pairs)
            ]
            results = await it.execute(members, timeout_s=rng.uniform(0.05, 3))
            return list(zip(members, results, strict=True))

        answered = [row for rows in await asyncio.gather(*map(call, range(8))) for row in rows]
        await pass_time(AMPLE_S)
        happened = {
            known.order.rows[0].body
            for shard in it.shards.shards.values()
            for known in shard.keys.values()
        }
        assert len(happened) == it.shards.committed
        for member, result in answered:
            if result[0] in HAPPENED:
                assert member[: MEMBER_BODY.size] in happened, f"seed {seed}"
            elif not result[5]:
                assert member[: MEMBER_BODY.size] not in happened, f"seed {seed}"
