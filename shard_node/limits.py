"""The bounds that operators set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that operators set.

    Attributes:
        accounts_max: accounts cached besides those changed since the latest checkpoint.
        checkpoint_rows: changed accounts plus new keys after which a checkpoint is taken; each is
            200 to 700 bytes of memory, and a restart replays at most twice as many records.
        queue_transfers_max: transfers admitted and not answered yet; more are refused.
        log_map_bytes, state_map_bytes: the most that the two files may hold.
        scrub_bytes_per_s: how fast log and state are read again while they are served: 4 MiB/s is
            345 GiB a day, and a hundredth of what a disk gives; 0 = never.
        scrub_period_s: between the beginnings of two passes, if one takes less: a small folder need
            not be read all the time.
        disk_free_min_bytes: the disk's free space below which nothing is added.
    """

    accounts_max: int = 200_000
    checkpoint_rows: int = 400_000
    queue_transfers_max: int = 65_536
    log_map_bytes: int = 256 * 1024**3
    state_map_bytes: int = 128 * 1024**3
    disk_free_min_bytes: int = 512 * 1024**2
    scrub_bytes_per_s: int = 4 * 1024**2
    scrub_period_s: int = 3_600
