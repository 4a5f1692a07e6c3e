"""A coordinator's core in memory, in front of `MemoryShards`, on virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc

from cluster.clock import HybridClock
from cluster.faults import Fault
from cluster.packed import GROUP_RESULT, RESULT_BYTES
from cluster.topology import Topology
from coordinator.recovery import Sweeper
from coordinator.rounds import IN_PROGRESS_MAX, Rounds
from coordinator.transactions import take_apart
from tests.support.memory_shards import MemoryShards
from tests.support.transaction_shards import LoopClock, pack_member
from tests.support.virtual_time import pass_time

TOPOLOGY = Topology.even([1, 2, 3])
SEED = 7
BALANCE = 1_000
# Ample for whatever happens at all, in virtual time.
AMPLE_S = 30.0

Result = tuple[int, ...]
"""(status, reason or code, differing, repeat, index, indefinite, time, balance)."""


def accounts_of(shard_id: int, count: int) -> list[int]:
    """The first accounts that live on a shard."""
    found = (each for each in range(1, 1_000_000) if TOPOLOGY.shard_of(each) == shard_id)
    return [next(found) for _ in range(count)]


# The first accounts of each shard.
A1, A2, A3 = accounts_of(1, 8), accounts_of(2, 8), accounts_of(3, 8)


@dataclass
class Coordinator:
    """One coordinator's core.

    Attributes:
        shards: what it works on; may be shared with others.
        rounds, sweeper: its parts.
    """

    shards: MemoryShards
    rounds: Rounds
    sweeper: Sweeper

    async def execute(self, *members: bytes, timeout_s: float = AMPLE_S) -> list[Result]:
        """Run transactions; return their results."""
        items = take_apart(b"".join(members), b"")
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        results = await self.rounds.execute(items, TOPOLOGY.version, deadline_s)
        assert len(results) == len(items) * RESULT_BYTES
        return list(GROUP_RESULT.iter_unpack(results))


def coordinator(
    shards: MemoryShards, seed: int = SEED, in_progress_max: int = IN_PROGRESS_MAX
) -> Coordinator:
    """A coordinator with a clock and chance of its own."""
    rng = random.Random(seed)
    clock = HybridClock(LoopClock())
    rounds = Rounds(shards, clock, rng, rng.randbytes, in_progress_max)
    return Coordinator(shards, rounds, Sweeper(shards, clock, rng))


@asynccontextmanager
async def running(in_progress_max: int = IN_PROGRESS_MAX) -> AsyncIterator[Coordinator]:
    """A coordinator, and shards with eight open accounts each; in the end nothing is in doubt."""
    it = coordinator(open_shards(), in_progress_max=in_progress_max)
    yield it
    it.shards.before = it.shards.after = None
    await it.rounds.close(AMPLE_S)
    assert it.rounds.in_progress == 0
    await settle_doubt(it)
    it.shards.check(TOTAL)


def open_shards() -> MemoryShards:
    shards = MemoryShards(TOPOLOGY)
    shards.open([*A1, *A2, *A3], BALANCE)
    return shards


TOTAL = BALANCE * 24


async def settle_doubt(*sweepers: Coordinator) -> None:
    """Sweep, all at once and past every deadline, until nothing is in doubt."""
    for _ in range(3):
        await pass_time(10)
        await asyncio.gather(*(each.sweeper.sweep() for each in sweepers))


def transfer(number: int, source: int, destination: int, amount_minor: int = 1) -> bytes:
    """A transaction of one member."""
    return pack_member(TOPOLOGY, number, source, destination, amount_minor)


def group(number: int, *legs: tuple[int, int, int]) -> bytes:
    """A transaction of several: (source, destination, amount) of each."""
    return b"".join(
        pack_member(TOPOLOGY, number, *leg, index=index, size=len(legs))
        for index, leg in enumerate(legs)
    )


@dataclass
class Trouble:
    """A hook that fails calls that match, so many times, and counts those that do.

    Attributes:
        method: of the calls meant; "" = all.
        shard_id: of the calls meant; 0 = all.
        skip: how many of them pass first.
        times: how many of them fail after that.
        seen: how many have come.
    """

    method: str = ""
    shard_id: int = 0
    skip: int = 0
    times: int = 1
    seen: int = field(default=0, init=False)

    async def __call__(self, shard_id: int, method: str) -> None:
        if (self.method and method != self.method) or (self.shard_id not in {0, shard_id}):
            return
        self.seen += 1
        if self.skip < self.seen <= self.skip + self.times:
            raise Fault(grpc.StatusCode.UNAVAILABLE, "lost")


ALWAYS = 1_000_000


def counted(shards: MemoryShards, methods: Sequence[str]) -> list[int]:
    """How many calls of each method took effect."""
    return [sum(method == each for _, method, _ in shards.calls) for each in methods]
