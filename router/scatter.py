"""Sends the parts of a batch to their shards all at once, and once more what met another topology.

What crosses is a part like any other, for the coordinators. A shard's trouble is its own: the items
of other parts are answered as if nothing had happened.
When a shard node turns out to have another topology, the items concerned are taken apart anew under
the newer one and sent once more; all others keep the answers they have.
"""

# Else the annotations of the inner `ask` would be evaluated for every batch, which costs a tenth of
# all that the router itself does for a single transfer.
from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from cluster.faults import Fault
from cluster.shard_pool import ShardPool, as_indefinite, is_stale

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from doubloon.v1 import types_pb2

P = TypeVar("P")
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Part(Generic[P]):
    """What of a batch is for one shard.

    Attributes:
        positions: where the items stand in the request, ascending.
        payload: the items, as the shard is to get them, in that order.
    """

    positions: list[int]
    payload: P


@dataclass(frozen=True, slots=True)
class Parts(Generic[P]):
    """A batch taken apart by shard under one topology."""

    topology_version: int
    by_shard: Mapping[int, Part[P]]


class Batch(Protocol[P, A]):
    """A batch that collects one outcome for each of its items."""

    async def take_apart(self, positions: Sequence[int]) -> Parts[P]:
        """Sort the items at these positions by shard; write the outcome of those that need none.

        Args:
            positions: ascending.

        Raises:
            Fault: definite: there is no topology.
        """
        ...

    async def ask(
        self, shard_id: int, part: Part[P], topology_version: int, deadline_s: float
    ) -> A:
        """Have one shard execute its part.

        Raises:
            Fault: that of all of the part's items.
        """
        ...

    def write(self, part: Part[P], answer: A) -> None:
        """Write the outcomes of a part."""
        ...

    def write_fault(self, position: int, fault: types_pb2.Fault) -> None:
        """Write the outcome of one item."""
        ...


async def scatter(batch: Batch[P, A], count: int, pool: ShardPool, deadline_s: float) -> None:
    """Have the shards execute a batch of `count` items; afterwards each has its outcome.

    Args:
        batch: see there.
        count: of its items, at least 1.
        pool: refreshes the topology.
        deadline_s: in the running loop's time.

    Raises:
        Fault: definite: no shard attempted any of the items.
    """

    async def ask(shard_id: int, part: Part[P], topology_version: int) -> A | Fault:
        try:
            return await batch.ask(shard_id, part, topology_version, deadline_s)
        except Fault as fault:
            return fault

    positions: Sequence[int] = range(count)
    earlier: Fault | None = None
    not_attempted, not_attempted_count = None, 0
    for is_last in (False, True):
        maybe_done = earlier is not None and earlier.indefinite
        parts = await batch.take_apart(positions)
        version = parts.topology_version
        asked = [ask(shard_id, part, version) for shard_id, part in parts.by_shard.items()]
        # Most batches are of one transfer, for which a task would cost as much as all the rest.
        answers = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked)
        stale: list[int] = []
        for part, answer in zip(parts.by_shard.values(), answers, strict=True):
            if not isinstance(answer, Fault):
                batch.write(part, answer)
            elif not is_last and is_stale(answer, version):
                stale += part.positions
                earlier = answer if earlier is None else _both(earlier, answer)
            else:
                fault = as_indefinite(answer) if maybe_done else answer
                for position in part.positions:
                    batch.write_fault(position, item_fault(fault, position))
                if not fault.indefinite:
                    not_attempted = not_attempted or fault
                    not_attempted_count += len(part.positions)
        if not stale or earlier is None:
            break
        await pool.refresh(earlier, deadline_s)
        positions = sorted(stale)
    if not_attempted is not None and not_attempted_count == count:
        raise not_attempted


def _both(one: Fault, other: Fault) -> Fault:
    """Return one fault for two: the newest topology told of, indefinite when either is."""
    newest = max(one, other, key=lambda fault: fault.topology_version)
    return as_indefinite(newest) if one.indefinite or other.indefinite else newest


def item_fault(fault: Fault, index: int) -> types_pb2.Fault:
    """Return a fault of many items as that of one. Field and version are none of the client's."""
    return Fault(fault.code, fault.message, "", index, indefinite=fault.indefinite).to_message()
