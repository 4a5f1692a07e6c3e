"""A whole router over shards in memory: order, retries, topology, streams, bounds, the rest."""

import asyncio
import random
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import grpc
import pytest

from cluster.rpc import Fault
from cluster.topology import SLOTS, Topology
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.service import Deadlines
from router.shards import REFRESH_WAIT_S
from tests.support.routers import (
    TOPOLOGY,
    Call,
    Router,
    accounts_of,
    completed,
    faults_of,
    now_s,
    router,
    settle,
    transfer,
)
from tests.support.shard_nodes import MemoryShardNode
from tests.support.virtual_time import virtual_time

UNAVAILABLE = types_pb2.FAULT_CODE_UNAVAILABLE
EXHAUSTED = types_pb2.FAULT_CODE_RESOURCE_EXHAUSTED
INVALID = types_pb2.FAULT_CODE_INVALID_ARGUMENT
UNIMPLEMENTED = types_pb2.FAULT_CODE_UNIMPLEMENTED


async def batch(
    it: Router, *transfers: types_pb2.Transfer, timeout_s: float | None = None
) -> list[types_pb2.TransferResult]:
    request = wallet.TransferBatchRequest(transfers=transfers)
    response = await it.wallet.TransferBatch(request, Call(timeout_s))
    return list(response.results)


def restart_elsewhere(it: Router, shard_id: int) -> "asyncio.Task[MemoryShardNode]":
    """Kill a shard's node and start it again at another address, with what it had recorded."""

    async def restart() -> MemoryShardNode:
        old = it.cluster.node(shard_id)
        old.gone.set()
        new = await it.cluster.start_node(shard_id, f"shard{shard_id}:2")
        new.recorded.update(old.recorded)
        return new

    return asyncio.get_running_loop().create_task(restart())


def moved(slots_of: int, to: int, version: int = 2) -> Topology:
    """TOPOLOGY, with every slot of one shard given to another."""
    owners = tuple(to if owner == slots_of else owner for owner in TOPOLOGY.shard_of_slot)
    assert len(owners) == SLOTS
    return Topology(version, owners)


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
                    answer = UNIMPLEMENTED, "transfers"
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


# Topology


@virtual_time
async def test_a_newer_topology_is_waited_for_and_the_items_are_taken_apart_anew() -> None:
    async with router() as it:
        newer = moved(slots_of=2, to=3)
        it.cluster.membership.cut()  # the router has not heard of it yet
        assert await it.cluster.operator.propose_topology(newer)
        for shard_id in (2, 3):
            it.cluster.node(shard_id).topology = newer
        old_home, new_home = it.cluster.node(2), it.cluster.node(3)
        items = [transfer(2, 1), transfer(1, 2), transfer(3, 3), transfer(2, 4)]
        work = asyncio.ensure_future(batch(it, *items))
        await settle()
        it.cluster.membership.mend()
        assert await work == [completed(number) for number in (1, 2, 3, 4)]
        assert not old_home.recorded
        assert len(new_home.recorded) == 3
        assert len(it.cluster.node(1).bodies) == 1  # those who answered are not asked again


@virtual_time
async def test_a_topology_that_never_comes_is_waited_for_once() -> None:
    async with router() as it:
        it.cluster.node(2).topology = moved(slots_of=2, to=3)
        results = await batch(it, transfer(2, 1), transfer(1, 2))
        assert results[1] == completed(2)
        code = types_pb2.FAULT_CODE_FAILED_PRECONDITION
        assert faults_of(results[:1]) == [(code, "", 0, False)]
        assert now_s() == pytest.approx(REFRESH_WAIT_S)


