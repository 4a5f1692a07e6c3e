"""The etcd layer against real servers: leases, watches through every accident, races, endpoints."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
import structlog

from cluster.config import EtcdTls
from cluster.election import Election
from cluster.etcd import (
    Changes,
    Deleted,
    Etcd,
    EtcdRefused,
    EtcdUnavailable,
    KeyValue,
    Listing,
    NoneAfter,
    Unchanged,
)
from cluster.etcd_membership import EtcdMembership
from cluster.membership import Member, MembershipConflict, MembershipUnavailable
from cluster.topology import Topology
from scripts.etcd_server import EtcdProcess, ServerTls
from tests.support import free_port
from tests.support.etcd import (
    HEARTBEAT_S,
    LEASE_TTL_S,
    forward,
    fresh_cluster,
    restart,
    running_etcd,
    until,
)

WAIT_S = 15.0
NODE = Member("shard_node", "node-1", "127.0.0.1:7001", "0.1.0", 1_700_000_000_000_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdProcess]:
    with running_etcd(tmp_path) as made:
        yield made


@pytest.fixture
def prefix() -> str:
    return f"/{fresh_cluster()}/"


@pytest.fixture
async def etcd(server: EtcdProcess) -> AsyncIterator[Etcd]:
    async with Etcd([server.client], heartbeat_s=HEARTBEAT_S) as client:
        yield client


class Follower:
    """Keeps a copy of a prefix from what `follow` yields, as a reader would."""

    def __init__(self, etcd: Etcd, prefix: str) -> None:
        self._etcd, self._prefix = etcd, prefix
        self.state: dict[str, bytes] = {}
        self.events: list[KeyValue | Deleted] = []
        self.listings = 0

    def has(self, key: str) -> bool:
        return key in self.state

    async def run(self) -> None:
        async with aclosing(self._etcd.follow(self._prefix)) as updates:
            async for update in updates:
                match update:
                    case Listing(items=items):
                        self.listings += 1
                        self.state = {kv.key: kv.value for kv in items}
                    case Changes(events=events):
                        self.events.extend(events)
                        for event in events:
                            if isinstance(event, Deleted):
                                self.state.pop(event.key, None)
                            else:
                                self.state[event.key] = event.value


@asynccontextmanager
async def following(etcd: Etcd, prefix: str) -> AsyncIterator[Follower]:
    follower = Follower(etcd, prefix)
    task = asyncio.create_task(follower.run())
    try:
        await until(lambda: etcd.connected, "following")
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_keys_come_and_go(etcd: Etcd, prefix: str) -> None:
    key = prefix + "one"
    assert await etcd.get(key) is None
    revision = await etcd.put(key, b"\x00\xff")
    assert await etcd.get(key) == KeyValue(key, b"\x00\xff", revision, revision)
    later = await etcd.put(key, b"two")
    assert await etcd.list(prefix) == Listing(later, (KeyValue(key, b"two", later, revision),))
    await etcd.delete(key)
    assert (await etcd.list(prefix)).items == ()


async def test_a_listing_longer_than_a_page_is_whole(
    etcd: Etcd, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.etcd.PAGE_KEYS", 7)
    for n in range(23):
        await etcd.put(f"{prefix}{n:02}", str(n).encode())
    items = (await etcd.list(prefix)).items
    assert [(kv.key, kv.value) for kv in items] == [
        (f"{prefix}{n:02}", str(n).encode()) for n in range(23)
    ]


async def test_a_swap_happens_only_when_the_key_is_as_it_was_read(etcd: Etcd, prefix: str) -> None:
    key = prefix + "one"
    first = await etcd.swap([Unchanged(key, 0)], key, b"1")
    assert first.won
    assert not (await etcd.swap([Unchanged(key, 0)], key, b"2")).won
    assert (await etcd.swap([Unchanged(key, first.revision)], key, b"3")).won
    assert not (await etcd.swap([Unchanged(key, first.revision)], key, b"4")).won
    found = await etcd.get(key)
    assert found is not None
    assert found.value == b"3"


async def test_a_swap_can_demand_that_a_whole_prefix_stands_still(etcd: Etcd, prefix: str) -> None:
    empty = await etcd.list(prefix)
    assert (await etcd.swap([NoneAfter(prefix, empty.revision)], prefix + "a", b"")).won
    assert not (await etcd.swap([NoneAfter(prefix, empty.revision)], prefix + "b", b"")).won
    fresh = await etcd.list(prefix)
    await etcd.put("/elsewhere" + prefix, b"")
    assert (await etcd.swap([NoneAfter(prefix, fresh.revision)], prefix + "b", b"")).won


async def test_of_concurrent_swaps_exactly_one_wins(server: EtcdProcess, prefix: str) -> None:
    key = prefix + "one"
    clients = [Etcd([server.client]) for _ in range(4)]
    for round_ in range(5):
        found = await clients[0].get(key)
        seen = 0 if found is None else found.mod_revision
        swaps = await asyncio.gather(
            *(c.swap([Unchanged(key, seen)], key, b"%d" % round_) for c in clients)
        )
        assert [one.won for one in swaps].count(True) == 1
    for client in clients:
        await client.close()


async def test_a_lease_that_is_not_kept_alive_takes_its_keys_along(etcd: Etcd, prefix: str) -> None:
    lease = await etcd.lease_grant(LEASE_TTL_S)
    assert await etcd.lease_keep_alive(lease) == LEASE_TTL_S
    await etcd.put(prefix + "leased", b"", lease)
    async with following(etcd, prefix) as follower:
        assert follower.state
        await until(lambda: not follower.state, "the lease runs out")
    assert await etcd.lease_keep_alive(lease) == 0
    with pytest.raises(EtcdRefused) as refusal:
        await etcd.put(prefix + "leased", b"", lease)
    assert refusal.value.code is grpc.StatusCode.NOT_FOUND
    await etcd.lease_revoke(lease)


async def test_following_sees_every_change_in_order(etcd: Etcd, prefix: str) -> None:
    await etcd.put(prefix + "before", b"")
    async with following(etcd, prefix) as follower:
        assert follower.state == {prefix + "before": b""}
        revisions = [await etcd.put(f"{prefix}{n % 3}", b"%d" % n) for n in range(20)]
        revisions.append(await etcd.delete(prefix + "0"))
        await until(lambda: len(follower.events) == 21, "all changes arrive")
    assert [event.mod_revision for event in follower.events] == revisions
    assert follower.state == {prefix + "before": b"", prefix + "1": b"19", prefix + "2": b"17"}
    assert follower.listings == 1


async def test_a_watch_resumes_after_a_restart_without_losing_or_repeating(
    server: EtcdProcess, etcd: Etcd, prefix: str
) -> None:
    async with following(etcd, prefix) as follower:
        first = await etcd.put(prefix + "a", b"1")
        await until(lambda: len(follower.events) == 1, "the first change arrives")
        server.kill()
        await until(lambda: not etcd.connected, "the loss is noticed")
        await restart(server)
        async with Etcd([server.client]) as other:
            second = await other.put(prefix + "a", b"2")
        await until(lambda: len(follower.events) == 2, "the second change arrives")
    assert [event.mod_revision for event in follower.events] == [first, second]
    assert follower.listings == 1


async def test_changes_made_while_disconnected_are_all_delivered(
    server: EtcdProcess, etcd: Etcd, prefix: str
) -> None:
    async with following(etcd, prefix) as follower:
        server.suspend()
        await until(lambda: not etcd.connected, "the silence is noticed")
        server.resume()
        async with Etcd([server.client]) as other:
            for n in range(10):
                await other.put(prefix + "a", b"%d" % n)
        await until(lambda: follower.state.get(prefix + "a") == b"9", "the last change arrives")
        await until(lambda: etcd.connected, "connected again")
    assert [e.value for e in follower.events if isinstance(e, KeyValue)] == [
        b"%d" % n for n in range(10)
    ]


async def test_a_compaction_while_disconnected_lists_again_and_shows_deletions(
    tmp_path: Path, prefix: str
) -> None:
    with running_etcd(tmp_path) as server:
        proxy_port = free_port()
        async with Etcd([f"127.0.0.1:{proxy_port}"], heartbeat_s=HEARTBEAT_S) as etcd:
            proxy = await forward(proxy_port, server.client)
            async with following(etcd, prefix) as follower, Etcd([server.client]) as other:
                await other.put(prefix + "kept", b"1")
                await other.put(prefix + "doomed", b"1")
                await until(lambda: len(follower.state) == 2, "both keys are seen")
                await proxy.cut()
                await until(lambda: not etcd.connected, "the loss is noticed")
                await other.delete(prefix + "doomed")
                await other.put(prefix + "kept", b"2")
                await other.compact(await other.put(prefix + "new", b"3"))
                proxy = await forward(proxy_port, server.client)
                await until(lambda: follower.listings == 2, "listed again")
                await until(lambda: etcd.connected, "connected again")
                await other.put(prefix + "new", b"4")
                await until(lambda: follower.state.get(prefix + "new") == b"4", "watching again")
            assert follower.state == {prefix + "kept": b"2", prefix + "new": b"4"}
            assert not [e for e in follower.events if isinstance(e, Deleted)]
            await proxy.cut()


async def test_an_etcd_whose_history_was_set_back_is_listed_again(
    tmp_path: Path, prefix: str
) -> None:
    with running_etcd(tmp_path) as server:
        async with Etcd([server.client], heartbeat_s=HEARTBEAT_S) as etcd:
            for _ in range(5):
                await etcd.put(prefix + "old", b"")
            async with following(etcd, prefix) as follower:
                assert follower.state
                server.kill()
                await until(lambda: not etcd.connected, "the loss is noticed")
                server.data_dir.rename(tmp_path / "lost")
                await restart(server)
                await until(lambda: follower.listings == 2, "listed again")
                assert follower.state == {}


async def test_two_endpoints_with_one_dead_serve_as_one_alive(
    server: EtcdProcess, prefix: str
) -> None:
    dead = f"127.0.0.1:{free_port()}"
    for endpoints in ([dead, server.client], [server.client, dead]):
        async with Etcd(endpoints, heartbeat_s=HEARTBEAT_S) as etcd:
            await etcd.list(prefix)
            await etcd.put(prefix + "a", endpoints[0].encode())
            async with following(etcd, prefix) as follower:
                assert follower.state == {prefix + "a": endpoints[0].encode()}


async def test_a_follower_moves_to_the_other_endpoint_and_stays_connected(
    tmp_path: Path, prefix: str
) -> None:
    with running_etcd(tmp_path) as server:
        near = free_port()
        proxy = await forward(near, server.client)
        endpoints = [f"127.0.0.1:{near}", server.client]
        async with (
            Etcd(endpoints, heartbeat_s=HEARTBEAT_S) as etcd,
            Etcd([server.client]) as other,
            following(etcd, prefix) as follower,
        ):
            await proxy.cut()
            await other.put(prefix + "a", b"1")
            await until(lambda: bool(follower.state), "the change arrives by the other way")
            assert etcd.connected
            assert follower.listings == 1


async def test_without_an_answer_a_change_is_asked_for_once_and_may_have_happened(
    server: EtcdProcess, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.etcd.READ_ATTEMPTS", 2)
    near = free_port()
    proxy = await forward(near, server.client)
    async with Etcd([f"127.0.0.1:{near}"]) as etcd, Etcd([server.client]) as other:
        first = await etcd.put(prefix + "a", b"1")
        proxy.lose_answers_after = b"the change"
        with pytest.raises(EtcdUnavailable):
            await etcd.put(prefix + "a", b"the change")
        with pytest.raises(EtcdUnavailable):
            await etcd.get(prefix + "a")
        found = await other.get(prefix + "a")
        assert found is not None
        assert (found.value, found.mod_revision) == (b"the change", first + 1)
        await proxy.cut()


async def test_a_claim_whose_answer_was_lost_is_judged_by_reading_again(
    server: EtcdProcess,
) -> None:
    near = free_port()
    proxy = await forward(near, server.client)
    endpoints = [f"127.0.0.1:{near}", server.client]
    handle = await EtcdMembership.open(endpoints, fresh_cluster(), heartbeat_s=HEARTBEAT_S)
    await handle.wait_for(lambda view: view.revision > 0, WAIT_S)
    proxy.lose_answers_after = b'"epoch":1'
    assert await handle.claim_shard(1, "node-1") == 1
    assert await handle.claim_shard(1, "node-1") == 2
    await handle.close()
    await proxy.cut()


async def test_a_claim_that_may_yet_arrive_is_neither_won_nor_lost(server: EtcdProcess) -> None:
    near = free_port()
    proxy = await forward(near, server.client)
    endpoints = [f"127.0.0.1:{near}", server.client]
    handle = await EtcdMembership.open(endpoints, fresh_cluster(), heartbeat_s=HEARTBEAT_S)
    await handle.wait_for(lambda view: view.revision > 0, WAIT_S)
    proxy.hold_requests_from = b'"epoch":1'
    with pytest.raises(MembershipUnavailable):
        await handle.claim_shard(1, "node-1")
    assert await handle.claim_shard(1, "node-2") == 1
    await handle.close()
    await proxy.cut()


async def test_a_handle_outlasts_etcds_absence_and_says_so_once(tmp_path: Path) -> None:
    with running_etcd(tmp_path) as server, structlog.testing.capture_logs() as logs:
        handle = await EtcdMembership.open(
            [server.client], "c", lease_ttl_s=LEASE_TTL_S, heartbeat_s=HEARTBEAT_S
        )
        await handle.wait_for(lambda view: view.revision > 0, WAIT_S)
        await handle.join(NODE)
        await handle.propose_topology(Topology.even([1]))
        async with Etcd([server.client]) as other:
            lease = handle._lease
            server.kill()
            await until(lambda: not handle.connected, "the loss is noticed")
            await restart(server)
            await until(lambda: handle.connected, "etcd is back")
            await other.lease_revoke(lease)
        before = handle.view.revision
        await handle.wait_for(lambda view: view.revision > before and bool(view.members), WAIT_S)
        assert handle.view.members == {("shard_node", "node-1"): NODE}
        await until(lambda: len(logs) >= 3, "everything is told")
        await handle.close()
    told = [line["event"] for line in logs]
    assert told == ["etcd_out_of_reach", "etcd_back", "registered_again"]


async def test_a_record_that_cannot_be_read_leaves_the_last_good_one(
    server: EtcdProcess, etcd: Etcd
) -> None:
    cluster = fresh_cluster()
    with structlog.testing.capture_logs() as logs:
        handle = await EtcdMembership.open([server.client], cluster)
        await handle.wait_for(lambda view: view.revision > 0, WAIT_S)
        await handle.claim_shard(1, "node-1")
        await handle.propose_topology(Topology.even([1]))
        await etcd.put(f"/doubloon/{cluster}/topology", b'{"version": 2, "slots": [1]}')
        await etcd.put(f"/doubloon/{cluster}/shards/1", b"{}")
        last = await etcd.put(f"/doubloon/{cluster}/of-a-later-version", b"?")
        view = await handle.wait_for(lambda view: view.revision >= last, WAIT_S)
        assert view.topology == Topology.even([1])
        assert view.shards[1].epoch == 1
        with pytest.raises(MembershipConflict, match="epoch: must be int, is None"):
            await handle.claim_shard(1, "node-2")
        await handle.close()
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("record_unreadable", "slots: must be 4096 shard ids, are 1"),
        ("record_unreadable", "epoch: must be int, is None"),
    ]


async def test_keys_and_values_are_as_documented(server: EtcdProcess, etcd: Etcd) -> None:
    cluster = fresh_cluster()
    handle = await EtcdMembership.open([server.client], cluster)
    await handle.join(NODE)
    await handle.claim_shard(7, NODE.id)
    await handle.propose_topology(Topology.even([7]))
    await handle.register_currency("GOLD", 2, "Gold coins")
    items = (await etcd.list(f"/doubloon/{cluster}/")).items
    assert {kv.key.removeprefix(f"/doubloon/{cluster}"): json.loads(kv.value) for kv in items} == {
        "/members/shard_node/node-1": {
            "address": "127.0.0.1:7001",
            "version": "0.1.0",
            "started_us": 1_700_000_000_000_000,
        },
        "/topology": {"version": 1, "slots": [7] * 4096},
        "/shards/7": {"epoch": 1, "primary": "node-1", "standbys": []},
        "/currencies/GOLD": {"number": 1, "scale": 2, "name": "Gold coins"},
    }
    await handle.close()


async def test_one_is_elected_and_the_next_follows_when_it_resigns_or_dies(
    server: EtcdProcess, prefix: str
) -> None:
    clients = [Etcd([server.client], heartbeat_s=HEARTBEAT_S) for _ in range(3)]
    leases = [await client.lease_grant(60) for client in clients]
    elections = [Election(c, prefix, lease) for c, lease in zip(clients, leases, strict=True)]
    first = await elections[0].campaign(b"0")
    campaigns = []
    for n in (1, 2):
        async with following(clients[0], prefix) as follower:
            campaigns.append(asyncio.create_task(elections[n].campaign(b"%d" % n)))
            key = f"{prefix}{leases[n]:016x}"
            await until(partial(follower.has, key), "the candidacy is entered")
    assert await elections[0].leader() == b"0"
    await elections[0].resign()
    second = await campaigns[0]
    assert await elections[2].leader() == b"1"
    assert not campaigns[1].done()
    await clients[0].lease_revoke(leases[1])  # as when the second one died
    third = await campaigns[1]
    assert first < second < third
    for client in clients:
        await client.close()


async def test_tls_both_ways(tmp_path: Path, prefix: str) -> None:
    ca, cert, key = make_certificates(tmp_path)
    with running_etcd(tmp_path, tls=ServerTls(cert, key, ca)) as server:
        async with Etcd([server.client], EtcdTls(ca, cert, key)) as etcd:
            await etcd.put(prefix + "a", b"1")
            assert (await etcd.list(prefix)).items
        async with Etcd([server.client], EtcdTls(ca)) as etcd:
            with pytest.raises(EtcdUnavailable):
                await etcd.put(prefix + "a", b"1")


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A self-signed certificate for loopback that serves as CA, server and client at once."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", key, "-out", cert),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, cert, key
