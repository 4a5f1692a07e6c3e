"""What every Membership promises, asked of the in-memory one and of the one over a real etcd."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

import pytest

from cluster.etcd import Etcd
from cluster.etcd_membership import EtcdMembership
from cluster.membership import (
    ClusterView,
    Currency,
    CurrencyConflict,
    Member,
    Membership,
    MembershipUnavailable,
    MemoryMembership,
    MemoryStore,
    ShardInfo,
)
from cluster.topology import Topology
from scripts.etcd_server import EtcdProcess
from tests.support.etcd import HEARTBEAT_S, LEASE_TTL_S, fresh_cluster, restart, running_etcd, until

WAIT_S = 15.0  # for what comes in milliseconds, on a busy machine
SHORT_S = 0.05  # for what must not come

NODE = Member("shard_node", "node-1", "127.0.0.1:7001", "0.1.0", 1_700_000_000_000_000)
ROUTER = Member("router", "router-1", "127.0.0.1:7100", "0.1.0", 1_700_000_000_000_001)


class World(Protocol):
    """A store, handles on it, and the accidents that can befall them."""

    async def open(self) -> Membership: ...
    async def lapse(self, member: Member) -> None:
        """Let a live member's lease run out."""
        ...

    async def cut(self) -> None:
        """Take the store away from every handle."""
        ...

    async def mend(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self._store = MemoryStore()
        self._handles: list[MemoryMembership] = []

    async def open(self) -> Membership:
        self._handles.append(MemoryMembership(self._store))
        return self._handles[-1]

    async def lapse(self, member: Member) -> None:
        self._store.expire(member.role, member.id)

    async def cut(self) -> None:
        for handle in self._handles:
            handle.cut()

    async def mend(self) -> None:
        for handle in self._handles:
            handle.mend()

    async def close(self) -> None:
        for handle in self._handles:
            await handle.close()


class EtcdWorld:
    def __init__(self, server: EtcdProcess) -> None:
        self._server = server
        self._cluster = fresh_cluster()
        self._handles: list[EtcdMembership] = []

    async def open(self) -> Membership:
        handle = await EtcdMembership.open(
            [self._server.client], self._cluster, lease_ttl_s=LEASE_TTL_S, heartbeat_s=HEARTBEAT_S
        )
        self._handles.append(handle)
        await handle.wait_for(lambda view: view.revision > 0, WAIT_S)
        return handle

    async def lapse(self, member: Member) -> None:
        async with Etcd([self._server.client]) as etcd:
            key = f"/doubloon/{self._cluster}/members/{member.role}/{member.id}"
            assert await etcd.get(key)
            for handle in self._handles:
                if handle._lease:
                    await etcd.lease_revoke(handle._lease)

    async def cut(self) -> None:
        self._server.kill()
        await until(lambda: not any(h.connected for h in self._handles), "handles notice the loss")

    async def mend(self) -> None:
        await restart(self._server)
        await until(lambda: all(h.connected for h in self._handles), "handles are back")

    async def close(self) -> None:
        for handle in self._handles:
            await handle.close()


@pytest.fixture(params=["memory", "etcd"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    if request.param == "memory":
        memory = MemoryWorld()
        yield memory
        await memory.close()
        return
    with running_etcd(tmp_path) as server:
        etcd = EtcdWorld(server)
        yield etcd
        await etcd.close()


async def test_a_new_cluster_is_empty_and_known_to_be(world: World) -> None:
    handle = await world.open()
    view = await handle.wait_for(lambda view: view.revision > 0, WAIT_S)
    assert (view.topology, dict(view.members), dict(view.shards), dict(view.currencies)) == (
        None,
        {},
        {},
        {},
    )
    assert handle.connected


async def test_a_member_is_seen_by_all_until_it_leaves(world: World) -> None:
    one, other = await world.open(), await world.open()
    await one.join(NODE)
    assert one.view.members == {("shard_node", "node-1"): NODE}
    view = await other.wait_for(lambda view: bool(view.members), WAIT_S)
    assert view.members == {("shard_node", "node-1"): NODE}
    await other.join(ROUTER)
    assert other.view.members_of("router") == (ROUTER,)
    await one.leave()
    await other.wait_for(lambda view: list(view.members) == [("router", "router-1")], WAIT_S)
    await one.leave()


async def test_closing_a_handle_takes_its_member_away(world: World) -> None:
    one, other = await world.open(), await world.open()
    await one.join(NODE)
    await other.wait_for(lambda view: bool(view.members), WAIT_S)
    await one.close()
    await one.close()
    await other.wait_for(lambda view: not view.members, WAIT_S)


async def test_a_member_whose_lease_was_lost_registers_again(world: World) -> None:
    one, other = await world.open(), await world.open()
    await one.join(NODE)
    await other.wait_for(lambda view: bool(view.members), WAIT_S)
    before = other.view.revision
    await world.lapse(NODE)
    view = await other.wait_for(
        lambda view: view.revision > before + 1 and bool(view.members), WAIT_S
    )
    assert view.members == {("shard_node", "node-1"): NODE}


async def test_claims_of_a_shard_count_up_and_name_the_primary(world: World) -> None:
    one, other = await world.open(), await world.open()
    assert await one.claim_shard(3, "node-1") == 1
    assert one.view.shards == {3: ShardInfo(3, 1, "node-1")}
    assert await other.claim_shard(3, "node-2") == 2
    assert await one.claim_shard(4, "node-1") == 1
    view = await one.wait_for(lambda view: len(view.shards) == 2, WAIT_S)
    assert view.shards == {3: ShardInfo(3, 2, "node-2"), 4: ShardInfo(4, 1, "node-1")}


async def test_racing_claims_never_share_an_epoch(world: World) -> None:
    handles = [await world.open() for _ in range(4)]
    epochs = await asyncio.gather(
        *(handle.claim_shard(1, f"node-{n}") for n, handle in enumerate(handles))
    )
    won = sorted(epoch for epoch in epochs if epoch)
    assert won == list(range(1, len(won) + 1))
    view = await handles[0].wait_for(lambda view: 1 in view.shards, WAIT_S)
    assert view.shards[1].epoch <= len(won)


async def test_the_address_of_a_shard_is_its_living_primarys(world: World) -> None:
    one, other = await world.open(), await world.open()
    assert other.view.address_of_shard(1) is None
    await one.claim_shard(1, NODE.id)
    view = await other.wait_for(lambda view: 1 in view.shards, WAIT_S)
    assert view.address_of_shard(1) is None
    await one.join(NODE)
    await other.wait_for(lambda view: view.address_of_shard(1) == NODE.address, WAIT_S)
    await one.leave()
    await other.wait_for(lambda view: view.address_of_shard(1) is None, WAIT_S)


async def test_a_topology_replaces_its_predecessor_only(world: World) -> None:
    one, other = await world.open(), await world.open()
    first = Topology.even([1, 2, 3])
    second = Topology.even([1, 2, 3, 4], version=2)
    assert not await one.propose_topology(second)
    assert await one.propose_topology(first)
    assert one.view.topology == first
    assert not await other.propose_topology(Topology.even([9]))
    assert await other.propose_topology(second)
    assert not await one.propose_topology(Topology.even([8], version=2))
    view = await one.wait_for(lambda view: view.topology == second, WAIT_S)
    assert view.topology == second


async def test_of_racing_topologies_one_wins(world: World) -> None:
    handles = [await world.open() for _ in range(4)]
    won = await asyncio.gather(
        *(handle.propose_topology(Topology.even([n + 1])) for n, handle in enumerate(handles))
    )
    assert won.count(True) == 1
    view = await handles[0].wait_for(lambda view: view.topology is not None, WAIT_S)
    assert view.topology == Topology.even([won.index(True) + 1])


async def test_currencies_get_numbers_in_turn_and_registering_again_changes_nothing(
    world: World,
) -> None:
    one, other = await world.open(), await world.open()
    gold = await one.register_currency("GOLD", 2, "Gold coins")
    gems = await other.register_currency("GEMS", 0, "Gems")
    assert gold == Currency("GOLD", 1, 2, "Gold coins")
    assert gems == Currency("GEMS", 2, 0, "Gems")
    assert await other.register_currency("GOLD", 2, "Gold coins") == gold
    view = await one.wait_for(lambda view: len(view.currencies) == 2, WAIT_S)
    assert view.currencies == {"GOLD": gold, "GEMS": gems}


@pytest.mark.parametrize(
    ("scale", "name", "complaint"),
    [
        (3, "Gold coins", "GOLD is registered with scale 2, not 3"),
        (2, "Coins", "GOLD is registered with name 'Gold coins', not 'Coins'"),
    ],
)
async def test_a_registered_code_cannot_get_other_attributes(
    world: World, scale: int, name: str, complaint: str
) -> None:
    handle = await world.open()
    await handle.register_currency("GOLD", 2, "Gold coins")
    with pytest.raises(CurrencyConflict, match=complaint):
        await handle.register_currency("GOLD", scale, name)


@pytest.mark.parametrize(
    ("code", "scale", "name", "field"),
    [
        ("gold", 0, "", "code"),
        ("", 0, "", "code"),
        ("A/B", 0, "", "code"),
        ("A" * 17, 0, "", "code"),
        ("GOLD", 19, "", "scale"),
        ("GOLD", -1, "", "scale"),
        ("GOLD", 0, "ö" * 33, "name"),
    ],
)
async def test_attributes_out_of_bounds_are_refused_by_name(
    world: World, code: str, scale: int, name: str, field: str
) -> None:
    handle = await world.open()
    with pytest.raises(ValueError, match=f"^{field}: "):
        await handle.register_currency(code, scale, name)
    assert not handle.view.currencies


async def test_racing_registrations_never_share_a_number(world: World) -> None:
    handles = [await world.open() for _ in range(4)]
    codes = [f"CODE_{n}" for n in range(8)]
    made = await asyncio.gather(
        *(handles[n % 4].register_currency(code, 0, "") for n, code in enumerate(codes)),
        *(handles[(n + 1) % 4].register_currency(code, 0, "") for n, code in enumerate(codes)),
    )
    assert made[:8] == made[8:]
    assert sorted(one.number for one in made[:8]) == list(range(1, 9))


async def test_a_watch_begins_with_now_and_ends_with_the_handle(world: World) -> None:
    handle = await world.open()
    await handle.propose_topology(Topology.even([1]))
    seen: list[ClusterView] = []
    async with aclosing(handle.watch()) as views:
        seen.append(await anext(views))
        assert seen[0].topology == Topology.even([1])
        await handle.propose_topology(Topology.even([1, 2], version=2))
        seen.append(await anext(views))
        await handle.close()
        seen.extend([view async for view in views])
    assert [view.topology.version for view in seen if view.topology][:2] == [1, 2]
    assert [view.revision for view in seen] == sorted({view.revision for view in seen})


async def test_what_does_not_come_true_is_a_timeout(world: World) -> None:
    handle = await world.open()
    with pytest.raises(TimeoutError):
        await handle.wait_for(lambda view: bool(view.members), SHORT_S)


async def test_without_the_store_the_view_stays_and_changes_are_unavailable(world: World) -> None:
    handle = await world.open()
    topology = Topology.even([1, 2])
    await handle.propose_topology(topology)
    await handle.claim_shard(1, NODE.id)
    await handle.join(NODE)
    await handle.register_currency("GOLD", 2, "Gold coins")
    await world.cut()
    assert not handle.connected
    assert handle.view.topology == topology
    assert handle.view.address_of_shard(1) == NODE.address
    changes = (
        handle.claim_shard(1, NODE.id),
        handle.propose_topology(Topology.even([1], version=2)),
        handle.wait_for(lambda view: 9 in view.shards, SHORT_S),
    )
    for outcome in await asyncio.gather(*changes, return_exceptions=True):
        assert isinstance(outcome, MembershipUnavailable)

    await world.mend()
    view = await handle.wait_for(lambda view: view.address_of_shard(1) == NODE.address, WAIT_S)
    assert view.topology == topology
    assert await handle.claim_shard(1, NODE.id) == 2


async def test_a_member_that_lapsed_while_the_store_was_away_comes_back(world: World) -> None:
    one = await world.open()
    await one.join(NODE)
    await world.cut()
    await world.mend()
    other = await world.open()
    before = other.view.revision
    await world.lapse(NODE)
    await other.wait_for(lambda view: view.revision > before + 1 and bool(view.members), WAIT_S)
    assert other.view.members == {("shard_node", "node-1"): NODE}


async def test_joining_without_the_store_is_unavailable_and_can_be_tried_again(
    world: World,
) -> None:
    handle = await world.open()
    await world.cut()
    with pytest.raises(MembershipUnavailable):
        await handle.join(NODE)
    await world.mend()
    await handle.join(NODE)
    assert handle.view.members == {("shard_node", "node-1"): NODE}
