"""Gathers what is on its way to each shard into few, large calls.

Every shard has a lane. A lane keeps a few large calls in flight, but only one small one; what
arrives meanwhile waits in its queue and goes with the next call, up to a full batch. There is no
timer: a lone transfer leaves at once, and under load the calls grow by themselves until they are as
large as the load asks for.

A caller hands over a *parcel* (packed transfers of one shard under one topology version) and gets
back its own part of the packed results. Parcels are independent: each has its own deadline, a
caller who gives up takes the parcel out of the queue, and what is in a call already goes on.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import grpc

from cluster.packed import BATCH_TRANSFERS_MAX, BODY_BYTES, RESULT_BYTES
from cluster.rpc import Fault

# A shard node syncs one block while it fills the next; one more call is on the wire meanwhile. More
# would only make the calls smaller.
CALLS_IN_FLIGHT_MAX: Final = 3
# A call costs about as much as a hundred transfers in it. A second call with fewer than this waits
# until the first is answered: single transfers then run twice as fast as with three small calls.
SMALL_CALL_TRANSFERS: Final = 1_024
# Eight full batches: some 2.5 MB of packed transfers a shard at most, and at 100,000 transfers a
# second two thirds of a second of waiting. Who comes later had better be told at once.
QUEUED_TRANSFERS_MAX: Final = 8 * BATCH_TRANSFERS_MAX
# The call itself ends at the deadline and knows whether it reached the node; its callers wait this
# much longer to hear it.
FAILURE_GRACE_S: Final = 0.01

Send = Callable[[int, bytes, bytes, int, float], Awaitable[bytes]]
"""(shard id, bodies, metadata, topology version, deadline) → packed results; raises Fault."""


@dataclass(slots=True, eq=False)
class _Parcel:
    count: int
    bodies: bytes
    metadata: bytes
    topology_version: int
    deadline_s: float
    results: asyncio.Future[bytes]
    sent: bool = False


@dataclass(slots=True)
class _Lane:
    # In order of arrival, and quick to take from in the middle.
    queue: OrderedDict[_Parcel, None] = field(default_factory=OrderedDict)
    queued_transfers: int = 0
    calls: int = 0
    small_calls: int = 0
    pump_scheduled: bool = False


class Lanes:
    """The lanes of all shards.

    Args:
        send: makes one call; retries are its business. Deadlines are in the running loop's time.
        calls_max: calls in flight per shard, at least 1.
        small_below: of which one at most has fewer transfers than this.
        queued_max: transfers that wait per shard; beyond it callers hear RESOURCE_EXHAUSTED.
    """

    def __init__(
        self,
        send: Send,
        calls_max: int = CALLS_IN_FLIGHT_MAX,
        queued_max: int = QUEUED_TRANSFERS_MAX,
        small_below: int = SMALL_CALL_TRANSFERS,
    ) -> None:
        self._send = send
        self._calls_max = calls_max
        self._queued_max = queued_max
        self._small_below = small_below
        self._lanes: dict[int, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(
        self,
        shard_id: int,
        bodies: bytes,
        metadata: bytes,
        topology_version: int,
        deadline_s: float,
    ) -> bytes:
        """Execute packed transfers of one shard (1 … 8,192 of them); return their packed results.

        Raises:
            Fault: RESOURCE_EXHAUSTED, definite: the queue is full. UNAVAILABLE, definite: the
                deadline came while the transfers waited. DEADLINE_EXCEEDED, indefinite: it came
                after they were sent. Or what `send` raised.
        """
        lane = self._lanes.setdefault(shard_id, _Lane())
        count = len(bodies) // BODY_BYTES
        # A parcel that finds the queue empty is taken whatever its size, so the bound blocks none.
        if lane.queue and lane.queued_transfers + count > self._queued_max:
            raise Fault(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{lane.queued_transfers} transfers wait for shard {shard_id}",
            )
        results: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        parcel = _Parcel(count, bodies, metadata, topology_version, deadline_s, results)
        lane.queue[parcel] = None
        lane.queued_transfers += count
        self._schedule(shard_id, lane)
        try:
            async with asyncio.timeout_at(deadline_s + FAILURE_GRACE_S):
                return await results
        except TimeoutError:
            raise _too_late(shard_id, sent=parcel.sent) from None
        finally:
            if not parcel.sent:
                del lane.queue[parcel]
                lane.queued_transfers -= count

    async def close(self, grace_s: float) -> None:
        """Let the calls in flight end for so long, whether or not anybody waits; end the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _schedule(self, shard_id: int, lane: _Lane) -> None:
        """Pump in the loop's next turn, so that all that arrives in this one goes together."""
        if not lane.pump_scheduled:
            lane.pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump, shard_id, lane)

    def _pump(self, shard_id: int, lane: _Lane) -> None:
        lane.pump_scheduled = False
        while lane.queue and lane.calls < self._calls_max:
            is_small = lane.queued_transfers < self._small_below
            if is_small and lane.small_calls:
                return
            lane.calls += 1
            lane.small_calls += is_small
            task = asyncio.get_running_loop().create_task(
                self._call(shard_id, lane, _take_batch(lane), is_small=is_small)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(
        self, shard_id: int, lane: _Lane, parcels: list[_Parcel], *, is_small: bool
    ) -> None:
        try:
            outcome = await self._ask(shard_id, parcels)
        finally:
            lane.calls -= 1
            lane.small_calls -= is_small
            self._schedule(shard_id, lane)
        if isinstance(outcome, Exception):
            for parcel in parcels:
                if not parcel.results.done():
                    parcel.results.set_exception(outcome)
            return
        start = 0
        for parcel in parcels:
            end = start + parcel.count * RESULT_BYTES
            if not parcel.results.done():
                parcel.results.set_result(outcome[start:end])
            start = end

    async def _ask(self, shard_id: int, parcels: list[_Parcel]) -> bytes | Exception:
        """Make one call for all parcels, until the last of their deadlines."""
        try:
            results = await self._send(
                shard_id,
                b"".join([parcel.bodies for parcel in parcels]),
                b"".join([parcel.metadata for parcel in parcels]),
                parcels[0].topology_version,
                max(parcel.deadline_s for parcel in parcels),
            )
        except Exception as error:  # noqa: BLE001 - handed on to every caller that waits
            return error
        expected = sum(parcel.count for parcel in parcels) * RESULT_BYTES
        if len(results) != expected:
            return Fault(
                grpc.StatusCode.INTERNAL,
                f"shard {shard_id} sent {len(results)} bytes of results instead of {expected}",
            )
        return results


def _take_batch(lane: _Lane) -> list[_Parcel]:
    """Take from the queue's head what fits one call: one topology version, one batch's length."""
    parcels: list[_Parcel] = []
    count = 0
    for parcel in lane.queue:
        if parcels and (
            count + parcel.count > BATCH_TRANSFERS_MAX
            or parcel.topology_version != parcels[0].topology_version
        ):
            break
        parcel.sent = True
        parcels.append(parcel)
        count += parcel.count
    for parcel in parcels:
        del lane.queue[parcel]
    lane.queued_transfers -= count
    return parcels


def _too_late(shard_id: int, *, sent: bool) -> Fault:
    if sent:
        return Fault(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"shard {shard_id} has not answered in time"
        )
    return Fault(
        grpc.StatusCode.UNAVAILABLE,
        f"shard {shard_id} had no room until the deadline; nothing was sent",
        indefinite=False,
    )
