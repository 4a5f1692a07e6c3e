"""Time as a thing one is handed: wall clocks, and the hybrid logical clock that stamps blocks.

Everything in microseconds since the Unix epoch, UTC, as int (suffix `_us`). No other module of the
server reads the system's time, so tests and simulation own it.

The hybrid clock follows the wall clock while that moves forward, and counts on from its own last
stamp while it does not. It also moves past stamps that other processes show it, so that what
happened after a message is stamped after it, but never further than a bound beyond its own wall
clock: one machine with a broken clock must not drag the cluster into the future.
"""

import time
from typing import Protocol

# One second is far beyond the skew of machines under NTP (milliseconds) and far below what anybody
# reading a statement would notice.
AHEAD_MAX_US = 1_000_000


class Clock(Protocol):
    """A wall clock. It may jump either way; who needs order uses a HybridClock."""

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch, UTC."""
        ...


class WallClock:
    """The machine's clock."""

    def now_us(self) -> int:
        """Return microseconds since the Unix epoch, UTC."""
        return time.time_ns() // 1_000


class ManualClock:
    """A clock that stands still until told to move: for tests and simulation."""

    def __init__(self, start_us: int) -> None:
        self._now_us = start_us

    def now_us(self) -> int:
        """Return the time last set."""
        return self._now_us

    def advance(self, us: int) -> None:
        """Move by `us` microseconds; negative moves back, as a stepped wall clock would."""
        self._now_us += us


class HybridClock:
    """Strictly increasing stamps near wall time, for one process; never backwards.

    Args:
        clock: the wall clock to follow.
        floor_us: every stamp is later than this; a restarted process passes its last stamp.
        ahead_max_us: how far beyond the own wall clock `observe` and `advance_past` may go.

    Attributes:
        refused: how many instants were refused for lying too far ahead.
    """

    def __init__(self, clock: Clock, floor_us: int = 0, ahead_max_us: int = AHEAD_MAX_US) -> None:
        self._clock = clock
        self._last_us = floor_us
        self._ahead_max_us = ahead_max_us
        self.refused = 0

    @property
    def last_us(self) -> int:
        """The last stamp given out or moved past; the next one is later."""
        return self._last_us

    def tick(self) -> int:
        """Return a new stamp: now, or one past the last stamp when the wall clock is behind it."""
        self._last_us = max(self._clock.now_us(), self._last_us + 1)
        return self._last_us

    def observe(self, peer_us: int) -> bool:
        """Move past a stamp that a peer sent; False (and nothing changed) when it is too far ahead.

        What is refused is the peer's clock, not its message: the caller carries on and reports.
        """
        return self._move_past(peer_us)

    def advance_past(self, instant_us: int) -> bool:
        """Promise that every later stamp is greater than `instant_us`.

        Who answers a question as of an instant calls this first. False, and nothing changed, when
        the instant lies too far ahead: the caller refuses the question.
        """
        return self._move_past(instant_us)

    def _move_past(self, instant_us: int) -> bool:
        if instant_us <= self._last_us:
            return True
        if instant_us > self._clock.now_us() + self._ahead_max_us:
            self.refused += 1
            return False
        self._last_us = instant_us
        return True
