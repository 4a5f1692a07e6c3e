"""The contract of `ShardClient`, for the one over gRPC and the one in memory."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import pytest

from cluster import rpc
from cluster.faults import Fault
from cluster.shard_client import (
    EXECUTE_TRANSFERS,
    GET_ACCOUNT,
    GET_TRANSFER,
    GrpcShardClient,
    ShardClient,
)
from cluster.topology import Topology
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import shard_service_pb2_grpc
from doubloon.v1 import wallet_service_pb2 as wallet
from tests.support import free_port
from tests.support.shard_nodes import MemoryShardClient, MemoryShardNode

SHARD, VERSION = 1, 1
# Ample for anything that happens at all; no test waits for it to pass.
AMPLE_S = 20.0
REQUEST = wallet.GetAccountRequest(account_id=7)


class Site(Protocol):
    """A place where a shard node may run, and ways to it."""

    node: MemoryShardNode

    def client(self) -> ShardClient: ...

    def client_to_nowhere(self) -> ShardClient: ...

    async def kill(self) -> None: ...


@dataclass
class MemorySite:
    node: MemoryShardNode

    def client(self) -> ShardClient:
        return MemoryShardClient({"here": self.node}, SHARD, "here")

    def client_to_nowhere(self) -> ShardClient:
        return MemoryShardClient({}, SHARD, "nowhere")

    async def kill(self) -> None:
        self.node.gone.set()


@dataclass
class GrpcSite:
    node: MemoryShardNode
    server: rpc.RpcServer
    address: str

    def client(self) -> ShardClient:
        return GrpcShardClient(SHARD, self.address)

    def client_to_nowhere(self) -> ShardClient:
        return GrpcShardClient(SHARD, f"127.0.0.1:{free_port()}")

    async def kill(self) -> None:
        await self.server.stop(grace_s=0)


@asynccontextmanager
async def site(kind: str) -> AsyncIterator[Site]:
    node = MemoryShardNode(SHARD, Topology.even([SHARD], VERSION))
    if kind == "memory":
        yield MemorySite(node)
        return
    server = await rpc.server(["doubloon.v1.ShardService"])
    shard_service_pb2_grpc.add_ShardServiceServicer_to_server(node, server.grpc_server)
    address = await server.serve("127.0.0.1:0")
    try:
        yield GrpcSite(node, server, address)
    finally:
        await server.stop(grace_s=0)


@pytest.fixture(params=["memory", "grpc"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


async def test_a_call_is_answered(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        response = await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
        assert response.account.account_id == 7
        assert at.node.asked == [("GetAccount", REQUEST)]
        await client.close(0)


async def test_a_full_batch_is_answered(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        request = shard.ExecuteTransfersRequest(bodies=bytes(64 * 8_192), metadata=b"")
        response = await client.call(EXECUTE_TRANSFERS, request, VERSION, AMPLE_S)
        assert len(response.results) == 24 * 8_192
        await client.close(0)


async def test_the_nodes_fault_comes_through_whole(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        request = wallet.GetTransferRequest(transfer_id=bytes(16))
        with pytest.raises(Fault) as caught:
            await client.call(GET_TRANSFER, request, VERSION, AMPLE_S)
        assert (caught.value.code, caught.value.field) == (
            grpc.StatusCode.NOT_FOUND,
            "transfer_id",
        )
        assert not caught.value.indefinite
        await client.close(0)


async def test_another_topology_is_told_with_the_nodes_version(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        with pytest.raises(Fault) as caught:
            await client.call(GET_ACCOUNT, REQUEST, VERSION + 1, AMPLE_S)
        assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.topology_version == VERSION
        assert not caught.value.indefinite
        assert not at.node.asked
        await client.close(0)


async def test_where_nobody_listens_nothing_was_sent(kind: str) -> None:
    async with site(kind) as at:
        client = at.client_to_nowhere()
        with pytest.raises(Fault) as caught:
            await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert not caught.value.indefinite
        await client.close(0)


async def test_a_node_that_died_earlier_cannot_be_reached(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
        await at.kill()
        with pytest.raises(Fault) as caught:
            await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        await client.close(0)


@asynccontextmanager
async def call_in_progress(at: Site, client: ShardClient) -> AsyncIterator[asyncio.Task[object]]:
    """A call that has reached the node, which does not answer it."""
    reached = asyncio.Event()

    async def hang(_: str) -> None:
        reached.set()
        await asyncio.Event().wait()

    at.node.before = hang
    work: asyncio.Task[object] = asyncio.ensure_future(
        client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
    )
    await reached.wait()
    yield work
    await client.close(0)


async def test_a_node_that_dies_in_the_middle_leaves_it_open(kind: str) -> None:
    async with site(kind) as at, call_in_progress(at, at.client()) as work:
        await at.kill()
        with pytest.raises(Fault) as caught:
            await work
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert caught.value.indefinite


async def test_closing_fails_what_is_in_progress_and_leaves_it_open(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        async with call_in_progress(at, client) as work:
            await client.close(0)
            with pytest.raises(Fault) as caught:
                await work
            assert caught.value.code is grpc.StatusCode.UNAVAILABLE
            assert caught.value.indefinite


async def test_a_closed_client_sends_nothing(kind: str) -> None:
    async with site(kind) as at:
        client = at.client()
        await client.close(0)
        with pytest.raises(Fault) as caught:
            await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        assert not caught.value.indefinite
        assert not at.node.asked


async def test_whoever_cancels_a_call_is_cancelled(kind: str) -> None:
    async with site(kind) as at, call_in_progress(at, at.client()) as work:
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work


async def test_no_answer_in_time_leaves_it_open(kind: str) -> None:
    async with site(kind) as at:

        async def hang(_: str) -> None:
            await asyncio.Event().wait()

        client = at.client()
        await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)  # connects
        at.node.before = hang
        with pytest.raises(Fault) as caught:
            await client.call(GET_ACCOUNT, REQUEST, VERSION, timeout_s=0.05)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.indefinite
        await client.close(0)


async def test_a_call_that_grpc_cancels_on_the_way_is_a_node_that_went_away() -> None:
    async def cancel(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        await context.abort(grpc.StatusCode.CANCELLED)

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"GetAccount": grpc.unary_unary_rpc_method_handler(cancel)}
    generic = grpc.method_handlers_generic_handler("doubloon.v1.ShardService", handlers)
    server.add_generic_rpc_handlers((generic,))
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    client = GrpcShardClient(SHARD, f"127.0.0.1:{port}")
    with pytest.raises(Fault) as caught:
        await client.call(GET_ACCOUNT, REQUEST, VERSION, AMPLE_S)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert caught.value.indefinite
    await client.close(0)
    await server.stop(None)
