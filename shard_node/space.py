"""How full the two maps and the disk are, and what may still be admitted.

A map that is full makes a commit fail, and a commit that fails ends the process. So a call is
admitted only if everything admitted before it and the call itself would still fit when written, by
bounds that err on the safe side. What that takes is small beside a map of ordinary size; a small
map is simply never filled to its end. Reading goes on, and so does what was admitted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from cluster.packed import METADATA_BYTES_MAX
from shard_node.records import HASH_BYTES, HEADER_BYTES, RECORD_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from shard_node.log import Log
    from shard_node.state import StateReader

SPACE_WARN: Final = 0.80
SPACE_REFUSE: Final = 0.95
"""Parts of a map in use at which the node warns, and refuses what would add to it."""

LOG_BYTES_PER_RECORD: Final = 2 * (RECORD_BYTES + METADATA_BYTES_MAX + HEADER_BYTES + HASH_BYTES)
"""A record with all the metadata it may have, in a block of its own that fills half its pages."""

STATE_BYTES_PER_ROW: Final = 768
"""What a row adds to the state: rows of two periods or balances and a key, in pages that are half
full."""

PAGE_BYTES: Final = 4_096
"""A row may be alone on its page, and the page is copied before it is changed."""

PAGES_PER_ROW: Final = 2
"""What is counted as one row of an account may be two: its balance, and a period that ended."""

COMMIT_BYTES: Final = 64 * 1024
"""What a commit takes whatever is in it: the way from the root, the list of free pages."""

SMALLEST_CALL: Final = 256
"""Transfers. When a call of so many does not fit although nothing else is on its way, space is
exhausted."""

LOOK_BYTES_MAX: Final = 1024 * 1024
"""By how much the log may grow until the disk and the map are looked at again; a small map more
often. A look takes a tenth of the time in which a lone transfer is made durable."""

LOOKS_PER_MAP: Final = 256
"""How often a map is looked at while it fills, at the least."""

ROWS_PER_RECORD: Final = 3
"""Rows of the state that a record may touch: two accounts and a key."""

_LOG = structlog.stdlib.get_logger("space")


@dataclass(frozen=True, slots=True)
class Owed:
    """What was admitted and is not written yet.

    Attributes:
        records: that the log does not have.
        draft_rows: rows of the checkpoint that is being written.
        rows: rows after that one.
    """

    records: int
    draft_rows: int
    rows: int


class Space:
    """Watches a shard's space.

    Args:
        log, state: looked at.
        log_map_bytes, state_map_bytes: the most that they may hold.
        disk_free_min_bytes: the disk's free space below which nothing is added.
        data: a folder on the disk; None = no disk (tests, simulation).

    Attributes:
        exhausted: whether nothing that adds anything may be admitted.
    """

    def __init__(
        self,
        log: Log,
        state: StateReader,
        log_map_bytes: int,
        state_map_bytes: int,
        disk_free_min_bytes: int,
        data: Path | None,
    ) -> None:
        self.exhausted = False
        self._log = log
        self._state = state
        self._log_map_bytes = log_map_bytes
        self._state_map_bytes = state_map_bytes
        self._disk_free_min_bytes = disk_free_min_bytes
        self._data = data
        self._warned = False
        self._log_bytes = self._state_bytes = self._seen_log_bytes = 0
        self._look_bytes = min(LOOK_BYTES_MAX, log_map_bytes // LOOKS_PER_MAP)

    def after_append(self) -> None:
        """Takes in how long the log is, and looks at all else once it has grown, or room may be."""
        self._log_bytes = self._log.used_bytes()
        if self.exhausted or self._log_bytes - self._seen_log_bytes >= self._look_bytes:
            self.look()

    def look(self) -> None:
        """Looks at everything; to be called after every checkpoint as well."""
        self._log_bytes, self._state_bytes = self._log.used_bytes(), self._state.used_bytes()
        self._seen_log_bytes = self._log_bytes
        used = max(self._log_bytes / self._log_map_bytes, self._state_bytes / self._state_map_bytes)
        disk = os.statvfs(self._data) if self._data else None
        free_bytes = disk.f_bavail * disk.f_frsize if disk else self._disk_free_min_bytes
        exhausted = (
            used >= SPACE_REFUSE
            or free_bytes < self._disk_free_min_bytes
            or not self.admits(Owed(SMALLEST_CALL, 0, ROWS_PER_RECORD * SMALLEST_CALL))
        )
        if exhausted != self.exhausted:
            self.exhausted = exhausted
            _LOG.error("space", exhausted=exhausted, map_used=round(used, 3), disk_free=free_bytes)
        if (used >= SPACE_WARN or exhausted) and not self._warned:
            self._warned = True
            _LOG.warning("space_low", map_used=round(used, 3), disk_free=free_bytes)

    def admits(self, owed: Owed) -> bool:
        """Whether all that is owed fits for certain."""
        log_bytes = self._log_bytes + COMMIT_BYTES + owed.records * LOG_BYTES_PER_RECORD
        return (
            log_bytes <= self._log_map_bytes
            and self._state_bytes + self._state_growth(owed) <= self._state_map_bytes
        )

    def is_tight(self, owed: Owed) -> bool:
        """Whether what is owed to the state takes half of its room: a checkpoint tells exactly."""
        return 2 * self._state_growth(owed) > self._state_map_bytes - self._state_bytes

    def _state_growth(self, owed: Owed) -> int:
        """At most: new rows, and a copy of every page changed, once for each checkpoint."""
        row_bytes = PAGES_PER_ROW * PAGE_BYTES
        copied = min(self._state_bytes, owed.draft_rows * row_bytes) + min(
            self._state_bytes, owed.rows * row_bytes
        )
        return COMMIT_BYTES + copied + (owed.draft_rows + owed.rows) * STATE_BYTES_PER_ROW
