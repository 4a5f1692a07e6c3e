"""A gRPC channel to one process of the cluster, as its peers use it.

Small calls share one stream; see `doubloon.call_stream`. A call is sent only over a connection that
stands. That is what makes "could not be reached" certain: until the channel is ready nothing has
left this process, and the fault is definite; whatever breaks later may have reached the peer, and
is not.
"""

import asyncio
from collections.abc import Collection
from typing import Any, Final

import grpc

from cluster.faults import Fault
from cluster.rpc import channel, fault_from_rpc_error
from doubloon.call_stream import StreamedChannel

_READY: Final = grpc.ChannelConnectivity.READY
_WAITING: Final = frozenset({grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING})
# What gRPC makes of a peer that goes away in the middle of a call, beside UNAVAILABLE itself.
_GONE: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED})


class PeerChannel:
    """A channel to the process at an address (`host:port`).

    Args:
        name: of the peer, for messages.
        address: where it is.
        apart: methods, as gRPC spells them, whose answers may be large, or late for a reason.
    """

    def __init__(self, name: str, address: str, apart: Collection[str] = ()) -> None:
        self._name = name
        self._address = address
        self._closed = False
        self.channel: Final = StreamedChannel(channel(address), apart)

    async def call(
        self, method: Any, request: Any, metadata: tuple[tuple[str, str], ...], timeout_s: float
    ) -> Any:
        """Make one unary call.

        Args:
            method: of a stub on `channel`; generated stubs differ in type from method to method.
            request: its request.
            metadata: of the call.
            timeout_s: seconds from now, connecting included.

        Raises:
            Fault: what the peer answered; or UNAVAILABLE when it cannot be reached, definite while
                nothing was sent; or DEADLINE_EXCEEDED, indefinite.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        await self._connected(deadline_s)
        timeout_s = max(0.0, deadline_s - loop.time())
        try:
            return await method(request, timeout=timeout_s, metadata=metadata)
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

    async def close(self, grace_s: float) -> None:
        """Let calls in progress end by themselves for so long; then fail them, indefinite."""
        self._closed = True
        await self.channel.close(grace_s)

    async def _connected(self, deadline_s: float) -> None:
        """Return once the connection stands; fail as soon as an attempt to connect has failed."""
        try:
            async with asyncio.timeout_at(deadline_s):
                while True:
                    if self._closed:
                        raise self._fault("the connection was given up", indefinite=False)
                    state = self.channel.get_state(try_to_connect=True)
                    if state is _READY:
                        return
                    if state not in _WAITING:
                        raise self._fault("no connection", indefinite=False)
                    await self.channel.wait_for_state_change(state)
        except TimeoutError:
            raise self._fault("no connection in time", indefinite=False) from None

    def _fault(self, what: str, *, indefinite: bool) -> Fault:
        return Fault(
            grpc.StatusCode.UNAVAILABLE,
            f"{self._name} at {self._address}: {what}",
            indefinite=indefinite,
        )


def _is_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
