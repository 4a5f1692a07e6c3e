"""The log: the append-only history of a shard, which *is* the ledger.

The seam is `Log`: append blocks durably, read them back. `LmdbLog` keeps one block per key (the
block's first sequence, big-endian) in an LMDB environment with default sync, `MemoryLog` in a list;
both pass the same contract tests. Later a replicated stream stands behind the same seam.

A failed sync leaves the operating system's cache and the disk in disagreement: the next commit can
succeed over a hole. So an append that raises must end the process, and opening a log first drops
the file's pages from the cache, so that what is verified is what the device holds.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import lmdb

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
    heap_offset,
)
from shard_node.structure import lacks_pages_in_use

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_KEY: Final = struct.Struct(">Q")
_METADATA_LENGTH: Final = struct.Struct("<H")
_METADATA_LENGTH_AT: Final = 58


@dataclass(frozen=True, slots=True)
class BlockName:
    """A durable block, told apart from every other.

    Attributes:
        number, hash: as in `Block`.
        time_us: its stamp.
        first_sequence, last_sequence: its first and last record.
    """

    number: int
    hash: bytes
    time_us: int
    first_sequence: int
    last_sequence: int


class Log(Protocol):
    """A shard's history. One thread appends, another reads; reads see what `refresh` has shown."""

    @property
    def last(self) -> Block | None:
        """The latest durable block; None = the log is empty."""
        ...

    def append(self, drafts: Sequence[BlockDraft]) -> None:
        """Chains the drafts to the log; durable, all of them, when it returns.

        Blocks for as long as the sync takes. When it raises, nobody knows what is durable: the
        process must end and start again from the log.
        """
        ...

    def refresh(self) -> None:
        """Makes later reads see what was appended since. Call on the reading thread."""
        ...

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """The 128 bytes and the metadata of a durable transfer's record."""
        ...

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """Bytes of the heap of the block that a durable record is in."""
        ...

    def locate(self, sequence: int) -> BlockName:
        """The block that a durable record is in."""
        ...

    def blocks(self, from_sequence: int) -> Iterator[Block]:
        """The blocks from the one that starts at this sequence on, each verified by itself.

        Raises:
            DamagedLogError: naming the first block that is not as it was written.
        """
        ...

    def used_bytes(self) -> int:
        """How many bytes of room it has used."""
        ...

    def close(self) -> None:
        """Gives back files and memory; nothing that was appended is lost."""
        ...


