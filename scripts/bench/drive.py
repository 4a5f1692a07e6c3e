"""Closed loops: so many calls in flight until the work is done, and when each of them ended."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from scripts.latency import Latencies
from scripts.progress import Advance

J = TypeVar("J")
T = TypeVar("T")
PROGRESS_S = 0.2
"""Between two steps of the bar: drawing it must not be part of what is measured."""


@dataclass
class Timeline:
    """When how much was done.

    Attributes:
        started_s: on the performance counter.
        ends: (when, how many transfers) of every call, in order of time.
        latencies: of every call.
    """

    started_s: float = 0.0
    ends: list[tuple[float, int]] = field(default_factory=list)
    latencies: Latencies = field(default_factory=Latencies)

    @property
    def transfers(self) -> int:
        """How many were made."""
        return sum(count for _, count in self.ends)

    @property
    def seconds(self) -> float:
        """From the first call to the last answer."""
        return self.ends[-1][0] - self.started_s

    def rates(self, parts: int) -> list[float]:
        """Return transfers a second in so many stretches of as many calls each.

        The stretches follow one another without a pause, so that what runs beside the path
        (checkpoints) falls into them and not between them.
        """
        each = max(1, len(self.ends) // parts)
        rates = []
        since_s = self.started_s
        for first in range(0, each * min(parts, len(self.ends)), each):
            stretch = self.ends[first : first + each]
            until_s = stretch[-1][0]
            rates.append(sum(count for _, count in stretch) / max(1e-9, until_s - since_s))
            since_s = until_s
        return rates


async def drive(
    jobs: Iterable[J], send: Callable[[J], Awaitable[int]], in_flight: int, advance: Advance
) -> Timeline:
    """Send every job, `in_flight` at a time; `send` returns how many transfers it made."""
    timeline = Timeline()
    left = iter(jobs)
    clock, ends, durations = time.perf_counter, timeline.ends, timeline.latencies.durations_s
    shown_s, unshown = clock(), 0

    async def caller() -> None:
        nonlocal shown_s, unshown
        for job in left:
            begun_s = clock()
            count = await send(job)
            ended_s = clock()
            durations.append(ended_s - begun_s)
            ends.append((ended_s, count))
            unshown += count
            if ended_s - shown_s > PROGRESS_S:
                advance(unshown)
                shown_s, unshown = ended_s, 0

    timeline.started_s = clock()
    async with asyncio.TaskGroup() as callers:
        for _ in range(in_flight):
            callers.create_task(caller())
    advance(unshown)
    return timeline


async def in_thread(work: Callable[[threading.Event], T]) -> T:
    """Do blocking work on a thread; when this is cancelled, have it stop soon and wait for that.

    Args:
        work: looks at the event it is given now and then, and returns or raises once it is set.
    """
    stop = threading.Event()
    working = asyncio.create_task(asyncio.to_thread(work, stop))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([working])
        working.exception()  # it was stopped; nobody else will look
        raise


class Stopped(Exception):  # noqa: N818 - it says what happened
    """Blocking work was told to stop."""


def check_running(stop: threading.Event) -> None:
    """Raise Stopped once the event is set."""
    if stop.is_set():
        raise Stopped("interrupted")
