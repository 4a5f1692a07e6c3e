"""Clearing: what crossed the border to each other shard, per currency, and is owed.

When a leg whose other side lives on shard B is posted here, the amount goes to the position with B:
plus when an account here paid (B owes us), minus when one was paid. So this shard's balances and
positions sum to zero by themselves (promise 1), and B's position with this shard is the opposite of
ours but for transactions that only one of the two has posted yet.

To compare them under load, positions can be told as of a logical time: every leg counts by the time
at which its home decided it, which both sides store, in buckets of a second. Buckets older than
`REMEMBERED_S` are merged into the base, so a time before that cannot be asked for any more.
"""

from __future__ import annotations

import struct
from typing import Final

from shard_node.damage import DamagedStateError

SECOND_US: Final = 1_000_000

REMEMBERED_S: Final = 120
"""How far back positions are kept by the second: twice what an audit may ask for."""

Pair = tuple[int, int]
"""(the other shard, currency number)."""

CLEARING_KEY: Final = struct.Struct(">2H")
_POSITION_BYTES: Final = 16


class Clearing:
    """The positions of one shard.

    Attributes:
        positions: now, minor units.
    """

    def __init__(self) -> None:
        self.positions: dict[Pair, int] = {}
        self._base: dict[Pair, int] = {}
        self._base_second = 0
        self._buckets: dict[int, dict[Pair, int]] = {}

    def start(self, time_us: int) -> None:
        """Takes the positions as what a checkpoint of this time has: its past is one."""
        self._base = dict(self.positions)
        self._base_second = time_us // SECOND_US

    def recall(self, pair: Pair, amount_minor: int, decided_us: int) -> None:
        """Takes a leg out of the past that `start` gave, if it was decided later than that.

        Its home's clock may be ahead of this shard's, so a checkpoint may have legs that a question
        for a time after it must not count.
        """
        second = decided_us // SECOND_US
        if second > self._base_second:
            self._base[pair] = self._base.get(pair, 0) - amount_minor
            bucket = self._buckets.setdefault(second, {})
            bucket[pair] = bucket.get(pair, 0) + amount_minor

    def post(self, pair: Pair, amount_minor: int, decided_us: int) -> None:
        """Adds a leg: positive when an account here paid."""
        self.positions[pair] = self.positions.get(pair, 0) + amount_minor
        second = decided_us // SECOND_US
        if second <= self._base_second:
            self._base[pair] = self._base.get(pair, 0) + amount_minor
            return
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = {}
            self._merge(second - REMEMBERED_S)
        bucket[pair] = bucket.get(pair, 0) + amount_minor

    def at(self, time_us: int) -> dict[Pair, int] | None:
        """The positions of what was decided before the end of the second before `time_us`.

        Args:
            time_us: a whole second; what was decided at or after it does not count.

        Returns:
            None when that is too long ago to be told.
        """
        second = time_us // SECOND_US
        if second <= self._base_second:
            return None
        found = dict(self._base)
        for each, bucket in self._buckets.items():
            if each < second:
                for pair, amount_minor in bucket.items():
                    found[pair] = found.get(pair, 0) + amount_minor
        return found

    def _merge(self, up_to_second: int) -> None:
        for second in [each for each in self._buckets if each <= up_to_second]:
            for pair, amount_minor in self._buckets.pop(second).items():
                self._base[pair] = self._base.get(pair, 0) + amount_minor
        self._base_second = max(self._base_second, up_to_second)


def clearing_row(pair: Pair, position_minor: int) -> tuple[bytes, bytes]:
    """The key and value of a position's row."""
    value = position_minor.to_bytes(_POSITION_BYTES, "little", signed=True)
    return CLEARING_KEY.pack(*pair), value


def read_clearing_row(key: bytes, value: bytes) -> tuple[Pair, int]:
    """A position from its row. Raises: DamagedStateError."""
    if len(key) != CLEARING_KEY.size or len(value) != _POSITION_BYTES:
        raise DamagedStateError(f"the row of clearing with key {key.hex()} is of another length")
    peer, currency = CLEARING_KEY.unpack(key)
    return (peer, currency), int.from_bytes(value, "little", signed=True)