class LmdbLog:
    """A log in an LMDB environment.

    Args:
        path: the environment's folder, made when it does not exist.
        identity: whose log it is.
        epoch: under which it is written; a log with a block of a later epoch is refused.
        map_bytes: the most it may ever hold; address space only, the file grows as it is used.
        read_only: for tools that look on beside the node; `append` is then not possible.
    """

    def __init__(
        self,
        path: Path,
        identity: LogIdentity,
        epoch: int,
        map_bytes: int,
        *,
        read_only: bool = False,
    ) -> None:
        self._identity = identity
        self._epoch = epoch
        if not read_only:
            path.mkdir(parents=True, exist_ok=True)
        try:
            if not read_only:
                drop_from_page_cache(path / "data.mdb")
            self._env: Any = lmdb.open(
                str(path), map_size=map_bytes, readonly=read_only, max_spare_txns=4
            )
        except (OSError, lmdb.Error) as error:
            raise DamagedLogError(f"the log cannot be opened: {error}") from error
        if missing := missing_bytes(self._env, path):
            self._env.close()
            raise DamagedLogError(f"the log's file is cut short by {missing} bytes")
        self._env.reader_check()
        self._page_bytes: Final[int] = self._env.stat()["psize"]
        self._reader: Any = None
        self._cursor: Any = None
        # The block found last, up to which sequence, for an account's entries lie close together.
        self._found: tuple[int, int, memoryview, tuple[Any, ...]] | None = None
        self.last = self._read_last()
        if self.last is not None and self.last.epoch > epoch and not read_only:
            raise DamagedLogError(
                f"epoch {self.last.epoch} wrote block {self.last.number}: epoch {epoch} is over"
            )

    def append(self, drafts: Sequence[BlockDraft]) -> None:
        """See `Log`. One LMDB transaction, so one sync, for all the drafts."""
        before = self.last
        try:
            with self._env.begin(write=True) as txn:
                for draft in drafts:
                    number, digest = (before.number, before.hash) if before else (0, GENESIS_HASH)
                    block = encode_block(self._identity, self._epoch, number + 1, digest, draft)
                    check_follows(before, block)
                    value = block_value(self._identity, block)
                    if not txn.put(_KEY.pack(draft.first_sequence), value, append=True):
                        raise DamagedLogError(f"block {block.number} stands in the log already")
                    before = block
        except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            raise DamagedLogError(f"nothing can be appended to the log: {error}") from error
        self.last = before

    def refresh(self) -> None:
        """See `Log`."""
        if self._reader is not None:
            self._reader.abort()
            self._reader = self._cursor = self._found = None

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """See `Log`."""
        value, header = self._find(sequence)
        at = HEADER_BYTES + (sequence - header[6]) * RECORD_BYTES
        record = bytes(value[at : at + RECORD_BYTES])
        return record, _metadata(record, value, HEADER_BYTES + header[7] * RECORD_BYTES)

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """See `Log`."""
        value, header = self._find(sequence)
        start = HEADER_BYTES + header[7] * RECORD_BYTES + offset
        return bytes(value[start : start + length])

    def locate(self, sequence: int) -> BlockName:
        """See `Log`."""
        value, header = self._find(sequence)
        first, last = header[6], header[6] + header[7] - 1
        return BlockName(header[5], bytes(value[-HASH_BYTES:]), header[9], first, last)

    def blocks(self, from_sequence: int) -> Iterator[Block]:
        """See `Log`. Each block is read in a transaction of its own, so none stays open."""
        sequence = from_sequence
        while (found := self._read_at(sequence)) is not None:
            key, value = found
            block = decode_block(self._identity, _first_sequence(key), value)
            yield block
            sequence = block.draft.last_sequence + 1

    def used_bytes(self) -> int:
        """See `Log`."""
        last_page: int = self._env.info()["last_pgno"]
        return (last_page + 1) * self._page_bytes

    def close(self) -> None:
        """See `Log`."""
        self.refresh()
        self._env.close()

    def _find(self, sequence: int) -> tuple[memoryview, tuple[Any, ...]]:
        """The block that a durable record is in: its bytes, valid until `refresh`, and header."""
        found = self._found
        if found is not None and found[0] <= sequence < found[1]:
            return found[2], found[3]
        if self._reader is None:
            self._reader = self._env.begin(buffers=True)
            self._cursor = self._reader.cursor()
        cursor = self._cursor
        key = _KEY.pack(sequence)
        try:
            if not (cursor.set_range(key) and bytes(cursor.key()) == key) and not cursor.prev():
                raise DamagedLogError(f"no block has the record {sequence}")
        except lmdb.Error as error:
            raise DamagedLogError(f"no block can be read for the record {sequence}") from error
        first = _first_sequence(bytes(cursor.key()))
        value: memoryview = cursor.value()
        header = HEADER.unpack_from(value) if len(value) >= HEADER_BYTES else None
        if header is None or header[6] != first:
            raise DamagedLogError(f"the block at sequence {first} does not say that it is there")
        if sequence >= first + header[7]:
            raise DamagedLogError(
                f"the block at sequence {first} does not have the record {sequence}"
            )
        self._found = first, first + header[7], value, header
        return value, header

    def _read_at(self, sequence: int) -> tuple[bytes, bytes] | None:
        with self._env.begin() as txn:
            cursor = txn.cursor()
            try:
                return cursor.item() if cursor.set_range(_KEY.pack(sequence)) else None
            except lmdb.Error as error:
                raise DamagedLogError(f"no block can be read at sequence {sequence}") from error

    def _read_last(self) -> Block | None:
        try:
            with self._env.begin() as txn:
                cursor = txn.cursor()
                if not cursor.last():
                    return None
                key, value = cursor.item()
        except lmdb.Error as error:
            raise DamagedLogError(f"the last block cannot be read: {error}") from error
        return decode_block(self._identity, _first_sequence(key), value)


