"""Many unary calls on one stream: what saves a caller the price of beginning and ending each.

In Python, gRPC takes as much processor time for one unary call as for three messages on a stream
that stands, and its answer comes back more than twice as late. So a `StreamedChannel` looks like a
channel to generated stubs, and sends their unary calls over one `CallService.StreamCalls` to the
same peer: calls of the same turn of the event loop go in one message, answers come back in no
order. It raises the errors that gRPC would raise.

Calls of their own are still made of what is large (it would hold up the small, and gains nothing),
of methods that are named, since their answers are, and with a peer that has no `CallService`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc

from doubloon.faults import FAULT_METADATA_KEY, hides_status
from doubloon.v1 import call_service_pb2 as pb
from doubloon.v1 import types_pb2
from doubloon.v1.call_service_pb2_grpc import CallServiceStub

STREAMED_BYTES_MAX: Final = 16 * 1024
"""A request above this has a call of its own: to some 250 transfers that costs little."""
MESSAGE_BYTES_MAX: Final = 256 * 1024
"""Requests in one message of the stream: some tenth of a millisecond to copy."""
CALLS_IN_FLIGHT_MAX: Final = 1_024
"""Calls of one stream that are sent and not answered, as many as gRPC has on one connection. What
waits here is given up at its deadline and never sent; what waits at the peer would be begun."""
PROBE_TIMEOUT_S: Final = 1.0
"""How long a peer may take to say whether it has the service, where gRPC has lost its word."""

STREAM_CALLS: Final = "/doubloon.v1.CallService/StreamCalls"
Metadata = Iterable[tuple[str, str]]
_NO_METADATA: Final = grpc.aio.Metadata()
_STATUS: Final = {
    types_pb2.FaultCode.Value(f"FAULT_CODE_{status.name}"): status
    for status in grpc.StatusCode
    if f"FAULT_CODE_{status.name}" in dict(types_pb2.FaultCode.items())
}


class _NoService(Exception):  # noqa: N818 - it says what is missing
    """The peer has no `CallService`; nothing has happened."""


@dataclass(slots=True, eq=False)
class _Sending:
    """A call on its way into a message."""

    message: pb.Call
    deadline_s: float | None
    answer: asyncio.Future[bytes]
    handed_over: bool = False  # to gRPC: from now on it may reach the peer


class _Stream:
    """One stream to the peer, good until its first failure. It lives on one event loop.

    Args:
        call: the stream.
        probe: how the peer ends a stream on which nothing is asked.
    """

    def __init__(self, call: Any, probe: Callable[[], Awaitable[grpc.StatusCode]]) -> None:
        self.is_open = True
        self._call = call
        self._probe = probe
        self._last_id = 0
        self._queue: deque[_Sending] = deque()
        self._pending: dict[int, _Sending] = {}
        self._in_flight: set[int] = set()
        self._idle = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._reader = loop.create_task(self._read())
        self._writer: asyncio.Task[None] | None = None

    async def ask(
        self, method: str, request: bytes, timeout_s: float | None, metadata: Metadata
    ) -> bytes:
        """Make one call; return the serialized response. Raises as gRPC does, and _NoService."""
        loop = asyncio.get_running_loop()
        self._last_id += 1
        message = pb.Call(call_id=self._last_id, method=method, request=request)
        for key, value in metadata:
            message.metadata.add(key=key, value=value)
        deadline_s = None if timeout_s is None else loop.time() + timeout_s
        sending = _Sending(message, deadline_s, loop.create_future())
        self._pending[message.call_id] = sending
        self._queue.append(sending)
        self._go_on()
        # A timer of our own costs a fifth of what `asyncio.timeout_at` does.
        timer = None if deadline_s is None else loop.call_at(deadline_s, self._expire, sending)
        try:
            return await sending.answer
        finally:
            if timer is not None and not sending.answer.cancelled():
                timer.cancel()  # else the peer is still at it
            del self._pending[message.call_id]
            if not self._pending:
                self._idle.set()

    async def close(self, grace_s: float) -> None:
        """Begin nothing more, let calls in progress end for so long, then fail them."""
        self.is_open = False
        with suppress(TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            async with asyncio.timeout(grace_s):
                while self._pending:
                    self._idle.clear()
                    await self._idle.wait()
                if self._writer is not None:
                    await asyncio.wait([self._writer])
                await self._call.done_writing()
                await asyncio.wait([self._reader])
        self._fail(grpc.StatusCode.UNAVAILABLE, "the connection was given up")
        self._call.cancel()
        await asyncio.wait([self._reader])

    def _go_on(self) -> None:
        """Write what is queued, if that is not being done."""
        if self._writer is None and self._queue and len(self._in_flight) < CALLS_IN_FLIGHT_MAX:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Write what is queued, also what comes meanwhile, as far as it may be in flight."""
        try:
            while self._queue and len(self._in_flight) < CALLS_IN_FLIGHT_MAX:
                message = self._next_message()
                if message.calls:
                    await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self.is_open = False  # the reader is told why it ended, and tells the callers
        finally:
            self._writer = None

    def _next_message(self) -> pb.StreamCallsRequest:
        message = pb.StreamCallsRequest()
        now_s = asyncio.get_running_loop().time()
        size, in_flight = 0, self._in_flight
        while self._queue and size < MESSAGE_BYTES_MAX and len(in_flight) < CALLS_IN_FLIGHT_MAX:
            sending = self._queue.popleft()
            if sending.answer.done():  # its caller has gone already, or it is too late
                continue
            if sending.deadline_s is not None:
                sending.message.timeout_us = max(1, int((sending.deadline_s - now_s) * 1e6))
            sending.handed_over = True
            in_flight.add(sending.message.call_id)
            message.calls.append(sending.message)
            size += len(sending.message.request)
        return message

    async def _read(self) -> None:
        """Hand out answers until the stream ends; then fail what has none."""
        status, details = grpc.StatusCode.UNAVAILABLE, "the stream ended early"
        begun: int | None = None
        is_answered = False
        try:
            while begun is None:
                message = await self._call.read()
                if not isinstance(message, pb.StreamCallsResponse):
                    break
                is_answered = True
                for answer in message.answers:
                    self._take(answer)
                if message.stopping:
                    begun = message.last_call_id
        except grpc.aio.AioRpcError as error:
            status, details = error.code(), error.details() or error.code().name
            if hides_status(error):
                self.is_open = False
                status, details = grpc.StatusCode.UNAVAILABLE, "the stream broke under a write"
                if not is_answered and await self._probe() is grpc.StatusCode.UNIMPLEMENTED:
                    status = grpc.StatusCode.UNIMPLEMENTED
        finally:
            self._fail(status, details, begun)
            self._call.cancel()  # has no effect when it ended

    def _take(self, answer: pb.CallAnswer) -> None:
        self._landed(answer.call_id)
        sending = self._pending.get(answer.call_id)
        if sending is None or sending.answer.done():
            return  # its caller has gone
        if answer.HasField("response"):
            sending.answer.set_result(answer.response)
        else:
            sending.answer.set_exception(_fault_error(answer.fault))

    def _expire(self, sending: _Sending) -> None:
        """Its deadline is over, here and, about now, at the peer."""
        self._landed(sending.message.call_id)
        if sending.answer.done():
            return
        if sending.handed_over:
            error = _error(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
        else:
            # As of a peer that is away: asked again in time, it may be sent.
            message = "the deadline came before it was sent"
            error = _definite(grpc.StatusCode.UNAVAILABLE, message)
        sending.answer.set_exception(error)

    def _landed(self, call_id: int) -> None:
        self._in_flight.discard(call_id)
        if self.is_open:
            self._go_on()

    def _fail(self, status: grpc.StatusCode, details: str, begun: int | None = None) -> None:
        """Fail every call without an answer: definite where it is known that it did not begin."""
        self.is_open = False
        for call_id, sending in self._pending.items():
            if sending.answer.done():
                continue
            if status is grpc.StatusCode.UNIMPLEMENTED:
                sending.answer.set_exception(_NoService())
            elif not sending.handed_over or (begun is not None and call_id > begun):
                sending.answer.set_exception(_not_begun())
            else:
                # One error each: an exception collects the traceback of whoever raises it.
                sending.answer.set_exception(_error(status, details))


class StreamedChannel(grpc.aio.Channel):
    """A channel whose small unary calls share one stream.

    Args:
        inner: the real one, whose streams and larger calls go by it as ever.
        apart: methods, as gRPC spells them, that have calls of their own.
    """

    def __init__(self, inner: grpc.aio.Channel, apart: Collection[str] = ()) -> None:
        self._inner = inner
        self._apart = frozenset(apart)
        self._stub: Any = CallServiceStub(inner)
        self._stream: _Stream | None = None
        self._is_served = True
        self._closed = False

    def unary_unary(  # type: ignore[override] # stubs call what it returns, and nothing else
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] = bytes,
        response_deserializer: Callable[[bytes], Any] = bytes,
        **options: Any,
    ) -> Any:
        """Return what calls a method."""
        own_call = self._inner.unary_unary(
            method, response_deserializer=response_deserializer, **options
        )
        is_apart = method in self._apart

        async def call(
            request: Any,
            *,
            timeout: float | None = None,  # noqa: ASYNC109 - as in grpc
            metadata: Metadata = (),
        ) -> Any:
            packed = request_serializer(request)
            if self._is_served and not is_apart and len(packed) <= STREAMED_BYTES_MAX:
                try:
                    answer = await self._current().ask(method, packed, timeout, metadata)
                except _NoService:
                    self._is_served = False
                else:
                    return response_deserializer(answer)
            return await own_call(packed, timeout=timeout, metadata=tuple(metadata))

        return call

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """As the real channel's."""
        return self._inner.unary_stream(*args, **options)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """As the real channel's."""
        return self._inner.stream_unary(*args, **options)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """As the real channel's."""
        return self._inner.stream_stream(*args, **options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:  # noqa: FBT001, FBT002 - as in grpc
        """As the real channel's."""
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """As the real channel's."""
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """As the real channel's."""
        await self._inner.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Begin no more calls, let those in progress end for so many seconds, then fail them."""
        self._closed = True
        deadline_s = time.monotonic() + (grace or 0.0)
        if self._stream is not None:
            await self._stream.close(grace or 0.0)
        await self._inner.close(max(0.0, deadline_s - time.monotonic()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    def _current(self) -> _Stream:
        if self._closed:
            raise _not_begun()
        if self._stream is None or not self._stream.is_open:
            self._stream = _Stream(self._stub.StreamCalls(), self._probe)
        return self._stream

    async def _probe(self) -> grpc.StatusCode:
        # Sent and half closed in one step, so that no write can hide the status.
        method: Any = self._inner.unary_stream(
            STREAM_CALLS, request_serializer=pb.StreamCallsRequest.SerializeToString
        )
        call = method(pb.StreamCallsRequest(), timeout=PROBE_TIMEOUT_S)
        status: grpc.StatusCode = await call.code()
        return status


def _not_begun() -> grpc.aio.AioRpcError:
    return _definite(grpc.StatusCode.UNAVAILABLE, "the connection is closed; nothing was begun")


def _definite(status: grpc.StatusCode, message: str) -> grpc.aio.AioRpcError:
    code = types_pb2.FaultCode.Value(f"FAULT_CODE_{status.name}")
    return _fault_error(types_pb2.Fault(code=code, message=message, index=-1))


def _fault_error(fault: types_pb2.Fault) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata((FAULT_METADATA_KEY, fault.SerializeToString()))
    status = _STATUS.get(fault.code, grpc.StatusCode.INTERNAL)
    return grpc.aio.AioRpcError(status, _NO_METADATA, trailing, fault.message)


def _error(status: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    """Return an error that says nothing of what happened."""
    return grpc.aio.AioRpcError(status, _NO_METADATA, _NO_METADATA, details)
