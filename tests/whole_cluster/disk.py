"""A shard node's disk: what it holds for certain, and what a crash makes of the rest.

The log is kept as the bytes that the real code writes and reads back, block by block. What an
append wrote is on the device once its sync is over; whether a crash in between leaves it there is
chance, all or nothing, since that is what LMDB's transactions are. A sync that fails leaves the
blocks in the operating system's cache, which goes on as if they were written; the device may not
have them, and whoever opens the log again reads the device. The state is the same, checkpoint by
checkpoint; it is written by a process of its own, which may be slow.
"""

from __future__ import annotations

import asyncio
import errno
from bisect import bisect_right
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shard_node.checkpointer import CheckpointFailedError, CheckpointReport
from shard_node.log import BlockName, _metadata
from shard_node.memory import Rows
from shard_node.memory_state import MemoryState
from shard_node.records import (
    GENESIS_HASH,
    HASH_BYTES,
    HEADER,
    HEADER_BYTES,
    RECORD_BYTES,
    Block,
    BlockDraft,
    DamagedLogError,
    LogIdentity,
    block_value,
    check_follows,
    decode_block,
    encode_block,
)
from tests.whole_cluster.loop import LIFE, check_alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from shard_node.log import Log
    from shard_node.state import Change, Checkpoint, Row, StateReader
    from tests.whole_cluster.world import World

SYNC_S: Final = 0.0003, 0.003
"""What an append takes on a healthy disk, at the least and at the most."""

_FIRST, _COUNT = 6, 7  # in what `HEADER` unpacks


@dataclass
class DiskFaults:
    """How bad a disk is, in chances.

    Attributes:
        slow_sync: of an append or a checkpoint, to take up to `slow_max_s`.
        slow_max_s: how long that may be.
        sync_error: of an append or a checkpoint, to fail.
    """

    slow_sync: float = 0.0
    slow_max_s: float = 0.0
    sync_error: float = 0.0


