"""Transfers through a whole router over shards in memory: order, shards that are away, bounds."""

import asyncio
import random
from itertools import pairwise
from typing import Any

import grpc
import pytest

from cluster.faults import Fault
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.service import Deadlines
from tests.support.routers import (
    TOPOLOGY,
    Call,
    accounts_of,
    batch,
    completed,
    faults_of,
    group,
    now_s,
    restart_elsewhere,
    router,
    settle,
    transfer,
)
from tests.support.shard_nodes import MemoryShardNode
from tests.support.virtual_time import VirtualTimeLoop, virtual_time

UNAVAILABLE = types_pb2.FAULT_CODE_UNAVAILABLE
EXHAUSTED = types_pb2.FAULT_CODE_RESOURCE_EXHAUSTED
INVALID = types_pb2.FAULT_CODE_INVALID_ARGUMENT


# Order


@virtual_time
async def test_results_come_in_request_order_over_random_splits(rng: random.Random) -> None:
    async with router() as it:
        for size in (1, 2, 50, 400):
            items, expected = [], []
            for number in range(1, size + 1):
                unique = rng.getrandbits(40) << 20 | number
                shard_id = rng.choice(TOPOLOGY.shards)
                changes: dict[str, Any] = {}
                answer: types_pb2.TransferResult | tuple[int, str] = completed(unique)
                if rng.random() < 0.1:
                    changes, answer = {"type": 0}, (INVALID, "transfers.type")
                elif rng.random() < 0.1:
                    other = accounts_of(shard_id % 3 + 1, 1)[0]
                    changes = {"destination_account_id": other}
                items.append(transfer(shard_id, unique, **changes))
                expected.append(answer)
            results = await batch(it, *items)
            for index, (result, answer) in enumerate(zip(results, expected, strict=True)):
                if isinstance(answer, tuple):
                    assert faults_of([result]) == [(*answer, index, False)]
                else:
                    assert result == answer


@virtual_time
async def test_shards_are_asked_at_the_same_time() -> None:
    async with router() as it:
        together = asyncio.Barrier(3)

        async def meet(_: str) -> None:
            await together.wait()

        for shard_id in TOPOLOGY.shards:
            it.cluster.node(shard_id).before = meet
        items = [transfer(3, 1), transfer(1, 2), transfer(2, 3)]
        assert await batch(it, *items) == [completed(1), completed(2), completed(3)]
        assert now_s() == 0


@virtual_time
async def test_one_transfer() -> None:
    async with router() as it:
        request = wallet.TransferRequest(transfer=transfer(2, 9))
        response = await it.wallet.Transfer(request, Call())
        assert response.result == completed(9)
        again = await it.wallet.Transfer(request, Call())
        assert again.result == completed(9, repeat=True)


@virtual_time
async def test_one_malformed_transfer_names_its_field() -> None:
    async with router() as it:
        response = await it.wallet.Transfer(wallet.TransferRequest(), Call())
        assert faults_of([response.result]) == [(INVALID, "transfer.transfer_id", 0, False)]


@pytest.mark.parametrize("count", [0, 8_193])
@virtual_time
async def test_a_batch_of_no_or_too_many_transfers_is_refused_whole(count: int) -> None:
    async with router() as it:
        with pytest.raises(Fault) as caught:
            await batch(it, *[transfer(1, 5)] * count)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.field, caught.value.index) == ("transfers", -1)
        assert not it.cluster.node(1).asked


@virtual_time
async def test_a_full_batch_is_taken() -> None:
    async with router() as it:
        numbers = range(1, 8_193)
        results = await batch(it, *[transfer(n % 3 + 1, n) for n in numbers])
        assert results == [completed(n) for n in numbers]


@virtual_time
async def test_a_full_batch_holds_up_nobody() -> None:
    """It is taken apart, and its results are written, in turns of the event loop."""
    async with router() as it:
        full = asyncio.ensure_future(batch(it, *[transfer(1, n) for n in range(1, 8_193)]))
        await asyncio.sleep(0)
        assert await batch(it, transfer(2, 9_000)) == [completed(9_000)]
        assert not it.cluster.node(1).asked, "the full batch is still being taken apart"
        assert await full == [completed(n) for n in range(1, 8_193)]


# Shards that are away


@virtual_time
async def test_a_shard_that_nobody_serves_faults_alone_and_definitely() -> None:
    async with router() as it:
        it.cluster.end_lease("shard2:1")
        results = await batch(it, transfer(1, 1), transfer(2, 2), transfer(3, 3), timeout_s=5)
        assert results[0::2] == [completed(1), completed(3)]
        assert faults_of(results[1:2]) == [(UNAVAILABLE, "", 1, False)]
        assert 4.9 < now_s() < 5


@virtual_time
async def test_a_shard_that_cannot_be_connected_to_faults_alone_and_definitely() -> None:
    async with router() as it:
        it.cluster.node(2).gone.set()
        results = await batch(it, transfer(1, 1), transfer(2, 2), timeout_s=5)
        assert results[0] == completed(1)
        assert faults_of(results[1:]) == [(UNAVAILABLE, "", 1, False)]


