"""The wire between processes: calls that arrive late, twice, or not at all, and answers that do.

A call goes over a connection, as gRPC's do: while there is none, nothing has been sent and the
fault is definite; once there is one, whatever is lost leaves the caller in doubt. Messages are
bytes on the way. A handler runs as a task of the process that serves it, and is cancelled when its
caller gives up, or goes away. Who is cut off from whom is by name and one way.
"""

from __future__ import annotations

import asyncio
import contextvars
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import grpc

from cluster.faults import Fault
from cluster.rpc import FAULT_KEY, SHARD_KEY, TOPOLOGY_VERSION_KEY
from cluster.shard_client import (
    ABORT_PREPARED,
    COMMIT_HOME,
    COMMIT_PREPARED,
    FINISH,
    PREPARE,
    RESOLVE,
)
from doubloon.v1 import admin_service_pb2, shard_service_pb2, types_pb2, wallet_service_pb2
from doubloon.v1 import coordinator_service_pb2 as coordinator
from tests.whole_cluster.loop import LIFE, Died, Life, check_alive

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from cluster.shard_client import Method, Q, R
    from tests.whole_cluster.world import Process, World

LATENCY_S: Final = 0.0001, 0.001
"""One way in a good network, at the least and at the most."""

CONNECT_S: Final = 1.0
"""How long an attempt to connect takes to fail when nothing comes back (`RECONNECT_MAX_MS`)."""

RESPONSES: Final[dict[str, Any]] = {
    name.removesuffix("Response"): message
    for module in (wallet_service_pb2, admin_service_pb2, shard_service_pb2)
    for name, message in vars(module).items()
    if name.endswith("Response")
}
"""By the method's name."""

DOUBLED: Final = frozenset(
    each.name for each in (PREPARE, COMMIT_HOME, COMMIT_PREPARED, ABORT_PREPARED, RESOLVE, FINISH)
)
"""What must bear being done again by somebody who was thought dead. Of anything else a definite
fault says that nothing will happen, which is true of gRPC: it sends nothing twice."""

Metadata = tuple[tuple[str, str], ...]


@dataclass
class NetworkFaults:
    """How bad the network is, in chances.

    Attributes:
        lost: of each message, to be lost, and of the connection with it half the time.
        doubled: of each message of two-phase commit, to arrive twice, as when somebody hangs who
            has sent it before.
        late: of each message, to take up to `late_max_s`.
        late_max_s: how long that may be.
        cut: pairs (from, to) of process names between which nothing passes.
    """

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    late_max_s: float = 0.0
    cut: set[tuple[str, str]] = field(default_factory=set)


class Context:
    """What a handler is told of its call."""

    def __init__(self, deadline_s: float, metadata: Metadata) -> None:
        self._deadline_s = deadline_s
        self._metadata = metadata

    def time_remaining(self) -> float | None:
        return self._deadline_s - asyncio.get_running_loop().time()

    def invocation_metadata(self) -> Metadata:
        return self._metadata


@dataclass(eq=False)
class Endpoint:
    """A process that listens.

    Attributes:
        process: whose.
        life: in which it listens; when that is over, so is this.
        handlers: by the method's name.
        guard: is given each call's context when it arrives, and returns what is to be called
            when it is answered without a fault.
        in_progress: calls that it has not answered.
    """

    process: Process
    life: Life
    handlers: dict[str, Callable[[Any, Any], Any]]
    guard: Callable[[Context], Callable[[], None]] | None = None
    in_progress: dict[Call, None] = field(default_factory=dict)


@dataclass(eq=False)
class Call:
    """A call on its way.

    Attributes:
        name: in the trace.
        sender: who made it.
        method: its name.
        request: parses its bytes anew.
        context: of it.
        answer: what the caller waits for.
        endpoint, task: who serves it, once it has arrived.
    """

    name: str
    sender: Process
    method: str
    request: Callable[[], Any]
    context: Context
    answer: asyncio.Future[Any]
    endpoint: Endpoint | None = None
    task: asyncio.Task[None] | None = None


