"""The block that commands are recorded in until it is sealed."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

from librt.strings import BytesWriter

from cluster.packed import BODY, METADATA_BYTES_MAX
from shard_node.records import (
    BLOCK_BYTES_MAX,
    BLOCK_RECORDS_MAX,
    HASH_BYTES,
    HEADER_BYTES,
    RECORD_BYTES,
    BlockDraft,
    heap_offset,
)

_CONTENT_BYTES_MAX: Final = BLOCK_BYTES_MAX - HEADER_BYTES - HASH_BYTES


class OpenBlock:
    """Gathers records and numbers them.

    Records are written one behind the other into one buffer. Who asks for one of them again makes
    the buffer a *chunk*, so that every byte is copied out once, however often it is read.

    Args:
        sequence: of the latest record before it.

    Attributes:
        sequence: of the latest record.
        first_sequence: of the first record that the next seal hands over.
        stamp_us: the time of all its records; 0 = no block is open.
        records: where whoever numbers a record (`next_sequence`) writes its 128 bytes.
    """

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.first_sequence = sequence + 1
        self.stamp_us = 0
        self.records = BytesWriter()
        self._chunks: list[bytes] = []
        self._chunk_sequences: list[int] = []
        self._heap: list[bytes] = []
        self._heap_bytes = 0

    @property
    def count(self) -> int:
        """How many records it has."""
        return self.sequence + 1 - self.first_sequence

    def begin(self, stamp_us: int) -> None:
        """Opens it with the time of all its records; later than every block before."""
        assert not self.stamp_us, "the open block must be sealed first"
        self.stamp_us = stamp_us

    def room(self) -> int:
        """How many more records fit for certain, whatever metadata they carry."""
        used_bytes = self.count * RECORD_BYTES + self._heap_bytes
        by_bytes = (_CONTENT_BYTES_MAX - used_bytes) // (RECORD_BYTES + METADATA_BYTES_MAX)
        return min(BLOCK_RECORDS_MAX - self.count, by_bytes)

    def append(self, body: bytes, effects: bytes) -> int:
        """Adds a record, given as its two halves; returns its sequence."""
        self.records.write(body)
        self.records.write(effects)
        return self.next_sequence()

    def next_sequence(self) -> int:
        """Numbers the record that is being written; returns its sequence."""
        assert self.stamp_us, "no block is open"
        self.sequence += 1
        return self.sequence

    def add_to_heap(self, data: bytes) -> int:
        """Adds what the next record points to; returns its offset in the heap."""
        offset = self._heap_bytes
        self._heap.append(data)
        self._heap_bytes += len(data)
        return offset

    def seal(self) -> BlockDraft | None:
        """Ends it and hands it over; None when nothing was recorded in it."""
        stamp_us, self.stamp_us = self.stamp_us, 0
        if not self.count:
            return None
        records, heap = self.records.getvalue(), b"".join(self._heap)
        if self._chunks:
            records = b"".join(self._chunks) + records
        draft = BlockDraft(self.first_sequence, self.count, stamp_us, records, heap)
        self.first_sequence = self.sequence + 1
        self.records, self._heap, self._heap_bytes = BytesWriter(), [], 0
        self._chunks, self._chunk_sequences = [], []
        return draft

    def skip(self, count: int) -> None:
        """Goes on behind records that were replayed, not recorded."""
        assert not self.count, "replay comes before recording"
        self.sequence += count
        self.first_sequence += count

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """A transfer's record and metadata, as long as the block is not sealed."""
        if len(self.records):
            chunk = self.records.getvalue()
            self._chunk_sequences.append(self.sequence + 1 - len(chunk) // RECORD_BYTES)
            self._chunks.append(chunk)
            self.records = BytesWriter()
        place = bisect_right(self._chunk_sequences, sequence) - 1
        at = (sequence - self._chunk_sequences[place]) * RECORD_BYTES
        record = self._chunks[place][at : at + RECORD_BYTES]
        return record, self.read_heap(heap_offset(record), BODY.unpack_from(record)[7])

    def read_heap(self, offset: int, length: int) -> bytes:
        """Bytes of its heap."""
        if not length:  # as for most transfers; to join the heap takes longer than the rest
            return b""
        return b"".join(self._heap)[offset : offset + length]
