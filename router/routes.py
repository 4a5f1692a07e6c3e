"""The ways on which packed transfers and groups leave the router.

What is for one shard alone goes to it, again while something in doubt stands in its way; what
crosses goes to whichever coordinator is there, which does that by itself. On every way concurrent
calls are gathered.
"""

import asyncio
import random
from typing import Final

from cluster.packed import GROUPS_MAX
from cluster.shard_client import EXECUTE_GROUPS, EXECUTE_TRANSFERS
from cluster.shard_pool import ShardPool
from doubloon.v1 import shard_service_pb2 as shard
from router.busy import execute_patiently
from router.coordinators import CoordinatorPool
from router.lanes import CALLS_IN_FLIGHT_MAX, QUEUED_TRANSFERS_MAX, Lanes, crossing_lanes
from router.results import with_doubt
from router.routing import Packed

COORDINATORS: Final = 0
"""Stands for the coordinators where a shard id is asked for; shard ids begin at 1."""


class Routes:
    """Every way there is. Deadlines are in the running loop's time.

    Args:
        pool: reaches shards.
        coordinators: reaches coordinators.
        rng: for the jitter of asking again.
        calls_max: calls in flight to each shard.
        queued_max: transfers that wait for each shard, or for each set of shards.
    """

    def __init__(
        self,
        pool: ShardPool,
        coordinators: CoordinatorPool,
        rng: random.Random,
        calls_max: int = CALLS_IN_FLIGHT_MAX,
        queued_max: int = QUEUED_TRANSFERS_MAX,
    ) -> None:
        self._pool = pool
        self._rng = rng
        self._transfers = Lanes(self._send_transfers, calls_max, queued_max)
        self._groups = Lanes(self._send_groups, calls_max, queued_max, items_max=GROUPS_MAX)
        self._crossing = crossing_lanes(coordinators.execute, queued_max)

    async def transfers(
        self, shard_id: int, packed: Packed, topology_version: int, deadline_s: float
    ) -> bytes:
        """Have a shard, or the coordinators, execute transfers; return their packed results.

        Raises:
            Fault: that of all of them.
        """
        if shard_id == COORDINATORS:
            return await self._cross(packed, topology_version, deadline_s)
        return await self._patiently(
            self._transfers, shard_id, packed, topology_version, deadline_s
        )

    async def groups(
        self, shard_id: int, packed: Packed, topology_version: int, deadline_s: float
    ) -> bytes:
        """Have a shard, or the coordinators, execute groups; return their packed results.

        Raises:
            Fault: that of all of them.
        """
        if shard_id == COORDINATORS:
            return await self._cross(packed, topology_version, deadline_s)
        return await self._patiently(self._groups, shard_id, packed, topology_version, deadline_s)

    async def close(self, grace_s: float) -> None:
        """Let the calls in flight end for so long, whether or not anybody waits; end the rest."""
        ways = (self._transfers, self._groups, self._crossing)
        await asyncio.gather(*(lanes.close(grace_s) for lanes in ways))

    async def _patiently(
        self,
        lanes: Lanes[int],
        shard_id: int,
        packed: Packed,
        topology_version: int,
        deadline_s: float,
    ) -> bytes:
        async def ask(bodies: bytes, metadata: bytes, items: int) -> bytes:
            return await lanes.execute(
                shard_id, bodies, metadata, items, topology_version, deadline_s
            )

        items = len(packed.positions)
        return await execute_patiently(
            ask, packed.records, packed.metadata, items, deadline_s, self._rng
        )

    async def _cross(self, packed: Packed, topology_version: int, deadline_s: float) -> bytes:
        return await self._crossing.execute(
            packed.shards,
            packed.records,
            packed.metadata,
            len(packed.positions),
            topology_version,
            deadline_s,
        )

    async def _send_transfers(
        self,
        shard_id: int,
        bodies: bytes,
        metadata: bytes,
        topology_version: int,
        deadline_s: float,
    ) -> bytes:
        request = shard.ExecuteTransfersRequest(bodies=bodies, metadata=metadata)
        response = await self._pool.call(
            shard_id, EXECUTE_TRANSFERS, request, topology_version, deadline_s, _transfers_in_doubt
        )
        return response.results

    async def _send_groups(
        self,
        shard_id: int,
        bodies: bytes,
        metadata: bytes,
        topology_version: int,
        deadline_s: float,
    ) -> bytes:
        request = shard.ExecuteGroupsRequest(bodies=bodies, metadata=metadata)
        response = await self._pool.call(
            shard_id, EXECUTE_GROUPS, request, topology_version, deadline_s, _groups_in_doubt
        )
        return response.results


# What stands in an item's way when it is asked for again did not, perhaps, when it was asked for
# first: that call may still be on its way to the shard.


def _transfers_in_doubt(
    response: shard.ExecuteTransfersResponse,
) -> shard.ExecuteTransfersResponse:
    return shard.ExecuteTransfersResponse(results=with_doubt(response.results))


def _groups_in_doubt(response: shard.ExecuteGroupsResponse) -> shard.ExecuteGroupsResponse:
    return shard.ExecuteGroupsResponse(results=with_doubt(response.results))