class Network:
    """All of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.faults = NetworkFaults()
        self.endpoints: dict[str, Endpoint] = {}
        self._connections: dict[tuple[Life | None, str], Endpoint] = {}

    # --- serving --------------------------------------------------------------------------------

    def listen(
        self,
        process: Process,
        address: str,
        servicers: tuple[object, ...],
        guard: Callable[[Context], Callable[[], None]] | None = None,
    ) -> Endpoint:
        """Serves all handlers of some servicers at an address until the process ends."""
        assert address not in self.endpoints, f"somebody listens at {address}"
        handlers = {
            name: getattr(servicer, name)
            for servicer in servicers
            for name in dir(servicer)
            if name[0].isupper()
        }
        endpoint = Endpoint(process, process.life, handlers, guard)
        self.endpoints[address] = endpoint
        process.life.at_end.append(lambda: self.close(address, endpoint))
        return endpoint

    def close(self, address: str, endpoint: Endpoint) -> None:
        """Nobody listens any more: who waits hears that the connection is gone, most often."""
        if self.endpoints.get(address) is not endpoint:
            return
        del self.endpoints[address]
        for call in list(endpoint.in_progress):
            self._answer(call, _gone("connection lost"), endpoint.process.name)
        endpoint.in_progress.clear()

    # --- calling --------------------------------------------------------------------------------

    async def call(
        self,
        sender: Process,
        address: str,
        method: str,
        request: Message,
        timeout_s: float,
        metadata: Metadata = (),
        calls: dict[Call, None] | None = None,
    ) -> bytes:
        """Makes one call; as `PeerChannel.call`. Returns the response's bytes.

        Args:
            sender: who calls.
            address: whom.
            method, request, timeout_s, metadata: of the call.
            calls: has the call in it while it is in progress, for who may want to give it up.

        Raises:
            Fault: see there.
        """
        check_alive()
        loop = self.world.loop
        deadline_s = loop.time() + timeout_s
        endpoint = await self._connect(sender, address, deadline_s)
        name = f"{sender.name} {method} {endpoint.process.name}"
        parse = partial(type(request).FromString, request.SerializeToString())
        context = Context(deadline_s, metadata)
        call = Call(name, sender, method, parse, context, loop.create_future())
        self.world.counts["calls"] += 1
        self._send(call, address, endpoint.process.name, is_copy=False)
        if method in DOUBLED and self.world.chance(self.faults.doubled):
            self._send(call, address, endpoint.process.name, is_copy=True)
        limit = loop.call_at(deadline_s, self._time_out, call, context=self.world.context)
        if calls is not None:
            calls[call] = None
        try:
            outcome = await call.answer
        finally:
            limit.cancel()
            if calls is not None:
                del calls[call]
            if call.answer.cancelled():  # the caller was
                self._give_up(call)
        if isinstance(outcome, bytes):
            return outcome
        raise Fault.from_message(outcome)

    def give_up(self, call: Call) -> None:
        """Ends a call before it is answered."""
        if not call.answer.done():
            call.answer.set_result(_gone("the connection was given up"))
            self._give_up(call)

    async def _connect(self, sender: Process, address: str, deadline_s: float) -> Endpoint:
        """Returns who is there once the connection stands."""
        key = (LIFE.get(), address)
        there = self.endpoints.get(address)
        known = self._connections.get(key)
        if known is not None and known is there:
            return known
        await asyncio.sleep(self._latency_s() + self._latency_s())
        there = self.endpoints.get(address)
        if there is None:
            self._connections.pop(key, None)
            raise Fault(grpc.StatusCode.UNAVAILABLE, f"no connection: {address}", indefinite=False)
        us, them = sender.name, there.process.name
        if self.faults.cut and ((us, them) in self.faults.cut or (them, us) in self.faults.cut):
            left_s = deadline_s - self.world.loop.time()
            await asyncio.sleep(max(0.0, min(CONNECT_S, left_s)))
            raise Fault(grpc.StatusCode.UNAVAILABLE, f"no connection: {address}", indefinite=False)
        self._connections[key] = there
        return there

    def _send(self, call: Call, address: str, to: str, *, is_copy: bool) -> None:
        """Sends a request on its way."""
        world, faults = self.world, self.faults
        if (call.sender.name, to) in faults.cut:
            return
        if not is_copy and world.chance(faults.lost):
            world.note(f"lost {call.name}")
            world.counts["messages lost"] += 1
            if world.chance(0.5):
                self._answer(call, _gone("connection lost"), to)
            return
        delay_s = self._latency_s()
        if is_copy:
            world.counts["requests doubled"] += 1
            delay_s += world.rng.uniform(0.0, max(faults.late_max_s, LATENCY_S[1]))
        world.after(delay_s, self._arrive, call, address, is_copy)

    def _arrive(self, call: Call, address: str, is_copy: bool) -> None:  # noqa: FBT001 - a timer's argument
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            self._answer(call, _gone("connection lost"), address)
            return
        handler = endpoint.handlers.get(call.method)
        self.world.note(f"-> {call.name}{' again' if is_copy else ''}")
        if handler is None:
            fault = Fault(grpc.StatusCode.UNIMPLEMENTED, f"no {call.method}", indefinite=False)
            self._answer(call, fault.to_message(), endpoint.process.name)
            return
        context = contextvars.Context()
        context.run(LIFE.set, endpoint.life)
        serving = self._serve(call, endpoint, handler, is_copy=is_copy)
        task = self.world.loop.create_task(serving, context=context)
        if is_copy:
            return
        call.endpoint, call.task = endpoint, task
        endpoint.in_progress[call] = None
        if call.answer.done():  # it was given up before it came; word of that follows
            self._give_up(call)

    async def _serve(self, call: Call, endpoint: Endpoint, handler: Any, *, is_copy: bool) -> None:
        """What a server does with a call; runs in its process."""
        outcome: bytes | types_pb2.Fault
        check = endpoint.guard(call.context) if endpoint.guard else None
        try:
            response = await handler(call.request(), call.context)
            outcome = response.SerializeToString()
            if check is not None:
                check()
        except Fault as fault:
            outcome = fault.to_message()
        except (asyncio.CancelledError, Died):
            raise
        except Exception as error:  # noqa: BLE001 - no handler may fail so
            error.add_note(f"in {call.name}")
            self.world.violated(error)
            return
        finally:
            if not is_copy:
                endpoint.in_progress.pop(call, None)
        check_alive()
        if not is_copy:
            self._answer(call, outcome, endpoint.process.name)

    def _answer(self, call: Call, outcome: bytes | types_pb2.Fault, of: str) -> None:
        """Sends an answer on its way."""
        world = self.world
        if (of, call.sender.name) in self.faults.cut:
            return
        if world.chance(self.faults.lost):
            world.note(f"lost answer {call.name}")
            world.counts["answers lost"] += 1
            if world.chance(0.5):
                return
            outcome = _gone("connection lost")
        world.after(self._latency_s(), self._hear, call, outcome)

    def _hear(self, call: Call, outcome: bytes | types_pb2.Fault) -> None:
        if not call.answer.done():
            self.world.note(f"<- {call.name}")
            call.answer.set_result(outcome)

    def _time_out(self, call: Call) -> None:
        if not call.answer.done():
            self.world.note(f"too late {call.name}")
            fault = Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
            call.answer.set_result(fault.to_message())
            self._give_up(call)

    def _give_up(self, call: Call) -> None:
        """Tells the server, if that can be, that nobody waits any more."""
        if call.task is not None and call.endpoint is not None:
            if (call.sender.name, call.endpoint.process.name) in self.faults.cut:
                return
            self.world.after(self._latency_s(), self._cancel, call)

    def _cancel(self, call: Call) -> None:
        if call.task is not None and call.endpoint is not None and not call.endpoint.life.is_over:
            call.task.cancel()

    def _latency_s(self) -> float:
        world, faults = self.world, self.faults
        low_s, high_s = LATENCY_S
        if world.chance(faults.late):
            high_s = world.rng.choice((0.02, faults.late_max_s))
        return world.rng.uniform(low_s, max(low_s, high_s))


def _gone(why: str) -> types_pb2.Fault:
    return Fault(grpc.StatusCode.UNAVAILABLE, why, indefinite=True).to_message()


class _Closable:
    """A client that can be closed: its calls then fail, indefinite."""

    def __init__(self, network: Network, owner: Process, address: str) -> None:
        self._network = network
        self._owner = owner
        self._address = address
        self._is_closed = False
        self._calls: dict[Call, None] = {}

    async def _ask(
        self, method: str, request: Message, timeout_s: float, metadata: Metadata
    ) -> bytes:
        if self._is_closed:
            why = "the connection was given up"
            raise Fault(grpc.StatusCode.UNAVAILABLE, why, indefinite=False)
        return await self._network.call(
            self._owner, self._address, method, request, timeout_s, metadata, self._calls
        )

    async def close(self, grace_s: float) -> None:
        """See `ShardClient`."""
        self._is_closed = True
        if self._calls:
            await asyncio.sleep(grace_s)
        for call in list(self._calls):
            self._network.give_up(call)


class SimShardClient(_Closable):
    """A `ShardClient`."""

    def __init__(self, network: Network, owner: Process, shard_id: int, address: str) -> None:
        super().__init__(network, owner, address)
        self._shard = str(shard_id)

    async def call(
        self, method: Method[Q, R], request: Q, topology_version: int, timeout_s: float
    ) -> R:
        """See `ShardClient`."""
        metadata = ((SHARD_KEY, self._shard), (TOPOLOGY_VERSION_KEY, str(topology_version)))
        answer = await self._ask(method.name, request, timeout_s, metadata)
        response: R = RESPONSES[method.name].FromString(answer)
        return response


class SimCoordinatorClient(_Closable):
    """A `CoordinatorClient`."""

    async def execute(
        self,
        request: coordinator.ExecuteTransactionsRequest,
        topology_version: int,
        timeout_s: float,
    ) -> coordinator.ExecuteTransactionsResponse:
        """See `CoordinatorClient`."""
        metadata = ((TOPOLOGY_VERSION_KEY, str(topology_version)),)
        answer = await self._ask("ExecuteTransactions", request, timeout_s, metadata)
        return coordinator.ExecuteTransactionsResponse.FromString(answer)


class SimChannel:
    """What the SDK takes for a channel to a router."""

    def __init__(self, network: Network, owner: Process, address: str) -> None:
        self._network = network
        self._owner = owner
        self._address = address

    def unary_unary(
        self,
        path: str,
        request_serializer: object,
        response_deserializer: Callable[[bytes], Any],
        _registered_method: object = None,
    ) -> Callable[..., Any]:
        """A method of a stub."""
        del request_serializer, _registered_method
        method = path.rpartition("/")[2]

        async def ask(request: Message, timeout: float | None) -> Any:  # noqa: ASYNC109 - gRPC's word
            try:
                answer = await self._network.call(
                    self._owner, self._address, method, request, timeout or CONNECT_S
                )
            except Fault as fault:
                detail = (FAULT_KEY, fault.to_message().SerializeToString())
                raise grpc.aio.AioRpcError(
                    fault.code, grpc.aio.Metadata(), grpc.aio.Metadata(detail), fault.message
                ) from fault
            return response_deserializer(answer)

        return ask

    def stream_stream(self, *_: object, **__: object) -> None:
        """Streams are not simulated."""

    async def close(self) -> None:
        """Nothing is held."""
