"""The sweep: what it plans, and that it settles everything, alone, in company or interrupted."""

import asyncio
import random
from typing import Any

import pytest

from cluster.clock import HybridClock
from cluster.packed import HEADER, Fate, Vote
from coordinator.recovery import (
    IN_DOUBT_US,
    SWEEP_MAX,
    Sweeper,
    Swept,
    plan,
    read_listings,
    to_finish,
)
from doubloon.v1 import coordinator_service_pb2 as coordinator_pb2
from tests.support.memory_shards import MemoryShards
from tests.support.rounds import (
    A1,
    A2,
    A3,
    ALWAYS,
    BALANCE,
    TOPOLOGY,
    TOTAL,
    Trouble,
    coordinator,
    counted,
    group,
    open_shards,
    settle_doubt,
    transfer,
)
from tests.support.transaction_shards import LoopClock, Order, read_orders
from tests.support.virtual_time import pass_time, virtual_time

PREPARED = coordinator_pb2.TRANSACTION_STATE_PREPARED
COMMITTED = coordinator_pb2.TRANSACTION_STATE_COMMITTED
X, Y, Z = b"x" * 16, b"y" * 16, b"z" * 16


def prepared(transaction_id: bytes, home: int) -> coordinator_pb2.TransactionInfo:
    return coordinator_pb2.TransactionInfo(
        transaction_id=transaction_id, state=PREPARED, home_shard_id=home, deadline_us=50
    )


def committed(transaction_id: bytes, *participants: int) -> coordinator_pb2.TransactionInfo:
    return coordinator_pb2.TransactionInfo(
        transaction_id=transaction_id,
        state=COMMITTED,
        participant_shard_ids=participants,
        decided_us=40,
    )


# --- planning -------------------------------------------------------------------------------------


def test_each_home_is_asked_once_about_what_it_has_not_told() -> None:
    in_doubt = read_listings(
        {
            1: [committed(X, 2, 3)],
            2: [prepared(X, 1), prepared(Y, 1), prepared(Z, 3)],
            3: [prepared(X, 1), prepared(Y, 1)],
        }
    )
    assert in_doubt.found == 3
    assert in_doubt.to_resolve() == {1: [(Y, 50)], 3: [(Z, 50)]}


@pytest.mark.parametrize(
    ("resolution", "commit", "abort"),
    [
        ((Fate.COMMITTED, 44), {2: {Y: 44}, 3: {Y: 44}}, {}),
        ((Fate.ABORTED, 0), {}, {2: {Y: 50}, 3: {Y: 50}}),
        ((Fate.UNDECIDED, 0), {}, {}),
        (None, {}, {}),
    ],
)
def test_what_follows_from_a_resolution(
    resolution: tuple[int, int] | None,
    commit: dict[int, dict[bytes, int]],
    abort: dict[int, dict[bytes, int]],
) -> None:
    in_doubt = read_listings({2: [prepared(Y, 1)], 3: [prepared(Y, 1)]})
    steps = plan(in_doubt, {} if resolution is None else {Y: resolution})
    assert (steps.commit, steps.abort) == (commit, abort)


def test_what_a_home_has_committed_goes_to_all_its_participants_whatever_they_list() -> None:
    in_doubt = read_listings({1: [committed(X, 2, 3)], 2: [], 3: [prepared(X, 1)]})
    steps = plan(in_doubt, {})
    assert steps.commit == {2: {X: 40}, 3: {X: 40}}
    assert not steps.abort


@pytest.mark.parametrize(
    ("posted", "finished"),
    [
        ({2: [X, Y], 3: [X]}, {1: [X, Y]}),
        ({2: [X, Y]}, {1: [Y]}),
        ({3: [X]}, {}),
        ({}, {}),
    ],
)
def test_a_decision_is_forgotten_once_every_participant_has_posted(
    posted: dict[int, list[bytes]], finished: dict[int, list[bytes]]
) -> None:
    in_doubt = read_listings({1: [committed(X, 2, 3), committed(Y, 2)]})
    assert to_finish(in_doubt, posted) == finished


# --- sweeping -------------------------------------------------------------------------------------

TRANSFER = transfer(1, A1[0], A2[0], 30)
SALE = group(2, (A1[1], A2[1], 50), (A1[1], A3[1], 5))


