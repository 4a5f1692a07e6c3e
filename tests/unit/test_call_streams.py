"""Many unary calls on one stream: the SDK's half and the servers', against each other over gRPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from cluster import call_streams, rpc
from cluster.call_streams import CallServicer, UnaryMethod
from cluster.faults import Fault
from doubloon import call_stream
from doubloon.call_stream import STREAMED_BYTES_MAX, StreamedChannel
from doubloon.v1 import call_service_pb2 as pb
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from doubloon.v1.call_service_pb2_grpc import CallServiceStub
from doubloon.v1.wallet_service_pb2_grpc import (
    WalletServiceServicer,
    WalletServiceStub,
    add_WalletServiceServicer_to_server,
)

# Ample for anything that happens at all; no test waits for it to pass.
AMPLE_S = 20.0
SERVICE = "doubloon.v1.WalletService"
GET_ACCOUNT = f"/{SERVICE}/GetAccount"

Handler = Callable[[int, Any], Awaitable[None]]


async def _at_once(_account_id: int, _context: object) -> None:
    """Answer."""


@dataclass
class Wallet(WalletServiceServicer):
    """Answers with the account asked for, once `before` has returned."""

    before: Handler = _at_once
    began: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetAccount(  # noqa: N802 - the contract's name
        self, request: wallet.GetAccountRequest, context: Any
    ) -> wallet.GetAccountResponse:
        self.began.append(request.account_id)
        self.contexts.append(context)
        self.changed.set()
        try:
            await self.before(request.account_id, context)
        except asyncio.CancelledError:
            self.cancelled.append(request.account_id)
            self.changed.set()
            raise
        return wallet.GetAccountResponse(account=types_pb2.Account(account_id=request.account_id))

    async def TransferBatch(  # noqa: N802 - the contract's name
        self, request: wallet.TransferBatchRequest, context: Any
    ) -> wallet.TransferBatchResponse:
        self.contexts.append(context)
        return wallet.TransferBatchResponse(
            results=[types_pb2.TransferResult(time_us=len(request.transfers))]
        )

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so of what was called."""
        while not true():
            self.changed.clear()
            await self.changed.wait()


@dataclass
class Site:
    """A server, and a channel to it whose small calls share a stream."""

    wallet: Wallet
    server: rpc.RpcServer
    address: str
    inner: grpc.aio.Channel
    channel: StreamedChannel
    errors: list[Exception]

    @property
    def stub(self) -> Any:
        return WalletServiceStub(self.channel)

    async def ask(self, account_id: int, timeout_s: float | None = AMPLE_S, **options: Any) -> int:
        request = wallet.GetAccountRequest(account_id=account_id)
        response = await self.stub.GetAccount(request, timeout=timeout_s, **options)
        found: int = response.account.account_id
        return found

    def is_streamed(self) -> list[bool]:
        return [isinstance(each, call_streams.CallContext) for each in self.wallet.contexts]


@asynccontextmanager
async def site(*, calls_max: int = 100, apart: tuple[str, ...] = ()) -> AsyncIterator[Site]:
    errors: list[Exception] = []
    server = await rpc.server([SERVICE], concurrent_rpcs_max=calls_max, on_error=errors.append)
    servicer = Wallet()  # type: ignore[abstract] # what it lacks is not called
    add_WalletServiceServicer_to_server(servicer, server.grpc_server)
    address = await server.serve("127.0.0.1:0")
    inner = rpc.channel(address)
    async with StreamedChannel(inner, apart) as channel:
        try:
            yield Site(servicer, server, address, inner, channel, errors)
        finally:
            await server.stop(grace_s=0)


def fault_of(error: grpc.aio.AioRpcError) -> Fault:
    return rpc.fault_from_rpc_error(error)


async def until_asked_to_stop(at: Site) -> None:
    """Return once `stop`, under way in another task, has reached the streams."""
    for _ in range(1_000):
        if at.server.calls.is_stopping:
            return
        await asyncio.sleep(0)
    raise AssertionError("nothing asked the streams to stop")


