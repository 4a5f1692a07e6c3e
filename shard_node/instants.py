"""Instants that questions are answered for: nothing is posted at or before one any more.

That must hold after a crash as well, when only the wall clock and the log tell what time it is, and
the wall clock may have been set back. So the log holds a *promise*, a time shortly ahead that later
stamps will be past whoever writes them, and an instant is answered for once the log durably has a
stamp or a promise as late as it. While questions are asked a promise is renewed before it ends, a
record or two a second, so that hardly any question waits for one; with none asked there are none.
(A promise is to time what a lease is to a lock: compare the time-stamp oracle of Percolator, Peng
and Dabek, OSDI 2010, which reserves time stamps ahead in stable storage.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from shard_node.errors import BadRequestError
from shard_node.replaying import PROMISE_AHEAD_MAX_US

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.clock import Clock, HybridClock
    from shard_node.ledger import Ledger
    from shard_node.store import Store

RENEW_WITHIN_US: Final = 300_000
"""A question this close to the promise's end has it renewed, long enough before for many syncs."""


class Instants:
    """Fixes instants.

    Args:
        ledger: whose block is open.
        store: of the blocks before it.
        wall: tells what "now" is.
        clock: stamps blocks.
        seal: ends the open block.

    Attributes:
        promise_sequence: the record of the latest promise that somebody waits for.
    """

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        wall: Clock,
        clock: HybridClock,
        seal: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._wall = wall
        self._clock = clock
        self._seal = seal
        self._kept_us = 0
        # Promises that are not durable yet: record and time, oldest first.
        self._promises: deque[tuple[int, int]] = deque()
        self.promise_sequence = 0

    def settle(self, instant_us: int, field: str) -> int:
        """Fixes an instant (0 = now); answer once `promise_sequence` is durable.

        Raises:
            BadRequestError: it lies in the future, naming `field`.
        """
        instant_us = instant_us or max(self._wall.now_us(), self._recorded_us)
        if not self._clock.advance_past(instant_us):
            raise BadRequestError(field, f"{instant_us} lies in the future")
        self._look_at_durable()
        latest_us = self._promises[-1][1] if self._promises else self._kept_us
        if instant_us > max(latest_us - RENEW_WITHIN_US, self._durable_us):
            self._promise(instant_us + PROMISE_AHEAD_MAX_US)
        if instant_us > max(self._kept_us, self._durable_us):
            # The first that is late enough: a renewal is nothing to wait for.
            waited_for = next(each for each, until in self._promises if until >= instant_us)
            self.promise_sequence = max(self.promise_sequence, waited_for)
        if self._ledger.block.stamp_us <= instant_us:
            self._seal()
        return instant_us

    def _promise(self, until_us: int) -> None:
        self._seal()
        self._ledger.block.begin(self._clock.tick())
        self._ledger.promise(until_us)
        self._promises.append((self._ledger.sequence, until_us))
        self._seal()  # a renewal is waited for by nobody, so nobody else would have it committed

    def _look_at_durable(self) -> None:
        last = self._store.log.last
        while self._promises and last and self._promises[0][0] <= last.draft.last_sequence:
            self._kept_us = max(self._kept_us, self._promises.popleft()[1])

    @property
    def _durable_us(self) -> int:
        """The stamp of the latest durable block."""
        last = self._store.log.last
        return last.draft.time_us if last else 0

    @property
    def _recorded_us(self) -> int:
        """The stamp of the latest record, durable or not."""
        if self._ledger.block.count:
            return self._ledger.block.stamp_us
        return self._store.sealed[-1].time_us if self._store.sealed else self._durable_us
