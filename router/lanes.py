"""Gathers what is on its way to the same place into few, large calls.

Every shard has a lane; for what crosses, every set of shards has one, so that transactions wait in
it only behind others that need the same shards. A lane keeps a few large calls in flight, but only
very few small ones; what arrives meanwhile waits in its queue and goes with the next call, up to a
full batch. There is no timer: a lone transfer leaves at once, and under load the calls grow by
themselves until they are as large as the load asks for.

A caller hands over a *parcel* (packed records for one lane under one topology version) and gets
back its own part of the packed results. Parcels are independent: each has its own deadline, a
caller who gives up takes the parcel out of the queue, and what is in a call already goes on.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, KeysView
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

import grpc

from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX, BODY_BYTES, MEMBER, RESULT_BYTES

# A shard node syncs one block while it fills the next; one more call is on the wire meanwhile. More
# would only make the calls smaller.
CALLS_IN_FLIGHT_MAX: Final = 3
# A call costs about as much as a hundred transfers in it. A second call with fewer than this waits
# until the first is answered: single transfers then run twice as fast as with three small calls.
SMALL_CALL_TRANSFERS: Final = 1_024
# Eight full batches: some 2.5 MB of packed transfers a shard at most, and at 100,000 transfers a
# second two thirds of a second of waiting. Who comes later had better be told at once.
QUEUED_TRANSFERS_MAX: Final = 8 * BATCH_TRANSFERS_MAX
# A call to a coordinator takes several syncs, one after the other, and it waits for the slowest of
# its transactions: one that something in doubt holds up leaves seven calls for the others, and one
# of two for single transfers. The coordinator gathers them again.
CROSSING_CALLS_IN_FLIGHT_MAX: Final = 8
CROSSING_SMALL_CALLS_MAX: Final = 2
# The call itself ends at the deadline and knows whether it reached the node; its callers wait this
# much longer to hear it.
FAILURE_GRACE_S: Final = 0.01

LaneT = TypeVar("LaneT", bound=int | tuple[int, ...])
"""A shard, or the shards that transactions touch, ascending."""

Send = Callable[[LaneT, bytes, bytes, int, float], Awaitable[bytes]]
"""(lane, records, metadata, topology version, deadline) → packed results; raises Fault."""


@dataclass(slots=True, eq=False)
class _Parcel:
    transfers: int
    items: int
    records: bytes
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


class Lanes(Generic[LaneT]):
    """All lanes of one kind of call.

    Args:
        send: makes one call; retries are its business. Deadlines are in the running loop's time.
        calls_max: calls in flight per lane, at least 1.
        queued_max: transfers that wait per lane; beyond it callers hear RESOURCE_EXHAUSTED.
        small_below: a call with fewer transfers than this is small.
        small_calls_max: small calls in flight per lane, at least 1.
        items_max: the most items (transfers, groups, transactions) in one call.
        record_bytes: of one transfer's record.
    """

    def __init__(
        self,
        send: Send[LaneT],
        calls_max: int = CALLS_IN_FLIGHT_MAX,
        queued_max: int = QUEUED_TRANSFERS_MAX,
        small_below: int = SMALL_CALL_TRANSFERS,
        small_calls_max: int = 1,
        items_max: int = BATCH_TRANSFERS_MAX,
        record_bytes: int = BODY_BYTES,
    ) -> None:
        self._send = send
        self._calls_max = calls_max
        self._queued_max = queued_max
        self._small_below = small_below
        self._small_calls_max = small_calls_max
        self._items_max = items_max
        self._record_bytes = record_bytes
        self._lanes: dict[LaneT, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def execute(
        self,
        lane_key: LaneT,
        records: bytes,
        metadata: bytes,
        items: int,
        topology_version: int,
        deadline_s: float,
    ) -> bytes:
        """Execute packed records, 1 … 8,192 of them; return the packed results of their items.

        Raises:
            Fault: RESOURCE_EXHAUSTED, definite: the queue is full. UNAVAILABLE, definite: the
                deadline came while the transfers waited. DEADLINE_EXCEEDED, indefinite: it came
                after they were sent. Or what `send` raised.
        """
        lane = self._lanes.setdefault(lane_key, _Lane())
        count = len(records) // self._record_bytes
        # A parcel that finds the queue empty is taken whatever its size, so the bound blocks none.
        if lane.queue and lane.queued_transfers + count > self._queued_max:
            raise Fault(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{lane.queued_transfers} transfers wait for {_shown(lane_key)}",
            )
        loop = asyncio.get_running_loop()
        results: asyncio.Future[bytes] = loop.create_future()
        parcel = _Parcel(count, items, records, metadata, topology_version, deadline_s, results)
        lane.queue[parcel] = None
        lane.queued_transfers += count
        self._schedule(lane_key, lane)
        # A timer of our own costs a fifth of what `asyncio.timeout_at` does.
        timer = loop.call_at(deadline_s + FAILURE_GRACE_S, _expire, lane_key, parcel)
        try:
            return await results
        finally:
            timer.cancel()
            if not parcel.sent:
                del lane.queue[parcel]
                lane.queued_transfers -= count

    def keys(self) -> KeysView[LaneT]:
        """Return the lanes in which anything waits or is in flight; idle ones are forgotten."""
        return self._lanes.keys()

    async def close(self, grace_s: float) -> None:
        """Let the calls in flight end for so long, whether or not anybody waits; end the rest."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _schedule(self, lane_key: LaneT, lane: _Lane) -> None:
        """Pump in the loop's next turn, so that all that arrives in this one goes together."""
        if not lane.pump_scheduled:
            lane.pump_scheduled = True
            asyncio.get_running_loop().call_soon(self._pump, lane_key, lane)

    def _pump(self, lane_key: LaneT, lane: _Lane) -> None:
        lane.pump_scheduled = False
        while lane.queue and lane.calls < self._calls_max:
            is_small = lane.queued_transfers < self._small_below
            if is_small and lane.small_calls >= self._small_calls_max:
                return
            lane.calls += 1
            lane.small_calls += is_small
            task = asyncio.get_running_loop().create_task(
                self._call(lane_key, lane, self._take_batch(lane), is_small=is_small)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if not lane.calls:  # nor is anything queued, for its calls would have begun
            self._lanes.pop(lane_key, None)

    async def _call(
        self, lane_key: LaneT, lane: _Lane, parcels: list[_Parcel], *, is_small: bool
    ) -> None:
        try:
            outcome = await self._ask(lane_key, parcels)
        finally:
            lane.calls -= 1
            lane.small_calls -= is_small
            self._schedule(lane_key, lane)
        if isinstance(outcome, Exception):
            for parcel in parcels:
                if not parcel.results.done():
                    parcel.results.set_exception(outcome)
            return
        start = 0
        for parcel in parcels:
            end = start + parcel.items * RESULT_BYTES
            if not parcel.results.done():
                parcel.results.set_result(outcome[start:end])
            start = end

    async def _ask(self, lane_key: LaneT, parcels: list[_Parcel]) -> bytes | Exception:
        """Make one call for all parcels, until the last of their deadlines."""
        try:
            results = await self._send(
                lane_key,
                b"".join([parcel.records for parcel in parcels]),
                b"".join([parcel.metadata for parcel in parcels]),
                parcels[0].topology_version,
                max(parcel.deadline_s for parcel in parcels),
            )
        except Exception as error:  # noqa: BLE001 - handed on to every caller that waits
            return error
        expected = sum(parcel.items for parcel in parcels) * RESULT_BYTES
        if len(results) != expected:
            return Fault(
                grpc.StatusCode.INTERNAL,
                f"{_shown(lane_key)}: {len(results)} bytes of results instead of {expected}",
            )
        return results

    def _take_batch(self, lane: _Lane) -> list[_Parcel]:
        """Take from the queue's head what fits one call: one topology version, bounded length."""
        parcels: list[_Parcel] = []
        count = items = 0
        for parcel in lane.queue:
            if parcels and (
                count + parcel.transfers > BATCH_TRANSFERS_MAX
                or items + parcel.items > self._items_max
                or parcel.topology_version != parcels[0].topology_version
            ):
                break
            parcel.sent = True
            parcels.append(parcel)
            count += parcel.transfers
            items += parcel.items
        for parcel in parcels:
            del lane.queue[parcel]
        lane.queued_transfers -= count
        return parcels


def _expire(lane_key: int | tuple[int, ...], parcel: _Parcel) -> None:
    if not parcel.results.done():
        parcel.results.set_exception(_too_late(lane_key, sent=parcel.sent))


def _too_late(lane_key: int | tuple[int, ...], *, sent: bool) -> Fault:
    if sent:
        return Fault(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer in time from {_shown(lane_key)}"
        )
    return Fault(
        grpc.StatusCode.UNAVAILABLE,
        f"no room until the deadline on the way to {_shown(lane_key)}; nothing was sent",
        indefinite=False,
    )


def _shown(lane_key: int | tuple[int, ...]) -> str:
    if isinstance(lane_key, int):
        return f"shard {lane_key}"
    return f"the coordinators, for shards {', '.join(map(str, lane_key))}"


def crossing_lanes(
    send: Send[tuple[int, ...]], queued_max: int = QUEUED_TRANSFERS_MAX
) -> Lanes[tuple[int, ...]]:
    """Return the lanes of what crosses."""
    return Lanes(
        send,
        CROSSING_CALLS_IN_FLIGHT_MAX,
        queued_max,
        small_calls_max=CROSSING_SMALL_CALLS_MAX,
        record_bytes=MEMBER.size,
    )
