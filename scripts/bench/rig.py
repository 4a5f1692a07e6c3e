"""A cluster with funded accounts, and what its processes used while something ran.

Accounts are players with money, so every transfer is checked as a game's is. Each shard has a
treasury that funds its own accounts before anything is timed.
"""

import gc
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cluster import rpc
from cluster.packed import BODY, RESULT_BYTES
from doubloon import (
    AccountKind,
    AccountSpec,
    AsyncAdminClient,
    AsyncClient,
    ClusterStatus,
    ProcessHealth,
    RetryPolicy,
    ShardStatus,
    new_transfer_id,
)
from doubloon.v1 import types_pb2
from scripts.bench.load import CURRENCY, packed_requests
from scripts.bench.results import Usage
from scripts.bench.usage import (
    CHECKPOINT,
    SCRUB,
    MachineWatch,
    MemoryWatch,
    children,
    cpu_of,
    disk_bytes,
    python_loop_ns,
)
from scripts.local_cluster import COORDINATOR, ETCD, ROUTER, SHARD, LocalCluster

FUNDS_MINOR = 10**12
TREASURY_FLOOR_MINOR = -(2**62)
TOPOLOGY_VERSION = 1
CALL_TIMEOUT_S = 60.0
PATIENT = RetryPolicy(attempt_timeout_s=CALL_TIMEOUT_S)
"""Where everything is busy on purpose, asking again what is on its way would only be more of it."""

BATCH = 8_000
_COMPLETED = bytes([types_pb2.TRANSFER_STATUS_COMPLETED])
_EXECUTE = "/doubloon.v1.ShardService/ExecuteTransfers"


class NotCompletedError(Exception):
    """A transfer of the load was not completed, so what was measured is not what was meant."""


class Shard:
    """A shard node spoken to directly, in serialized calls."""

    def __init__(self, address: str, number: int) -> None:
        self._channel = rpc.channel(address)
        self._call: Any = self._channel.unary_unary(_EXECUTE)  # no serializers: bytes as they are
        self._target = (
            (rpc.SHARD_KEY, str(number)),
            (rpc.TOPOLOGY_VERSION_KEY, str(TOPOLOGY_VERSION)),
        )

    async def execute(self, request: bytes) -> int:
        """Send one packed batch, see that all of it was completed, and return how many those are.

        Raises:
            NotCompletedError: one was not.
        """
        answer = await self._call(request, timeout=CALL_TIMEOUT_S, metadata=self._target)
        return completed_of(answer)

    async def close(self) -> None:
        """Disconnect."""
        await self._channel.close()


def completed_of(answer: bytes) -> int:
    """Return how many results a serialized `ExecuteTransfersResponse` has, all of them completed.

    Raises:
        NotCompletedError: one is not.
    """
    count = len(answer) // RESULT_BYTES
    statuses = answer[len(answer) - count * RESULT_BYTES :: RESULT_BYTES]
    if statuses != _COMPLETED * count:
        raise NotCompletedError(f"statuses of a batch: {sorted(set(statuses))}")
    return count


@dataclass
class Section:
    """A timed part of a case; complete when its context has ended."""

    usage: Usage | None = None
    memory: MemoryWatch | None = None


