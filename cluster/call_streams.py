"""The server's half of `CallService`: many unary calls on one stream, each as if by itself.

A call's method is looked up among the services of the same server, and its handler runs as a task
of its own, is given up at the call's deadline, and answers or faults as it would by gRPC. The other
half, and why there is such a thing, is `doubloon.call_stream`.

A stream is read from only while it has few enough calls in progress, so a caller that sends faster
than it is answered is slowed down by gRPC's own flow control; and beyond a number of calls in all
streams of the process together, new ones are faulted before they begin.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError

from cluster.faults import Fault
from doubloon.v1 import call_service_pb2 as pb
from doubloon.v1 import call_service_pb2_grpc

# As many as one connection may have calls of their own in progress.
CALLS_PER_STREAM_MAX: Final = 1_024
# Requests in progress and answers not written of one stream; a message may pass it once, by its own
# size. Two of the largest messages.
STREAM_BYTES_MAX: Final = 16 * 1024 * 1024
# Calls begun in one turn of the event loop, in the next of which their handlers begin to run.
TURN_CALLS_MAX: Final = 64
# Answers in one message: some tenth of a millisecond to copy.
MESSAGE_BYTES_MAX: Final = 256 * 1024
# One answer. With all that may stand before it in a message it stays below gRPC's bound, which ends
# a stream where it would end a call; ours are a few hundred kilobytes at the most.
ANSWER_BYTES_MAX: Final = 7 * 1024 * 1024

_LOG = structlog.stdlib.get_logger("call_streams")


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """A method that can be called.

    Attributes:
        parse: reads a serialized request; raises DecodeError.
        handle: (request, context) → response; raises Fault.
        serialize: writes the response.
    """

    parse: Callable[[bytes], Any]
    handle: Callable[[Any, Any], Awaitable[Any]]
    serialize: Callable[[Any], bytes]


class CallContext:
    """What handlers ask of a call's context, for a call on a stream."""

    def __init__(self, call: pb.Call, deadline_s: float | None) -> None:
        self._call = call
        self._deadline_s = deadline_s

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the call's metadata."""
        return tuple([(each.key, each.value) for each in self._call.metadata])

    def time_remaining(self) -> float | None:
        """Return the seconds until the call's deadline; None = it has none."""
        if self._deadline_s is None:
            return None
        return max(0.0, self._deadline_s - asyncio.get_running_loop().time())


class CallServicer(call_service_pb2_grpc.CallServiceServicer):
    """The handler of `CallService`.

    Args:
        find: the method that gRPC spells so; None = there is none.
        fault_of: what to answer for whatever a handler raised; may end the process.
        calls_max: calls in progress, of all streams together.

    Attributes:
        calls: how many those are now.
        is_stopping: whether no more are begun.
    """

    def __init__(
        self,
        find: Callable[[str], UnaryMethod | None],
        fault_of: Callable[[Exception, str], Fault],
        calls_max: int,
    ) -> None:
        self.find = find
        self.fault_of = fault_of
        self.calls_max = calls_max
        self.calls = 0
        self.is_stopping = False
        self._streams: set[_Stream] = set()

    async def StreamCalls(  # type: ignore[override] # noqa: N802 - a handler that writes to its context
        self, request_iterator: object, context: Any
    ) -> None:
        """Serve one stream until its caller ends it, or `stop`."""
        del request_iterator  # reading by the context costs less
        stream = _Stream(self, context)
        self._streams.add(stream)
        try:
            await stream.serve(stopping=self.is_stopping)
        finally:
            self._streams.discard(stream)

    def stop(self) -> None:
        """Begin no more calls: each stream ends once what it has begun is answered."""
        self.is_stopping = True
        for stream in self._streams:
            stream.stop()


