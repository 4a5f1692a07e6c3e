"""A whole router in memory, in front of a `MemoryCluster`, on virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from cluster.clock import ManualClock
from cluster.shard_pool import ShardPool
from cluster.topology import Topology
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.admin import AdminServicer, ProcessFacts
from router.coordinators import CoordinatorPool
from router.lanes import CALLS_IN_FLIGHT_MAX, QUEUED_TRANSFERS_MAX
from router.routes import Routes
from router.service import STREAM_WINDOW, Deadlines, WalletServicer
from router.transfers import IN_FLIGHT_MAX, Admission, TransferExecutor
from tests.support.coordinators import MemoryCoordinators
from tests.support.shard_nodes import MemoryCluster, MemoryShardNode

TOPOLOGY = Topology.even([1, 2, 3])
SEED_OF_JITTER = 1
NOW_US = 1_790_000_000_123_456


@dataclass(frozen=True)
class Call:
    """The context of a client's call."""

    timeout_s: float | None = None

    def time_remaining(self) -> float | None:
        return self.timeout_s


@dataclass
class Router:
    """The parts of a router, put together as its `__main__` does."""

    cluster: MemoryCluster
    coordinators: MemoryCoordinators
    pool: ShardPool
    wallet: WalletServicer
    admin: AdminServicer


@asynccontextmanager
async def router(
    topology: Topology | None = TOPOLOGY,
    *,
    allow_imports: bool = False,
    deadlines: Deadlines | None = None,
    stream_window: int = STREAM_WINDOW,
    calls_max: int = CALLS_IN_FLIGHT_MAX,
    queued_max: int = QUEUED_TRANSFERS_MAX,
    in_flight_max: int = IN_FLIGHT_MAX,
) -> AsyncIterator[Router]:
    """Run a router with every shard of the topology up."""
    cluster = MemoryCluster(topology)
    await cluster.start()
    membership = cluster.membership
    pool = ShardPool(membership, cluster.connect, random.Random(SEED_OF_JITTER))
    coordinators = MemoryCoordinators(cluster)
    if topology is not None:
        await coordinators.start("c1")
    coordinator_pool = CoordinatorPool(
        membership, coordinators.connect, random.Random(SEED_OF_JITTER)
    )
    rng = random.Random(SEED_OF_JITTER)
    routes = Routes(pool, coordinator_pool, rng, calls_max, queued_max)
    executor = TransferExecutor(membership, pool, routes, allow_imports=allow_imports)
    deadlines = deadlines or Deadlines()
    wallet = WalletServicer(pool, executor, Admission(in_flight_max), deadlines, stream_window)
    process = ProcessFacts("r1", "test", 5, lambda: 1_500, lambda: 900)
    admin = AdminServicer(membership, pool, deadlines, process, ManualClock(NOW_US))
    loop = asyncio.get_running_loop()
    following = [loop.create_task(each.follow()) for each in (pool, coordinator_pool)]
    try:
        yield Router(cluster, coordinators, pool, wallet, admin)
    finally:
        await routes.close(0)
        await pool.close(0)
        await coordinator_pool.close(0)
        await membership.close()
        await asyncio.gather(*following)


def accounts_of(shard_id: int, count: int, topology: Topology = TOPOLOGY) -> list[int]:
    """The first accounts that live on a shard."""
    found: list[int] = []
    account_id = 0
    while len(found) < count:
        account_id += 1
        if topology.shard_of(account_id) == shard_id:
            found.append(account_id)
    return found


def transfer(shard_id: int, number: int, **changes: Any) -> types_pb2.Transfer:
    """Transfer `number` (which is its id, its amount and its reference) within a shard."""
    source, destination = accounts_of(shard_id, 2)
    fields = {
        "transfer_id": number.to_bytes(16, "big"),
        "source_account_id": source,
        "destination_account_id": destination,
        "currency": "GOLD",
        "amount_minor": number,
        "reference": number,
        "type": types_pb2.TRANSFER_TYPE_TRANSFER,
        **changes,
    }
    return types_pb2.Transfer(**fields)


def crossing(number: int, source_shard: int = 1, **changes: Any) -> types_pb2.Transfer:
    """Transfer `number` from a shard to the next."""
    (source,) = accounts_of(source_shard, 1)
    (destination,) = accounts_of(source_shard % len(TOPOLOGY.shards) + 1, 1)
    changes = {
        "source_account_id": source,
        "destination_account_id": destination,
        **changes,
    }
    return transfer(source_shard, number, **changes)


def group(number: int, *transfers: types_pb2.Transfer, **changes: Any) -> wallet.Group:
    """Group `number` of these transfers, whose own ids are taken away."""
    for each in transfers:
        each.ClearField("transfer_id")
    return wallet.Group(
        **{"group_id": number.to_bytes(16, "big"), "transfers": transfers, **changes}
    )


def completed(number: int, *, repeat: bool = False) -> types_pb2.TransferResult:
    """What a `MemoryShardNode` makes of transfer `number`."""
    return types_pb2.TransferResult(
        status=types_pb2.TRANSFER_STATUS_COMPLETED,
        repeat=repeat,
        time_us=number,
        source_balance_after_minor=number,
    )


def faults_of(
    results: Sequence[types_pb2.TransferResult],
) -> list[tuple[int, str, int, bool] | None]:
    """(code, field, index, indefinite) of each result; None where there is no fault."""
    return [
        (one.fault.code, one.fault.field, one.fault.index, one.fault.indefinite)
        if one.HasField("fault")
        else None
        for one in results
    ]


async def settle() -> None:
    """Let everything run that is ready to."""
    for _ in range(50):
        await asyncio.sleep(0)


def now_s() -> float:
    """The running loop's time."""
    return asyncio.get_running_loop().time()


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