@virtual_time
async def test_a_shard_that_dies_in_the_middle_of_a_call_faults_indefinitely() -> None:
    async with router() as it:
        node = it.cluster.node(2)

        async def die(_: str) -> None:
            node.gone.set()
            await asyncio.Event().wait()

        node.before = die
        results = await batch(it, transfer(2, 1), transfer(3, 2), transfer(2, 3), timeout_s=5)
        assert results[1] == completed(2)
        assert faults_of(results[0::2]) == [
            (UNAVAILABLE, "", 0, True),
            (UNAVAILABLE, "", 2, True),
        ]


@virtual_time
@pytest.mark.parametrize("is_group", [False, True])
async def test_after_a_lost_answer_a_busy_shard_leaves_a_doubt(*, is_group: bool) -> None:
    """What is in the item's way now may be gone when the first call arrives after all."""
    async with router() as it:
        node = it.cluster.node(2)
        node.busy[1] = 1_000

        async def lose_the_first(_: str) -> None:
            node.before = None
            raise Fault(grpc.StatusCode.UNAVAILABLE, "connection lost", indefinite=True)

        node.before = lose_the_first
        if is_group:
            request = wallet.TransferGroupBatchRequest(groups=[group(1, transfer(2, 1))])
            answer = await it.wallet.TransferGroupBatch(request, Call(5))
            assert [each.fault.indefinite for each in answer.results] == [True]
        else:
            doubt, done = await batch(it, transfer(2, 1), transfer(2, 2), timeout_s=5)
            assert faults_of([doubt]) == [(UNAVAILABLE, "", 0, True)]
            assert done == completed(2)


@virtual_time
async def test_a_shard_that_hangs_faults_indefinitely_before_the_clients_deadline() -> None:
    async with router() as it:

        async def hang(_: str) -> None:
            await asyncio.Event().wait()

        it.cluster.node(2).before = hang
        results = await batch(it, transfer(2, 1), transfer(3, 2), timeout_s=5)
        assert faults_of(results[:1]) == [(types_pb2.FAULT_CODE_DEADLINE_EXCEEDED, "", 0, True)]
        assert now_s() < 5


@virtual_time
async def test_a_restarted_shard_is_asked_again_with_the_same_bytes() -> None:
    async with router() as it:
        old = it.cluster.node(2)

        async def die(_: str) -> None:
            restart_elsewhere(it, 2)
            await asyncio.Event().wait()

        old.after = die  # it has taken effect, and the answer is lost
        results = await batch(it, transfer(2, 1), transfer(2, 2), timeout_s=5)
        assert results == [completed(1, repeat=True), completed(2, repeat=True)]
        new = it.cluster.node(2)
        assert new is not old
        assert new.bodies == old.bodies
        assert now_s() < 0.1  # no back-off: the view changed


@virtual_time
async def test_a_shard_that_hangs_is_left_when_another_epoch_takes_over() -> None:
    async with router() as it:
        stuck = asyncio.Event()

        async def hang(_: str) -> None:
            stuck.set()
            await asyncio.Event().wait()

        old = it.cluster.node(2)
        old.before = hang
        work = asyncio.ensure_future(batch(it, transfer(2, 1), timeout_s=5))
        await stuck.wait()
        await it.cluster.start_node(2, "shard2:2")  # the old process lives, and answers nothing
        assert await work == [completed(1)]
        assert not old.asked
        assert now_s() < 1


@virtual_time
async def test_the_same_address_under_another_epoch_is_a_new_client() -> None:
    async with router() as it:
        assert await batch(it, transfer(2, 1)) == [completed(1)]
        before = it.cluster.node(2)
        before.gone.set()
        it.cluster.end_lease("shard2:1")
        after = await it.cluster.start_node(2, "shard2:1")
        assert await batch(it, transfer(2, 2)) == [completed(2)]
        assert len(after.bodies) == 1


@virtual_time
async def test_retries_back_off_while_the_view_stays_the_same() -> None:
    async with router() as it:
        tries_s: list[float] = []

        async def refuse(_: str) -> None:
            tries_s.append(now_s())
            raise Fault(grpc.StatusCode.UNAVAILABLE, "starting", indefinite=False)

        it.cluster.node(2).before = refuse
        results = await batch(it, transfer(2, 1), transfer(3, 2), timeout_s=10)
        assert faults_of(results[:1]) == [(UNAVAILABLE, "", 0, False)]
        pauses_s = [later - earlier for earlier, later in pairwise(tries_s)]
        assert all(0.01 <= pause_s <= 0.5 for pause_s in pauses_s)
        assert 20 < len(tries_s) < 60


@pytest.mark.parametrize("late_us", range(0, 1_000, 50))
def test_a_clock_that_moves_on_never_hides_the_last_tries_fault(late_us: int) -> None:
    async def ask() -> None:
        async with router() as it:
            it.cluster.node(2).gone.set()
            timeout_s = 1 + late_us / 1_000_000
            results = await batch(it, transfer(2, 1), transfer(3, 2), timeout_s=timeout_s)
            assert faults_of(results[:1]) == [(UNAVAILABLE, "", 0, False)]

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(tick_s=0.000_1)) as runner:
        runner.run(ask())


