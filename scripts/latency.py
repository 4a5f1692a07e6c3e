"""How long things took: a list of durations, and what is said of it."""

import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class Latencies:
    """Durations of one kind of call, seconds."""

    durations_s: list[float] = field(default_factory=list)

    async def timed(self, call: Awaitable[T]) -> T:
        """Await a call and note how long it took; one that fails is not noted."""
        start_s = time.perf_counter()
        answer = await call
        self.durations_s.append(time.perf_counter() - start_s)
        return answer

    def percentile_ms(self, percent: float) -> float:
        """Return the duration that `percent` % of all did not exceed, milliseconds; 0 for none.

        The nearest rank: always one that was measured.
        """
        ordered = sorted(self.durations_s)
        if not ordered:
            return 0.0
        rank = max(1, -int(-percent * len(ordered) // 100))
        return ordered[rank - 1] * 1_000
