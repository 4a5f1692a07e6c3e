"""Puts a checkpoint's rows into LMDB: in order, and in small pieces (decision 0047).

Small, so that rows are put while they are still in the processor's cache, and so that whoever waits
for the core gets it soon. In order, so that a page is touched once.
"""

from __future__ import annotations

import os
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from shard_node.rows import seal_row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shard_node.state import Row

PUT_ROWS: Final = 1_000
"""Rows put at once: about half a millisecond. Those of a whole checkpoint would be sealed, put and
freed in three passes over memory."""

CLOSE_KEYS_MS: Final = 60_000
"""A block's ids that tell their time were made within so long of each other, for clients' clocks
differ by less; ids made at random hardly ever seem to be."""

_KEY_OF_ROW: Final = itemgetter(0)
"""To sort by: two rows are compared as keys, and not as tuples, which takes three times as long."""


def put_sealed(cursor: Any, rows: Iterable[Row]) -> None:
    """Put rows of any table but `keys`, each with its checksum."""
    ordered = sorted(rows, key=_KEY_OF_ROW)
    for at in range(0, len(ordered), PUT_ROWS):
        part = ordered[at : at + PUT_ROWS]
        cursor.putmulti([(key, seal_row(key, value)) for key, value in part])
        _let_others_run()


def put_keys(cursor: Any, blocks: Iterable[list[Row]]) -> None:
    """Put the rows of `keys`, given by block.

    Ids that tell their time lie close together, so a block's rows can be put at once: half the time
    of all rows sorted together. Ids made otherwise would then go all over the tree with each block,
    so those are gathered, and sorted once. The first and the last id tell which it is; where they
    mislead, it takes longer.
    """
    scattered: list[Row] = []
    for rows in blocks:
        if rows and abs(_time_of_key(rows[-1]) - _time_of_key(rows[0])) <= CLOSE_KEYS_MS:
            _put_ordered(cursor, rows)
        else:
            scattered += rows
    _put_ordered(cursor, scattered)


def _put_ordered(cursor: Any, rows: list[Row]) -> None:
    """Put rows, which are sorted in place."""
    rows.sort(key=_KEY_OF_ROW)
    for at in range(0, len(rows), PUT_ROWS):
        cursor.putmulti(rows[at : at + PUT_ROWS])
        _let_others_run()


def _time_of_key(row: Row) -> int:
    """The milliseconds in a row's key, if its transfer's id is a UUIDv7 (RFC 9562, 5.7)."""
    return int.from_bytes(row[0][:6], "big")


def _let_others_run() -> None:
    """Give up the core to whoever waits for it.

    Niceness decides who runs for how long, not how soon: a process that wakes up waits for the rest
    of the slice of the one that runs, some milliseconds.
    """
    if hasattr(os, "sched_yield"):
        os.sched_yield()
