"""Gathers messages of one kind to one shard into few, large calls.

A lane keeps a few large calls in flight, but only one small one; what arrives meanwhile goes with
the next call. There is no timer on that way: a lone message leaves in the loop's next turn, and
under load the calls grow by themselves. Since every shard has lanes of its own, one that is slow
or away holds up only what concerns it.

A lane whose call failed pauses, longer each time, until one succeeds.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import structlog

from cluster.packed import BATCH_TRANSFERS_MAX

# A shard node syncs one block while it fills the next; one more call is on the wire meanwhile.
CALLS_MAX: Final = 3
# A call costs about as much as a hundred transactions in it, so a second small one waits.
SMALL_BELOW: Final = 512
# What failed was tried for a while already, or refused at once; either way haste is of no use.
PAUSE_FIRST_S: Final = 0.02
PAUSE_MAX_S: Final = 0.5

T = TypeVar("T")

_LOG = structlog.stdlib.get_logger("lanes")


@dataclass(frozen=True)
class LaneRules:
    """How a lane gathers.

    Attributes:
        calls_max: calls in flight, at least 1.
        small_below: of which one at most weighs less than this.
        hold_s: how long the first message waits for others; 0 = until the loop's next turn.
        queued_max: what waits at most, in weight; 0 = bounded elsewhere.
    """

    calls_max: int = CALLS_MAX
    small_below: int = SMALL_BELOW
    hold_s: float = 0.0
    queued_max: int = 0


class Lane(Generic[T]):
    """One lane.

    Args:
        send: makes one call; False = it failed, and the lane shall pause.
        rng: for the jitter of pauses.
        rules: see there.
    """

    def __init__(
        self, send: Callable[[list[T]], Awaitable[bool]], rng: random.Random, rules: LaneRules
    ) -> None:
        self._send = send
        self._rng = rng
        self._rules = rules
        self._queue: list[T] = []
        self._weights: list[int] = []  # of what is queued; pairs would burden the collector
        self._weight = 0
        self._calls = 0
        self._small_calls = 0
        self._pause_s = 0.0
        self._pump_handle: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not self._queue and not self._tasks

    def put(self, item: T, weight: int = 1) -> bool:
        """Queue a message; False = there is no room, and it was dropped."""
        rules = self._rules
        if rules.queued_max and self._weight + weight > rules.queued_max:
            return False
        self._queue.append(item)
        self._weights.append(weight)
        self._weight += weight
        if self._pump_handle is None:
            self._schedule(max(rules.hold_s, self._pause_s))
        return True

    async def close(self, grace_s: float) -> None:
        """Send what is queued, let it end for so long, and end the rest."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + grace_s
        self._pump_now()
        while self._tasks and loop.time() < deadline_s:
            await asyncio.wait(
                self._tasks,
                timeout=deadline_s - loop.time(),
                return_when=asyncio.FIRST_COMPLETED,
            )
            self._pump_now()
        self._queue.clear()
        self._weights.clear()
        self._weight = 0
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._unschedule()

    def _schedule(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if delay_s:
            self._pump_handle = loop.call_later(delay_s, self._pump)
        else:
            self._pump_handle = loop.call_soon(self._pump)

    def _unschedule(self) -> None:
        if self._pump_handle is not None:
            self._pump_handle.cancel()
            self._pump_handle = None

    def _pump_now(self) -> None:
        self._unschedule()
        self._pump()

    def _pump(self) -> None:
        self._pump_handle = None
        while self._queue and self._calls < self._rules.calls_max:
            is_small = self._weight < self._rules.small_below
            if is_small and self._small_calls:
                return
            self._calls += 1
            self._small_calls += is_small
            task = asyncio.get_running_loop().create_task(
                self._call(self._take(), is_small=is_small)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[T]:
        """Take from the queue's head what fits one call."""
        queue = self._queue
        if self._weight <= BATCH_TRANSFERS_MAX:
            self._queue, self._weights, self._weight = [], [], 0
            return queue
        taken = weight = 0
        for own in self._weights:
            if taken and weight + own > BATCH_TRANSFERS_MAX:
                break
            weight += own
            taken += 1
        batch = queue[:taken]
        del queue[:taken], self._weights[:taken]
        self._weight -= weight
        return batch

    async def _call(self, batch: list[T], *, is_small: bool) -> None:
        succeeded = False
        try:
            succeeded = await self._send(batch)
        except Exception:  # noqa: BLE001 - a defect stops neither the lane nor its neighbours
            _LOG.exception("lane_failed", messages=len(batch))
        finally:
            self._calls -= 1
            self._small_calls -= is_small
            self._set_pause(succeeded=succeeded)
        # A pump that waits for a pause to end takes what is there when it does.
        if self._queue and self._pump_handle is None:
            self._schedule(self._pause_s)

    def _set_pause(self, *, succeeded: bool) -> None:
        if succeeded:
            self._pause_s = 0.0
            return
        longer_s = min(max(PAUSE_FIRST_S, 2 * self._pause_s), PAUSE_MAX_S)
        self._pause_s = longer_s * self._rng.uniform(0.5, 1.0)