@virtual_time
async def test_a_shard_node_whose_watch_is_behind_is_asked_again() -> None:
    async with router() as it:
        assert await it.cluster.operator.propose_topology(Topology(2, TOPOLOGY.shard_of_slot))
        node = it.cluster.node(2)

        async def catch_up() -> None:
            await asyncio.sleep(0)
            node.topology = Topology(2, TOPOLOGY.shard_of_slot)

        work = asyncio.ensure_future(batch(it, transfer(2, 1)))
        await settle()
        await catch_up()
        assert await work == [completed(1)]
        assert now_s() < 1


@virtual_time
async def test_a_question_is_asked_again_under_a_newer_topology() -> None:
    async with router() as it:
        newer = moved(slots_of=2, to=3)
        it.cluster.membership.cut()
        assert await it.cluster.operator.propose_topology(newer)
        for shard_id in (2, 3):
            it.cluster.node(shard_id).topology = newer
        (account_id,) = accounts_of(2, 1)
        request = wallet.GetAccountRequest(account_id=account_id)
        work = asyncio.ensure_future(it.wallet.GetAccount(request, Call()))
        await settle()
        it.cluster.membership.mend()
        assert (await work).account.account_id == account_id
        assert it.cluster.node(3).asked == [("GetAccount", request)]


# Gathering and bounds


