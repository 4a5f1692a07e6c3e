"""Many unary calls on one stream: the SDK's half and the servers', against each other over gRPC."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from cluster import rpc
from cluster.faults import Fault
from doubloon.call_stream import STREAMED_BYTES_MAX, StreamedChannel
from doubloon.v1 import call_service_pb2 as pb
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from doubloon.v1.call_service_pb2_grpc import CallServiceStub
from doubloon.v1.wallet_service_pb2_grpc import (
    WalletServiceStub,
    add_WalletServiceServicer_to_server,
)
from tests.support.call_streams import (
    AMPLE_S,
    GET_ACCOUNT,
    SERVICE,
    StatusLost,
    Wallet,
    at_once,
    failed,
    site,
)


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
        at.wallet.before = at_once
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
        at.wallet.before = at_once
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


@pytest.mark.parametrize("wrapped", [lambda inner: inner, StatusLost])
async def test_a_peer_without_the_service_gets_calls_of_their_own(
    wrapped: Callable[[grpc.aio.Channel], Any],
) -> None:
    server = grpc.aio.server()
    servicer = Wallet()  # type: ignore[abstract] # what it lacks is not called
    add_WalletServiceServicer_to_server(servicer, server)
    port = rpc.bind(server, "127.0.0.1:0")
    await server.start()
    async with StreamedChannel(wrapped(rpc.channel(f"127.0.0.1:{port}"))) as channel:
        stub: Any = WalletServiceStub(channel)
        requests = [wallet.GetAccountRequest(account_id=number) for number in (1, 2, 3)]
        asked = [stub.GetAccount(request, timeout=AMPLE_S) for request in requests]
        answers = await asyncio.gather(*asked)
        assert [answer.account.account_id for answer in answers] == [1, 2, 3]
        assert sorted(servicer.began) == [1, 2, 3]  # once each
    await server.stop(None)


async def test_a_caller_that_is_lost_ends_its_handlers() -> None:
    async with site() as at:

        async def hang(_: int, __: object) -> None:
            await asyncio.Event().wait()

        at.wallet.before = hang
        call = asyncio.ensure_future(at.ask(1, timeout_s=None))  # no deadline ends the handler
        await at.wallet.until(lambda: at.wallet.began == [1])
        await at.inner.close()
        async with asyncio.timeout(AMPLE_S):
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


async def test_a_status_that_grpc_has_lost_is_that_of_a_broken_connection() -> None:
    async with site() as at:

        async def hang(_: int, __: object) -> None:
            await asyncio.Event().wait()

        at.wallet.before = hang
        channel: Any = StatusLost(at.inner)
        async with StreamedChannel(channel) as streamed:
            stub: Any = WalletServiceStub(streamed)
            request = wallet.GetAccountRequest(account_id=1)
            call = asyncio.ensure_future(stub.GetAccount(request, timeout=AMPLE_S))
            await at.wallet.until(lambda: at.wallet.began == [1])
            await at.server.grpc_server.stop(None)
            fault = await failed(call)
            assert fault.code is grpc.StatusCode.UNAVAILABLE  # so that another router is asked
            assert fault.indefinite


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
