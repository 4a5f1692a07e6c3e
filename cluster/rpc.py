"""gRPC as every role uses it: settings with their reasons, and the one place where faults meet it.

Cores and handlers raise `Fault`. `server` puts a guard in front of every handler that turns a Fault
into a gRPC status with a machine-readable `doubloon.v1.Fault` in the trailing metadata, and
anything unexpected into INTERNAL with one logged traceback. `fault_from_rpc_error` is the way back.
"""

# grpc's classes are generic only in its type stubs.
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.call_streams import CallServicer, UnaryMethod
from cluster.faults import Fault
from doubloon.v1 import call_service_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence

FAULT_KEY = "doubloon-fault-bin"
"""Trailing metadata that carries a serialized `doubloon.v1.Fault`."""
SHARD_KEY = "doubloon-shard"
"""Metadata of every ShardService call: the shard meant, decimal."""
TOPOLOGY_VERSION_KEY = "doubloon-topology-version"
"""Metadata of every call to shard nodes and coordinators: the caller's topology, decimal."""

# 8,192 transfers of the largest size (16-byte id, 256 bytes of metadata) are 3 MB; twice that and
# some is room for a batch's answer, and still small beside a process's memory.
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
# Connections to one server; more are closed as they come. Game servers hold one or two each, and a
# process that has no files left to open can serve nobody: 1,024 is what systems often allow.
CONNECTIONS_MAX = 768
# What has not said within this that it speaks HTTP/2 is closed, and gives its place to another.
HANDSHAKE_TIMEOUT_MS = 10_000
# One connection with more calls than this in flight is not batching.
STREAMS_PER_CONNECTION_MAX = 1_024
# Ours is one id, a deadline and a fault; a token will fit as well. gRPC's own default, on purpose.
METADATA_BYTES_MAX = 16 * 1024
# Calls of one process in progress at once, all connections together; above it new ones are answered
# RESOURCE_EXHAUSTED before they are read. What a peer sends of a message and does not finish stays
# until its call ends: with 8 MiB each that is 16 GiB, so it bounds friends, not an enemy.
CONCURRENT_RPCS_MAX = 2_048
# A silent peer is noticed within 13 s also when its machine vanished without closing connections.
KEEPALIVE_TIME_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 3_000
# While a stream of calls stands our own clients ping every ten seconds or, after two pings with no
# data between them, every minute. By default a second ping within five minutes is a strike, and the
# third strike closes the connection, with all that is in progress on it. What floods a server comes
# a thousand times as often.
PING_INTERVAL_MIN_MS = 1_000
PING_STRIKES_MAX = 2
# A restarted process is found again within a second: by default gRPC backs off to two minutes.
RECONNECT_FIRST_MS = 50
RECONNECT_MAX_MS = 1_000
# How long calls in progress get to finish when a process is asked to stop: longer than any deadline
# that our own processes give each other.
STOP_GRACE_S = 5.0

Options = tuple[tuple[str, Any], ...]

_MESSAGE_OPTIONS: Options = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # Pings that estimate how much a long, fat line holds: a tenth of what a small call costs, and
    # of no use where round trips take fractions of a millisecond.
    ("grpc.http2.bdp_probe", 0),
)

SERVER_OPTIONS: Options = (
    *_MESSAGE_OPTIONS,
    # Two processes on one port must be an error, not a coin toss.
    ("grpc.so_reuseport", 0),
    ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
    ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION_MAX),
    # Not `min_recv_ping_…`, as its constant in gRPC's headers is called: what gRPC does not know it
    # passes over in silence.
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ("grpc.http2.max_ping_strikes", PING_STRIKES_MAX),
    # Else a ping that finds no call in progress, as when the last has just ended, is a strike
    # however long ago the one before was. It also lets a server notice an idle peer that vanished.
    ("grpc.keepalive_permit_without_calls", 1),
)

CHANNEL_OPTIONS: Options = (
    *_MESSAGE_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    # Processes of one cluster talk to each other directly, whatever `http_proxy` says.
    ("grpc.enable_http_proxy", 0),
    # A channel that replaces another to the same address starts with a clean back-off of its own.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries belong to whoever holds the idempotency key, never to the transport.
    ("grpc.enable_retries", 0),
    ("grpc.service_config_disable_resolution", 1),
)

