"""Questions to shards as operators have them: to one by its id, or to all at once."""

import asyncio

from cluster.faults import Fault
from cluster.shard_client import Method, Q, R
from cluster.shard_pool import ShardPool


class Shards:
    """Asks shards by their ids. Deadlines are in the running loop's time."""

    def __init__(self, pool: ShardPool) -> None:
        self._pool = pool

    @property
    def ids(self) -> tuple[int, ...]:
        """Every shard of the topology, ascending.

        Raises:
            Fault: UNAVAILABLE, definite: no topology is known yet.
        """
        return self._pool.topology.shards

    async def ask(self, shard_id: int, method: Method[Q, R], request: Q, deadline_s: float) -> R:
        """Ask one shard.

        Raises:
            Fault: as `ShardPool.call_located`.
        """
        return await self._pool.call_located(lambda _: shard_id, method, request, deadline_s)

    async def ask_each(
        self, method: Method[Q, R], request: Q, deadline_s: float
    ) -> dict[int, R | Fault]:
        """Ask every shard; what each answered, or why it did not, in order of shard.

        Raises:
            Fault: UNAVAILABLE, definite: no topology is known yet.
        """
        ids = self.ids

        async def ask(shard_id: int) -> R | Fault:
            try:
                return await self.ask(shard_id, method, request, deadline_s)
            except Fault as fault:
                return fault

        return dict(zip(ids, await asyncio.gather(*map(ask, ids)), strict=True))

    async def ask_all(self, method: Method[Q, R], request: Q, deadline_s: float) -> dict[int, R]:
        """Ask every shard; the answers, in order of shard. Without all answers there is none.

        Raises:
            Fault: the first that any of them met.
        """
        ids = self.ids
        asked = (self.ask(shard_id, method, request, deadline_s) for shard_id in ids)
        return dict(zip(ids, await asyncio.gather(*asked), strict=True))
