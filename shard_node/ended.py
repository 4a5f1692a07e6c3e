"""How transactions ended that have ended lately, by id.

Where most transfers cross, eight seconds' worth are hundreds of thousands, and of each transaction
that comes it is asked whether it has ended. So they lie in buckets by the time that an id begins
with (see `cluster.packed`): what comes is younger than what has ended, and mostly finds no bucket;
what ends together lies together; and no bucket is so large that it takes long to grow. An id that
is not so made costs a bucket of its own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from librt.strings import read_i64_be

if TYPE_CHECKING:
    from mypy_extensions import i64

BUCKET_SHIFT: Final = 23
"""Of an id's first 64 bits: leaves the time in steps of 128 ms, in which a node ends 10,000."""


class Ended:
    """A memory of what ended, each remembered for as long as it must be and not much longer."""

    def __init__(self) -> None:
        self._buckets: dict[int, dict[bytes, int]] = {}
        # What to forget next, in two rows: pairs would be looked at by the garbage collector.
        self._ids: deque[bytes] = deque()
        self._untils_us: deque[int] = deque()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._ids)

    def get(self, transaction_id: bytes) -> int | None:
        """When it was decided, 0 = aborted; None = nothing is known."""
        bucket = self._buckets.get(_bucket(transaction_id))
        return None if bucket is None else bucket.get(transaction_id)

    def add(self, transaction_id: bytes, until_us: int, decided_us: int) -> None:
        """Remembers how it ended, at least until `until_us`."""
        number = _bucket(transaction_id)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
        before = len(bucket)
        bucket[transaction_id] = decided_us
        if len(bucket) > before:
            self._ids.append(transaction_id)
            self._untils_us.append(until_us)

    def forget(self, now_us: int) -> None:
        """Forgets what need not be remembered any more, but for what came after what must be."""
        untils_us = self._untils_us
        while untils_us and untils_us[0] < now_us:
            untils_us.popleft()
            transaction_id = self._ids.popleft()
            number = _bucket(transaction_id)
            bucket = self._buckets[number]
            del bucket[transaction_id]
            if not bucket:
                del self._buckets[number]


def _bucket(transaction_id: bytes) -> int:
    began: i64 = read_i64_be(transaction_id, 0) >> BUCKET_SHIFT
    return began
