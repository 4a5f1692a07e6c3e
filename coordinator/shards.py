"""How a coordinator reaches shards: the seam between what it does and the network."""

from typing import Protocol

from cluster.shard_client import Method, Q, R
from cluster.topology import Topology


class Shards(Protocol):
    """How shards are reached; `cluster.shard_pool.ShardPool` is the real one."""

    @property
    def topology(self) -> Topology:
        """The last known topology. Raises Fault when there is none."""
        ...

    async def call(
        self,
        shard_id: int,
        method: Method[Q, R],
        request: Q,
        topology_version: int,
        deadline_s: float,
    ) -> R:
        """Ask a shard, again while it is unavailable, until the deadline. Raises Fault."""
        ...
