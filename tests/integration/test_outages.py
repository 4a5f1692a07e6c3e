"""Processes are killed, stopped and started again under load: nothing is lost, nothing done twice.

`DOUBLOON_OUTAGE_S` says how long etcd is away in the tests of that; by default a little longer than
its leases live. With `DOUBLOON_OUTAGE_S=60` each of them takes a full minute.
"""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from cluster.etcd_membership import LEASE_TTL_S
from doubloon import (
    AsyncAdminClient,
    AsyncClient,
    FaultCode,
    FaultError,
    IndefiniteFault,
    RetryPolicy,
    Timing,
    Transfer,
)
from scripts.local_cluster import ROUTER, SHARD
from scripts.processes import ManagedProcess
from tests.support import ROOT, eventually, free_port
from tests.support.clusters import (
    GOLD,
    LiveCluster,
    live_cluster,
    log_events,
    settle_town,
    until_status,
)
from tests.support.load import Load

OUTAGE_S = float(os.environ.get("DOUBLOON_OUTAGE_S", str(LEASE_TTL_S + 1)))
LIVELY_S = 5.0  # no call may take as long as this while etcd is away
STOPS_S = 5.0  # a process that has nothing to finish, on a busy machine
SAYS_SO_S = 8.0  # by then a process that waits has said what for: a person is looking on
RESTARTS = 6
PLAYERS = 30

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120 + 2 * OUTAGE_S)]


async def progress(load: Load, more: int) -> None:
    """Wait until so many more transfers have been answered."""
    target = len(load.answered) + more
    await eventually(lambda: len(load.answered) >= target, f"{more} more answers", 60.0)


async def until_time(at_s: float) -> None:
    """Wait until the event loop's clock shows a time: an outage is to last."""
    loop = asyncio.get_running_loop()
    await eventually(lambda: loop.time() >= at_s, "the time", at_s - loop.time() + 30.0)


async def test_shard_nodes_restarted_under_load_lose_nothing_and_do_nothing_twice(
    tmp_path: Path, rng: random.Random
) -> None:
    options = ("--checkpoint-rows", "2000", "--accounts-cached", "20")
    async with live_cluster(tmp_path, shards=3, shard_options=options) as live:
        load = Load(live.wallet, await settle_town(live, PLAYERS), rng)
        async with load.running():
            for number in range(RESTARTS):
                await progress(load, rng.randrange(500, 5_000))
                victim = rng.choice(live.processes.topology.shards)
                if number % 3 < 2:  # the third time it stops cleanly
                    live.processes.kill(SHARD, victim)
                await live.processes.restart(SHARD, victim)
            await progress(load, 2_000)
        await load.check(live.wallet)
        assert (await live.admin.check_conservation()).balanced
        started = [e["event"] for e in log_events(live.processes.log_file(ROUTER, 1))]
        assert started.count("serving") == 1, "the router was never restarted"


@pytest.mark.parametrize("how", ["suspended", "killed"])
async def test_transfers_and_queries_go_on_while_etcd_is_away(
    tmp_path: Path, rng: random.Random, how: str
) -> None:
    async with live_cluster(tmp_path, shards=2) as live:
        etcd = live.processes.etcd
        town = await settle_town(live, PLAYERS)
        members = (await live.admin.cluster_status()).members
        async with AsyncClient(live.processes.routers, timeout_s=LIVELY_S) as client:
            load = Load(client, town, rng)
            async with load.running():
                await progress(load, 1_000)
                (etcd.suspend if how == "suspended" else etcd.kill)()
                back_s = asyncio.get_running_loop().time() + OUTAGE_S
                await until_status(live, lambda s: not s.etcd_connected, "its absence is noticed")
                await changes_are_unavailable(live)
                await until_time(back_s)
                asked = load.queries
                await progress(load, 1_000)
                if how == "suspended":
                    etcd.resume()
                else:
                    await asyncio.to_thread(etcd.start)
                await until_status(
                    live, lambda s: s.etcd_connected and s.members == members, "all are back"
                )
                await progress(load, 1_000)
            assert load.queries > asked > 0
            await load.check(client)
        assert max(load.calls.durations_s) < LIVELY_S
        assert (await live.admin.register_currency("LATE", scale=0)).code == "LATE"


async def changes_are_unavailable(live: LiveCluster) -> None:
    """What has to be written to etcd is not said to be written, nor not to be."""
    async with AsyncAdminClient(live.processes.routers, timeout_s=1.0) as impatient:
        with pytest.raises(IndefiniteFault):
            await impatient.register_currency("NEVER", scale=0)


async def test_processes_started_while_etcd_is_away_say_so_and_serve_once_it_is_back(
    tmp_path: Path,
) -> None:
    async with live_cluster(tmp_path, shards=2, routers=2) as live:
        processes, etcd = live.processes, live.processes.etcd
        town = await settle_town(live, PLAYERS)
        one, two = (Transfer(town.treasuries[s], town.players[s][0], GOLD, 9) for s in (1, 2))
        logs = [processes.log_file(SHARD, 2), processes.log_file(ROUTER, 2)]
        skip = {log: len(log_events(log)) for log in logs}
        first_router, once = processes.routers[0], RetryPolicy(attempts_max=1)
        etcd.kill()
        restarts = [
            asyncio.create_task(processes.restart(SHARD, 2)),
            asyncio.create_task(processes.restart(ROUTER, 2)),
        ]
        try:
            await eventually(
                lambda: all(
                    any("etcd" in e.get("waiting_for", "") for e in log_events(log)[skip[log] :])
                    for log in logs
                ),
                "both say that they wait for etcd",
                SAYS_SO_S,
            )
            async with AsyncClient(first_router, retry=once) as client:
                done, away = await client.transfer_batch([one, two])
                assert done.completed, "the other shard goes on"
                assert away.fault is not None
                assert away.fault.code is FaultCode.UNAVAILABLE
            assert not any(restart.done() for restart in restarts)
        finally:
            await asyncio.to_thread(etcd.start)
            await asyncio.gather(*restarts)
        for router in processes.routers:
            async with AsyncClient(router) as client:
                results = await client.transfer_batch([one, two])
                assert all(result.completed for result in results)
        assert (await live.admin.check_conservation()).balanced