class Disk:
    """What outlives a shard node's process.

    Args:
        world: for chance, time and the trace.
        identity: whose log is on it.
        on_durable: called whenever the device has got more blocks.

    Attributes:
        values: blocks by number, from 0, as reads see them.
        state: see there.
        faults: see there.
        is_locked: whether a living process has the folder.
        lost: blocks that are in the cache and not on the device.
        bytes_used: of the log.
    """

    def __init__(self, world: World, identity: LogIdentity, on_durable: Callable[[], None]) -> None:
        self.world = world
        self.identity = identity
        self.values: list[bytes] = []
        self.starts: list[int] = []
        self.state = DiskState()
        self.faults = DiskFaults()
        self.is_locked = False
        self.lost: set[int] = set()
        self.bytes_used = 0
        self._on_durable = on_durable
        self._waiting: list[asyncio.Future[None]] = []
        self._under_way: list[bytes] = []
        self._checkpoint_under_way: _Delta | None = None

    @property
    def name(self) -> str:
        """In the trace."""
        return f"disk {self.identity.shard_id}"

    @property
    def durable_blocks(self) -> int:
        """How many blocks, from the first on, a power cut would leave."""
        return min(self.lost, default=len(self.values))

    async def free(self) -> None:
        """Returns once no living process has the disk."""
        while self.is_locked:
            freed = self.world.loop.create_future()
            self._waiting.append(freed)
            await freed

    def lock(self) -> None:
        """The process that runs this has the disk until it ends."""
        assert not self.is_locked, "one process at a time"
        self.is_locked = True
        life = LIFE.get()
        assert life, "only processes lock"
        life.at_end.append(self._process_ended)

    def drop_cache(self) -> None:
        """Reads come from the device from now on."""
        if self.lost:
            self.world.note(f"{self.name} never had {len(self.lost)} blocks")
            self.values = [each for at, each in enumerate(self.values) if at not in self.lost]
            self.starts = [_first_of(each) for each in self.values]
            self.lost.clear()
        self.state.refresh()

    # --- appends --------------------------------------------------------------------------------

    async def append(self, values: list[bytes]) -> None:
        """Writes and syncs blocks, all or none.

        Raises:
            OSError: the sync failed; what is durable is not known.
        """
        check_alive()
        self._under_way = values
        await self._sync()
        self._under_way = []
        if self.world.chance(self.faults.sync_error):
            reached = self.world.chance(0.5)
            self.world.note(f"{self.name} fails to sync, {'in vain' if reached else 'truly'}")
            self.world.counts["syncs failed"] += 1
            if not reached:
                self.lost.update(range(len(self.values), len(self.values) + len(values)))
            self.write(values)
            raise OSError(errno.EIO, "Input/output error")
        self.write(values)

    def write(self, values: list[bytes]) -> None:
        """Has blocks on the device."""
        self.values += values
        self.starts += [_first_of(each) for each in values]
        self.bytes_used += sum(map(len, values))
        self.world.counts["blocks"] += len(values)
        last = HEADER.unpack_from(values[-1])
        self.world.note(f"{self.name} has block {last[5]} {values[-1][-HASH_BYTES:].hex()[:16]}")
        self._on_durable()

    async def _sync(self) -> None:
        low_s, high_s = SYNC_S
        if self.world.chance(self.faults.slow_sync):
            high_s = self.faults.slow_max_s
        await asyncio.sleep(self.world.rng.uniform(low_s, max(low_s, high_s)))

    # --- checkpoints ----------------------------------------------------------------------------

    async def commit(self, delta: _Delta) -> None:
        """Writes a checkpoint, all or nothing.

        Raises:
            CheckpointFailedError: it is not known whether it is there.
        """
        check_alive()
        self._checkpoint_under_way = delta
        await self._sync()
        self._checkpoint_under_way = None
        failed = self.world.chance(self.faults.sync_error)
        if not failed or self.world.chance(0.5):
            self._add_checkpoint(delta)
        if failed:
            self.world.counts["syncs failed"] += 1
            raise CheckpointFailedError("Input/output error")

    def _add_checkpoint(self, delta: _Delta) -> None:
        self.world.counts["checkpoints"] += 1
        self.world.note(f"{self.name} has checkpoint {delta.checkpoint.block}")
        self.state.committed.append(delta)

    # --- damage ---------------------------------------------------------------------------------

    def flip(self, block: int) -> Callable[[], None]:
        """Changes one bit of a block; returns what changes it back."""
        whole = self.values[block]
        at = self.world.rng.randrange(len(whole))
        changed = bytearray(whole)
        changed[at] ^= 1 << self.world.rng.randrange(8)
        self.values[block] = bytes(changed)

        def restore() -> None:
            self.values[block] = whole

        return restore

    def _process_ended(self) -> None:
        """What the dead process had under way may have been done, or not."""
        self.is_locked = False
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.set_result(None)
        values, self._under_way = self._under_way, []
        if values and self.world.chance(0.5):
            self.world.note(f"{self.name} finishes what it was writing")
            self.write(values)
        delta, self._checkpoint_under_way = self._checkpoint_under_way, None
        if delta and self.world.chance(0.5):
            self._add_checkpoint(delta)


class DiskLog:
    """The log on a disk, as `LmdbLog` reads and writes it.

    Args:
        disk: see there.
        epoch: under which it is written; a log with a block of a later epoch is refused.
    """

    def __init__(self, disk: Disk, epoch: int) -> None:
        self.disk = disk
        self._epoch = epoch
        self.last = self._read_last()
        if self.last is not None and self.last.epoch > epoch:
            raise DamagedLogError(
                f"epoch {self.last.epoch} wrote block {self.last.number}: epoch {epoch} is over"
            )

    def append(self, drafts: Sequence[BlockDraft]) -> None:
        """See `Log`. At once, since nobody can wait here for a sync; nodes use `DiskAppender`."""
        values, last = self.chain(drafts)
        self.disk.write(values)
        self.last = last

    def chain(self, drafts: Sequence[BlockDraft]) -> tuple[list[bytes], Block]:
        """The blocks that the drafts become, and the last of them."""
        before, values = self.last, []
        for draft in drafts:
            number, digest = (before.number, before.hash) if before else (0, GENESIS_HASH)
            block = encode_block(self.disk.identity, self._epoch, number + 1, digest, draft)
            check_follows(before, block)
            values.append(block_value(self.disk.identity, block))
            before = block
        assert before, "something is appended"
        return values, before

    def refresh(self) -> None:
        """Nothing to do: reads see every append."""

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """See `Log`."""
        value, header = self._find(sequence)
        at = HEADER_BYTES + (sequence - header[_FIRST]) * RECORD_BYTES
        record = value[at : at + RECORD_BYTES]
        heap_at = HEADER_BYTES + header[_COUNT] * RECORD_BYTES
        return record, _metadata(record, memoryview(value), heap_at)

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """See `Log`."""
        value, header = self._find(sequence)
        start = HEADER_BYTES + header[_COUNT] * RECORD_BYTES + offset
        return value[start : start + length]

    def locate(self, sequence: int) -> BlockName:
        """See `Log`."""
        value, header = self._find(sequence)
        first, last = header[_FIRST], header[_FIRST] + header[_COUNT] - 1
        return BlockName(header[5], value[-HASH_BYTES:], header[9], first, last)

    def blocks(self, from_sequence: int) -> Iterator[Block]:
        """See `Log`."""
        at = bisect_right(self.disk.starts, from_sequence - 1)
        while at < len(self.disk.values):
            yield decode_block(self.disk.identity, self.disk.starts[at], self.disk.values[at])
            at += 1

    def used_bytes(self) -> int:
        """See `Log`."""
        return self.disk.bytes_used

    def close(self) -> None:
        """See `Log`."""

    def _find(self, sequence: int) -> tuple[bytes, tuple[Any, ...]]:
        at = bisect_right(self.disk.starts, sequence) - 1
        value = self.disk.values[at] if at >= 0 else b""
        header = HEADER.unpack_from(value) if value else None
        if header is None or sequence >= header[_FIRST] + header[_COUNT]:
            raise DamagedLogError(f"no block has the record {sequence}")
        return value, header

    def _read_last(self) -> Block | None:
        values = self.disk.values
        if not values:
            return None
        return decode_block(self.disk.identity, self.disk.starts[-1], values[-1])


