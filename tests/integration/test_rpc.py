"""Faults across a real connection: what a handler raises is what a caller reads."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster import rpc
from cluster.faults import Fault
from cluster.rpc import RpcServer, abort, fault_from_rpc_error
from doubloon.v1 import types_pb2

SERVICE = "doubloon.v1.WalletService"  # any name of ours: the methods below are the test's
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

FAULTS = [
    Fault(grpc.StatusCode.INVALID_ARGUMENT, "must be 16 bytes", "transfers.transfer_id", 3),
    Fault(grpc.StatusCode.FAILED_PRECONDITION, "another topology", topology_version=7),
    Fault(grpc.StatusCode.UNAVAILABLE, "shard 2 is out of reach"),
    Fault(grpc.StatusCode.UNAVAILABLE, "nothing was sent", indefinite=False),
    Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time"),
    Fault(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full"),
    Fault(grpc.StatusCode.UNIMPLEMENTED, "across shards"),
    Fault(grpc.StatusCode.PERMISSION_DENIED, "imports are for operators"),
    Fault(grpc.StatusCode.NOT_FOUND, "no such account", "account_id"),
    Fault(grpc.StatusCode.OUT_OF_RANGE, "does not fit"),
]


def fields(fault: Fault) -> tuple[object, ...]:
    return (
        fault.code,
        fault.message,
        fault.field,
        fault.index,
        fault.topology_version,
        fault.indefinite,
    )


class Raiser(grpc.GenericRpcHandler):
    """Methods of all four kinds, each of which raises what it is given to raise."""

    def __init__(self) -> None:
        self.error: Exception = AssertionError("set by the test")
        self.aborts = False

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        make: dict[str, Callable[[], Any]] = {
            "/t/UnaryUnary": lambda: grpc.unary_unary_rpc_method_handler(self._unary),
            "/t/UnaryStream": lambda: grpc.unary_stream_rpc_method_handler(self._stream),
            "/t/StreamUnary": lambda: grpc.stream_unary_rpc_method_handler(self._unary),
            "/t/StreamStream": lambda: grpc.stream_stream_rpc_method_handler(self._stream),
            "/t/Writer": lambda: grpc.unary_stream_rpc_method_handler(self._writer),
        }
        method = make.get(handler_call_details.method)
        return method() if method else None

    async def _unary(self, request: Any, context: Any) -> bytes:
        if self.aborts:
            await abort(context, Fault(grpc.StatusCode.NOT_FOUND, "by hand"))
        raise self.error

    async def _stream(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"one"
        raise self.error

    async def _writer(self, request: Any, context: Any) -> None:
        await context.write(b"one")
        raise self.error


@pytest.fixture
async def raiser() -> Raiser:
    return Raiser()


@pytest.fixture
async def served(raiser: Raiser) -> AsyncIterator[tuple[RpcServer, grpc.aio.Channel]]:
    made = await rpc.server([SERVICE])
    made.grpc_server.add_generic_rpc_handlers((raiser,))
    address = await made.serve("127.0.0.1:0")
    async with rpc.channel(address) as channel:
        yield made, channel
    await made.stop(0)


async def call(channel: grpc.aio.Channel, kind: str) -> Fault:
    """Call a method and return the fault it ends with."""
    untyped: Any = channel
    try:
        match kind:
            case "UnaryUnary":
                await untyped.unary_unary("/t/UnaryUnary")(b"")
            case "StreamUnary":
                await untyped.stream_unary("/t/StreamUnary")(iter([b""]))
            case "StreamStream":
                async for answer in untyped.stream_stream("/t/StreamStream")(iter([b""])):
                    assert answer == b"one"
            case _:
                async for answer in untyped.unary_stream(f"/t/{kind}")(b""):
                    assert answer == b"one"
    except grpc.aio.AioRpcError as error:
        return fault_from_rpc_error(error)
    pytest.fail("the call succeeded")


KINDS = ["UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream", "Writer"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_fault_arrives_as_it_was_raised(
    raiser: Raiser, served: tuple[RpcServer, grpc.aio.Channel], kind: str
) -> None:
    for fault in FAULTS:
        raiser.error = fault
        assert fields(await call(served[1], kind)) == fields(fault)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_defect_is_internal_and_logged_once_with_its_traceback(
    raiser: Raiser, served: tuple[RpcServer, grpc.aio.Channel], kind: str
) -> None:
    raiser.error = ValueError("secret detail")
    with structlog.testing.capture_logs() as logs:
        fault = await call(served[1], kind)
    assert fault.code is grpc.StatusCode.INTERNAL
    assert fault.indefinite
    assert "secret" not in fault.message
    assert [(line["event"], line["method"], line["exc_info"]) for line in logs] == [
        ("handler_failed", f"/t/{kind}", raiser.error)
    ]


async def test_a_handler_may_abort_by_itself(
    raiser: Raiser, served: tuple[RpcServer, grpc.aio.Channel]
) -> None:
    raiser.aborts = True
    fault = await call(served[1], "UnaryUnary")
    assert (fault.code, fault.message) == (grpc.StatusCode.NOT_FOUND, "by hand")


async def test_an_unknown_method_is_definitely_unimplemented(
    served: tuple[RpcServer, grpc.aio.Channel],
) -> None:
    fault = await call(served[1], "Nothing")
    assert fault.code is grpc.StatusCode.UNIMPLEMENTED
    assert not fault.indefinite


async def test_a_dead_address_is_indefinitely_unavailable(
    raiser: Raiser, served: tuple[RpcServer, grpc.aio.Channel]
) -> None:
    await served[0].stop(0)
    fault = await call(served[1], "UnaryUnary")
    assert fault.code is grpc.StatusCode.UNAVAILABLE
    assert fault.indefinite


def test_every_status_has_a_code_and_every_code_a_status() -> None:
    errors = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]
    for status in errors:
        message = Fault(status, "").to_message()
        assert message.code != types_pb2.FAULT_CODE_UNSPECIFIED
        assert Fault.from_message(message).to_message() == message
    for code in types_pb2.FaultCode.values():
        fault = Fault.from_message(types_pb2.Fault(code=code))
        if code != types_pb2.FAULT_CODE_UNSPECIFIED:
            assert fault.to_message().code == code


async def test_health_follows_the_servers_life(raiser: Raiser) -> None:
    made = await rpc.server([SERVICE])
    address = await made.serve("127.0.0.1:0")
    async with rpc.channel(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == SERVING
        await made.set_serving(serving=False)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert answer.status == NOT_SERVING
    await made.stop(0)


async def test_reflection_lists_the_services(served: tuple[RpcServer, grpc.aio.Channel]) -> None:
    untyped: Any = reflection_pb2_grpc
    stub = untyped.ServerReflectionStub(served[1])
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([question])):
        names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_two_servers_cannot_share_a_port() -> None:
    one, other = await rpc.server([SERVICE]), await rpc.server([SERVICE])
    address = await one.serve("127.0.0.1:0")
    with pytest.raises(OSError, match=f"cannot listen on {address}"):
        await other.serve(address)
    await one.stop(0)
    await other.stop(0)
