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
_CURRENCY_BITS: Final = 16


class _Position:
    """What is owed by one shard in one currency, minor units.

    Attributes:
        minor: now.
        base: of all that was decided up to the second that is the base.
        by_second: what was decided later, by the second, but for the one posted to last.
        second, in_second: that second, and what was decided in it: most legs are of the same one.
    """

    __slots__ = ("base", "by_second", "in_second", "minor", "second")

    def __init__(self, minor: int = 0) -> None:
        self.minor = minor
        self.base = 0
        self.by_second: dict[int, int] = {}
        self.second = 0
        self.in_second = 0

    def turn_to(self, second: int) -> None:
        """Makes another second the one that is posted to."""
        if self.in_second:
            self.by_second[self.second] = self.in_second
        self.second = second
        self.in_second = self.by_second.pop(second, 0)

    def merge(self, up_to_second: int) -> None:
        """Moves what was decided up to a second to the base."""
        for second in [each for each in self.by_second if each <= up_to_second]:
            self.base += self.by_second.pop(second)

    def before(self, second: int) -> int:
        """What was decided before a second that is later than the base's."""
        later = [minor for each, minor in self.by_second.items() if each < second]
        return self.base + sum(later) + (self.in_second if self.second < second else 0)


class Clearing:
    """The positions of one shard.

    Inside, a pair is one number: it is looked up with every leg, and to hash and compare a tuple
    costs as much as all else that is done to post one.
    """

    def __init__(self) -> None:
        self._positions: dict[int, _Position] = {}
        self._base_second = 0
        self._latest_second = 0

    @property
    def positions(self) -> dict[Pair, int]:
        """All positions now, minor units; a copy."""
        return {_pair(number): each.minor for number, each in self._positions.items()}

    def restore(self, pair: Pair, position_minor: int) -> None:
        """Takes up a position as a checkpoint has it; `start` follows."""
        self._positions[_number(pair)] = _Position(position_minor)

    def start(self, time_us: int) -> None:
        """Takes the positions as what a checkpoint of this time has: its past is one."""
        for each in self._positions.values():
            each.base = each.minor
        self._base_second = time_us // SECOND_US

    def recall(self, pair: Pair, amount_minor: int, decided_us: int) -> None:
        """Takes a leg out of the past that `start` gave, if it was decided later than that.

        Its home's clock may be ahead of this shard's, so a checkpoint may have legs that a question
        for a time after it must not count.
        """
        second = decided_us // SECOND_US
        if second > self._base_second:
            position = self._position(pair)
            position.base -= amount_minor
            position.turn_to(second)
            position.in_second += amount_minor

    def post(self, pair: Pair, amount_minor: int, decided_us: int) -> None:
        """Adds a leg: positive when an account here paid."""
        position, second = self._position(pair), decided_us // SECOND_US
        position.minor += amount_minor
        if second <= self._base_second:
            position.base += amount_minor
            return
        if second > self._latest_second:
            self._latest_second = second
            self._merge(second - REMEMBERED_S)
        if second != position.second:
            position.turn_to(second)
        position.in_second += amount_minor

    def at(self, time_us: int) -> dict[Pair, int] | None:
        """The positions, but for zeros, of what was decided before the second of `time_us`.

        Args:
            time_us: a whole second; what was decided at or after it does not count.

        Returns:
            None when that is too long ago to be told.
        """
        second = time_us // SECOND_US
        if second <= self._base_second:
            return None
        found = {_pair(number): each.before(second) for number, each in self._positions.items()}
        return {pair: minor for pair, minor in found.items() if minor}

    def _position(self, pair: Pair) -> _Position:
        number = _number(pair)
        position = self._positions.get(number)
        if position is None:
            position = self._positions[number] = _Position()
        return position

    def _merge(self, up_to_second: int) -> None:
        for each in self._positions.values():
            each.merge(up_to_second)
        self._base_second = max(self._base_second, up_to_second)


def _number(pair: Pair) -> int:
    return pair[0] << _CURRENCY_BITS | pair[1]


def _pair(number: int) -> Pair:
    return number >> _CURRENCY_BITS, number & ((1 << _CURRENCY_BITS) - 1)


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