def order_of(members: bytes, transaction_id: bytes) -> Order:
    """A transaction with home 1 that lives for five seconds from now."""
    source = int.from_bytes(members[16:24], "little")
    deadline_us = LoopClock().now_us() + 5_000_000
    header = HEADER.pack(transaction_id, deadline_us, source, 1, len(members) // 72)
    (order,) = read_orders(header, members, b"")
    return order


def leave_prepared(shards: MemoryShards, members: bytes, transaction_id: bytes) -> None:
    """What a coordinator leaves that died after PREPARE."""
    order = order_of(members, transaction_id)
    for shard_id in order.shards:
        legs = b"".join(
            members[at : at + 72]
            for at, row in zip(range(0, len(members), 72), order.rows, strict=True)
            if shard_id in {row.source_shard, row.destination_shard}
        )
        own = order_of(legs, transaction_id)
        assert shards.shards[shard_id].prepare(own)[0] == Vote.YES


def leave_committed(shards: MemoryShards, members: bytes, transaction_id: bytes) -> None:
    """What a coordinator leaves that died after COMMIT to the home."""
    leave_prepared(shards, members, transaction_id)
    order = order_of(members, transaction_id)
    assert shards.shards[1].commit_home(order, (Vote.YES, 0, 0))[0] == Fate.COMMITTED


async def litter() -> MemoryShards:
    """Shards with one transaction of each kind in doubt, for a while already."""
    shards = open_shards()
    for shard in shards.shards.values():
        shard.clock.tick()
    leave_committed(shards, TRANSFER, X)
    leave_committed(shards, SALE, Y)
    leave_prepared(shards, transfer(3, A1[0], A3[0], 7), Z)
    await pass_time(6)
    return shards


def check_settled(shards: MemoryShards) -> None:
    shards.check(TOTAL)
    assert shards.balance(A2[0]) == BALANCE + 30
    assert shards.balance(A3[1]) == BALANCE + 5
    assert shards.balance(A3[0]) == BALANCE


@virtual_time
async def test_a_sweep_settles_what_is_in_doubt() -> None:
    shards = await litter()
    it = coordinator(shards)
    assert await it.sweeper.sweep() == Swept(found=3, committed=2, aborted=1, finished=2)
    check_settled(shards)
    assert it.sweeper.swept == 3
    assert await it.sweeper.sweep() == Swept()


@virtual_time
async def test_what_is_young_is_left_alone() -> None:
    shards = open_shards()
    for shard in shards.shards.values():
        shard.clock.tick()
    leave_committed(shards, TRANSFER, X)
    await pass_time(IN_DOUBT_US / 2e6)
    assert (await coordinator(shards).sweeper.sweep()).found == 0
    await pass_time(IN_DOUBT_US / 1e6)
    assert (await coordinator(shards).sweeper.sweep()).found == 1


@virtual_time
async def test_the_undecided_is_left_alone_until_its_deadline() -> None:
    shards = open_shards()
    for shard in shards.shards.values():
        shard.clock.tick()
    leave_prepared(shards, TRANSFER, X)
    it = coordinator(shards)
    await pass_time(3)
    assert await it.sweeper.sweep() == Swept(found=1)
    assert shards.in_doubt == 1
    await pass_time(3)
    assert await it.sweeper.sweep() == Swept(found=1, aborted=1)
    shards.check(TOTAL)


@pytest.mark.parametrize("away", [1, 2, 3])
@virtual_time
async def test_a_shard_that_is_away_holds_up_only_what_concerns_it(away: int) -> None:
    shards = await litter()
    shards.before = Trouble(shard_id=away, times=ALWAYS)
    it = coordinator(shards)
    done = await it.sweeper.sweep()
    assert done.unreached == (away,)
    # The transfer is 1 → 2; the group 1 → 2 and 3; the one to be aborted 1 → 3.
    assert shards.balance(A2[0]) == (BALANCE if away in {1, 2} else BALANCE + 30)
    assert bool(shards.shards[3].prepared) == (away in {1, 3})
    shards.before = None
    await settle_doubt(it)
    check_settled(shards)


@virtual_time
async def test_two_sweeps_at_once_are_safe() -> None:
    shards = await litter()
    sweepers = [coordinator(shards, seed=seed).sweeper for seed in (1, 2)]
    await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))
    check_settled(shards)


@pytest.mark.parametrize("side", ["before", "after"])
@virtual_time
async def test_a_sweep_is_taken_up_from_every_point_at_which_it_may_be_interrupted(
    side: str,
) -> None:
    for at in range(50):
        shards = await litter()
        trouble = Trouble(skip=at, times=ALWAYS)
        setattr(shards, side, trouble)
        await coordinator(shards).sweeper.sweep()
        setattr(shards, side, None)
        await settle_doubt(coordinator(shards))
        check_settled(shards)
        if trouble.seen <= at:
            assert at == 3 + 1 + 2 + 1 + 1, "list, resolve, commit, abort, finish"
            return
    pytest.fail("it never ends")


@virtual_time
async def test_a_transfer_that_a_sweep_aborted_succeeds_when_it_is_tried_again() -> None:
    shards = open_shards()
    it = coordinator(shards)
    for shard in shards.shards.values():
        shard.clock.tick()
    leave_prepared(shards, TRANSFER, X)
    await settle_doubt(it)
    assert shards.balance(A2[0]) == BALANCE
    (result,) = await it.execute(TRANSFER)
    assert result[0] == 1
    await settle_doubt(it)
    await it.rounds.close(1)
    shards.check(TOTAL)
    # The message of the aborted attempt comes late, and is refused.
    assert shards.shards[2].prepare(order_of(TRANSFER, X))[0] == Vote.LATE


@virtual_time
async def test_sweeps_come_about_once_a_period_and_never_in_step() -> None:
    shards = open_shards()
    times: list[list[float]] = []
    tasks = []
    for seed in (1, 2):
        own: list[float] = []
        times.append(own)

        class Noting(Sweeper):
            def __init__(self, own: list[float], rng: random.Random) -> None:
                super().__init__(shards, HybridClock(LoopClock()), rng)
                self._own = own

            async def sweep(self) -> Swept:
                self._own.append(asyncio.get_running_loop().time())
                return await super().sweep()

        tasks.append(asyncio.ensure_future(Noting(own, random.Random(seed)).run()))
    await pass_time(60)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(45 < len(own) < 80 for own in times)
    assert not set(times[0]) & set(times[1])


@virtual_time
async def test_a_listing_is_bounded() -> None:
    shards = open_shards()
    asked: list[Any] = []
    real = shards.ListTransactions

    def noting(shard: Any, request: Any) -> Any:
        asked.append(request.limit)
        return real(shard, request)

    shards.ListTransactions = noting  # type: ignore[method-assign] # to read the request
    await coordinator(shards).sweeper.sweep()
    assert asked == [SWEEP_MAX] * 3
    assert counted(shards, ["Resolve", "CommitPrepared", "AbortPrepared", "Finish"]) == [0] * 4
    assert TOPOLOGY.shards == (1, 2, 3)