class MemoryLog:
    """A log in a list, for tests and simulation. Everything appended is durable at once."""

    def __init__(self, identity: LogIdentity, epoch: int) -> None:
        self._identity = identity
        self._epoch = epoch
        self._blocks: list[Block] = []
        self._starts: list[int] = []

    @property
    def last(self) -> Block | None:
        """See `Log`."""
        return self._blocks[-1] if self._blocks else None

    def append(self, drafts: Sequence[BlockDraft]) -> None:
        """See `Log`."""
        for draft in drafts:
            before = self.last
            number, digest = (before.number, before.hash) if before else (0, GENESIS_HASH)
            block = encode_block(self._identity, self._epoch, number + 1, digest, draft)
            check_follows(before, block)
            self._blocks.append(block)
            self._starts.append(draft.first_sequence)

    def refresh(self) -> None:
        """Nothing to do: reads see every append."""

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """See `Log`."""
        draft = self._find(sequence).draft
        at = (sequence - draft.first_sequence) * RECORD_BYTES
        record = draft.records[at : at + RECORD_BYTES]
        return record, _metadata(record, memoryview(draft.heap), 0)

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """See `Log`."""
        return self._find(sequence).draft.heap[offset : offset + length]

    def locate(self, sequence: int) -> BlockName:
        """See `Log`."""
        block, draft = self._find(sequence), self._find(sequence).draft
        first, last = draft.first_sequence, draft.last_sequence
        return BlockName(block.number, block.hash, draft.time_us, first, last)

    def blocks(self, from_sequence: int) -> Iterator[Block]:
        """See `Log`."""
        for block in list(self._blocks):
            if block.draft.first_sequence >= from_sequence:
                yield block

    def used_bytes(self) -> int:
        """See `Log`."""
        return sum(len(block.draft.records) + len(block.draft.heap) for block in self._blocks)

    def close(self) -> None:
        """See `Log`."""

    def _find(self, sequence: int) -> Block:
        at = bisect_right(self._starts, sequence) - 1
        if at < 0 or sequence > self._blocks[at].draft.last_sequence:
            raise DamagedLogError(f"no block has the record {sequence}")
        return self._blocks[at]


def first_sequence_since(log: Log, time_us: int, last_sequence: int) -> int:
    """The first record of the earliest block stamped at this time or later, by bisection.

    One behind `last_sequence` when no block up to that record is.
    """
    low, high = 1, last_sequence + 1
    while low < high:
        block = log.locate((low + high) // 2)
        if block.time_us < time_us:
            low = block.last_sequence + 1
        else:
            high = block.first_sequence
    return low


def drop_from_page_cache(path: Path) -> None:
    """Makes the next reads of a file come from the device (see the module's docstring)."""
    if not path.exists():
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def missing_bytes(env: Any, path: Path) -> int:
    """How much shorter a file is than LMDB counts it; 0 also when it lacks only free pages."""
    with env.begin():  # what this shows stays where it is, also while somebody else writes
        counted: int = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
        missing = max(0, counted - (path / "data.mdb").stat().st_size)
        return missing if missing and lacks_pages_in_use(path) else 0


def _first_sequence(key: bytes) -> int:
    """The first sequence of the block that stands under a key."""
    if len(key) != _KEY.size:
        raise DamagedLogError(f"a block stands under the key {key.hex()}, which is none")
    sequence: int = _KEY.unpack(key)[0]
    return sequence


def _metadata(record: bytes, value: memoryview, heap_at: int) -> bytes:
    (length,) = _METADATA_LENGTH.unpack_from(record, _METADATA_LENGTH_AT)
    if not length:
        return b""
    start = heap_at + heap_offset(record)
    return bytes(value[start : start + length])