class DiskAppender:
    """An `Appender` to a `DiskLog`."""

    def __init__(self, log: DiskLog) -> None:
        self._log = log

    async def append(self, blocks: Sequence[BlockDraft]) -> None:
        """See `Appender`."""
        values, last = self._log.chain(blocks)
        await self._log.disk.append(values)
        self._log.last = last

    def close(self) -> None:
        """See `Appender`."""


@dataclass
class _Delta:
    """A checkpoint as it is written."""

    log: Log
    rows: Rows
    checkpoint: Checkpoint
    transactions: list[Change]
    clearing: list[Row]


class DiskState(MemoryState):
    """The state on a disk; a checkpoint is seen by the `refresh` after it is committed.

    Attributes:
        committed: checkpoints since the latest `refresh`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.committed: list[_Delta] = []
        self._rows = 0

    def refresh(self) -> None:
        """See `StateReader`."""
        committed, self.committed = self.committed, []
        for each in committed:
            self.write_checkpoint(
                each.log, each.rows, each.checkpoint, each.transactions, each.clearing
            )

    def write_checkpoint(
        self,
        log: Log,
        rows: Rows,
        checkpoint: Checkpoint,
        transactions: Iterable[Change] = (),
        clearing: Iterable[Row] = (),
    ) -> None:
        """See `StateFile`."""
        self._rows += sum(map(len, rows))
        super().write_checkpoint(log, rows, checkpoint, transactions, clearing)

    @contextmanager
    def snapshot(self) -> Iterator[StateReader]:
        """See `StateReader`. Rows never change, so the tables alone are copied."""
        reader = MemoryState()
        for name in vars(reader):
            setattr(reader, name, copy(getattr(self, name)))
        yield reader

    def used_bytes(self) -> int:
        """See `StateReader`. About; to count them would take longer than all else."""
        return 256 * self._rows


class DiskWriter:
    """A `StateWriter` to a disk's state, as the checkpointing child is one."""

    def __init__(self, disk: Disk, log: Log) -> None:
        self._disk = disk
        self._log = log
        self._rows = Rows([], [], [])
        self._transactions: list[Change] = []
        self._clearing: list[Row] = []

    async def put(self, rows: Rows) -> None:
        """See `StateWriter`."""
        for mine, more in zip(self._rows, rows, strict=True):
            mine.extend(more)

    async def put_crossing(self, transactions: list[Change], clearing: list[Row]) -> None:
        """See `StateWriter`."""
        self._transactions += transactions
        self._clearing += clearing

    async def commit(self, checkpoint: Checkpoint) -> CheckpointReport:
        """See `StateWriter`."""
        delta = _Delta(self._log, self._rows, checkpoint, self._transactions, self._clearing)
        self._rows, self._transactions, self._clearing = Rows([], [], []), [], []
        await self._disk.commit(delta)
        return CheckpointReport(sum(map(len, delta.rows)), 0.0, 0)

    async def close(self) -> None:
        """See `StateWriter`."""


def _first_of(value: bytes) -> int:
    first: int = HEADER.unpack_from(value)[_FIRST]
    return first
