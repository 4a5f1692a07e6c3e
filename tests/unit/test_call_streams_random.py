"""Both halves of call streams under random faults, on virtual time: no call is told wrong."""

import asyncio
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import pytest

from cluster import call_streams, rpc
from cluster.call_streams import CallServicer, UnaryMethod
from cluster.faults import Fault
from doubloon import call_stream
from doubloon.call_stream import StreamedChannel
from tests.support.stream_wire import SLOW_S, Host, WireChannel, error_of
from tests.support.virtual_time import VirtualTimeLoop

WORLDS: Final = int(os.environ.get("DOUBLOON_WORLDS", "60"))
CALLS: Final = 60
ECHO: Final = "/test/Echo"
SPAN_S: Final = 0.5
"""In so long all calls begin."""
HANDLING_MAX_S: Final = 0.03
HANGING_S: Final = 5.0
"""How long a handler takes that only a deadline, or the loss of its caller, will end."""
WORD_S: Final = 4 * SLOW_S
"""In so long word of anything has come everywhere."""
CALLS_PER_STREAM_MAX: Final = 4


@dataclass
class World:
    """One server, one channel to it, and what became of every call."""

    rng: random.Random
    began: Counter[int] = field(default_factory=Counter)
    faulted: set[int] = field(default_factory=set)
    ended_s: dict[int, float] = field(default_factory=dict)
    in_progress: int = 0
    most_in_progress: int = 0
    servicers: list[CallServicer] = field(default_factory=list)

    def new_servicer(self) -> CallServicer:
        method = UnaryMethod(bytes, self._echo, bytes)
        servicer = CallServicer(
            {ECHO: method}.get, lambda error, _: self._fault_of(error), calls_max=12
        )
        self.servicers.append(servicer)
        return servicer

    async def _echo(self, request: bytes, _: object) -> bytes:
        number = int.from_bytes(request[:4], "big")
        self.began[number] += 1
        self.in_progress += 1
        self.most_in_progress = max(self.most_in_progress, self.in_progress)
        hangs = self.rng.random() < 0.02
        try:
            await asyncio.sleep(HANGING_S if hangs else self.rng.uniform(0.0, HANDLING_MAX_S))
        finally:
            self.in_progress -= 1
            self.ended_s[number] = asyncio.get_running_loop().time()
        if self.rng.random() < 0.1:
            self.faulted.add(number)
            raise Fault(grpc.StatusCode.NOT_FOUND, "no such thing")
        return request[::-1]

    def _fault_of(self, error: Exception) -> Fault:
        if isinstance(error, Fault):
            return error
        raise AssertionError("no handler fails otherwise") from error

    async def own_call(self, method: str, packed: bytes, timeout_s: float | None) -> bytes:
        """What a call that goes by no stream comes to."""
        assert method == ECHO
        try:
            async with asyncio.timeout(timeout_s):
                return await self._echo(packed, None)
        except TimeoutError as error:
            raise error_of(grpc.StatusCode.DEADLINE_EXCEEDED, "too late") from error
        except Fault as fault:
            raise error_of(fault.code, fault.message) from fault


@dataclass
class Outcome:
    """How a call ended: exactly one of these, and when."""

    answer: bytes | None = None
    error: grpc.aio.AioRpcError | None = None
    was_cancelled: bool = False
    ended_s: float = 0.0
    deadline_s: float | None = None


