"""A router and shard nodes that know different topologies."""

import asyncio

import pytest

from cluster.shard_pool import REFRESH_WAIT_S
from cluster.topology import SLOTS, Topology
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from tests.support.routers import (
    TOPOLOGY,
    Call,
    accounts_of,
    batch,
    completed,
    faults_of,
    now_s,
    router,
    settle,
    transfer,
)
from tests.support.virtual_time import virtual_time

UNAVAILABLE = types_pb2.FAULT_CODE_UNAVAILABLE


def moved(slots_of: int, to: int, version: int = 2) -> Topology:
    """TOPOLOGY, with every slot of one shard given to another."""
    owners = tuple(to if owner == slots_of else owner for owner in TOPOLOGY.shard_of_slot)
    assert len(owners) == SLOTS
    return Topology(version, owners)


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


@virtual_time
async def test_items_that_meet_on_one_shard_keep_their_order() -> None:
    async with router() as it:
        newer = Topology(2, (1,) * SLOTS)
        it.cluster.membership.cut()
        assert await it.cluster.operator.propose_topology(newer)
        for shard_id in TOPOLOGY.shards:
            it.cluster.node(shard_id).topology = newer
        items = [transfer(2, 1), transfer(3, 2), transfer(2, 3), transfer(3, 4)]
        work = asyncio.ensure_future(batch(it, *items, transfer(2, 5, type=0)))
        await settle()
        it.cluster.membership.mend()
        assert (await work)[:4] == [completed(number) for number in (1, 2, 3, 4)]
        (bodies,) = it.cluster.node(1).bodies
        assert [bodies[at : at + 16] for at in range(0, len(bodies), 64)] == [
            number.to_bytes(16, "big") for number in (1, 2, 3, 4)
        ]


@virtual_time
async def test_what_may_have_happened_under_the_old_topology_stays_indefinite() -> None:
    async with router() as it:
        old, newer = it.cluster.node(2), moved(slots_of=2, to=3)
        it.cluster.node(3).gone.set()

        async def die(_: str) -> None:
            await it.cluster.start_node(2, "shard2:2", newer)
            assert await it.cluster.operator.propose_topology(newer)
            old.gone.set()
            await asyncio.Event().wait()

        old.after = die
        results = await batch(it, transfer(2, 1), transfer(1, 2), timeout_s=5)
        assert faults_of(results[:1]) == [(UNAVAILABLE, "", 0, True)]
