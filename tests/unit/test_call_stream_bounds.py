"""What bounds a stream of calls, and what becomes of its calls when a server stops."""

import asyncio
import random
from typing import Any

import grpc
import pytest

from cluster import call_streams, rpc
from cluster.call_streams import CallServicer, UnaryMethod
from cluster.faults import Fault
from doubloon import call_stream
from doubloon.call_stream import STREAMED_BYTES_MAX
from doubloon.v1 import call_service_pb2 as pb
from tests.support.call_streams import AMPLE_S, failed, fault_of, site, until_asked_to_stop
from tests.support.stream_wire import Host, WireChannel
from tests.support.virtual_time import pass_time, virtual_time

HANG = "/test/Hang"


async def test_a_server_that_stops_answers_what_it_began() -> None:
    async with site() as at:
        gate = asyncio.Event()

        async def wait(_: int, __: object) -> None:
            await gate.wait()

        at.wallet.before = wait
        begun = asyncio.ensure_future(at.ask(1))
        await at.wallet.until(lambda: at.wallet.began == [1])
        stopping = asyncio.ensure_future(at.server.stop(grace_s=AMPLE_S))
        await until_asked_to_stop(at)
        gate.set()
        assert await begun == 1
        await stopping  # and does not wait for the grace


async def test_a_stop_says_which_calls_never_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_streams, "CALLS_PER_STREAM_MAX", 1)
    async with site() as at:
        gate = asyncio.Event()

        async def wait(_: int, __: object) -> None:
            await gate.wait()

        at.wallet.before = wait
        first, second = (asyncio.ensure_future(at.ask(number)) for number in (1, 2))
        await at.wallet.until(lambda: at.wallet.began == [1])
        stopping = asyncio.ensure_future(at.server.stop(grace_s=AMPLE_S))
        await until_asked_to_stop(at)
        gate.set()
        assert await first == 1
        fault = await failed(second)
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert not fault.indefinite
        assert at.wallet.began == [1]
        await stopping


async def test_an_answer_too_long_for_a_stream_is_a_fault_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_streams, "ANSWER_BYTES_MAX", 1)
    async with site() as at:
        fault = await failed(at.ask(1))
        assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert fault.indefinite  # the handler has run
        monkeypatch.undo()
        assert await at.ask(2) == 2
    assert (
        call_streams.ANSWER_BYTES_MAX + 2 * call_streams.MESSAGE_BYTES_MAX < rpc.MESSAGE_BYTES_MAX
    )


async def test_a_stream_has_only_so_many_calls_in_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(call_streams, "CALLS_PER_STREAM_MAX", 3)
    async with site() as at:
        in_progress, most = 0, 0

        async def count(_: int, __: object) -> None:
            nonlocal in_progress, most
            in_progress += 1
            most = max(most, in_progress)
            await asyncio.sleep(0)
            in_progress -= 1

        at.wallet.before = count
        assert await asyncio.gather(*map(at.ask, range(1, 51))) == list(range(1, 51))
        assert most == 3