async def failed(call: Awaitable[object]) -> Fault:
    """Return the fault that a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return fault_of(caught.value)


async def test_answers_find_their_callers_whatever_their_order() -> None:
    async with site() as at:
        gates = {number: asyncio.Event() for number in range(1, 21)}

        async def gate(account_id: int, _: object) -> None:
            await gates[account_id].wait()

        at.wallet.before = gate
        calls = {number: asyncio.ensure_future(at.ask(number)) for number in gates}
        await at.wallet.until(lambda: len(at.wallet.began) == 20)
        for number in reversed(gates):
            gates[number].set()
            assert await calls[number] == number
        assert at.is_streamed() == [True] * 20


async def test_metadata_and_deadline_reach_the_handler() -> None:
    async with site() as at:
        await at.ask(1, timeout_s=10.0, metadata=(("doubloon-shard", "7"), ("x", "y")))
        (context,) = at.wallet.contexts
        assert context.invocation_metadata() == (("doubloon-shard", "7"), ("x", "y"))
        assert 0 < context.time_remaining() <= 10.0
        await at.ask(2, timeout_s=None)
        assert at.wallet.contexts[1].time_remaining() is None


async def test_a_fault_comes_through_whole() -> None:
    async with site() as at:

        async def refuse(_: int, __: object) -> None:
            raise Fault(grpc.StatusCode.NOT_FOUND, "no such account", "account_id", 3, 9)

        at.wallet.before = refuse
        fault = await failed(at.ask(1))
        assert (fault.code, fault.message) == (grpc.StatusCode.NOT_FOUND, "no such account")
        assert (fault.field, fault.index, fault.topology_version) == ("account_id", 3, 9)
        assert not fault.indefinite
        assert not at.errors


async def test_what_a_handler_should_not_raise_is_told_and_hides_its_text() -> None:
    async with site() as at:

        async def fail(_: int, __: object) -> None:
            raise KeyError("secret")

        at.wallet.before = fail
        fault = await failed(at.ask(1))
        assert fault.code is grpc.StatusCode.INTERNAL
        assert fault.indefinite
        assert "secret" not in fault.message
        assert [type(error) for error in at.errors] == [KeyError]
        at.wallet.before = _at_once
        assert await at.ask(2) == 2


@pytest.mark.parametrize(
    ("method", "request_bytes", "code", "name"),
    [
        (f"/{SERVICE}/GetNothing", b"", grpc.StatusCode.UNIMPLEMENTED, ""),
        (f"/{SERVICE}/StreamTransfers", b"", grpc.StatusCode.UNIMPLEMENTED, ""),
        ("/doubloon.v1.CallService/StreamCalls", b"", grpc.StatusCode.UNIMPLEMENTED, ""),
        ("", b"", grpc.StatusCode.UNIMPLEMENTED, ""),
        (GET_ACCOUNT, b"\xff", grpc.StatusCode.INVALID_ARGUMENT, "request"),
    ],
)
async def test_what_cannot_be_called_is_answered_and_leaves_the_stream(
    method: str, request_bytes: bytes, code: grpc.StatusCode, name: str
) -> None:
    async with site() as at:
        stream: Any = CallServiceStub(at.inner).StreamCalls()
        await stream.write(
            pb.StreamCallsRequest(calls=[pb.Call(call_id=1, method=method, request=request_bytes)])
        )
        (answer,) = (await stream.read()).answers
        fault = Fault.from_message(answer.fault)
        assert (answer.call_id, fault.code, fault.field) == (1, code, name)
        assert not fault.indefinite
        await stream.write(pb.StreamCallsRequest(calls=[pb.Call(call_id=2, method=GET_ACCOUNT)]))
        assert (await stream.read()).answers[0].HasField("response")
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def test_ids_that_do_not_grow_end_the_stream() -> None:
    async with site() as at:
        stream: Any = CallServiceStub(at.inner).StreamCalls()
        again = pb.Call(call_id=5, method=GET_ACCOUNT)
        await stream.write(pb.StreamCallsRequest(calls=[again, again]))

        async def read_all() -> None:
            while True:
                assert (await stream.read()).answers[0].call_id == 5

        fault = await failed(read_all())
        assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, "calls.call_id")


async def test_no_answer_in_time_leaves_it_open_and_gives_up_the_handler() -> None:
    async with site() as at:

        async def hang(_: int, __: object) -> None:
            await asyncio.Event().wait()

        at.wallet.before = hang
        fault = await failed(at.ask(1, timeout_s=0.05))
        assert fault.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert fault.indefinite
        await at.wallet.until(lambda: at.wallet.cancelled == [1])
        at.wallet.before = _at_once
        assert await at.ask(2) == 2


async def test_who_gives_up_leaves_the_others_their_answers() -> None:
    async with site() as at:
        gate = asyncio.Event()

        async def wait(_: int, __: object) -> None:
            await gate.wait()

        at.wallet.before = wait
        calls = [asyncio.ensure_future(at.ask(number)) for number in (1, 2)]
        await at.wallet.until(lambda: len(at.wallet.began) == 2)
        calls[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[0]
        gate.set()
        assert await calls[1] == 2
        assert await at.ask(3) == 3


async def test_what_is_large_or_named_has_a_call_of_its_own() -> None:
    async with site(apart=(GET_ACCOUNT,)) as at:
        assert await at.ask(1) == 1
        small = wallet.TransferBatchRequest(transfers=[types_pb2.Transfer()])
        await at.stub.TransferBatch(small, timeout=AMPLE_S)
        metadata = bytes(STREAMED_BYTES_MAX)
        large = wallet.TransferBatchRequest(transfers=[types_pb2.Transfer(metadata=metadata)])
        await at.stub.TransferBatch(large, timeout=AMPLE_S)
        assert at.is_streamed() == [False, True, False]


async def test_a_peer_without_the_service_gets_calls_of_their_own() -> None:
    server = grpc.aio.server()
    servicer = Wallet()  # type: ignore[abstract] # what it lacks is not called
    add_WalletServiceServicer_to_server(servicer, server)
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    async with StreamedChannel(rpc.channel(f"127.0.0.1:{port}")) as channel:
        stub: Any = WalletServiceStub(channel)
        requests = [wallet.GetAccountRequest(account_id=number) for number in (1, 2, 3)]
        asked = [stub.GetAccount(request, timeout=AMPLE_S) for request in requests]
        answers = await asyncio.gather(*asked)
        assert [answer.account.account_id for answer in answers] == [1, 2, 3]
        assert sorted(servicer.began) == [1, 2, 3]  # once each
    await server.stop(None)


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


async def test_a_caller_that_is_lost_ends_its_handlers() -> None:
    async with site() as at:

        async def hang(_: int, __: object) -> None:
            await asyncio.Event().wait()

        at.wallet.before = hang
        call = asyncio.ensure_future(at.ask(1))
        await at.wallet.until(lambda: at.wallet.began == [1])
        await at.inner.close()
        await at.wallet.until(lambda: at.wallet.cancelled == [1])
        assert (await failed(call)).indefinite
        assert not at.errors


async def test_a_server_that_dies_leaves_open_what_it_was_asked() -> None:
    async with site() as at:

        async def hang(_: int, __: object) -> None:
            await asyncio.Event().wait()

        at.wallet.before = hang
        calls = [asyncio.ensure_future(at.ask(number)) for number in (1, 2)]
        await at.wallet.until(lambda: len(at.wallet.began) == 2)
        await at.server.grpc_server.stop(None)
        for call in calls:
            fault = await failed(call)
            assert fault.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            assert fault.indefinite


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


async def test_a_closed_channel_begins_nothing() -> None:
    async with site() as at:
        assert await at.ask(1) == 1
        await at.channel.close()
        fault = await failed(at.ask(2))
        assert fault.code is grpc.StatusCode.UNAVAILABLE
        assert not fault.indefinite
        assert at.wallet.began == [1]


async def test_closing_waits_for_what_is_in_progress() -> None:
    async with site() as at:
        gate = asyncio.Event()

        async def wait(_: int, __: object) -> None:
            await gate.wait()

        at.wallet.before = wait
        call = asyncio.ensure_future(at.ask(1))
        await at.wallet.until(lambda: at.wallet.began == [1])
        closing = asyncio.ensure_future(at.channel.close(AMPLE_S))
        await asyncio.sleep(0)
        gate.set()
        assert await call == 1
        await closing


async def test_a_broken_stream_is_replaced_by_a_later_call() -> None:
    async with site() as at:
        assert await at.ask(1) == 1
        await at.server.stop(grace_s=0)
        successor = await rpc.server([SERVICE])
        add_WalletServiceServicer_to_server(at.wallet, successor.grpc_server)
        await successor.serve(at.address)
        while True:
            try:
                assert await at.ask(2) == 2
                break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:  # not connected yet
                    raise
        assert at.is_streamed() == [True, True]
        await successor.stop(grace_s=0)


def test_small_enough_for_a_stream_is_small_beside_a_message() -> None:
    assert STREAMED_BYTES_MAX < call_stream.MESSAGE_BYTES_MAX < rpc.MESSAGE_BYTES_MAX
