"""What operators ask of a router: currencies, account status, the cluster's and its own health."""

import asyncio
from typing import Any

import grpc
import pytest

from cluster.faults import Fault
from cluster.topology import Topology
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.admin import anonymous_memory_bytes
from tests.support.routers import Call, accounts_of, completed, now_s, router, transfer
from tests.support.virtual_time import virtual_time

INVALID = grpc.StatusCode.INVALID_ARGUMENT


@virtual_time
async def test_a_currency_is_registered_and_transfers_may_use_it_at_once() -> None:
    async with router() as it:
        request = admin.RegisterCurrencyRequest(code="GEM", scale=18, name="gëm")
        expected = admin.Currency(code="GEM", number=2, scale=18, name="gëm")
        for _ in range(2):
            assert (await it.admin.RegisterCurrency(request, Call())).currency == expected
        assert "GEM" in it.cluster.membership.view.currencies
        listed = await it.admin.ListCurrencies(admin.ListCurrenciesRequest(), Call())
        assert [one.code for one in listed.currencies] == ["GOLD", "GEM"]
        assert listed.currencies[1] == expected


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"code": ""}, "code"),
        ({"code": "gem"}, "code"),
        ({"code": "A" * 17}, "code"),
        ({"code": "GEM", "scale": 19}, "scale"),
        ({"code": "GEM", "name": "ë" * 33}, "name"),
    ],
)
@virtual_time
async def test_a_malformed_currency(fields: dict[str, Any], field: str) -> None:
    async with router() as it:
        with pytest.raises(Fault) as caught:
            await it.admin.RegisterCurrency(admin.RegisterCurrencyRequest(**fields), Call())
        assert (caught.value.code, caught.value.field) == (INVALID, field)
        assert caught.value.indefinite is False
        assert set(it.cluster.store.view.currencies) == {"GOLD"}


@virtual_time
async def test_a_currency_with_other_attributes_exists_already() -> None:
    async with router() as it:
        request = admin.RegisterCurrencyRequest(code="GOLD", scale=5)
        with pytest.raises(Fault) as caught:
            await it.admin.RegisterCurrency(request, Call())
        assert caught.value.code is grpc.StatusCode.ALREADY_EXISTS
        assert not caught.value.indefinite


@virtual_time
async def test_with_etcd_away_a_registration_is_in_doubt() -> None:
    async with router() as it:
        it.cluster.membership.cut()
        with pytest.raises(Fault) as caught:
            await it.admin.RegisterCurrency(admin.RegisterCurrencyRequest(code="GEM"), Call())
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.indefinite
        # What is known stays known.
        listed = await it.admin.ListCurrencies(admin.ListCurrenciesRequest(), Call())
        assert [one.code for one in listed.currencies] == ["GOLD"]


@virtual_time
async def test_a_change_of_status_goes_to_the_accounts_shard() -> None:
    async with router() as it:
        request = admin.ChangeAccountStatusRequest(
            account_id=accounts_of(3, 1)[0], status=types_pb2.ACCOUNT_STATUS_FROZEN, reason="why"
        )
        response = await it.admin.ChangeAccountStatus(request, Call())
        assert response.account.status == types_pb2.ACCOUNT_STATUS_FROZEN
        assert it.cluster.node(3).asked == [("ChangeAccountStatus", request)]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"account_id": 0}, "account_id"),
        ({"status": 0}, "status"),
        ({"status": 4}, "status"),
        ({"reason": ""}, "reason"),
        ({"reason": "ë" * 129}, "reason"),
    ],
)
@virtual_time
async def test_a_malformed_change_of_status(changes: dict[str, Any], field: str) -> None:
    async with router() as it:
        fields = {"account_id": 1, "status": 2, "reason": "why", **changes}
        with pytest.raises(Fault) as caught:
            await it.admin.ChangeAccountStatus(admin.ChangeAccountStatusRequest(**fields), Call())
        assert (caught.value.code, caught.value.field) == (INVALID, field)


@virtual_time
async def test_the_status_shows_shards_that_do_not_answer_as_unreachable() -> None:
    async with router() as it:

        async def hang(_: str) -> None:
            await asyncio.Event().wait()

        it.cluster.node(2).before = hang
        it.cluster.end_lease("shard3:1")
        response = await it.admin.GetClusterStatus(admin.GetClusterStatusRequest(), Call())
        assert now_s() == pytest.approx(2)
        assert [(one.shard_id, one.reachable) for one in response.shards] == [
            (1, True),
            (2, False),
            (3, False),
        ]
        assert response.shards[0].durable_block == 7
        assert (response.shards[1].epoch, response.shards[1].primary) == (1, "shard2-1")
        assert response.shards[1].durable_block == 0
        assert [one.id for one in response.members] == ["c1", "shard1-1", "shard2-1"]
        assert response.topology_version == 1
        assert response.etcd_connected


@virtual_time
async def test_the_status_before_there_is_a_topology() -> None:
    async with router(None) as it:
        it.cluster.membership.cut()
        response = await it.admin.GetClusterStatus(admin.GetClusterStatusRequest(), Call())
        assert (response.topology_version, len(response.shards)) == (0, 0)
        assert not response.etcd_connected


@virtual_time
async def test_conservation_adds_up_every_shard() -> None:
    async with router() as it:
        response = await it.admin.CheckConservation(admin.CheckConservationRequest(), Call())
        assert [book.shard_id for book in response.books] == [1, 2, 3]
        assert response.balanced


@virtual_time
async def test_one_shard_out_of_balance_is_the_cluster_out_of_balance() -> None:
    async with router() as it:
        it.cluster.node(2).balanced = False
        response = await it.admin.CheckConservation(admin.CheckConservationRequest(), Call())
        assert [book.balanced for book in response.books] == [True, False, True]
        assert not response.balanced


@virtual_time
async def test_conservation_is_not_claimed_without_every_shards_answer() -> None:
    async with router() as it:
        it.cluster.node(2).gone.set()
        with pytest.raises(Fault) as caught:
            await it.admin.CheckConservation(admin.CheckConservationRequest(), Call(3.0))
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def checks(response: admin.GetProcessHealthResponse) -> dict[str, bool]:
    return {check.name: check.healthy for check in response.checks}


@virtual_time
async def test_process_health() -> None:
    request = admin.GetProcessHealthRequest()
    async with router() as it:
        response = await it.admin.GetProcessHealth(request, Call())
        assert (response.role, response.id, response.started_us) == ("router", "r1", 5)
        assert (response.longest_turn_us, response.longest_turn_cpu_us) == (1_500, 900)
        assert response.memory_bytes == pytest.approx(anonymous_memory_bytes(), rel=0.2)
        assert all(checks(response).values())
        it.cluster.membership.cut()
        response = await it.admin.GetProcessHealth(request, Call())
        assert not checks(response).pop("etcd")
        it.cluster.membership.mend()
        it.cluster.end_lease("shard2:1")
        response = await it.admin.GetProcessHealth(request, Call())
        assert not checks(response).pop("shards")
    async with router(None) as it:
        response = await it.admin.GetProcessHealth(request, Call())
        assert not checks(response)["topology"]


@virtual_time
async def test_a_router_that_was_started_first_serves_once_there_is_a_topology() -> None:
    async with router(None) as it:
        topology = it.cluster.topology = Topology.even([1, 2, 3])
        assert await it.cluster.operator.propose_topology(topology)
        await it.cluster.start_node(2, "shard2:1")
        request = wallet.TransferRequest(transfer=transfer(2, 1))
        assert (await it.wallet.Transfer(request, Call())).result == completed(1)
