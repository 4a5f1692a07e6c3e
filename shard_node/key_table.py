"""Keys of transfers with their records' sequences: those that no committed checkpoint has.

A dictionary would do, but for the moments at which it grows. Then it moves all that it has: with
700,000 keys that held the event loop up for 27 ms, with 1.4 million for 63. So the keys are spread
over parts, dictionaries that grow by themselves. Parts of one size would all grow at about the same
time; the largest is twice the smallest, with the others evenly between them, so that they grow one
after the other while the number of keys doubles.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

from librt.strings import read_i64_le

if TYPE_CHECKING:
    from mypy_extensions import i64

PARTS: Final = 64
"""Of a million keys the largest part has 22,000, and takes 1 ms to grow."""

_CHOICES: Final = 4096
_CHOICE_SHIFT: Final = 51  # leaves 12 bits of 63
_HAND_STEP: Final = 1607  # odd: comes by all choices, and mostly to another part each time
_MULTIPLIER: Final = 0x1E3779B97F4A7C15  # see `account_table`
_LOW_63: Final = 2**63 - 1


class KeyTable:
    """Sequences by key. All keys have the same length, 24 bytes."""

    def __init__(self) -> None:
        self._parts: list[dict[bytes, int]] = [{} for _ in range(PARTS)]
        self._count = 0
        self._newest = b""
        self._hand = 0

    def __len__(self) -> int:
        """How many keys there are."""
        return self._count

    def get(self, key: bytes) -> int | None:
        """The sequence of the record under a key; None = it is not here.

        Most ids are made in the order of time, so that a new key comes after all others: to see
        that costs a tenth of a look into dictionaries so large that no cache holds them.
        """
        if key > self._newest:
            return None
        return self._parts[_part(key)].get(key)

    def add(self, key: bytes, sequence: int) -> None:
        """Puts in a key, or another sequence for it: a damaged log may have one twice."""
        part = self._parts[_part(key)]
        before = len(part)
        part[key] = sequence
        self._count += len(part) - before
        if key > self._newest:  # noqa: PLR1730 - `max` would be a call
            self._newest = key

    def drop(self, keys_max: int) -> None:
        """Drops some keys, at most so many.

        The latest go first, roughly, since each part gives as large a share as it took in: what
        came at about the same time lies together in memory.
        """
        some = min(keys_max, self._count)
        self._count -= some
        while some > 0:
            part = self._parts[_PART_OF[self._hand]]
            self._hand = (self._hand + _HAND_STEP) % _CHOICES
            if part:
                part.popitem()
                some -= 1


def _part(key: bytes) -> int:
    """The number of the part that a key belongs in, whichever half of the id it differs in."""
    mixed: i64 = (read_i64_le(key, 0) ^ read_i64_le(key, 8)) * _MULTIPLIER
    choice: i64 = (mixed & _LOW_63) >> _CHOICE_SHIFT
    return _PART_OF[choice]


def _spread() -> bytes:
    """The part for each choice."""
    shares = [2.0 ** (number / PARTS) for number in range(PARTS)]
    ends = [round(_CHOICES * each / sum(shares)) for each in accumulate(shares, initial=0.0)]
    return b"".join(bytes([number]) * (ends[number + 1] - ends[number]) for number in range(PARTS))


_PART_OF: Final = _spread()
