"""Asks a shard again for what only something in doubt stood in the way of.

Where money is reserved by a transaction that is being decided, a shard neither executes nor refuses
a transfer that depends on it: a refusal would be recorded for ever, and the reservation is gone in
a moment. It answers that item with a definite fault, UNAVAILABLE, and nothing has happened. So the
same bytes are sent again, after a short random pause, until there is an answer or the deadline has
come. Nearly every batch has no such item, and costs a look at its status bytes.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cluster.faults import Fault
from cluster.packed import BODY_BYTES, GROUP_RESULT, RESULT_BYTES
from cluster.shard_pool import remaining_s
from doubloon.v1 import types_pb2
from router.results import has_faults

# A transaction is decided within some syncs, that is in milliseconds; while a coordinator has died
# in the middle of one it takes seconds, and asking ten times a second costs the shard nothing.
PAUSE_FIRST_S: Final = 0.004
PAUSE_MAX_S: Final = 0.1

_METADATA_LENGTH: Final = slice(58, 60)
_GROUP_SIZE: Final = 62
_BUSY: Final = bytes((types_pb2.TRANSFER_STATUS_FAULT, types_pb2.FAULT_CODE_UNAVAILABLE))

Ask = Callable[[bytes, bytes, int], Awaitable[bytes]]
"""(bodies, metadata, number of items) → packed results; raises Fault."""


@dataclass(frozen=True, slots=True)
class Item:
    """A transfer or a group: its bodies and their metadata."""

    bodies: bytes
    metadata: bytes


def items_of(bodies: bytes, metadata: bytes) -> Iterator[Item]:
    """Cut packed transfers or groups apart."""
    at = metadata_at = 0
    while at < len(bodies):
        size = bodies[at + _GROUP_SIZE] or 1
        own = bodies[at : at + size * BODY_BYTES]
        length = sum(
            int.from_bytes(own[start:][_METADATA_LENGTH], "little")
            for start in range(0, len(own), BODY_BYTES)
        )
        yield Item(own, metadata[metadata_at : metadata_at + length])
        at += len(own)
        metadata_at += length


def busy_items(results: bytes) -> list[int]:
    """Return the indices of the items that something in doubt stood in the way of."""
    if not has_faults(results):
        return []
    return [
        at // RESULT_BYTES
        for at in range(0, len(results), RESULT_BYTES)
        if results[at : at + 2] == _BUSY and not results[at + 5]
    ]


async def execute_patiently(
    ask: Ask, bodies: bytes, metadata: bytes, items: int, deadline_s: float, rng: random.Random
) -> bytes:
    """Have a shard execute transfers or groups; return their packed results.

    Args:
        ask: asks the shard, as often as it takes to reach it.
        bodies: of the items, a group's one after the other.
        metadata: theirs.
        items: how many.
        deadline_s: in the running loop's time; what is still busy then keeps its fault.
        rng: for the jitter of the pauses.

    Raises:
        Fault: the first answer's. One that comes later becomes the answer of the items asked for.
    """
    results = await ask(bodies, metadata, items)
    busy = busy_items(results)
    if not busy:
        return results
    settled = bytearray(results)
    apart = list(items_of(bodies, metadata))
    pause_s = PAUSE_FIRST_S
    while busy:
        nap_s = pause_s * rng.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, PAUSE_MAX_S)
        if remaining_s(deadline_s) <= nap_s:
            break
        await asyncio.sleep(nap_s)
        again = [apart[index] for index in busy]
        try:
            answer = await ask(
                b"".join([item.bodies for item in again]),
                b"".join([item.metadata for item in again]),
                len(again),
            )
        except Fault as fault:
            # Definite: nothing happened, as these items' answers say already.
            answer = _packed(fault) * len(again) if fault.indefinite else b""
        if not answer:
            break
        for index, start in zip(busy, range(0, len(answer), RESULT_BYTES), strict=True):
            at = index * RESULT_BYTES
            settled[at : at + RESULT_BYTES] = answer[start : start + RESULT_BYTES]
        busy = [busy[place] for place in busy_items(answer)]
    return bytes(settled)


def _packed(fault: Fault) -> bytes:
    """Return an indefinite fault as a packed result."""
    code = fault.to_message().code
    return GROUP_RESULT.pack(types_pb2.TRANSFER_STATUS_FAULT, code, 0, 0, 0, 1, 0, 0)