@pytest.mark.parametrize("role", ["shard_node", "router"])
async def test_a_process_that_waits_for_etcd_stops_when_asked(tmp_path: Path, role: str) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", role, "--cluster", "none", "--etcd", nobody]
    if role == "shard_node":
        command += ["--shard", "1", "--data", str(tmp_path / "data")]
    log = tmp_path / "log"
    process = ManagedProcess(role, "1", command, log, ROOT)
    try:
        await eventually(
            lambda: any("etcd" in e.get("waiting_for", "") for e in log_events(log)),
            "it says that it waits for etcd",
            SAYS_SO_S,
        )
        process.signal(signal.SIGTERM)
        await eventually(lambda: not process.is_alive(), "it stops", STOPS_S)
    finally:
        process.kill()
    assert log_events(log)[-1]["event"] == "stopped"


async def test_a_second_router_stands_in_for_the_first(tmp_path: Path, rng: random.Random) -> None:
    async with live_cluster(tmp_path, shards=2, routers=2) as live:
        processes = live.processes
        town = await settle_town(live, PLAYERS)
        begins_at_the_first = Timing(random=lambda: 0.25)
        async with AsyncClient(processes.routers, timing=begins_at_the_first) as client:
            load = Load(client, town, rng)
            async with load.running():
                await progress(load, 2_000)
                processes.kill(ROUTER, 1)
                await progress(load, 2_000)
            await load.check(client)
        await processes.restart(ROUTER, 1)
        async with AsyncClient(processes.routers[0]) as client:
            await load.check(client)


async def test_a_restarted_router_is_found_again_by_its_clients(
    tmp_path: Path, rng: random.Random
) -> None:
    listen = ("--listen", f"127.0.0.1:{free_port()}")
    async with live_cluster(tmp_path, shards=2, router_options=listen) as live:
        load = Load(live.wallet, await settle_town(live, PLAYERS), rng)
        async with load.running():
            for kill in (True, False):  # by force, and cleanly
                await progress(load, 1_000)
                if kill:
                    live.processes.kill(ROUTER, 1)
                await live.processes.restart(ROUTER, 1)
            await progress(load, 1_000)
        await load.check(live.wallet)


async def test_a_hung_shard_node_leaves_doubt_that_asking_again_ends(tmp_path: Path) -> None:
    async with live_cluster(tmp_path, shards=2) as live:
        town = await settle_town(live, PLAYERS)
        made = [Transfer(town.treasuries[s], town.players[s][0], GOLD, 9) for s in (1, 2)]
        live.processes.signal(SHARD, 2, signal.SIGSTOP)
        async with AsyncClient(live.processes.routers, timeout_s=2.0) as client:
            done, doubt = await client.transfer_batch(made)
        assert done.completed
        assert doubt.fault is not None
        assert doubt.fault.indefinite, "it was sent, and nobody knows"
        live.processes.signal(SHARD, 2, signal.SIGCONT)
        again = await live.wallet.transfer_batch(made)
        assert all(result.completed for result in again)
        held = await live.wallet.balance(town.players[2][0], GOLD)
        assert held.posted_minor == 9


async def test_a_dead_shard_is_shown_and_leaves_the_others_alone(tmp_path: Path) -> None:
    async with live_cluster(tmp_path, shards=3) as live:
        town = await settle_town(live, PLAYERS)
        batch = [Transfer(town.treasuries[s], town.players[s][0], GOLD, 9) for s in (1, 2, 3)]
        live.processes.kill(SHARD, 2)
        status = await live.admin.cluster_status()
        assert [shard.reachable for shard in status.shards] == [True, False, True]
        async with (
            AsyncClient(live.processes.routers, timeout_s=2.0) as wallet,
            AsyncAdminClient(live.processes.routers, timeout_s=2.0) as admin,
        ):
            results = await wallet.transfer_batch(batch)
            assert [result.completed for result in results] == [True, False, True]
            assert results[1].fault is not None
            assert results[1].fault.code is FaultCode.UNAVAILABLE
            with pytest.raises(FaultError):
                await wallet.flows(town.players[2][0])
            with pytest.raises(FaultError):  # without every shard's books there is no answer
                await admin.check_conservation()
        # Its lease ends, and with it its membership.
        status = await until_status(
            live, lambda s: "shard-2" not in {m.id for m in s.members}, "its lease ends"
        )
        assert not status.shards[1].reachable
        await live.processes.restart(SHARD, 2)
        again = await live.wallet.transfer_batch(batch)
        assert [result.completed for result in again] == [True] * 3
        assert [result.repeat for result in again] == [True, False, True]
        assert (await live.admin.check_conservation()).balanced
