"""Instants that questions are answered for: nothing is posted at or before one any more.

That must hold after a crash as well, when only the wall clock and the log tell what time it is. So
whoever asks about an instant that lies ahead of both (the hybrid clock follows other processes'
clocks, and a question may be about the next second) waits until the log has a stamp as late as
that. An instant that is over, which is nearly every one, costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shard_node.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.clock import Clock, HybridClock
    from shard_node.ledger import Ledger
    from shard_node.store import Store


class Instants:
    """Fixes instants.

    Args:
        ledger: whose block is open.
        store: of the blocks before it.
        wall: tells what "now" is.
        clock: stamps blocks.
        seal: ends the open block.

    Attributes:
        promise_sequence: the record that bears the latest stamp that somebody waits for.
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
        self.promise_sequence = 0

    def settle(self, instant_us: int, field: str) -> int:
        """Fixes an instant (0 = now); answer once `promise_sequence` is durable.

        Raises:
            BadRequestError: it lies in the future, naming `field`.
        """
        wall_us = self._wall.now_us()
        instant_us = instant_us or max(wall_us, self._recorded_us)
        if not self._clock.advance_past(instant_us):
            raise BadRequestError(field, f"{instant_us} lies in the future")
        if instant_us > max(wall_us, self._durable_us):
            self._promise(instant_us)
        if self._ledger.block.stamp_us <= instant_us:
            self._seal()
        return instant_us

    def _promise(self, instant_us: int) -> None:
        """Sees to it that the log gets a stamp as late as an instant, where it has none yet."""
        if self._recorded_us < instant_us:
            self._seal()
            self._ledger.block.begin(self._clock.tick())
            self._ledger.mark_time()
        self.promise_sequence = self._ledger.sequence

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