async def test_past_the_process_bound_calls_are_refused_before_they_begin() -> None:
    async with site(calls_max=2) as at:
        gate = asyncio.Event()

        async def wait(_: int, __: object) -> None:
            await gate.wait()

        at.wallet.before = wait
        calls = [asyncio.ensure_future(at.ask(number)) for number in range(1, 6)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 3:
            done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        gate.set()
        ended = await asyncio.gather(*calls, return_exceptions=True)
        refused = [fault_of(each) for each in ended if isinstance(each, grpc.aio.AioRpcError)]
        assert [fault.code for fault in refused] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
        assert not any(fault.indefinite for fault in refused)
        assert len(at.wallet.began) == 2


class Line:
    """A stream's context in memory, whose other end does not read until told to."""

    def __init__(self, messages: list[pb.StreamCallsRequest]) -> None:
        self.messages = messages
        self.reads = asyncio.Event()
        self.written: list[pb.StreamCallsResponse] = []

    async def read(self) -> object:
        await asyncio.sleep(0)
        return self.messages.pop(0) if self.messages else grpc.aio.EOF

    async def write(self, message: pb.StreamCallsResponse) -> None:
        await self.reads.wait()
        self.written.append(message)


@pytest.mark.parametrize(
    ("calls_max", "bytes_max", "answer"), [(5, 2**20, b"x"), (2**20, 5_000, bytes(1_000))]
)
async def test_a_caller_that_does_not_read_is_not_read_from(
    monkeypatch: pytest.MonkeyPatch, calls_max: int, bytes_max: int, answer: bytes
) -> None:
    monkeypatch.setattr(call_streams, "CALLS_PER_STREAM_MAX", calls_max)
    monkeypatch.setattr(call_streams, "STREAM_BYTES_MAX", bytes_max)
    monkeypatch.setattr(call_streams, "MESSAGE_BYTES_MAX", 1)
    began = 0

    async def handle(_: bytes, __: object) -> bytes:
        nonlocal began
        began += 1
        return answer

    method = UnaryMethod(bytes, handle, bytes)
    servicer = CallServicer(
        lambda _: method, lambda error, _: Fault(grpc.StatusCode.INTERNAL, str(error)), 2**20
    )
    calls = [pb.StreamCallsRequest(calls=[pb.Call(call_id=number)]) for number in range(1, 101)]
    line = Line(calls)
    serving = asyncio.ensure_future(servicer.StreamCalls(None, line))
    before = -1
    while began > before:  # as far as it gets
        before = began
        for _ in range(20):
            await asyncio.sleep(0)
    assert 0 < began < 10
    line.reads.set()
    await serving
    assert sorted(each.call_id for each in (a for m in line.written for a in m.answers)) == list(
        range(1, 101)
    )
    assert servicer.calls == 0


def test_small_enough_for_a_stream_is_small_beside_a_message() -> None:
    assert STREAMED_BYTES_MAX < call_stream.MESSAGE_BYTES_MAX < rpc.MESSAGE_BYTES_MAX


class Hanging:
    """A server whose handlers hang, on a wire; all calls that begin are counted."""

    def __init__(self, rng: random.Random) -> None:
        self.began = 0
        self.gate = asyncio.Event()
        methods = {HANG: UnaryMethod(bytes, self._hang, bytes)}
        servicer = CallServicer(methods.get, lambda error, _: _as_fault(error), calls_max=100)
        self.channel = WireChannel(Host(rng, servicer, hides_status=False), _no_own_call)

    async def _hang(self, request: bytes, _: object) -> bytes:
        self.began += 1
        await self.gate.wait()
        return request


def _as_fault(error: Exception) -> Fault:
    assert isinstance(error, Fault), error
    return error


async def _no_own_call(method: str, _: bytes, __: float | None) -> bytes:
    raise AssertionError(f"{method} has a call of its own")


@virtual_time
async def test_what_waits_for_others_is_given_up_at_its_deadline_and_never_sent(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.setattr(call_stream, "CALLS_IN_FLIGHT_MAX", 2)
    server = Hanging(rng)
    async with call_stream.StreamedChannel(server.channel.as_channel()) as channel:
        call = channel.unary_unary(HANG)
        first = [asyncio.ensure_future(call(b"x", timeout=None)) for _ in range(2)]
        await pass_time(1.0)
        fault = await failed(call(b"y", timeout=1.0))
        assert fault.code is grpc.StatusCode.UNAVAILABLE  # so that the SDK asks again
        assert not fault.indefinite
        last = asyncio.ensure_future(call(b"z", timeout=None))
        await pass_time(1.0)
        assert server.began == 2
        server.gate.set()
        assert await asyncio.gather(*first, last) == [b"x", b"x", b"z"]
        assert server.began == 3


@virtual_time
async def test_a_caller_that_has_gone_takes_up_room_until_its_deadline(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.setattr(call_stream, "CALLS_IN_FLIGHT_MAX", 1)
    server = Hanging(rng)
    async with call_stream.StreamedChannel(server.channel.as_channel()) as channel:
        call = channel.unary_unary(HANG)
        first = asyncio.ensure_future(call(b"x", timeout=2.0))
        await pass_time(1.0)
        first.cancel()
        second = asyncio.ensure_future(call(b"y", timeout=None))
        await pass_time(0.5)
        assert server.began == 1
        await pass_time(1.5)
        assert server.began == 2
        server.gate.set()
        assert await second == b"y"


@virtual_time
async def test_what_waits_at_a_server_is_not_begun_after_its_deadline(
    monkeypatch: pytest.MonkeyPatch, rng: random.Random
) -> None:
    monkeypatch.setattr(call_streams, "CALLS_PER_STREAM_MAX", 1)
    server = Hanging(rng)
    stream: Any = server.channel.stream_stream("")()
    calls = [
        pb.Call(call_id=1, method=HANG),
        pb.Call(call_id=2, method=HANG, timeout_us=1_000_000),
    ]
    await stream.write(pb.StreamCallsRequest(calls=calls))
    await pass_time(2.0)
    server.gate.set()
    assert [each.call_id for each in (await stream.read()).answers] == [1]
    (answer,) = (await stream.read()).answers
    fault = Fault.from_message(answer.fault)
    assert fault.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert not fault.indefinite
    assert server.began == 1
    stream.cancel()
    await pass_time(1.0)