class _Stream:
    """One stream's calls in progress, and the answers on their way out."""

    def __init__(self, servicer: CallServicer, context: Any) -> None:
        self._servicer = servicer
        self._context = context
        self._calls: dict[asyncio.Task[None], int] = {}  # in progress: bytes of its request
        self._answers: list[pb.CallAnswer] = []
        self._bytes = 0
        self._writing = False
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._last_id = 0
        self._stopping = False

    async def serve(self, *, stopping: bool) -> None:
        loop = asyncio.get_running_loop()
        self._reader = loop.create_task(self._read())
        try:
            if stopping:
                self.stop()
            await asyncio.wait([self._reader])
            while self._calls:
                await asyncio.wait(self._calls)
            if self._stopping:
                last = pb.StreamCallsResponse(last_call_id=self._last_id, stopping=True)
                await self._context.write(last)
            else:
                self._reader.result()  # for the fault that ended it, if one did
        finally:
            for task in (self._reader, *self._calls):
                task.cancel()

    def stop(self) -> None:
        """Read no more."""
        self._stopping = True
        if self._reader is not None:
            self._reader.cancel()

    async def _read(self) -> None:
        while True:
            message = await self._context.read()
            if message is grpc.aio.EOF:
                return
            read_s = asyncio.get_running_loop().time()
            for count, call in enumerate(message.calls):
                while self._is_full():
                    self._room.clear()
                    await self._room.wait()
                self._begin(call, read_s)
                if count % TURN_CALLS_MAX == TURN_CALLS_MAX - 1:
                    await asyncio.sleep(0)

    def _is_full(self) -> bool:
        count = len(self._calls) + len(self._answers)
        return count >= CALLS_PER_STREAM_MAX or self._bytes >= STREAM_BYTES_MAX

    def _begin(self, call: pb.Call, read_s: float) -> None:
        if call.call_id <= self._last_id:
            raise Fault(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"must be greater than {self._last_id}, is {call.call_id}",
                "calls.call_id",
            )
        self._last_id = call.call_id
        is_admitted = self._servicer.calls < self._servicer.calls_max
        # Counted from when it came: it may have waited for room since.
        deadline_s = read_s + call.timeout_us / 1e6 if call.timeout_us else None
        serving = self._serve(call, deadline_s, is_admitted=is_admitted)
        task = asyncio.get_running_loop().create_task(serving)
        self._calls[task] = len(call.request)
        self._bytes += len(call.request)
        self._servicer.calls += 1
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._bytes -= self._calls.pop(task)
        self._servicer.calls -= 1
        self._room.set()

    async def _serve(self, call: pb.Call, deadline_s: float | None, *, is_admitted: bool) -> None:
        """Run one call's handler, and send its answer together with others that are ready."""
        answer = pb.CallAnswer(call_id=call.call_id)
        try:
            response = await self._response_to(call, deadline_s, is_admitted=is_admitted)
            check_length(response)
            answer.response = response
        except Exception as error:  # noqa: BLE001 - every call is answered
            answer.fault.CopyFrom(self._servicer.fault_of(error, call.method).to_message())
        self._answers.append(answer)
        self._bytes += len(answer.response)
        if not self._writing:
            await self._write()

    async def _response_to(
        self, call: pb.Call, deadline_s: float | None, *, is_admitted: bool
    ) -> bytes:
        if not is_admitted:
            raise Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls are in progress")
        method = self._servicer.find(call.method)
        if method is None:
            raise Fault(grpc.StatusCode.UNIMPLEMENTED, f"there is no unary method {call.method}")
        try:
            request = method.parse(call.request)
        except DecodeError as error:
            raise Fault(
                grpc.StatusCode.INVALID_ARGUMENT, f"is not a request of {call.method}", "request"
            ) from error
        context = CallContext(call, deadline_s)
        if deadline_s is None:
            return method.serialize(await method.handle(request, context))
        loop = asyncio.get_running_loop()
        if deadline_s <= loop.time():
            message = "it came before the call was begun"
            raise Fault(grpc.StatusCode.DEADLINE_EXCEEDED, message, indefinite=False)
        task = asyncio.current_task()
        assert task is not None, "a call is served by a task of its own"
        # As gRPC does: nobody waits for it any more.
        timer = loop.call_at(deadline_s, task.cancel)
        try:
            return method.serialize(await method.handle(request, context))
        finally:
            timer.cancel()

    async def _write(self) -> None:
        """Write the answers that are ready, also those that come meanwhile."""
        self._writing = True
        try:
            while self._answers:
                await self._context.write(self._next_message())
        except grpc.aio.BaseError as error:  # the caller has gone, and gRPC cancels the stream
            _LOG.debug("stream_lost", reason=str(error))
        finally:
            self._writing = False

    def _next_message(self) -> pb.StreamCallsResponse:
        size = taken = 0
        while taken < len(self._answers) and size < MESSAGE_BYTES_MAX:
            size += len(self._answers[taken].response)
            taken += 1
        message = pb.StreamCallsResponse(answers=self._answers[:taken])
        del self._answers[:taken]
        self._bytes -= size
        self._room.set()
        return message


def check_length(response: bytes) -> None:
    """Raise a Fault when an answer is too long for a stream."""
    if len(response) > ANSWER_BYTES_MAX:
        raise Fault(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the answer has {len(response)} bytes, more than {ANSWER_BYTES_MAX}",
            indefinite=True,
        )
