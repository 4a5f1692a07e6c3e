"""A real shard node process, spoken to as a router would, and killed, stopped and looked at."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from cluster import rpc
from cluster.packed import BODY_BYTES
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import shard_service_pb2_grpc, types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from scripts.local_cluster import SHARD as ROLE
from scripts.local_cluster import LocalCluster
from shard_node.ledger import COMPLETED
from shard_node.limits import Limits
from shard_node.records import LogIdentity, cluster_id_of
from shard_node.verify import Verified, verify_history
from tests.support import eventually
from tests.support.clusters import log_events
from tests.support.engines import FLOOR_MINOR, body, results_of
from tests.support.shard_service import CALL_TIMEOUT_S, TARGET

STOP_TIMEOUT_S = 8.0
"""A clean stop lets calls finish, takes a checkpoint and leaves etcd; a few seconds when busy."""


class Node:
    """Shard node 1 of a cluster of one shard and no router."""

    def __init__(self, folder: Path, options: Sequence[str]) -> None:
        self._cluster = LocalCluster(folder, shards=1, routers=0, shard_options=options)
        self._channel: grpc.aio.Channel | None = None
        self.stub: Any = None

    @property
    def data(self) -> Path:
        return self._cluster.data_folder(ROLE, 1)

    @property
    def pid(self) -> int:
        return self._cluster.pid(ROLE, 1)

    @property
    def alive(self) -> bool:
        return self._cluster._processes[ROLE, 1].is_alive()

    @property
    def cluster(self) -> LocalCluster:
        return self._cluster

    def events(self, event: str) -> list[dict[str, Any]]:
        """The node's log lines of one kind, of all its lives."""
        log = self._cluster.log_file(ROLE, 1)
        return [line for line in log_events(log) if line.get("event") == event]

    def kill(self) -> None:
        self._cluster.kill(ROLE, 1)

    async def stop(self) -> int:
        """Ask it to stop, as an operator does; return its exit code."""
        self._cluster.signal(ROLE, 1, signal.SIGTERM)
        return await self.ended(STOP_TIMEOUT_S)

    async def ended(self, timeout_s: float = 20.0) -> int:
        """Wait until it has ended by itself; return its exit code."""
        process = self._cluster._processes[ROLE, 1]
        await eventually(lambda: not process.is_alive(), "the node ends", timeout_s)
        code: int = process._popen.returncode
        return code

    async def start(self, *options: str) -> None:
        """Start it again, with these options instead of those before, and wait until it serves."""
        await self._close()
        if options:
            self._cluster._commands[ROLE, 1] = options
        await self._cluster.restart(ROLE, 1)
        await self.connect()

    def spawn(self, *options: str) -> None:
        """Start it again, and do not wait."""
        if options:
            self._cluster._commands[ROLE, 1] = options
        self._cluster._spawn(ROLE, 1)

    async def connect(self) -> None:
        self._channel = rpc.channel(self._cluster.address(ROLE, 1))
        self.stub = shard_service_pb2_grpc.ShardServiceStub(self._channel)

    async def _close(self) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def call(self, method: str, request: Any) -> Any:
        """Call a method of the node by its name."""
        return await getattr(self.stub, method)(request, metadata=TARGET, timeout=CALL_TIMEOUT_S)

    async def status(self) -> Any:
        return (await self.call("GetShardStatus", shard.GetShardStatusRequest())).status

    async def open_accounts(self, count: int) -> None:
        """Open the accounts 1 … count, that may go negative."""
        for first in range(1, count + 1, 5_000):
            specs = [
                wallet.AccountSpec(
                    account_id=each, kind=types_pb2.ACCOUNT_KIND_SYSTEM, floor_minor=FLOOR_MINOR
                )
                for each in range(first, min(first + 5_000, count + 1))
            ]
            await self.call("OpenAccounts", wallet.OpenAccountsRequest(accounts=specs))

    async def balance_minor(self, account_id: int) -> int:
        answer = await self.call("GetBalances", wallet.GetBalancesRequest(account_id=account_id))
        return sum(one.posted_minor for one in answer.balances)

    def verify(self) -> Verified:
        """Verify all that its folder has; it must not be running."""
        identity = LogIdentity(cluster_id_of(self._cluster.name), 1)
        return verify_history(self.data, identity, Limits(disk_free_min_bytes=0))


@asynccontextmanager
async def running_node(folder: Path, *options: str) -> AsyncIterator[Node]:
    """Start etcd and a shard node, with GOLD registered; end both whatever happens."""
    node = Node(folder, options)
    await node.cluster.start()
    try:
        await node.cluster.membership.register_currency("GOLD", 2, "gold")
        await node.connect()
        yield node
    finally:
        await node._close()
        await node.cluster.stop()


@dataclass
class Load:
    """Batches of transfers that several callers send, and what became of them.

    Attributes:
        answered: batches that were answered, in no order.
        unknown: batches that were not: they may or may not have happened.
    """

    node: Node
    rng: random.Random
    accounts: int
    batch: int = 100
    answered: list[bytes] = field(default_factory=list)
    unknown: list[bytes] = field(default_factory=list)
    _number: int = 0

    def make(self) -> bytes:
        bodies = []
        for _ in range(self.batch):
            self._number += 1
            source, destination = self.rng.sample(range(1, self.accounts + 1), 2)
            bodies.append(body(self._number, source, destination, self.rng.randrange(1, 100)))
        return b"".join(bodies)

    async def send(self, bodies: bytes) -> int:
        """Send a batch; return how many of its transfers were repeats."""
        request = shard.ExecuteTransfersRequest(bodies=bodies)
        answer = await self.node.call("ExecuteTransfers", request)
        results = results_of(answer.results)
        assert len(results) == len(bodies) // BODY_BYTES
        assert all(one.status == COMPLETED for one in results)
        return sum(one.repeat for one in results)

    async def caller(self) -> None:
        """Send batch after batch until one is not answered."""
        while True:
            bodies = self.make()
            try:
                await self.send(bodies)
            except grpc.aio.AioRpcError:
                self.unknown.append(bodies)
                return
            self.answered.append(bodies)

    def begin(self, callers: int = 3) -> "list[asyncio.Task[None]]":
        loop = asyncio.get_running_loop()
        return [loop.create_task(self.caller()) for _ in range(callers)]

    async def settle_unknown(self) -> None:
        """Find out about what was not answered, by sending it again."""
        while self.unknown:
            await self.send(self.unknown[-1])
            self.answered.append(self.unknown.pop())

    async def check_all_once(self) -> Counter[int]:
        """Every transfer answered is there, and none happened twice; return the balances."""
        for bodies in self.answered:
            assert await self.send(bodies) == len(bodies) // BODY_BYTES, "all of them are repeats"
        balances = self.balances()
        for account_id in range(1, self.accounts + 1):
            assert await self.node.balance_minor(account_id) == balances[account_id]
        return balances

    def balances(self) -> Counter[int]:
        """What the answered transfers come to, by account."""
        balances: Counter[int] = Counter()
        for bodies in self.answered:
            for at in range(0, len(bodies), BODY_BYTES):
                source = int.from_bytes(bodies[at + 16 : at + 24], "little")
                destination = int.from_bytes(bodies[at + 24 : at + 32], "little")
                amount = int.from_bytes(bodies[at + 32 : at + 40], "little")
                balances[source] -= amount
                balances[destination] += amount
        return balances
