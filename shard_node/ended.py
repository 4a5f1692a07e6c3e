"""How transactions ended that have ended lately, by id.

Where most transfers cross, eight seconds' worth are hundreds of thousands. So their ids are spread
over parts that grow one after the other, as keys are and for the same reason (see `key_table`).
"""

from __future__ import annotations

from collections import deque
from typing import Final

from shard_node.key_table import CHOICES, PART_OF, PARTS

_CHOICES_LESS_1: Final = CHOICES - 1


class Ended:
    """A memory of what ended, each remembered for as long as it must be and not much longer."""

    def __init__(self) -> None:
        self._parts: list[dict[bytes, int]] = [{} for _ in range(PARTS)]
        # What to forget next, in two rows: pairs would be looked at by the garbage collector.
        self._ids: deque[bytes] = deque()
        self._untils_us: deque[int] = deque()

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._ids)

    def get(self, transaction_id: bytes) -> int | None:
        """When it was decided, 0 = aborted; None = nothing is known."""
        return self._part(transaction_id).get(transaction_id)

    def add(self, transaction_id: bytes, until_us: int, decided_us: int) -> None:
        """Remembers how it ended, at least until `until_us`."""
        part = self._part(transaction_id)
        before = len(part)
        part[transaction_id] = decided_us
        if len(part) > before:
            self._ids.append(transaction_id)
            self._untils_us.append(until_us)

    def forget(self, now_us: int) -> None:
        """Forgets what need not be remembered any more, but for what came after what must be."""
        untils_us = self._untils_us
        while untils_us and untils_us[0] < now_us:
            untils_us.popleft()
            transaction_id = self._ids.popleft()
            del self._part(transaction_id)[transaction_id]

    def _part(self, transaction_id: bytes) -> dict[bytes, int]:
        # Ids are random, so any bits of them are as good as a hash.
        choice = (transaction_id[0] | transaction_id[1] << 8) & _CHOICES_LESS_1
        return self._parts[PART_OF[choice]]
