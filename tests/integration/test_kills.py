"""Every kind of process is killed or suspended under full load between shards, many times.

In the end no acknowledged transfer is missing, none is half done, no id took effect twice, the
shards' books agree, and nothing is in doubt. `DOUBLOON_KILLS` says how many processes are killed,
by default few.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from cluster.etcd_membership import LEASE_TTL_S
from doubloon import AsyncClient, RetryPolicy
from scripts.local_cluster import COORDINATOR, ROUTER, SHARD
from tests.support import eventually, free_port
from tests.support.clusters import LiveCluster, live_cluster, settle_town, until_status
from tests.support.traffic import SETTLE_S, Traffic

KILLS_VARIABLE = "DOUBLOON_KILLS"
KILLS = int(os.environ.get(KILLS_VARIABLE, "6"))
KILL_S = 20.0  # at most: a restart beside full load, and what is answered before the next

SHARDS, COORDINATORS = 3, 2
PLAYERS = 15  # few on each shard, so that much meets on the same accounts
SAMPLE = 200  # transfers looked up by their names
BETWEEN = (100, 2_000)  # answers heard between two kills
PAUSE_S = LEASE_TTL_S + 1.0  # long enough for a lease to end

# Checkpoints and evictions happen all the time.
SHARD_OPTIONS = ("--checkpoint-rows", "3000", "--accounts-cached", "10")
# Short of what a restart takes, so that answers are lost and the test has to ask again.
IMPATIENT_S = 2.0
IMPATIENT = RetryPolicy(attempts_max=2, attempt_timeout_s=1.5)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240 + KILL_S * KILLS)]


@asynccontextmanager
async def loaded(folder: Path, rng: random.Random) -> AsyncIterator[tuple[LiveCluster, Traffic]]:
    """A cluster under full load; when the load has ended, every promise is checked."""
    listen = ("--listen", f"127.0.0.1:{free_port()}")  # a killed router is found again there
    async with live_cluster(
        folder,
        shards=SHARDS,
        coordinators=COORDINATORS,
        shard_options=SHARD_OPTIONS,
        router_options=listen,
    ) as live:
        town = await settle_town(live, PLAYERS)
        routers = live.processes.routers
        async with AsyncClient(routers, timeout_s=IMPATIENT_S, retry=IMPATIENT) as client:
            traffic = Traffic(client, town, rng)
            async with traffic.running():
                yield live, traffic
        await check_promises(live, traffic, rng)


async def check_promises(live: LiveCluster, traffic: Traffic, rng: random.Random) -> None:
    """Nothing is in doubt, and what is there is what was acknowledged; also once asked again."""
    await traffic.settle(live.wallet)
    await until_status(
        live,
        lambda s: not any(x.transactions_prepared + x.transactions_unfinished for x in s.shards),
        "nothing is in doubt or unfinished",
        SETTLE_S,
    )
    assert (await live.admin.in_doubt()).is_nothing
    shard_id = rng.choice(live.processes.topology.shards)
    await live.processes.restart(SHARD, shard_id, "--verify-all")
    before = (await live.admin.cluster_status()).shards
    await traffic.repeat(live.wallet)
    for then, now in zip(before, (await live.admin.cluster_status()).shards, strict=True):
        assert now.transfers_completed == then.transfers_completed
        assert now.transfers_refused == then.transfers_refused
    await traffic.check(live.wallet)
    recorded = [each for each in traffic.asked if each.answer is not None]
    for each in rng.sample(recorded, min(SAMPLE, len(recorded))):
        assert each.answer is not None
        found = await live.wallet.get_transfer(*each.name)
        assert found.result.completed == each.answer.committed
        assert found.result.refusal == each.answer.refusal
    await check_books(live)


async def check_books(live: LiveCluster) -> None:
    """Promise 1, conservation, within and between shards."""
    assert (await live.admin.check_conservation()).balanced
    report = await live.admin.audit()
    assert (report.balanced, report.in_doubt) == (True, 0)
    assert all(pair.position_minor == -pair.peer_position_minor for pair in report.pairs)
    assert len(report.pairs) == SHARDS * (SHARDS - 1) // 2


async def kill(live: LiveCluster, victims: Sequence[tuple[str, int]]) -> None:
    """Kill processes at the same moment and start them again."""
    for role, number in victims:
        live.processes.kill(role, number)
    await asyncio.gather(*(live.processes.restart(*each) for each in victims))


async def test_kills_of_every_kind_lose_nothing_and_leave_nothing_half_done(
    tmp_path: Path, rng: random.Random
) -> None:
    victims = {
        SHARD: range(1, SHARDS + 1),
        COORDINATOR: range(1, COORDINATORS + 1),
        ROUTER: range(1, 2),
    }
    async with loaded(tmp_path, rng) as (live, traffic):
        for number in range(KILLS):
            await traffic.progress(rng.randrange(*BETWEEN))
            role = [*victims][number % len(victims)]
            killed = {(role, rng.choice(victims[role]))}
            if rng.random() < 0.3:  # and another one with it
                role = rng.choice([*victims])
                killed.add((role, rng.choice(victims[role])))
            await kill(live, [*killed])
        await traffic.progress(1_000)


async def test_suspended_processes_lose_nothing_and_leave_nothing_half_done(
    tmp_path: Path, rng: random.Random
) -> None:
    """First etcd, then a coordinator and a shard node, each for longer than their leases live."""
    coordinator, shard_id = rng.randint(1, COORDINATORS), rng.randint(1, SHARDS)
    async with loaded(tmp_path, rng) as (live, traffic):
        members = (await live.admin.cluster_status()).members
        await traffic.progress(1_000)
        live.processes.etcd.suspend()
        await pause()
        await traffic.progress(1_000)
        live.processes.etcd.resume()
        await until_status(
            live, lambda s: s.etcd_connected and s.members == members, "all are back"
        )
        live.processes.signal(COORDINATOR, coordinator, signal.SIGSTOP)
        live.processes.signal(SHARD, shard_id, signal.SIGSTOP)
        await pause()
        live.processes.signal(COORDINATOR, coordinator, signal.SIGCONT)
        live.processes.signal(SHARD, shard_id, signal.SIGCONT)
        await traffic.progress(2_000)
        await until_status(live, lambda s: s.members == members, "both have joined again")


async def pause() -> None:
    """Wait for as long as etcd needs to end the lease of who is silent."""
    loop = asyncio.get_running_loop()
    over_s = loop.time() + PAUSE_S
    await eventually(lambda: loop.time() >= over_s, "the time", PAUSE_S + 30.0)
