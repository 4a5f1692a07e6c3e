"""Blocks and rows made by hand, for tests of what stores them."""

import random
from dataclasses import dataclass

from shard_node.records import (
    EFFECTS,
    RECORD_BYTES,
    BlockDraft,
    RecordKind,
    pack_bare_effects,
)
from tests.support.engines import START_US, body

BARE_BODY = bytes(64)


@dataclass(frozen=True)
class Written:
    """A record as it was put into a block."""

    record: bytes
    metadata: bytes


def transfer_record(number: int, metadata: bytes, heap_offset: int) -> bytes:
    """A transfer's record; its number is its id, its balances and its times."""
    return body(number, 1, 2, metadata_bytes=len(metadata)) + EFFECTS.pack(
        RecordKind.TRANSFER, 0, heap_offset, -number, number, 0, 0, number, number, 1, 1
    )


def draft_of(first_sequence: int, metadata: list[bytes], time_us: int = 0) -> BlockDraft:
    """A block of transfers with this metadata; a transfer's number is its sequence."""
    records, heap = [], b""
    for sequence, each in enumerate(metadata, first_sequence):
        records.append(transfer_record(sequence, each, len(heap) if each else 0))
        heap += each
    stamp_us = time_us or START_US + first_sequence
    return BlockDraft(first_sequence, len(metadata), stamp_us, b"".join(records), heap)


def epoch_draft(first_sequence: int) -> BlockDraft:
    """A block of one record that is no transfer."""
    record = BARE_BODY + pack_bare_effects(RecordKind.EPOCH_BEGAN)
    return BlockDraft(first_sequence, 1, START_US + first_sequence, record, b"")


def random_drafts(rng: random.Random, count: int, records_max: int = 40) -> list[BlockDraft]:
    """A run of blocks from sequence 1 on: of one record, of many, with and without metadata."""
    drafts, sequence = [], 1
    for _ in range(count):
        records = rng.choice((1, rng.randrange(1, records_max + 1)))
        metadata = [rng.randbytes(rng.choice((0, 0, 1, 20, 256))) for _ in range(records)]
        drafts.append(draft_of(sequence, metadata))
        sequence += records
    return drafts


def written_in(draft: BlockDraft) -> list[Written]:
    """What reading each record of a block must give."""
    found = []
    for at in range(0, len(draft.records), RECORD_BYTES):
        record = draft.records[at : at + RECORD_BYTES]
        length = int.from_bytes(record[58:60], "little")
        offset = EFFECTS.unpack_from(record, 64)[2]
        found.append(Written(record, draft.heap[offset : offset + length]))
    return found
