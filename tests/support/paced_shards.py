"""Shards in memory that need their time, and go on with what nobody waits for any more."""

import asyncio
from typing import Any, Final

from cluster.clock import HybridClock
from cluster.packed import DECISION, HEADER
from cluster.shard_client import Method, Q, R
from cluster.topology import Topology
from tests.support.memory_shards import MemoryShards
from tests.support.transaction_shards import LoopClock, TransactionShard

# What is counted of a message. FINISH is next to nothing.
_COUNTED: Final = {
    "Prepare": ("headers", HEADER.size),
    "CommitHome": ("headers", HEADER.size),
    "CommitPrepared": ("decisions", DECISION.size),
    "AbortPrepared": ("transactions", DECISION.size),
}


class AmpleShard(TransactionShard):
    """A shard whose accounts have so much that what is prepared stands in nobody's way."""

    def _range(self, account: int) -> tuple[int, int]:
        return self.balances[account], self.balances[account]


class PacedShards(MemoryShards):
    """Shards that take up messages one after the other, each in its time.

    Attributes:
        step_s: for each transaction in a message, by shard. Two of its steps are the participant's,
            so that 1 / (2 × step) transactions a second is the capacity of one route by itself.
    """

    def __init__(self, topology: Topology, step_s: float) -> None:
        super().__init__(topology)
        self.step_s = dict.fromkeys(topology.shards, step_s)
        self._free_at_s = dict.fromkeys(topology.shards, 0.0)
        self._work: set[asyncio.Future[Any]] = set()
        for shard_id in topology.shards:
            self.shards[shard_id] = AmpleShard(shard_id, HybridClock(LoopClock()))

    async def _call(
        self, shard_id: int, method: Method[Q, R], request: Q, topology_version: int
    ) -> R:
        field, size = _COUNTED.get(method.name, ("", 1))
        count = len(getattr(request, field)) // size if field else 0
        now_s = asyncio.get_running_loop().time()
        free_at_s = max(self._free_at_s[shard_id], now_s) + count * self.step_s[shard_id]
        self._free_at_s[shard_id] = free_at_s

        async def work() -> R:
            await asyncio.sleep(free_at_s - now_s)
            return await super(PacedShards, self)._call(shard_id, method, request, topology_version)

        working = asyncio.ensure_future(work())
        self._work.add(working)
        working.add_done_callback(self._work.discard)
        # Like a process elsewhere, it does not hear that its caller has given up.
        return await asyncio.shield(working)

    @property
    def committed(self) -> int:
        """How many transactions have been committed."""
        return sum(
            bool(known.decided_us) for each in self.shards.values() for known in each.keys.values()
        )
