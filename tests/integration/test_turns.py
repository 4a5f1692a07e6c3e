"""No turn of a shard node's event loop is long: a real log, checkpoints by a real child, full load.

A turn that is long by design is long every time. Beside a busy machine any turn may take several
times as much of the processor, so one round within the bound is enough.
"""

import asyncio
import gc
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from cluster.clock import WallClock
from cluster.membership import MemoryMembership, MemoryStore
from cluster.runtime import LoopMonitor
from doubloon.v1 import shard_service_pb2 as shard
from shard_node import startup
from shard_node.books import HOUR_US
from shard_node.collector import YoungCollector
from shard_node.currencies import Currencies
from shard_node.engine import Engine
from shard_node.ledger import KIND_SYSTEM
from shard_node.limits import Limits
from shard_node.service import ShardServicer
from shard_node.state import Checkpoint
from shard_node.status import ProcessFacts, StatusReporter
from shard_node.transactions import DEADLINE_AHEAD_MAX_US
from tests.support import eventually
from tests.support.crossing import Attempt, Move
from tests.support.crossing_service import OTHER, decisions, to_decide, to_prepare
from tests.support.engines import FLOOR_MINOR, IDENTITY, body
from tests.support.shard_service import TARGET

TURN_MAX_MS = 20.0
ROUNDS = 12
MONTH_HOURS = 720

BatchT = TypeVar("BatchT")


@asynccontextmanager
async def engine_with_accounts(
    folder: Path, limits: Limits, accounts: int
) -> AsyncIterator[Engine]:
    """Run an engine as a shard node does, with accounts 1, 2, … that may all be overdrawn."""
    lock_fd = startup.lock_folder(folder)
    writer = await startup.start_writer(folder, IDENTITY, limits, lock_fd)
    fatal: list[BaseException] = []
    engine = startup.open_engine(folder, IDENTITY, 1, limits, WallClock(), writer, fatal.append)
    await engine.start(1)
    for first in range(1, accounts + 1, 5_000):
        ids = range(first, min(first + 5_000, accounts + 1))
        await engine.open_accounts([(each, KIND_SYSTEM, FLOOR_MINOR, 0) for each in ids])
    collector = YoungCollector()
    collector.start()
    try:
        yield engine
    finally:
        collector.stop()
        await engine.stop()
        await writer.close()
        os.close(lock_fd)
    assert not fatal


class CallToThisShard:
    """A call's context, whose metadata names the shard that is called."""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return TARGET


CONTEXT = CallToThisShard()


@asynccontextmanager
async def servicer_of(engine: Engine) -> AsyncIterator[ShardServicer]:
    """Put handlers in front of an engine."""
    membership = MemoryMembership(MemoryStore())
    await membership.register_currency("GOLD", 2, "gold")
    facts = ProcessFacts("shard-1", "1.2.3", 1, 1)
    status = StatusReporter(engine, membership, facts, LoopMonitor())
    yield ShardServicer(engine, Currencies(membership), status, lambda: 1)
    await membership.close()


async def another_checkpoint(engine: Engine, before: Checkpoint) -> None:
    """Wait until a checkpoint is committed that is not this one."""
    await eventually(lambda: engine.store.state.checkpoint != before, "there is a checkpoint")


async def check_turns(
    engine: Engine,
    make: Callable[[], list[BatchT]],
    load: Callable[[list[BatchT]], Awaitable[None]],
) -> None:
    """See that a round of load, of some batches, with checkpoints in it has no long turn."""
    longest_ms = []
    for _ in range(ROUNDS):
        batches = make()
        gc.freeze()  # a node does not have in memory what all its callers are about to send
        await engine.checkpoint()
        before = engine.store.state.checkpoint
        assert before is not None
        monitor = LoopMonitor()
        monitor.start()
        await load(batches)
        # One begins in the middle of the load, and on a busy machine may end after it.
        await another_checkpoint(engine, before)
        monitor.stop()
        longest_ms.append(monitor.longest_turn_cpu_ms)
        if longest_ms[-1] < TURN_MAX_MS:
            return
    raise AssertionError(f"turns of {longest_ms} ms")


