"""A real `ShardServicer` behind a real gRPC server, on an engine in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from cluster import rpc
from cluster.faults import Fault
from cluster.membership import MemoryMembership, MemoryStore
from cluster.rpc import SHARD_KEY, TOPOLOGY_VERSION_KEY
from cluster.runtime import LoopMonitor
from cluster.topology import Topology
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import shard_service_pb2_grpc
from doubloon.v1 import types_pb2 as types
from doubloon.v1 import wallet_service_pb2 as wallet
from shard_node.currencies import Currencies
from shard_node.limits import Limits
from shard_node.service import ShardServicer
from shard_node.status import ProcessFacts, StatusReporter
from tests.support.engines import SHARD, START_US, Running, running

CALL_TIMEOUT_S = 20.0  # ample for anything that happens at all; no test waits for it to pass
TARGET = ((SHARD_KEY, str(SHARD)), (TOPOLOGY_VERSION_KEY, "1"))


@dataclass
class Served:
    """A shard node but for its process.

    Attributes:
        node: the engine and what it stands on.
        store: what etcd would hold: topology 1, and GOLD (1) and GEMS (2).
        membership: the node's handle on it.
        stub: speaks to the node over gRPC.
    """

    node: Running
    store: MemoryStore
    membership: MemoryMembership
    monitor: LoopMonitor
    servicer: ShardServicer
    stub: "shard_service_pb2_grpc.ShardServiceAsyncStub"  # a name that only the types have

    async def call(self, method: str, request: Any, metadata: Any = TARGET) -> Any:
        """Call a method by its name."""
        return await getattr(self.stub, method)(request, metadata=metadata, timeout=CALL_TIMEOUT_S)

    async def fault(self, method: str, request: Any, metadata: Any = TARGET) -> Fault:
        """Call a method that must fail; return how."""
        try:
            answer = await self.call(method, request, metadata)
        except grpc.aio.AioRpcError as error:
            return rpc.fault_from_rpc_error(error)
        raise AssertionError(f"{method} answered {answer}")


@asynccontextmanager
async def served(limits: Limits | None = None, accounts: int = 10) -> AsyncIterator[Served]:
    """Serve a shard node with the accounts 1 … `accounts`, that may all go negative."""
    store = MemoryStore()
    membership = MemoryMembership(store)
    await membership.propose_topology(Topology.even([SHARD]))
    for code in ("GOLD", "GEMS"):
        await membership.register_currency(code, 2, code.lower())
    async with running(limits, accounts) as node:
        monitor = LoopMonitor()
        facts = ProcessFacts("shard-1", "1.2.3", START_US, 1)
        status = StatusReporter(node.engine, membership, facts, monitor)

        def version() -> int:
            assert membership.view.topology is not None
            return membership.view.topology.version

        servicer = ShardServicer(node.engine, Currencies(membership), status, version)
        server = await rpc.server(["doubloon.v1.ShardService"])
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server.grpc_server)
        address = await server.serve("127.0.0.1:0")
        monitor.start()
        try:
            async with rpc.channel(address) as channel:
                stub: Any = shard_service_pb2_grpc.ShardServiceStub(channel)
                yield Served(node, store, membership, monitor, servicer, stub)
        finally:
            monitor.stop()
            await server.stop(grace_s=0)
            await membership.close()


def execute(*bodies: bytes, metadata: bytes = b"") -> shard.ExecuteTransfersRequest:
    """A request for these transfers."""
    return shard.ExecuteTransfersRequest(bodies=b"".join(bodies), metadata=metadata)


def open_accounts(**fields: Any) -> wallet.OpenAccountsRequest:
    """A request for accounts 90 and 91, the second with these fields."""
    good = wallet.AccountSpec(account_id=90, kind=types.ACCOUNT_KIND_PLAYER)
    spec = {"account_id": 91, "kind": types.ACCOUNT_KIND_PLAYER, **fields}
    return wallet.OpenAccountsRequest(accounts=[good, wallet.AccountSpec(**spec)])


def change_status(**fields: Any) -> admin.ChangeAccountStatusRequest:
    """A request to freeze account 1, but for these fields."""
    wanted = {"account_id": 1, "status": types.ACCOUNT_STATUS_FROZEN, "reason": "asked to"}
    return admin.ChangeAccountStatusRequest(**{**wanted, **fields})
