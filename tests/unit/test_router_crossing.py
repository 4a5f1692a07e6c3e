"""What crosses: found coordinators, spread, another one's turn, and shards that are busy."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import GROUP_RESULT, MEMBER
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.busy import busy_items, items_of
from router.lanes import CROSSING_SMALL_CALLS_MAX
from tests.support.routers import (
    Call,
    batch,
    completed,
    crossing,
    faults_of,
    group,
    now_s,
    restart_elsewhere,
    router,
    settle,
    transfer,
)
from tests.support.shard_nodes import BUSY
from tests.support.virtual_time import virtual_time

UNAVAILABLE = types_pb2.FAULT_CODE_UNAVAILABLE
DEADLINE = types_pb2.FAULT_CODE_DEADLINE_EXCEEDED
Hook = Callable[[], Awaitable[None]]


def hang() -> tuple[asyncio.Event, Hook]:
    """What lets a coordinator hang, and an event that says that it does."""
    stuck = asyncio.Event()

    async def wait() -> None:
        stuck.set()
        await asyncio.Event().wait()

    return stuck, wait


def members_of(calls: list[bytes]) -> list[int]:
    return [len(members) // MEMBER.size for members in calls]


# Coordinators


@virtual_time
async def test_a_batch_of_any_mix_makes_one_call_and_tells_no_difference() -> None:
    async with router() as it:
        items = [transfer(1, 1), crossing(2, 1), crossing(3, 2), transfer(3, 4), crossing(5, 3)]
        assert await batch(it, *items) == [completed(n) for n in range(1, 6)]
        assert members_of(it.coordinators["c1"].asked) == [3]


@virtual_time
async def test_the_same_key_twice_in_a_batch_is_a_retry() -> None:
    async with router() as it:
        assert await batch(it, crossing(2), crossing(2)) == [
            completed(2),
            completed(2, repeat=True),
        ]


@virtual_time
async def test_calls_are_spread_over_all_coordinators() -> None:
    async with router() as it:
        for other in ("c2", "c3"):
            await it.coordinators.start(other)
        for number in range(1, 31):
            assert await batch(it, crossing(number)) == [completed(number)]
        calls = Counter({name: len(it.coordinators[name].asked) for name in ("c1", "c2", "c3")})
        assert set(calls.values()) == {10}


@virtual_time
async def test_without_a_coordinator_only_what_crosses_faults_and_says_so() -> None:
    async with router() as it:
        it.coordinators.end_lease("c1")
        results = await batch(it, transfer(1, 1), crossing(2), timeout_s=5)
        assert results[0] == completed(1)
        assert faults_of(results[1:]) == [(UNAVAILABLE, "", 1, False)]
        assert results[1].fault.message == "no coordinator serves"
        assert 4.9 < now_s() < 5


@virtual_time
async def test_a_coordinator_that_comes_in_time_is_used_at_once() -> None:
    async with router() as it:
        it.coordinators.end_lease("c1")
        work = asyncio.ensure_future(batch(it, crossing(2), timeout_s=5))
        await settle()
        await it.coordinators.start("c9")
        assert await work == [completed(2)]
        assert now_s() == 0


@virtual_time
async def test_one_that_cannot_be_reached_is_left_for_the_next_at_once() -> None:
    async with router() as it:
        await it.coordinators.start("c2")
        it.coordinators["c1"].gone.set()
        for number in range(1, 9):
            assert await batch(it, crossing(number)) == [completed(number)]
        assert now_s() == 0


@virtual_time
async def test_one_that_dies_with_the_work_done_is_asked_nothing_and_another_the_same() -> None:
    async with router() as it:
        await it.coordinators.start("c2")

        def dies(name: str) -> Hook:
            async def die() -> None:
                it.coordinators[name].gone.set()
                await asyncio.Event().wait()

            return die

        it.coordinators["c1"].after = dies("c1")
        for number in (1, 2):
            (result,) = await batch(it, crossing(number))
            assert result.status == types_pb2.TRANSFER_STATUS_COMPLETED
        assert len(it.coordinators["c1"].asked) == 1
        assert it.coordinators["c1"].asked[0] in it.coordinators["c2"].asked
        assert now_s() == 0


@virtual_time
async def test_one_that_hangs_is_left_once_it_has_lost_its_lease() -> None:
    async with router() as it:
        stuck, wait = hang()
        it.coordinators["c1"].before = wait
        work = asyncio.ensure_future(batch(it, crossing(2), timeout_s=5))
        await stuck.wait()
        await it.coordinators.start("c2")
        it.coordinators.end_lease("c1")
        assert await work == [completed(2)]
        assert now_s() < 1


@virtual_time
async def test_the_last_one_is_not_given_up_for_a_lost_lease() -> None:
    async with router() as it:
        free = asyncio.Event()

        async def wait() -> None:
            await free.wait()

        it.coordinators["c1"].before = wait
        work = asyncio.ensure_future(batch(it, crossing(2), timeout_s=5))
        await settle()
        it.coordinators.end_lease("c1")
        await settle()
        free.set()
        assert await work == [completed(2)]


@virtual_time
async def test_one_that_hangs_for_ever_faults_indefinitely() -> None:
    async with router() as it:
        _, it.coordinators["c1"].before = hang()
        results = await batch(it, crossing(1), transfer(2, 2), timeout_s=5)
        assert results[1] == completed(2)
        assert faults_of(results[:1]) == [(DEADLINE, "", 0, True)]


@virtual_time
async def test_after_a_lost_answer_no_coordinator_is_a_doubt() -> None:
    async with router() as it:

        async def die() -> None:
            it.coordinators.end_lease("c1")
            it.coordinators["c1"].gone.set()
            await asyncio.Event().wait()

        it.coordinators["c1"].after = die
        results = await batch(it, crossing(1), transfer(2, 2), timeout_s=5)
        assert faults_of(results[:1]) == [(UNAVAILABLE, "", 0, True)]


@virtual_time
async def test_after_a_lost_answer_only_an_outcome_is_definite() -> None:
    """Another one says that nothing happened in time: the first may wake up and go on."""
    async with router() as it:
        stuck, wait = hang()
        it.coordinators["c1"].before = wait
        work = asyncio.ensure_future(batch(it, crossing(1), crossing(2), timeout_s=5))
        await stuck.wait()
        (await it.coordinators.start("c2")).answers[1] = BUSY
        it.coordinators.end_lease("c1")
        doubt, done = await work
        assert faults_of([doubt]) == [(UNAVAILABLE, "", 0, True)]
        assert done == completed(2)


@virtual_time
async def test_retries_of_the_only_one_back_off() -> None:
    async with router() as it:
        tries_s: list[float] = []

        async def refuse() -> None:
            tries_s.append(now_s())
            raise Fault(grpc.StatusCode.UNAVAILABLE, "starting", indefinite=False)

        it.coordinators["c1"].before = refuse
        with pytest.raises(Fault) as caught:
            await batch(it, crossing(1), timeout_s=10)
        assert not caught.value.indefinite
        assert 20 < len(tries_s) < 60


@virtual_time
async def test_faults_and_postings_of_single_transactions_are_passed_on() -> None:
    async with router() as it:
        fault, posting = types_pb2.TRANSFER_STATUS_FAULT, 2
        it.coordinators["c1"].answers = {
            1: GROUP_RESULT.pack(fault, UNAVAILABLE, 0, 0, 0, 0, 0, 0),
            2: GROUP_RESULT.pack(fault, DEADLINE, 0, 0, 0, 1, 0, 0),
            3: GROUP_RESULT.pack(posting, 0, 0, 0, 0, 0, 33, 44),
        }
        results = await batch(it, crossing(4), crossing(1), crossing(2), crossing(3))
        assert results[0] == completed(4)
        assert faults_of(results[1:3]) == [(UNAVAILABLE, "", 1, False), (DEADLINE, "", 2, True)]
        assert (results[3].status, results[3].time_us) == (posting, 33)


@virtual_time
async def test_what_waits_for_other_shards_is_not_held_up() -> None:
    async with router() as it:
        stuck = asyncio.Event()
        it.coordinators["c1"].before = stuck.wait  # type: ignore[assignment] # its answer is not looked at
        held = [asyncio.ensure_future(batch(it, crossing(n, 1))) for n in range(1, 10)]
        await settle()
        it.coordinators["c1"].before = None
        for number in (20, 21):
            assert await batch(it, crossing(number, 2)) == [completed(number)]
        stuck.set()
        assert await asyncio.gather(*held) == [[completed(n)] for n in range(1, 10)]


@virtual_time
async def test_single_transfers_at_the_same_time_share_calls() -> None:
    async with router() as it:
        free = asyncio.Event()
        it.coordinators["c1"].before = free.wait  # type: ignore[assignment] # as above
        works = []
        for number in range(1, 101):
            request = wallet.TransferRequest(transfer=crossing(number))
            works.append(asyncio.ensure_future(it.wallet.Transfer(request, Call())))
            if number <= 3:
                await settle()
        await settle()
        free.set()
        responses = await asyncio.gather(*works)
        assert [one.result for one in responses] == [completed(n) for n in range(1, 101)]
        assert members_of(it.coordinators["c1"].asked) == [1] * CROSSING_SMALL_CALLS_MAX + [98]


# Busy shards


@virtual_time
async def test_what_something_in_doubt_stands_in_the_way_of_is_asked_for_again() -> None:
    async with router() as it:
        it.cluster.node(2).busy.update({2: 5, 4: 2})
        items = [transfer(2, n, metadata=b"m" * n) for n in range(1, 6)]
        assert await batch(it, *items) == [completed(n) for n in range(1, 6)]
        assert [len(bodies) // 64 for bodies in it.cluster.node(2).bodies] == [5, 2, 1, 1, 1]
        assert 0 < now_s() < 0.2


@virtual_time
async def test_a_busy_group_is_asked_for_again_whole() -> None:
    async with router() as it:
        it.cluster.node(2).busy.update({2: 3})
        groups = [group(n, transfer(2, n), transfer(2, n + 10)) for n in (1, 2)]
        request = wallet.TransferGroupBatchRequest(groups=groups)
        response = await it.wallet.TransferGroupBatch(request, Call())
        assert [one.time_us for one in response.results] == [1, 2]
        asked = [len(request.bodies) // 64 for _, request in it.cluster.node(2).asked]
        assert asked == [4, 2, 2]


@virtual_time
async def test_what_stays_busy_until_the_deadline_did_not_happen() -> None:
    async with router() as it:
        it.cluster.node(2).busy.update({1: 10**9})
        results = await batch(it, transfer(2, 1), transfer(2, 2), timeout_s=5)
        assert faults_of(results) == [(UNAVAILABLE, "", 0, False), None]
        assert 4.8 < now_s() < 5
        assert len(it.cluster.node(2).bodies) < 200


@virtual_time
async def test_a_shard_that_dies_while_an_item_is_busy_leaves_that_one_in_doubt() -> None:
    async with router() as it:
        node = it.cluster.node(2)
        node.busy.update({1: 2})
        calls = 0

        async def die(_: str) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                node.gone.set()
                await asyncio.Event().wait()

        node.after = die
        results = await batch(it, transfer(2, 1), transfer(2, 2), timeout_s=5)
        assert faults_of(results) == [(UNAVAILABLE, "", 0, True), None]


@virtual_time
async def test_a_shard_that_restarts_while_an_item_is_busy_settles_it() -> None:
    async with router() as it:
        node = it.cluster.node(2)
        node.busy.update({1: 2})
        calls = 0

        async def die(_: str) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                restart_elsewhere(it, 2)
                await asyncio.Event().wait()

        node.after = die
        results = await batch(it, transfer(2, 1), transfer(2, 2), timeout_s=5)
        assert results == [completed(1, repeat=True), completed(2)]


def test_items_are_cut_apart_with_their_metadata() -> None:
    def body(mark: int, metadata: int, size: int = 0) -> bytes:
        return bytes([mark]) * 58 + metadata.to_bytes(2, "little") + bytes([1, 0, size, 0])

    bodies = [body(1, 2), body(2, 0), body(3, 300, 2), body(4, 1, 2), body(5, 3, 1)]
    metadata = b"aa" + b"b" * 300 + b"c" + b"ddd"
    found = [(item.bodies, item.metadata) for item in items_of(b"".join(bodies), metadata)]
    assert found == [
        (bodies[0], b"aa"),
        (bodies[1], b""),
        (bodies[2] + bodies[3], b"b" * 300 + b"c"),
        (bodies[4], b"ddd"),
    ]


def test_only_definite_unavailability_is_busy() -> None:
    fault = types_pb2.TRANSFER_STATUS_FAULT
    rows = [
        BUSY,
        GROUP_RESULT.pack(types_pb2.TRANSFER_STATUS_COMPLETED, 0, 0, 0, 0, 0, 3, 4),
        GROUP_RESULT.pack(fault, UNAVAILABLE, 0, 0, 0, 1, 0, 0),
        GROUP_RESULT.pack(fault, DEADLINE, 0, 0, 0, 0, 0, 0),
        # A refusal whose reason has the number of the code is a refusal.
        GROUP_RESULT.pack(types_pb2.TRANSFER_STATUS_REFUSED, UNAVAILABLE, 0, 0, 0, 0, 0, 0),
        BUSY,
    ]
    assert busy_items(b"".join(rows)) == [0, 5]
    assert busy_items(rows[1]) == []