@virtual_time
async def test_another_shards_node_at_a_reused_address_executes_nothing() -> None:
    async with router() as it:
        it.cluster.node(2).gone.set()
        stranger = MemoryShardNode(3, TOPOLOGY)
        it.cluster.nodes["shard2:1"] = stranger
        work = asyncio.ensure_future(batch(it, transfer(2, 1), timeout_s=5))
        await settle()
        await it.cluster.start_node(2, "shard2:9")
        assert await work == [completed(1)]
        assert not stranger.recorded


@virtual_time
async def test_when_nothing_was_attempted_the_call_itself_fails() -> None:
    async with router() as it:
        for shard_id in (1, 2):
            it.cluster.node(shard_id).gone.set()
        with pytest.raises(Fault) as caught:
            await batch(it, transfer(1, 1), transfer(2, 2), timeout_s=5)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert not caught.value.indefinite


@virtual_time
async def test_without_a_topology_the_call_fails_at_once() -> None:
    async with router(None) as it:
        with pytest.raises(Fault, match="no topology") as caught:
            await batch(it, transfer(1, 1))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert not caught.value.indefinite
        assert now_s() == 0


@virtual_time
async def test_with_etcd_away_the_last_known_view_serves() -> None:
    async with router() as it:
        it.cluster.membership.cut()
        assert await batch(it, transfer(1, 1), transfer(2, 2)) == [completed(1), completed(2)]


# Gathering and bounds


@virtual_time
async def test_single_transfers_at_the_same_time_share_calls() -> None:
    async with router() as it:
        node = it.cluster.node(2)
        busy, busiest = 0, 0
        free = asyncio.Event()

        async def count(_: str) -> None:
            nonlocal busy, busiest
            busy += 1
            busiest = max(busy, busiest)
            await free.wait()

        async def done(_: str) -> None:
            nonlocal busy
            busy -= 1

        node.before, node.after = count, done
        works = []
        for number in range(1, 101):
            request = wallet.TransferRequest(transfer=transfer(2, number))
            works.append(asyncio.ensure_future(it.wallet.Transfer(request, Call())))
            if number <= 3:
                await settle()
        await settle()
        free.set()
        responses = await asyncio.gather(*works)
        assert [one.result for one in responses] == [completed(n) for n in range(1, 101)]
        assert [len(bodies) // 64 for bodies in node.bodies] == [1, 99]
        assert busiest == 1


@virtual_time
async def test_a_shards_full_queue_faults_its_items_alone() -> None:
    async with router(calls_max=1, queued_max=2) as it:
        free = asyncio.Event()

        async def wait(_: str) -> None:
            await free.wait()

        it.cluster.node(2).before = wait
        works = [asyncio.ensure_future(batch(it, transfer(2, 1)))]
        await settle()
        works.append(asyncio.ensure_future(batch(it, transfer(2, 2), transfer(2, 3))))
        await settle()
        results = await batch(it, transfer(2, 4), transfer(3, 5))
        assert faults_of(results[:1]) == [(EXHAUSTED, "", 0, False)]
        assert results[1] == completed(5)
        free.set()
        await asyncio.gather(*works)


@virtual_time
async def test_more_than_the_router_may_have_in_progress_is_refused_early() -> None:
    async with router(in_flight_max=3) as it:
        free = asyncio.Event()

        async def wait(_: str) -> None:
            await free.wait()

        it.cluster.node(2).before = wait
        first = asyncio.ensure_future(batch(it, transfer(2, 1), transfer(2, 2)))
        await settle()
        for items in ([transfer(1, 3), transfer(1, 4)], [transfer(1, 3, metadata=bytes(1_100))]):
            with pytest.raises(Fault) as caught:
                await batch(it, *items)
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not caught.value.indefinite
        assert await batch(it, transfer(1, 5)) == [completed(5)]
        free.set()
        await first
        assert len(await batch(it, transfer(1, 6), transfer(1, 7), transfer(1, 8))) == 3
        with pytest.raises(Fault) as caught:  # what came in has gone out once, and not twice
            await batch(it, *(transfer(1, each) for each in range(9, 13)))
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("timeout_s", "ends_s"),
    [(None, 4.0), (1.0, 0.95), (0.1, 0.09), (5.0, 4.95), (60.0, 8.0)],
)
@virtual_time
async def test_deadlines(timeout_s: float | None, ends_s: float) -> None:
    async with router(deadlines=Deadlines(default_s=4, max_s=8)) as it:
        it.cluster.node(2).gone.set()
        with pytest.raises(Fault):
            await batch(it, transfer(2, 1), timeout_s=timeout_s)
        assert now_s() == pytest.approx(ends_s, abs=0.011)


@virtual_time
async def test_imports_need_the_routers_leave() -> None:
    item = transfer(1, 1, import_time_us=5)
    async with router() as it:
        denied = types_pb2.FAULT_CODE_PERMISSION_DENIED
        expected = [(denied, "transfers.import_time_us", 0, False)]
        assert faults_of(await batch(it, item)) == expected
    async with router(allow_imports=True) as it:
        assert await batch(it, item) == [completed(1)]
