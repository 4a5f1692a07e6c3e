"""The real `ShardClient`: a gRPC channel to one shard node.

A call is sent only over a connection that stands. That is what makes "could not be reached"
certain: until the channel is ready nothing has left this process, and the fault is definite;
whatever breaks later may have reached the node, and is not.
"""

import asyncio
from typing import Any

import grpc

from cluster.rpc import Fault, channel, fault_from_rpc_error
from doubloon.v1 import shard_service_pb2_grpc
from router.shards import SHARD_KEY, TOPOLOGY_VERSION_KEY, Method, Q, R

_READY = grpc.ChannelConnectivity.READY
_WAITING = frozenset({grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING})
# What gRPC makes of a node that goes away in the middle of a call, beside UNAVAILABLE itself.
_GONE = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})


class GrpcShardClient:
    """A `ShardClient` for the shard node at an address (`host:port`)."""

    def __init__(self, shard_id: int, address: str) -> None:
        self._shard_id = shard_id
        self._address = address
        self._channel = channel(address)
        self._stub = shard_service_pb2_grpc.ShardServiceStub(self._channel)
        self._closed = False

    async def call(
        self, method: Method[Q, R], request: Q, topology_version: int, timeout_s: float
    ) -> R:
        """Ask the shard node once; see `ShardClient`."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await self._connected(deadline_s)
        ask: Any = getattr(self._stub, method.name)
        call = ask(
            request,
            timeout=max(0.0, deadline_s - loop.time()),
            metadata=(
                (SHARD_KEY, str(self._shard_id)),
                (TOPOLOGY_VERSION_KEY, str(topology_version)),
            ),
        )
        try:
            response: R = await call
        except grpc.aio.AioRpcError as error:
            fault = fault_from_rpc_error(error)
            if fault.code in _GONE:
                raise self._fault(fault.message, indefinite=fault.indefinite) from error
            raise fault from error
        except asyncio.CancelledError:
            # Closing a channel cancels its calls, which looks like being cancelled ourselves.
            if not self._closed or _is_cancelling():
                raise
            raise self._fault("the connection was given up", indefinite=True) from None
        return response

    async def close(self, grace_s: float) -> None:
        """Close the channel; see `ShardClient`."""
        self._closed = True
        await self._channel.close(grace_s)

    async def _connected(self, deadline_s: float) -> None:
        """Return once the connection stands; fail as soon as an attempt to connect has failed."""
        try:
            async with asyncio.timeout_at(deadline_s):
                while True:
                    if self._closed:
                        raise self._fault("the connection was given up", indefinite=False)
                    state = self._channel.get_state(try_to_connect=True)
                    if state is _READY:
                        return
                    if state not in _WAITING:
                        raise self._fault("no connection", indefinite=False)
                    await self._channel.wait_for_state_change(state)
        except TimeoutError:
            raise self._fault("no connection in time", indefinite=False) from None

    def _fault(self, what: str, *, indefinite: bool) -> Fault:
        return Fault(
            grpc.StatusCode.UNAVAILABLE,
            f"shard {self._shard_id} at {self._address}: {what}",
            indefinite=indefinite,
        )


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