@virtual_time
async def test_single_transfers_at_the_same_time_share_calls() -> None:
    async with router(calls_max=2) as it:
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
        assert [len(bodies) // 64 for bodies in node.bodies] == [1, 1, 98]
        assert busiest == 2


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


# Streams


def request_of(*numbers: int, shard_id: int = 2) -> wallet.StreamTransfersRequest:
    return wallet.StreamTransfersRequest(
        transfers=[transfer(shard_id, number) for number in numbers]
    )


async def stream_of(
    *requests: wallet.StreamTransfersRequest,
) -> AsyncIterator[wallet.StreamTransfersRequest]:
    for request in requests:
        yield request


@virtual_time
async def test_a_stream_answers_in_order_whatever_order_shards_answer_in() -> None:
    async with router() as it:
        slow = asyncio.Event()

        async def wait(_: str) -> None:
            await slow.wait()

        it.cluster.node(1).before = wait
        requests = stream_of(request_of(1, 2, shard_id=1), request_of(3), request_of(4, 5))
        answers = it.wallet.StreamTransfers(requests, Call())
        first = asyncio.ensure_future(anext(answers))
        await settle()
        assert len(it.cluster.node(2).recorded) == 3
        assert not first.done()
        slow.set()
        assert list((await first).results) == [completed(1), completed(2)]
        rest = [list(answer.results) async for answer in answers]
        assert rest == [[completed(3)], [completed(4), completed(5)]]


@virtual_time
async def test_a_stream_is_read_only_as_far_as_its_window_allows() -> None:
    async with router(stream_window=3) as it:
        read = 0

        async def requests() -> AsyncIterator[wallet.StreamTransfersRequest]:
            nonlocal read
            for number in range(1, 11):
                read += 1
                yield request_of(number)

        answers = it.wallet.StreamTransfers(requests(), Call())
        for answered in range(1, 8):
            answer = await anext(answers)  # nothing more is asked for, so nothing more is written
            assert list(answer.results) == [completed(answered)]
            await settle()
            assert read == answered + 2
        assert [list(answer.results) async for answer in answers] == [
            [completed(number)] for number in (8, 9, 10)
        ]


@pytest.mark.parametrize("count", [0, 8_193])
@virtual_time
async def test_a_malformed_batch_ends_a_stream_after_the_earlier_results(count: int) -> None:
    async with router() as it:
        malformed = wallet.StreamTransfersRequest(transfers=[transfer(2, 9)] * count)
        requests = stream_of(request_of(1), request_of(2), malformed, request_of(3))
        answers = it.wallet.StreamTransfers(requests, Call())
        assert list((await anext(answers)).results) == [completed(1)]
        assert list((await anext(answers)).results) == [completed(2)]
        with pytest.raises(Fault) as caught:
            await anext(answers)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.field == "transfers"
        assert len(it.cluster.node(2).recorded) == 2


@virtual_time
async def test_what_would_fail_a_call_faults_the_items_of_a_stream() -> None:
    async with router(deadlines=Deadlines(default_s=2)) as it:
        it.cluster.node(1).gone.set()
        requests = stream_of(request_of(1, 2, shard_id=1), request_of(3))
        answers = [
            list(answer.results) async for answer in it.wallet.StreamTransfers(requests, Call())
        ]
        assert faults_of(answers[0]) == [(UNAVAILABLE, "", 0, False), (UNAVAILABLE, "", 1, False)]
        assert answers[1] == [completed(3)]
        assert now_s() == pytest.approx(2, abs=0.011)


@virtual_time
async def test_a_stopping_router_answers_what_it_has_begun_and_no_more() -> None:
    async with router() as it:
        never = asyncio.Event()

        async def requests() -> AsyncIterator[wallet.StreamTransfersRequest]:
            yield request_of(1)
            yield request_of(2)
            await never.wait()

        answers = it.wallet.StreamTransfers(requests(), Call())
        assert list((await anext(answers)).results) == [completed(1)]
        await settle()
        it.wallet.stop_streams()
        assert list((await anext(answers)).results) == [completed(2)]
        with pytest.raises(Fault, match="stopping") as caught:
            await anext(answers)
        assert not caught.value.indefinite
        with pytest.raises(Fault, match="stopping"):
            await anext(it.wallet.StreamTransfers(stream_of(request_of(3)), Call()))


@virtual_time
async def test_a_client_that_leaves_a_stream_leaves_nothing_running() -> None:
    async with router() as it:
        node = it.cluster.node(2)

        async def hang(_: str) -> None:
            await asyncio.Event().wait()

        async def requests() -> AsyncIterator[wallet.StreamTransfersRequest]:
            yield request_of(2)
            await settle()
            node.before = hang
            yield request_of(3)
            yield request_of(4)

        before = asyncio.all_tasks()
        answers = it.wallet.StreamTransfers(requests(), Call())
        await anext(answers)
        await settle()
        assert len(asyncio.all_tasks()) > len(before)
        await answers.aclose()  # type: ignore[attr-defined] # an async generator, typed as its contract is
        node.gone.set()  # what was sent goes on until the shard answers or the deadline comes
        it.cluster.end_lease("shard2:1")
        await asyncio.sleep(Deadlines().default_s)
        await settle()
        assert asyncio.all_tasks() == before


# Accounts and questions


@virtual_time
async def test_accounts_are_opened_on_their_shards_and_answered_in_order(
    rng: random.Random,
) -> None:
    async with router() as it:
        specs = [
            wallet.AccountSpec(
                account_id=rng.randrange(1, 10**6),
                kind=types_pb2.ACCOUNT_KIND_PLAYER,
                cap_minor=number,
            )
            for number in range(1, 301)
        ]
        specs[7].kind = types_pb2.ACCOUNT_KIND_UNSPECIFIED
        request = wallet.OpenAccountsRequest(accounts=specs)
        results = (await it.wallet.OpenAccounts(request, Call())).results
        for number, result in enumerate(results, 1):
            if number == 8:
                assert result.status == wallet.OPEN_ACCOUNT_STATUS_FAULT
                assert (result.fault.field, result.fault.index) == ("accounts.kind", 7)
            else:
                assert result.differing_field == str(number)
        for shard_id in TOPOLOGY.shards:
            ((_, own),) = it.cluster.node(shard_id).asked
            assert {TOPOLOGY.shard_of(one.account_id) for one in own.accounts} == {shard_id}


@virtual_time
async def test_accounts_of_a_shard_that_is_away_fault_alone() -> None:
    async with router() as it:
        it.cluster.node(2).gone.set()
        player = types_pb2.ACCOUNT_KIND_PLAYER
        one, two = (
            wallet.AccountSpec(account_id=accounts_of(shard_id, 1)[0], kind=player)
            for shard_id in (1, 2)
        )
        request = wallet.OpenAccountsRequest(accounts=[two, one])
        results = (await it.wallet.OpenAccounts(request, Call(2.0))).results
        assert results[0].fault.code == UNAVAILABLE
        assert (results[0].fault.index, results[0].fault.indefinite) == (0, False)
        assert results[1].status == wallet.OPEN_ACCOUNT_STATUS_REFUSED
        with pytest.raises(Fault) as caught:
            await it.wallet.OpenAccounts(wallet.OpenAccountsRequest(accounts=[two]), Call(2.0))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("count", [0, 8_193])
@virtual_time
async def test_no_or_too_many_accounts_are_refused_whole(count: int) -> None:
    async with router() as it:
        request = wallet.OpenAccountsRequest(accounts=[wallet.AccountSpec()] * count)
        with pytest.raises(Fault) as caught:
            await it.wallet.OpenAccounts(request, Call())
        assert (caught.value.code, caught.value.field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "accounts",
        )


QUESTIONS: list[tuple[str, Any, str]] = [
    ("GetAccount", wallet.GetAccountRequest, "account_id"),
    ("GetBalances", wallet.GetBalancesRequest, "account_id"),
    ("ListEntries", wallet.ListEntriesRequest, "account_id"),
    ("GetFlows", wallet.GetFlowsRequest, "account_id"),
    ("GetBalanceSeries", wallet.GetBalanceSeriesRequest, "account_id"),
]


@pytest.mark.parametrize(("name", "request_type", "field"), QUESTIONS)
@virtual_time
async def test_a_question_is_forwarded_as_it_came_to_the_accounts_shard(
    name: str, request_type: Any, field: str
) -> None:
    async with router() as it:
        for shard_id in TOPOLOGY.shards:
            request = request_type(account_id=accounts_of(shard_id, 1)[0])
            await getattr(it.wallet, name)(request, Call())
            assert it.cluster.node(shard_id).asked == [(name, request)]


@pytest.mark.parametrize("account_id", [0, 2**63])
@pytest.mark.parametrize(("name", "request_type", "field"), QUESTIONS)
@virtual_time
async def test_a_question_about_no_account(
    name: str, request_type: Any, field: str, account_id: int
) -> None:
    async with router() as it:
        with pytest.raises(Fault) as caught:
            await getattr(it.wallet, name)(request_type(account_id=account_id), Call())
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.field == field


@virtual_time
async def test_a_shards_fault_is_the_answer_to_a_question() -> None:
    async with router() as it:
        source = accounts_of(2, 1)[0]
        request = wallet.GetTransferRequest(source_account_id=source, transfer_id=bytes(16))
        with pytest.raises(Fault) as caught:
            await it.wallet.GetTransfer(request, Call())
        assert (caught.value.code, caught.value.field) == (
            grpc.StatusCode.NOT_FOUND,
            "transfer_id",
        )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"source_account_id": 1, "transfer_id": bytes(15)}, "transfer_id"),
        ({"source_account_id": 0, "transfer_id": bytes(16)}, "source_account_id"),
    ],
)
@virtual_time
async def test_a_malformed_transfer_name(fields: dict[str, Any], field: str) -> None:
    async with router() as it:
        with pytest.raises(Fault) as caught:
            await it.wallet.GetTransfer(wallet.GetTransferRequest(**fields), Call())
        assert (caught.value.code, caught.value.field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            field,
        )


@virtual_time
async def test_a_question_outlasts_a_restart() -> None:
    async with router() as it:
        it.cluster.node(2).gone.set()
        request = wallet.GetFlowsRequest(account_id=accounts_of(2, 1)[0], as_of_us=77)
        work = asyncio.ensure_future(it.wallet.GetFlows(request, Call()))
        await settle()
        await restart_elsewhere(it, 2)
        assert (await work).to_us == 77