class Rig:
    """A running cluster under load.

    Attributes:
        cluster: its processes.
        wallet, admin: clients of its routers.
        accounts: how many there are, numbered from 1, with money.
        currency: the number of `CURRENCY`.
        shards: shard nodes by number, for packed calls.
    """

    def __init__(
        self, cluster: LocalCluster, wallet: AsyncClient, admin: AsyncAdminClient, accounts: int
    ) -> None:
        self.cluster = cluster
        self.wallet = wallet
        self.admin = admin
        self.accounts = accounts
        self.currency = 0
        self.shards = {
            number: Shard(cluster.address(SHARD, number), number)
            for number in cluster.topology.shards
        }

    async def prepare(self) -> None:
        """Register the currency, open the accounts, and give each its money."""
        self.currency = (await self.admin.register_currency(CURRENCY, scale=2)).number
        topology = self.cluster.topology
        treasuries: dict[int, int] = {}
        each = self.accounts + 1
        while len(treasuries) < len(self.shards):
            treasuries.setdefault(topology.shard_of(each), each)
            each += 1
        specs = [AccountSpec(number) for number in range(1, self.accounts + 1)]
        specs += [
            AccountSpec(treasury, AccountKind.SYSTEM, TREASURY_FLOOR_MINOR)
            for treasury in treasuries.values()
        ]
        for start in range(0, len(specs), BATCH):
            results = await self.wallet.open_accounts(specs[start : start + BATCH])
            if not all(result.opened for result in results):
                raise NotCompletedError("an account was not opened")
        grants: dict[int, list[bytes]] = {number: [] for number in self.shards}
        reward = int(types_pb2.TRANSFER_TYPE_REWARD)
        for account in range(1, self.accounts + 1):
            number = topology.shard_of(account)
            grants[number].append(
                BODY.pack(
                    new_transfer_id(), treasuries[number], account, FUNDS_MINOR, 0, 0,
                    self.currency, 0, reward,
                )
            )  # fmt: skip
        for number, packed in grants.items():
            for request in packed_requests(b"".join(packed), BATCH):
                await self.shards[number].execute(request)

    def pids(self) -> dict[str, int]:
        """Return every process of the cluster by name, shard nodes' children included."""
        found = {f"{ETCD}-1": self.cluster.etcd.pid}
        for role in (ROUTER, COORDINATOR, SHARD):
            for number in self.cluster.numbers(role):
                pid = self.cluster.pid(role, number)
                found[f"{role}-{number}"] = pid
                if role == SHARD:
                    started = zip((CHECKPOINT, SCRUB), children(pid), strict=False)  # in this order
                    found |= {f"{kind}-{number}": child for kind, child in started}
        return found

    def data_bytes(self) -> int:
        """Return what all shards' files occupy."""
        return disk_bytes(*(self.cluster.data_folder(SHARD, number) for number in self.shards))

    @asynccontextmanager
    async def measured(self) -> AsyncIterator[Section]:
        """Note what everything uses while the context lasts, and check nothing was lost."""
        section = Section()
        # What was drawn before would be looked at by every collection, and is no part of the work.
        gc.collect()
        gc.freeze()
        before, (turns_before, _) = await self.admin.cluster_status(), await self._turns()
        disk, pids, loop_ns = self.data_bytes(), self.pids(), python_loop_ns()
        cpu, machine = cpu_of(pids), MachineWatch()
        try:
            async with MemoryWatch(self.pids) as section.memory:
                yield section
        finally:
            gc.unfreeze()
        seconds = machine.seconds()
        used_s = {name: used - cpu[name] for name, used in cpu_of(pids).items()}
        others_s, stolen_s = machine.others_s(sum(used_s.values())), machine.stolen_s()
        after, (turns_after, turns_cpu) = await self.admin.cluster_status(), await self._turns()

        def grown(name: str) -> int:
            return _total(after, name) - _total(before, name)

        section.usage = Usage(
            seconds,
            grown("transfers_completed"),
            grown("log_syncs"),
            grown("log_bytes"),
            self.data_bytes() - disk,
            used_s,
            dict(section.memory.peak_bytes),
            turns_after,
            turns_before,
            turns_cpu,
            others_s,
            stolen_s,
            loop_ns,
        )

    async def _turns(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return each event loop's longest turn, and its most processor time in one; ms."""
        shards = (await self.admin.cluster_status()).shards
        told: dict[str, ShardStatus | ProcessHealth] = {
            f"{SHARD}-{each.shard_id}": each for each in shards
        }
        for number, address in enumerate(self.cluster.routers, 1):
            async with AsyncAdminClient(address) as admin:
                told[f"{ROUTER}-{number}"] = await admin.process_health()
        return (
            {process: each.longest_turn_us / 1e3 for process, each in told.items()},
            {process: each.longest_turn_cpu_us / 1e3 for process, each in told.items()},
        )

    async def close(self) -> None:
        """Disconnect from the shard nodes."""
        for shard in self.shards.values():
            await shard.close()


def _total(status: ClusterStatus, name: str) -> int:
    return sum(getattr(shard, name) for shard in status.shards)


@dataclass(frozen=True)
class Shape:
    """What cluster a case needs.

    Attributes:
        accounts: how many.
        shards: how many.
        routers: how many.
        allow_imports: whether routers take transfers with a past time.
        shard_options: further options of every shard node.
    """

    accounts: int
    shards: int = 1
    routers: int = 1
    allow_imports: bool = False
    shard_options: tuple[str, ...] = ()


@asynccontextmanager
async def running(shape: Shape) -> AsyncIterator[Rig]:
    """Run a fresh cluster in a temporary folder for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="doubloon-bench-") as temporary:
        async with (
            LocalCluster(
                Path(temporary),
                shards=shape.shards,
                routers=shape.routers,
                allow_imports=shape.allow_imports,
                shard_options=shape.shard_options,
            ) as cluster,
            AsyncClient(cluster.routers, timeout_s=CALL_TIMEOUT_S, retry=PATIENT) as wallet,
            AsyncAdminClient(cluster.routers, timeout_s=CALL_TIMEOUT_S) as admin,
        ):
            rig = Rig(cluster, wallet, admin, shape.accounts)
            try:
                await rig.prepare()
                yield rig
            finally:
                await rig.close()


class Rigs:
    """Where cases get their clusters.

    Args:
        shared: give the same cluster to all cases that need the same shape. Only for runs that
            prove that everything runs: what one case leaves behind is part of what the next
            measures.
    """

    def __init__(self, *, shared: bool = False) -> None:
        self._shared = shared
        self._kept: dict[Shape, Rig] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def rig(self, shape: Shape) -> AsyncIterator[Rig]:
        """Yield a cluster of a shape."""
        if not self._shared:
            async with running(shape) as fresh:
                yield fresh
            return
        if shape not in self._kept:
            self._kept[shape] = await self._stack.enter_async_context(running(shape))
        yield self._kept[shape]
