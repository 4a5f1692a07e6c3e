"""A wire for call streams, on virtual time: what gRPC does to both halves of one, at its worst.

Messages are bytes on the way and keep their order in each direction. A write takes a while, as flow
control makes it. A connection may break at any moment: what is on its way is lost then, the caller
reads a status, and the handler is cancelled, each in its own time. And where a write meets the end
of a stream, the caller may read INTERNAL instead of the true status, and nothing that came before.
"""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import grpc

from cluster.call_streams import CallServicer
from doubloon.v1 import call_service_pb2 as pb

LATENCY_MAX_S: Final = 0.002
SLOW_S: Final = 0.05
SLOW_ONE_IN: Final = 20

_OK: Final = grpc.StatusCode.OK
_LOST: Final = "Internal error from Core"
_END: Final = b""  # in place of a message: no more will come; an empty message is never sent


def error_of(status: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    none = grpc.aio.Metadata()
    return grpc.aio.AioRpcError(status, none, none, details)


class Host:
    """What listens at the address.

    Attributes:
        servicer: None = it has no such service.
        hides_status: whether a write that meets the end of a stream hides its status.
        connections: those whose handler runs.
    """

    def __init__(
        self, rng: random.Random, servicer: CallServicer | None, *, hides_status: bool
    ) -> None:
        self.rng = rng
        self.servicer = servicer
        self.hides_status = hides_status
        self.connections: set[_Connection] = set()

    def latency_s(self) -> float:
        slow = not self.rng.randrange(SLOW_ONE_IN)
        return self.rng.uniform(0.0, SLOW_S if slow else LATENCY_MAX_S)

    def break_one(self) -> None:
        """Break one of the connections, if there is any."""
        if self.connections:
            order = sorted(self.connections, key=lambda each: each.number)
            self.rng.choice(order).break_()

    async def status(self) -> grpc.StatusCode:
        """How a stream ends on which nothing is asked."""
        await asyncio.sleep(self.latency_s())
        return grpc.StatusCode.UNIMPLEMENTED if self.servicer is None else _OK


class WireChannel:
    """What `StreamedChannel` takes for the real channel.

    Args:
        host: at the other end.
        own_call: answers a call that goes by no stream, given its method, request and timeout.
    """

    def __init__(
        self, host: Host, own_call: Callable[[str, bytes, float | None], Awaitable[bytes]]
    ) -> None:
        self._host = host
        self._own_call = own_call
        self._made = 0

    def as_channel(self) -> grpc.aio.Channel:
        return cast("grpc.aio.Channel", self)

    def unary_unary(self, method: str, **_: Any) -> Any:
        async def call(packed: bytes, timeout: float | None, **_: Any) -> bytes:  # noqa: ASYNC109 - as in grpc
            await asyncio.sleep(self._host.latency_s())
            return await self._own_call(method, packed, timeout)

        return call

    def unary_stream(self, _method: str, **_: Any) -> Any:
        return lambda _request, **_options: _Probe(self._host)

    def stream_stream(self, _method: str, **_: Any) -> Any:
        def call() -> _Connection:
            self._made += 1
            return _Connection(self._host, self._made)

        return call

    async def close(self, _grace_s: float | None) -> None:
        for each in tuple(self._host.connections):
            each.break_()


class _Probe:
    def __init__(self, host: Host) -> None:
        self._host = host

    async def code(self) -> grpc.StatusCode:
        return await self._host.status()


class _Way:
    """One direction: delivers in order, each after a latency of its own."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._last_s = 0.0
        self._arrived: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.is_cut = False

    def send(self, message: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._last_s = max(self._last_s + 1e-9, loop.time() + self._host.latency_s())
        loop.call_at(self._last_s, self._arrive, message)

    def _arrive(self, message: bytes) -> None:
        if not self.is_cut:
            self._arrived.append(message)
            self._news.set()

    def wake(self) -> None:
        self._news.set()

    async def next(self, is_over: Callable[[], bool]) -> bytes | None:
        """Return what arrives next; None when it is over and nothing is left."""
        while not self._arrived:
            if is_over():
                return None
            self._news.clear()
            await self._news.wait()
        return self._arrived.popleft()


class _Connection:
    """A stream: this object is the caller's half, `_Context` the server's."""

    def __init__(self, host: Host, number: int) -> None:
        self.number = number
        self.requests = _Way(host)
        self.responses = _Way(host)
        self.status: tuple[grpc.StatusCode, str] | None = None  # as the caller knows it
        self.is_lost = False
        self._host = host
        self._is_cancelled = False
        host.connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve(host.servicer))

    # --- the caller's half, as grpc.aio's -------------------------------------------------------

    async def write(self, message: pb.StreamCallsRequest) -> None:
        self._check_open()
        await asyncio.sleep(self._host.latency_s())
        if self.status is not None:
            if self._host.hides_status:
                self.status = grpc.StatusCode.INTERNAL, _LOST
            raise error_of(*self.status)
        self.requests.send(message.SerializeToString())

    async def read(self) -> Any:
        if self._is_lost_status():
            raise error_of(*self._ended())
        message = await self.responses.next(lambda: self.status is not None)
        if self._is_cancelled:
            raise asyncio.CancelledError
        if message is None or self._is_lost_status():
            if self._ended()[0] is _OK:
                return grpc.aio.EOF
            raise error_of(*self._ended())
        return pb.StreamCallsResponse.FromString(message)

    async def done_writing(self) -> None:
        if self.status is None:
            self.requests.send(_END)

    def cancel(self) -> bool:
        if self.status is not None:
            return False
        self._is_cancelled = True
        self._end(grpc.StatusCode.CANCELLED, "cancelled")
        self.responses.wake()
        asyncio.get_running_loop().call_later(self._host.latency_s(), self._lose)
        return True

    # --- what happens to it ---------------------------------------------------------------------

    def break_(self) -> None:
        """Lose the connection, with all that is on its way."""
        self.requests.is_cut = self.responses.is_cut = True
        loop = asyncio.get_running_loop()
        loop.call_later(self._host.latency_s(), self._lose)
        loop.call_later(
            self._host.latency_s(), self._end, grpc.StatusCode.UNAVAILABLE, "connection lost"
        )

    def _lose(self) -> None:
        """Tell the server that its caller has gone."""
        self.is_lost = True
        self._task.cancel()

    def _end(self, status: grpc.StatusCode, details: str) -> None:
        if self.status is None:
            self.status = status, details
            self.responses.wake()

    async def _serve(self, servicer: CallServicer | None) -> None:
        loop = asyncio.get_running_loop()
        delay_s = self._host.latency_s()
        try:
            if servicer is None:
                loop.call_later(
                    delay_s, self._end, grpc.StatusCode.UNIMPLEMENTED, "no such service"
                )
                return
            await servicer.StreamCalls(None, _Context(self, self._host))
        finally:
            self._host.connections.discard(self)
        # The status comes behind all answers.
        loop.call_later(SLOW_S + delay_s, self._end, _OK, "")

    def _ended(self) -> tuple[grpc.StatusCode, str]:
        assert self.status is not None, "it has ended"
        return self.status

    def _is_lost_status(self) -> bool:
        return self.status is not None and self.status[1] == _LOST

    def _check_open(self) -> None:
        if self.status is not None:
            raise asyncio.InvalidStateError("RPC already finished.")


class _Context:
    """The server's half, as a handler's context."""

    def __init__(self, connection: _Connection, host: Host) -> None:
        self._connection = connection
        self._host = host

    async def read(self) -> Any:
        message = await self._connection.requests.next(lambda: False)
        if message == _END:
            return grpc.aio.EOF
        assert message is not None, "its end is a message"
        return pb.StreamCallsRequest.FromString(message)

    async def write(self, message: pb.StreamCallsResponse) -> None:
        await asyncio.sleep(self._host.latency_s())
        if self._connection.is_lost:
            raise grpc.aio.UsageError("RPC already finished.")
        self._connection.responses.send(message.SerializeToString())