async def test_under_transfers_of_any_batch(tmp_path: Path, rng: random.Random) -> None:
    accounts = 30_000
    number = 0

    def make_batch(size: int) -> bytes:
        nonlocal number
        number += size
        return b"".join(
            body(each, *rng.sample(range(1, accounts + 1), 2))
            for each in range(number - size + 1, number + 1)
        )

    def make() -> list[bytes]:
        sizes = [rng.choice((1, 1, 10, 100, 1_000, 8_192)) for _ in range(20)]
        return [make_batch(size) for size in (*sizes, 8_192)]

    limits = Limits(accounts_max=10_000, checkpoint_rows=8_000)
    async with engine_with_accounts(tmp_path, limits, accounts) as engine:

        async def caller(batches: list[bytes]) -> None:
            while batches:
                await engine.execute(batches.pop(), b"")
                await engine.settle_account(rng.randrange(1, accounts + 1))

        async def load(batches: list[bytes]) -> None:
            await asyncio.gather(*(caller(batches) for _ in range(8)))

        await check_turns(engine, make, load)


async def test_while_months_are_imported(tmp_path: Path) -> None:
    """Between two checkpoints every account ends hundreds of periods, one an hour."""
    players, batch = 200, 8_000
    batches = 20
    number = 0
    start_us = time.time_ns() // 1_000 - ROUNDS * MONTH_HOURS * HOUR_US
    step_us = MONTH_HOURS * HOUR_US // (batches * batch)

    def make_batch() -> bytes:
        nonlocal number
        number += batch
        return b"".join(
            body(each, 1, 2 + each % players, import_us=start_us + each * step_us)
            for each in range(number - batch + 1, number + 1)
        )

    limits = Limits(checkpoint_rows=60_000)
    async with engine_with_accounts(tmp_path, limits, players + 1) as engine:

        async def load(batches: list[bytes]) -> None:
            in_flight = asyncio.Semaphore(4)

            async def send(bodies: bytes) -> None:
                async with in_flight:  # taken in order, so the times ascend
                    await engine.execute(bodies, b"")

            await asyncio.gather(*(send(bodies) for bodies in batches))

        await check_turns(engine, lambda: [make_batch() for _ in range(batches)], load)


async def test_while_all_transfers_cross(tmp_path: Path, rng: random.Random) -> None:
    """Tens of thousands are in doubt or not finished, and are listed all the time."""
    own, batch, batches = range(1_000, 2_000), 2_000, 6
    numbers = itertools.count(1)

    def make_batch(engine: Engine, *, incoming: bool) -> list[Attempt]:
        # All that a shard takes, since it is made long before it is sent.
        deadline_us = engine.clock_us + DEADLINE_AHEAD_MAX_US
        accounts = [
            (OTHER, each) if incoming else (each, OTHER) for each in rng.choices(own, k=batch)
        ]
        return [
            Attempt(number, deadline_us, (Move(source, destination, 1),), number)
            for number, (source, destination) in zip(numbers, accounts, strict=False)
        ]

    limits = Limits(checkpoint_rows=8_000)
    async with (
        engine_with_accounts(tmp_path, limits, own.stop) as engine,
        servicer_of(engine) as servicer,
    ):

        def make() -> list[tuple[shard.PrepareRequest, bytes, shard.CommitHomeRequest]]:
            made = []
            for _ in range(batches):
                incoming, outgoing = (make_batch(engine, incoming=each) for each in (True, False))
                decided = decisions(*incoming, time_us=engine.clock_us)
                made.append((to_prepare(*incoming), decided, to_decide(*outgoing)))
            return made

        async def listed() -> None:
            request = shard.ListTransactionsRequest(limit=1_000)
            assert (await servicer.ListTransactions(request, CONTEXT)).transactions

        async def one(
            prepare: shard.PrepareRequest, decided: bytes, decide: shard.CommitHomeRequest
        ) -> None:
            await servicer.Prepare(prepare, CONTEXT)
            await servicer.CommitHome(decide, CONTEXT)  # never finished
            await listed()
            await servicer.CommitPrepared(shard.CommitPreparedRequest(decisions=decided), CONTEXT)
            await listed()

        async def load(
            made: list[tuple[shard.PrepareRequest, bytes, shard.CommitHomeRequest]],
        ) -> None:
            for at in range(0, len(made), 2):
                await asyncio.gather(*(one(*each) for each in made[at : at + 2]))

        await check_turns(engine, make, load)
        assert len(engine.ledger.transactions.decided) >= batch * batches
