"""What waits in the engine's queue, and how much of a turn and of a block it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from shard_node.batch import Batch

CALL_RECORDS_MAX: Final = 256
"""Records of one short call: it must fit the room that a block has left."""

RECORDS_PER_MEMBER: Final = 3
"""Records that a member of a group or transaction makes at the most, what it adds to the heap
counted as one: itself, and two legs."""


@dataclass(slots=True)
class Work:
    """A command in the applier's queue: a batch, or a call.

    Attributes:
        command: what to do.
        count: the transfers that were admitted with it.
        records: how many records it makes at the most.
        durable: resolves when all that it recorded, and all that its answer shows, is durable.
    """

    command: Batch | Callable[[], None]
    count: int
    records: int
    durable: asyncio.Future[None]