@pytest.fixture(autouse=True)
def _small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that so few calls come up against."""
    monkeypatch.setattr(call_streams, "CALLS_PER_STREAM_MAX", CALLS_PER_STREAM_MAX)
    monkeypatch.setattr(call_streams, "STREAM_BYTES_MAX", 1_300)
    monkeypatch.setattr(call_streams, "TURN_CALLS_MAX", 2)
    monkeypatch.setattr(call_streams, "MESSAGE_BYTES_MAX", 200)
    monkeypatch.setattr(call_stream, "MESSAGE_BYTES_MAX", 200)
    monkeypatch.setattr(call_stream, "CALLS_IN_FLIGHT_MAX", CALLS_PER_STREAM_MAX)


def test_whatever_happens_every_call_is_answered_truly(rng: random.Random) -> None:
    told = Counter[str]()
    for _ in range(WORLDS):
        seed = rng.getrandbits(64)
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            try:
                runner.run(play(random.Random(seed), told))
            except BaseException as error:
                error.add_note(f"in the world of {seed}")
                raise
    rare = ("answered", "faulted", "not begun", "in doubt", "too late", "gave up", "full")
    assert all(told[each] >= WORLDS // 20 for each in rare), told


async def play(rng: random.Random, told: Counter[str]) -> None:
    world = World(rng)
    has_service = rng.random() < 0.8
    servicer = world.new_servicer() if has_service else None
    host = Host(rng, servicer, hides_status=rng.random() < 0.5)
    async with StreamedChannel(WireChannel(host, world.own_call).as_channel()) as channel:
        call = channel.unary_unary(ECHO)
        troubles = asyncio.create_task(trouble(world, host))
        outcomes = await asyncio.gather(
            *(make_call(world, call, number) for number in range(CALLS))
        )
        breaks, stops = await troubles
    await asyncio.sleep(WORD_S)
    ends = [check(world, number, outcome) for number, outcome in enumerate(outcomes)]
    told.update(ends)
    assert world.in_progress == 0
    assert [each.calls for each in world.servicers] == [0] * len(world.servicers)
    assert not host.connections
    assert asyncio.all_tasks() == {asyncio.current_task()}
    if not breaks and not (stops and host.hides_status):
        assert "in doubt" not in ends, "nothing was lost"
    if has_service and not breaks and not stops:
        assert world.most_in_progress <= CALLS_PER_STREAM_MAX
        told["full"] += world.most_in_progress == CALLS_PER_STREAM_MAX


async def trouble(world: World, host: Host) -> tuple[int, int]:
    """Break connections, and replace the server as a restart does; tell how often either."""
    rng = world.rng
    breaks, stops = rng.choice((0, rng.randrange(4))), rng.choice((0, rng.randrange(4)))
    order = [True] * breaks + [False] * stops
    rng.shuffle(order)
    for is_break in order:
        await asyncio.sleep(rng.uniform(0.0, SPAN_S / 3))
        if is_break:
            host.break_one()
        elif host.servicer is not None:
            host.servicer.stop()
            await asyncio.sleep(rng.uniform(0.0, HANDLING_MAX_S))
            host.servicer = world.new_servicer()
    return breaks, stops


async def make_call(world: World, call: Any, number: int) -> Outcome:
    rng, loop = world.rng, asyncio.get_running_loop()
    await asyncio.sleep(rng.uniform(0.0, SPAN_S))
    request = number.to_bytes(4, "big") + bytes(rng.choice((0, 10, 300)))
    timeout_s = rng.choice((None, rng.uniform(0.001, 0.2)))
    outcome = Outcome(deadline_s=None if timeout_s is None else loop.time() + timeout_s)
    asked = asyncio.ensure_future(call(request, timeout=timeout_s))
    if rng.random() < 0.1:
        loop.call_later(rng.uniform(0.0, 0.05), asked.cancel)
    try:
        outcome.answer = await asked
        assert outcome.answer == request[::-1]
    except grpc.aio.AioRpcError as error:
        outcome.error = error
    except asyncio.CancelledError:
        outcome.was_cancelled = True
    outcome.ended_s = loop.time()
    return outcome


def check(world: World, number: int, outcome: Outcome) -> str:
    """Check what a caller was told against what happened; return what it was."""
    began = world.began[number]
    assert began <= 1, "no call is made twice"
    ended_s, deadline_s = world.ended_s.get(number, 0.0), outcome.deadline_s
    if deadline_s is not None:
        assert outcome.ended_s <= deadline_s + WORD_S, "nobody waits beyond a deadline"
        assert ended_s <= deadline_s + WORD_S, "and nobody works for nothing"
    if outcome.was_cancelled:
        return "gave up"
    if outcome.error is None:
        assert began == 1
        assert number not in world.faulted
        return "answered"
    fault = rpc.fault_from_rpc_error(outcome.error)
    if fault.code is grpc.StatusCode.NOT_FOUND:
        assert number in world.faulted
        return "faulted"
    if not fault.indefinite:
        assert began == 0, f"{fault.message}, but it was"
        return "not begun"
    if fault.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "too late"
    assert fault.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}, fault
    assert ended_s <= outcome.ended_s + WORD_S, "its caller was lost"
    return "in doubt"
