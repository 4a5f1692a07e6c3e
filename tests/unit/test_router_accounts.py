"""Opening accounts and asking about them through a router."""

import asyncio
import random
from typing import Any

import grpc
import pytest

from cluster.faults import Fault
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from tests.support.routers import (
    TOPOLOGY,
    Call,
    accounts_of,
    restart_elsewhere,
    router,
    settle,
)
from tests.support.virtual_time import virtual_time

UNAVAILABLE = types_pb2.FAULT_CODE_UNAVAILABLE


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


@virtual_time
async def test_a_full_batch_of_accounts_holds_up_nobody() -> None:
    async with router() as it:
        player = types_pb2.ACCOUNT_KIND_PLAYER
        specs = [
            wallet.AccountSpec(account_id=n, kind=player, cap_minor=n) for n in range(1, 8_193)
        ]
        request = wallet.OpenAccountsRequest(accounts=specs)
        full = asyncio.ensure_future(it.wallet.OpenAccounts(request, Call()))
        await asyncio.sleep(0)
        (other,) = accounts_of(1, 1)
        await it.wallet.GetAccount(wallet.GetAccountRequest(account_id=other), Call())
        asked = [name for name, _ in it.cluster.node(1).asked]
        assert asked == ["GetAccount"], "the full batch is still being taken apart"
        results = (await full).results
        assert [each.differing_field for each in results] == [str(n) for n in range(1, 8_193)]


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
