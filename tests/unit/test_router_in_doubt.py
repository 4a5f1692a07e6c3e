"""What operators see of transactions in doubt, and how they end one."""

from typing import Any

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import DECISION, Fate
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import coordinator_service_pb2 as coordinator
from tests.support.routers import NOW_US, Call, Router, router
from tests.support.virtual_time import virtual_time

TXN, OTHER = bytes(15) + b"\1", bytes(15) + b"\2"
PREPARED = coordinator.TRANSACTION_STATE_PREPARED
COMMITTED = coordinator.TRANSACTION_STATE_COMMITTED
HOME, DEADLINE_US, DECIDED_US = 1, 5_000, 4_000


def info(shard_id: int, **changes: Any) -> coordinator.TransactionInfo:
    fields = {
        "transaction_id": TXN,
        "state": COMMITTED if shard_id == HOME else PREPARED,
        "shard_id": shard_id,
        "home_shard_id": HOME,
        "participant_shard_ids": [2, 3] if shard_id == HOME else [],
        "deadline_us": DEADLINE_US,
        "since_us": NOW_US - 10,
        **changes,
    }
    return coordinator.TransactionInfo(**fields)


def put(it: Router, *infos: coordinator.TransactionInfo) -> None:
    for each in infos:
        it.cluster.node(each.shard_id).transactions.append(each)


def asked_of(it: Router, shard_id: int) -> list[str]:
    return [method for method, _ in it.cluster.node(shard_id).asked if method[:4] != "List"]


async def listed(it: Router, **fields: Any) -> list[coordinator.TransactionInfo]:
    request = admin.ListInDoubtRequest(**fields)
    return list((await it.admin.ListInDoubt(request, Call())).transactions)


async def resolve(it: Router) -> int:
    request = admin.ResolveTransactionRequest(transaction_id=TXN)
    return (await it.admin.ResolveTransaction(request, Call())).fate


@virtual_time
async def test_what_every_shard_has_is_listed_the_oldest_first() -> None:
    async with router() as it:
        old = info(3, transaction_id=OTHER, since_us=NOW_US - 9_000_000)
        put(it, info(1), info(2), old)
        assert await listed(it) == [old, info(1), info(2)]
        assert await listed(it, older_than_us=9_000_000) == [old]
        assert await listed(it, older_than_us=9_000_001) == []
        assert await listed(it, older_than_us=2**62) == []
        assert await listed(it, transaction_id=TXN) == [info(1), info(2)]


@virtual_time
async def test_a_list_says_which_shards_are_missing_from_it() -> None:
    async with router() as it:
        put(it, info(1), info(3))
        it.cluster.node(2).gone.set()
        response = await it.admin.ListInDoubt(admin.ListInDoubtRequest(), Call(3.0))
        assert list(response.transactions) == [info(1), info(3)]
        assert list(response.unreachable_shard_ids) == [2]


@virtual_time
async def test_nothing_is_resolved_without_every_shards_word() -> None:
    async with router() as it:
        put(it, info(1), info(3))
        it.cluster.node(2).gone.set()
        with pytest.raises(Fault) as caught:
            await resolve(it)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert asked_of(it, HOME) == asked_of(it, 3) == []


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (admin.ListInDoubtRequest(older_than_us=-1), "older_than_us"),
        (admin.ListInDoubtRequest(transaction_id=b"short"), "transaction_id"),
        (admin.ResolveTransactionRequest(), "transaction_id"),
        (admin.ResolveTransactionRequest(transaction_id=bytes(17)), "transaction_id"),
    ],
)
@virtual_time
async def test_malformed_questions(request_: Any, field: str) -> None:
    async with router() as it:
        is_list = isinstance(request_, admin.ListInDoubtRequest)
        handler = it.admin.ListInDoubt if is_list else it.admin.ResolveTransaction
        with pytest.raises(Fault) as caught:
            await handler(request_, Call())
        assert (caught.value.code, caught.value.field) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            field,
        )


@virtual_time
async def test_what_was_decided_is_posted_everywhere_and_then_forgotten() -> None:
    async with router() as it:
        put(it, info(1), info(2))  # shard 3 has posted it already
        it.cluster.node(1).fates = {TXN: (Fate.COMMITTED, DECIDED_US)}
        assert await resolve(it) == admin.TRANSACTION_FATE_COMMITTED
        assert asked_of(it, 1) == ["Resolve", "Finish"]
        assert asked_of(it, 2) == asked_of(it, 3) == ["CommitPrepared"]
        (commit,) = [one for method, one in it.cluster.node(2).asked if method == "CommitPrepared"]
        assert commit.decisions == DECISION.pack(TXN, DECIDED_US)
        assert await listed(it) == []


@virtual_time
async def test_what_its_home_gives_up_is_aborted_where_it_is_prepared() -> None:
    async with router() as it:
        put(it, info(3))
        it.cluster.node(1).fates = {TXN: (Fate.ABORTED, 0)}
        assert await resolve(it) == admin.TRANSACTION_FATE_ABORTED
        assert asked_of(it, 1) == ["Resolve"]
        assert asked_of(it, 2) == []
        assert asked_of(it, 3) == ["AbortPrepared"]
        (abort,) = [one for method, one in it.cluster.node(3).asked if method == "AbortPrepared"]
        assert abort.transactions == DECISION.pack(TXN, DEADLINE_US)


@virtual_time
async def test_what_is_undecided_before_its_deadline_is_left_alone() -> None:
    async with router() as it:
        put(it, info(2))
        with pytest.raises(Fault) as caught:
            await resolve(it)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert not caught.value.indefinite
        assert asked_of(it, 2) == []


@virtual_time
async def test_what_nobody_has_is_not_found() -> None:
    async with router() as it:
        with pytest.raises(Fault) as caught:
            await resolve(it)
        assert caught.value.code is grpc.StatusCode.NOT_FOUND


@virtual_time
async def test_what_a_coordinator_has_just_finished_is_not_called_aborted() -> None:
    async with router() as it:
        put(it, info(2))
        # Finished and forgotten, the home knows only that the deadline is over.
        it.cluster.node(1).fates = {TXN: (Fate.ABORTED, 0)}

        async def finish(method: str) -> None:
            if method == "Resolve":
                it.cluster.node(2).transactions.clear()

        it.cluster.node(1).before = finish
        with pytest.raises(Fault) as caught:
            await resolve(it)
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
        assert asked_of(it, 2) == []