CALL_SERVICE = "doubloon.v1.CallService"
"""What every server serves beside its own services."""

_LOG = structlog.stdlib.get_logger("rpc")
# When gRPC answers one of these without our detail, no handler has run: nothing happened.
_DEFINITE_WITHOUT_DETAIL = frozenset(
    {
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


async def abort(context: grpc.aio.ServicerContext[Any, Any], fault: Fault) -> NoReturn:
    """End a call with the fault's status, and its detail in the trailing metadata."""
    await context.abort(
        fault.code, fault.message, ((FAULT_KEY, fault.to_message().SerializeToString()),)
    )


def fault_from_rpc_error(error: grpc.aio.AioRpcError) -> Fault:
    """Read back the fault of a failed call; without our detail, indefinite unless nothing ran."""
    for key, value in error.trailing_metadata() or ():
        if key == FAULT_KEY and isinstance(value, bytes):
            try:
                return Fault.from_message(types_pb2.Fault.FromString(value))
            except DecodeError:
                break  # whoever is in between has its own use for the key: the status will do
    code = error.code()
    return Fault(
        code, error.details() or code.name, indefinite=code not in _DEFINITE_WITHOUT_DETAIL
    )


def _ignore(_: Exception) -> None:
    """What is logged and answered needs no more."""


class GuardedServer(grpc.aio.Server):
    """A gRPC server with a guard in front of every handler; see the module's docstring.

    An interceptor would do the same, and wrap the handler anew at every call.
    """

    def __init__(
        self, inner: grpc.aio.Server, on_error: Callable[[Exception], None] = _ignore
    ) -> None:
        self._inner = inner
        self._on_error = on_error
        self._services: list[grpc.GenericRpcHandler] = []
        self._unary_methods: dict[str, UnaryMethod] = {}

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[Any]) -> None:
        """Add services, guarded. What else generated code registers is not needed beside these."""
        services = tuple(generic_rpc_handlers)
        self._services += services
        guarded = tuple(_GuardedHandlers(handlers, self._on_error) for handlers in services)
        self._inner.add_generic_rpc_handlers(guarded)

    def unary_method(self, path: str) -> UnaryMethod | None:
        """Return a unary method of any service added, unguarded; None = there is none."""
        known = self._unary_methods.get(path)
        if known is not None:
            return known
        for service in self._services:
            handler: Any = service.service(_CallDetails(path))
            if handler is not None and handler.unary_unary:
                found = UnaryMethod(
                    handler.request_deserializer, handler.unary_unary, handler.response_serializer
                )
                self._unary_methods[path] = found
                return found
        return None

    def add_insecure_port(self, address: str) -> int:
        """Listen without TLS."""
        return self._inner.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen with TLS."""
        return self._inner.add_secure_port(address, server_credentials)

    async def start(self) -> None:
        """Begin to serve."""
        await self._inner.start()

    async def stop(self, grace: float | None) -> None:
        """Take no new calls, and end those in progress after so many seconds."""
        await self._inner.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as in grpc
        """Wait until it has stopped."""
        return await self._inner.wait_for_termination(timeout)


@dataclass(frozen=True, slots=True)
class _CallDetails(grpc.HandlerCallDetails):
    """What generated code needs to know to find a method's handler."""

    method: str
    invocation_metadata: tuple[()] = ()


class _GuardedHandlers(grpc.GenericRpcHandler):
    """A service's handlers, each guarded once."""

    def __init__(
        self, inner: grpc.GenericRpcHandler, on_error: Callable[[Exception], None]
    ) -> None:
        self._inner = inner
        self._on_error = on_error
        self._guarded: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return a method's handler; None = another service's, or nobody's."""
        method = handler_call_details.method
        guarded = self._guarded.get(method)
        if guarded is None:
            handler = self._inner.service(handler_call_details)
            if handler is None:
                return None
            guarded = self._guarded[method] = _guard(handler, method, self._on_error)
        return guarded


def _guard(
    handler: Any, method: str, on_error: Callable[[Exception], None]
) -> grpc.RpcMethodHandler[Any, Any]:
    codec = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(
            _guard_unary(handler.unary_unary, method, on_error), **codec
        )
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(
            _guard_unary(handler.stream_unary, method, on_error), **codec
        )
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(
            _guard_stream(handler.unary_stream, method, on_error), **codec
        )
    return grpc.stream_stream_rpc_method_handler(
        _guard_stream(handler.stream_stream, method, on_error), **codec
    )


def _guard_unary(
    inner: Callable[[Any, Any], Awaitable[Any]], method: str, on_error: Callable[[Exception], None]
) -> Any:
    async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except Exception as error:  # noqa: BLE001 - the one place that answers for everything
            await _answer(error, context, method, on_error)

    return guarded


def _guard_stream(
    inner: Callable[[Any, Any], Any], method: str, on_error: Callable[[Exception], None]
) -> Any:
    async def guarded(
        request: Any, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[Any]:
        try:
            answers = inner(request, context)
            if hasattr(answers, "__aiter__"):
                async for answer in answers:
                    yield answer
            else:  # a handler in the other style, which writes to the context itself
                await answers
        except Exception as error:  # noqa: BLE001 - the one place that answers for everything
            await _answer(error, context, method, on_error)

    return guarded


async def _answer(
    error: Exception,
    context: grpc.aio.ServicerContext[Any, Any],
    method: str,
    on_error: Callable[[Exception], None],
) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):  # the handler has ended the call already
        raise error
    await abort(context, fault_of(error, method, on_error))


def fault_of(error: Exception, method: str, on_error: Callable[[Exception], None]) -> Fault:
    """Return what to answer for whatever a handler raised; log and tell what it should not have."""
    if isinstance(error, Fault):
        return error
    _LOG.error("handler_failed", method=method, exc_info=error)
    on_error(error)
    return Fault(grpc.StatusCode.INTERNAL, "internal error; see the server's log")


@dataclass(frozen=True)
class RpcServer:
    """A gRPC server with health and reflection.

    Add servicers to `grpc_server`, then `serve`. The health service says NOT_SERVING for every
    service until then, and again from the moment `stop` begins.
    """

    grpc_server: GuardedServer
    health: health.aio.HealthServicer
    calls: CallServicer
    service_names: tuple[str, ...]

    async def serve(self, listen: str) -> str:
        """Bind, start, declare every service SERVING; return `host:port` as bound.

        Raises:
            OSError: the address cannot be bound.
        """
        port = bind(self.grpc_server, listen)
        await self.grpc_server.start()
        await self.set_serving(serving=True)
        return f"{listen.rpartition(':')[0]}:{port}"

    async def set_serving(self, *, serving: bool) -> None:
        """Tell the health service's callers whether to send work here."""
        status = health_pb2.HealthCheckResponse
        for name in ("", *self.service_names):
            await self.health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Declare NOT_SERVING, take no new calls, and give those in progress the grace to end."""
        await self.health.enter_graceful_shutdown()
        self.calls.stop()
        await self.grpc_server.stop(grace_s)


def bind(grpc_server: grpc.aio.Server, listen: str) -> int:
    """Bind `host:port` without TLS and return the port, chosen by the system when it was 0.

    Raises:
        OSError: the address cannot be bound.
    """
    try:
        port = grpc_server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen on {listen}")
    return port


async def server(
    service_names: Sequence[str],
    *,
    concurrent_rpcs_max: int = CONCURRENT_RPCS_MAX,
    on_error: Callable[[Exception], None] = _ignore,
) -> RpcServer:
    """Make a server for the services named in full (`doubloon.v1.WalletService`).

    `on_error` hears of whatever a handler raises that it should not, before it is answered, and may
    end the process.
    """
    grpc_server = GuardedServer(
        grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=concurrent_rpcs_max),
        on_error,
    )
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, grpc_server)
    calls = CallServicer(
        grpc_server.unary_method,
        lambda error, method: fault_of(error, method, on_error),
        concurrent_rpcs_max,
    )
    call_service_pb2_grpc.add_CallServiceServicer_to_server(calls, grpc_server)
    names = (*service_names, CALL_SERVICE)
    reflection.enable_server_reflection(
        (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), grpc_server
    )
    made = RpcServer(grpc_server, servicer, calls, names)
    await made.set_serving(serving=False)
    return made


def channel(address: str) -> grpc.aio.Channel:
    """Open a channel to another process: connects when used, and again whenever it must."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
