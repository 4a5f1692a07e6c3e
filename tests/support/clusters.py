"""A real cluster of processes for a test, with clients, accounts and currency in place."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.topology import Topology
from doubloon import AccountKind, AccountSpec, AsyncAdminClient, AsyncClient, ClusterStatus
from scripts.local_cluster import LocalCluster
from tests.support import POLL_S

GOLD = "GOLD"
TREASURY_FLOOR_MINOR = -(10**15)  # a treasury of a test never runs dry

# Several attempts, each long enough for a node that restarts and replays beside a busy test.
PATIENT_S = 40.0


@dataclass(frozen=True)
class LiveCluster:
    """Running processes, and clients of all their routers."""

    processes: LocalCluster
    wallet: AsyncClient
    admin: AsyncAdminClient


@asynccontextmanager
async def live_cluster(
    folder: Path,
    *,
    shards: int = 1,
    routers: int = 1,
    coordinators: int | None = None,
    allow_imports: bool = False,
    shard_options: Sequence[str] = (),
    router_options: Sequence[str] = (),
    coordinator_options: Sequence[str] = (),
    timeout_s: float = PATIENT_S,
) -> AsyncIterator[LiveCluster]:
    """Start a cluster and end it whatever happens."""
    processes = LocalCluster(
        folder,
        shards=shards,
        routers=routers,
        coordinators=coordinators,
        allow_imports=allow_imports,
        shard_options=shard_options,
        router_options=router_options,
        coordinator_options=coordinator_options,
    )
    async with (
        processes,
        AsyncClient(processes.routers, timeout_s=timeout_s) as wallet,
        AsyncAdminClient(processes.routers, timeout_s=timeout_s) as admin,
    ):
        yield LiveCluster(processes, wallet, admin)


def accounts_on(topology: Topology, shard_id: int, first: int = 1) -> Iterator[int]:
    """Yield the ids of a shard's accounts, ascending, from `first` on."""
    return (each for each in range(first, 2**63) if topology.shard_of(each) == shard_id)


@dataclass(frozen=True)
class Town:
    """A treasury and some players on every shard, and GOLD in the treasuries' hands.

    Attributes:
        treasuries: shard id → the account that makes its money.
        players: shard id → accounts that begin with nothing.
    """

    treasuries: dict[int, int]
    players: dict[int, list[int]]


async def settle_town(live: LiveCluster, players_per_shard: int, first: int = 1) -> Town:
    """Register GOLD and open a town's accounts, whose ids are `first` or above."""
    topology = live.processes.topology
    treasuries, players = {}, {}
    for shard_id in topology.shards:
        ids = accounts_on(topology, shard_id, first)
        treasuries[shard_id] = next(ids)
        players[shard_id] = [next(ids) for _ in range(players_per_shard)]
    await live.admin.register_currency(GOLD, scale=2)
    specs = [
        *(AccountSpec(a, AccountKind.SYSTEM, TREASURY_FLOOR_MINOR) for a in treasuries.values()),
        *(AccountSpec(player) for town in players.values() for player in town),
    ]
    opened = await live.wallet.open_accounts(specs)
    assert all(result.opened for result in opened)
    return Town(treasuries, players)


async def until_status(
    live: LiveCluster, holds: Callable[[ClusterStatus], bool], what: str, timeout_s: float = 30.0
) -> ClusterStatus:
    """Ask a router for the cluster's status until it is so, and return it."""
    try:
        async with asyncio.timeout(timeout_s):
            while not holds(status := await live.admin.cluster_status()):  # noqa: ASYNC110 - no event reaches us from another process
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what}") from None
    return status


def log_events(log: Path) -> list[dict[str, Any]]:
    """Return the structured lines of a process's log; one being written is left out."""
    events = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue  # not a structured line, or not whole yet
    return events
