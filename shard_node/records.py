"""What a shard's log holds, byte for byte: fixed-stride records in hash-chained blocks.

A *record* says what happened (effects, not commands), so replaying one decides nothing. Every
record is 128 bytes: a body of 64 and effects of 64, the effects opening with the record's kind. A
transfer's body is the packed body that the router sent (`cluster.packed`), copied and not parsed
again. A record's *sequence* is its place in the log, from 1, and is not stored: block header plus
offset give it. Text and bytes of free length lie in the block's *heap*, behind the records.

A *block* is the value of one key of the log: header, records, heap, hash. The hash covers all bytes
before it, and the header carries the hash of the block before, so a changed, dropped or reordered
byte breaks the chain. All numbers are little-endian; times are microseconds UTC.

    block   0   4  magic `DBLK`    effects (transfer)  0  1  kind
            4   2  format (1)                           1  1  RefusalReason, 0 = completed
            6   2  shard id                             2  2  zero
            8  16  cluster id                           4  4  metadata's offset in the heap
           24   8  epoch                                8  8  source's balance after
           32   8  block number, from 1                16  8  destination's balance after
           40   8  first sequence                      24  8  source's previous entry, 0 = none
           48   4  count of records                    32  8  destination's previous entry
           52   4  heap bytes                          40  8  source's posting time
           56   8  stamp: the time of all its records  48  8  destination's posting time
           64  32  hash of the block before            56  2  log id of the source's previous
           96      records, heap                       58  2  log id of the destination's
          end  32  BLAKE2b-256 of all of the above     60  4  zero
"""

from __future__ import annotations

import enum
import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter, read_i64_le, write_i64_le

from cluster.packed import AMOUNT_AT, BODY, BODY_BYTES, DESTINATION_AT, KEY_BYTES, SOURCE_AT
from cluster.packed import HEADER_BYTES as TRANSACTION_HEADER_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORD_BYTES: Final = 128
HASH_BYTES: Final = 32
GENESIS_HASH: Final = bytes(HASH_BYTES)
"""What the first block names as the hash of the block before."""

BLOCK_BYTES_MAX: Final = 512 * 1024
"""A block is read, hashed and copied whole, so it is kept to half a mebibyte."""

HEADER: Final = struct.Struct("<4s2H16s3Q2Iq32s")
HEADER_BYTES: Final = HEADER.size
BLOCK_RECORDS_MAX: Final = (BLOCK_BYTES_MAX - HEADER_BYTES - HASH_BYTES) // RECORD_BYTES
"""Records in a block without a heap (4,095): the bound on what one block gathers."""

EFFECTS: Final = struct.Struct("<2B2xI2q2Q2q2H4x")
"""kind, reason, metadata offset, balances after, previous entries, posting times, their log ids."""

ACCOUNT: Final = struct.Struct("<Q3qH2B28x")
"""account id, floor, cap, time, reason's length, AccountKind, AccountStatus."""

EPOCH: Final = struct.Struct("<Q2q40x")
"""epoch, time, and the promise, see `instants`: nothing recorded later is posted up to then."""

GROUP: Final = struct.Struct("<4BI2q40x")
"""kind, reason, index refused, size; heap offset of bodies and metadata; first source's balance
after, its posting time."""

COMMITTED: Final = struct.Struct("<2BHI16sq32x")
"""kind, size; of a plain transfer the participant; heap offset of its metadata, or of the group's
members and metadata; transaction id, deadline. The body half is the first member's."""

PREPARED: Final = struct.Struct("<B3x2I52x")
"""kind; heap offset and bytes of members and metadata. The body half is the packed header."""

LEG: Final = struct.Struct("<I2H4q16sQ")
"""kind and heap offset × 256; log id of the previous entry, the other account's shard; balance
after, previous entry, posting time, decision time; transaction id, first source of the key."""

ENDED: Final = struct.Struct("<16sq2I32x")
"""The body half of ABORTED: transaction id, deadline. Of FINISHED: heap offset and bytes of ids."""

_MAGIC: Final = b"DBLK"
_FORMAT: Final = 1


class RecordKind(enum.IntEnum):
    """What a record says, the first byte of its effects."""

    TRANSFER = 1
    """A transfer that completed, or (reason ≠ 0) was refused for good under its key."""
    ACCOUNT_OPENED = 2
    ACCOUNT_STATUS_CHANGED = 3
    EPOCH_BEGAN = 4
    """A shard node took over the log: the first record that it wrote. Again under the same epoch
    it is a promise (see `instants`)."""
    GROUP = 5
    """A group whose accounts are all on this shard and that completed: its legs follow. Or any
    group that was refused for good under its key."""
    PREPARED = 6
    """This participant has reserved what its legs of a transaction need."""
    COMMITTED = 7
    """This home has decided to commit a transaction; its own legs follow."""
    LEG_OUTGOING = 8
    """An account of this shard paid in a group or a transaction."""
    LEG_INCOMING = 9
    """An account of this shard was paid in a group or a transaction."""
    ABORTED = 10
    """A transaction has ended here without effect and never will have one."""
    FINISHED = 11
    """Transactions that this home committed are posted everywhere."""


_TRANSFER: Final = 1  # RecordKind.TRANSFER, as a number that costs no look-up
_PREPARED: Final = 6  # and RecordKind.PREPARED
_COMMITTED: Final = 7
_LEG_INCOMING: Final = 9

_ZEROS: Final = bytes(48)
_REST_OF_PREPARED_BODY: Final = bytes(BODY_BYTES - TRANSACTION_HEADER_BYTES)

# Where a record has its words: after the body, as `EFFECTS` and `LEG` lay them out.
_SOURCE_PREVIOUS_AT: Final = BODY_BYTES + 24
_DESTINATION_PREVIOUS_AT: Final = BODY_BYTES + 32
_SOURCE_TIME_AT: Final = BODY_BYTES + 40
_DESTINATION_TIME_AT: Final = BODY_BYTES + 48
_LEG_PREVIOUS_AT: Final = BODY_BYTES + 16
_LEG_TIME_AT: Final = BODY_BYTES + 24

KEYED: Final = bytes((RecordKind.TRANSFER, RecordKind.GROUP, RecordKind.COMMITTED))
"""Kinds whose first 24 bytes are a key that they answer for."""


class DamagedLogError(Exception):
    """The log is not what was written: the message names the block and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class LogIdentity:
    """Whose log it is; every block carries it, so that no log is ever taken for another.

    Attributes:
        cluster_id: 16 bytes, see `cluster_id_of`.
        shard_id: 1 … 65,535; also the log id in record names.
    """

    cluster_id: bytes
    shard_id: int


@dataclass(frozen=True, slots=True)
class BlockDraft:
    """The records of one group commit, not yet numbered, chained or durable.

    Attributes:
        first_sequence: the sequence of its first record.
        count: how many records, 1 … `BLOCK_RECORDS_MAX`.
        time_us: the stamp of all of them.
        records: `count` × 128 bytes.
        heap: the bytes that records point to.
    """

    first_sequence: int
    count: int
    time_us: int
    records: bytes
    heap: bytes

    @property
    def last_sequence(self) -> int:
        """The sequence of its last record."""
        return self.first_sequence + self.count - 1


@dataclass(frozen=True, slots=True)
class Block:
    """A block as it stands in the log.

    Attributes:
        number: its place among the blocks, from 1, without gaps.
        epoch: the epoch that wrote it.
        draft: its records.
        previous_hash: the hash of the block before.
        hash: its own.
    """

    number: int
    epoch: int
    draft: BlockDraft
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class TransferRecord:
    """A transfer's record, unpacked, for answers about single entries (not for the hot path)."""

    transfer_id: bytes
    source: int
    destination: int
    amount_minor: int
    reference: int
    import_time_us: int
    currency: int
    type: int
    reason: int
    source_balance_minor: int
    destination_balance_minor: int
    source_previous: int
    destination_previous: int
    source_time_us: int
    destination_time_us: int
    metadata_offset: int
    metadata_bytes: int


def cluster_id_of(name: str) -> bytes:
    """The 16 bytes that stand for a cluster's name in block headers."""
    return hashlib.blake2b(name.encode(), digest_size=16, person=b"doubloon-cluster").digest()


def unpack_transfer(record: bytes) -> TransferRecord:
    """Unpacks a record of kind TRANSFER."""
    body = BODY.unpack_from(record)
    transfer_id, source, destination, amount, reference, import_us, currency, length, kind = body
    (_, reason, offset, source_after, destination_after, source_previous, destination_previous) = (
        EFFECTS.unpack_from(record, BODY_BYTES)[:7]
    )
    source_us, destination_us = EFFECTS.unpack_from(record, BODY_BYTES)[7:9]
    return TransferRecord(
        transfer_id=transfer_id,
        source=source,
        destination=destination,
        amount_minor=amount,
        reference=reference,
        import_time_us=import_us,
        currency=currency,
        type=kind,
        reason=reason,
        source_balance_minor=source_after,
        destination_balance_minor=destination_after,
        source_previous=source_previous,
        destination_previous=destination_previous,
        source_time_us=source_us,
        destination_time_us=destination_us,
        metadata_offset=offset,
        metadata_bytes=length,
    )


def entry_of(record: bytes, account_id: int) -> tuple[int, int, bool, int]:
    """What sums take of an account's entry; reads words where `unpack_transfer` makes an object.

    Returns:
        When it was posted, the amount, whether it pays the account, the record of the entry before.
    """
    kind = record[BODY_BYTES]
    if kind == _TRANSFER:
        incoming = read_i64_le(record, DESTINATION_AT) == account_id
        assert incoming or read_i64_le(record, SOURCE_AT) == account_id, "it is not its entry"
        previous_at = _DESTINATION_PREVIOUS_AT if incoming else _SOURCE_PREVIOUS_AT
        time_at = _DESTINATION_TIME_AT if incoming else _SOURCE_TIME_AT
    else:
        incoming = kind == _LEG_INCOMING
        previous_at, time_at = _LEG_PREVIOUS_AT, _LEG_TIME_AT
    return (
        read_i64_le(record, time_at),
        read_i64_le(record, AMOUNT_AT),
        incoming,
        read_i64_le(record, previous_at),
    )


def transfer_of_body(body: bytes) -> TransferRecord:
    """What a body says; of a record of another kind than TRANSFER, whose effects are not these."""
    return unpack_transfer(body[:BODY_BYTES] + bytes(EFFECTS.size))


def write_transfer(
    writer: BytesWriter,
    body: bytes,
    heap_offset: int,
    source_minor: int,
    destination_minor: int,
    source_previous: int,
    destination_previous: int,
    source_us: int,
    destination_us: int,
    source_log: int,
    destination_log: int,
) -> None:
    """Writes the record of a transfer that completed: its body, and what `EFFECTS.pack` would give.

    Word by word, for that costs, compiled, a tenth of packing by format, which makes an object of
    every number.
    """
    writer.write(body)
    write_i64_le(writer, _TRANSFER | heap_offset << 32)
    write_i64_le(writer, source_minor)
    write_i64_le(writer, destination_minor)
    write_i64_le(writer, source_previous)
    write_i64_le(writer, destination_previous)
    write_i64_le(writer, source_us)
    write_i64_le(writer, destination_us)
    write_i64_le(writer, source_log | destination_log << 16)


def write_leg(
    writer: BytesWriter,
    body: bytes,
    kind: int,
    heap_offset: int,
    previous_log: int,
    peer: int,
    minor: int,
    previous: int,
    time_us: int,
    decided_us: int,
    transaction_id: bytes,
    first_source: int,
) -> None:
    """Writes the record of a leg: its body, and what `LEG.pack` would give; as `write_transfer`."""
    writer.write(body)
    word = kind | heap_offset << 8 | previous_log << 32 | peer << 48
    write_i64_le(writer, word if word < 2**63 else word - 2**64)
    write_i64_le(writer, minor)
    write_i64_le(writer, previous)
    write_i64_le(writer, time_us)
    write_i64_le(writer, decided_us)
    writer.write(transaction_id)
    write_i64_le(writer, first_source)


def write_prepared(writer: BytesWriter, heap_offset: int, length: int) -> None:
    """Writes the record of a prepared transaction behind its header: what `PREPARED.pack` gives."""
    writer.write(_REST_OF_PREPARED_BODY)
    write_i64_le(writer, _PREPARED | heap_offset << 32)
    write_i64_le(writer, length)
    writer.write(_ZEROS)


def write_committed(
    writer: BytesWriter,
    body: bytes,
    size: int,
    participant: int,
    heap_offset: int,
    transaction_id: bytes,
    deadline_us: int,
) -> None:
    """Writes the record of a decision: its first member's body, and what `COMMITTED.pack` gives."""
    writer.write(body)
    write_i64_le(writer, _COMMITTED | size << 8 | participant << 16 | heap_offset << 32)
    writer.write(transaction_id)
    write_i64_le(writer, deadline_us)
    writer.write(_ZEROS[:32])


def pack_bare_effects(kind: RecordKind, heap_offset: int = 0) -> bytes:
    """The effects half of a record that is no transfer: its kind and where its text lies."""
    return EFFECTS.pack(kind, 0, heap_offset, 0, 0, 0, 0, 0, 0, 0, 0)


def encode_block(
    identity: LogIdentity, epoch: int, number: int, previous_hash: bytes, draft: BlockDraft
) -> Block:
    """Chains a draft to the block before it. The work is one hash of the block's bytes."""
    header = _pack_header(identity, epoch, number, previous_hash, draft)
    return Block(number, epoch, draft, previous_hash, _hash(header, draft.records, draft.heap))


def block_value(identity: LogIdentity, block: Block) -> bytes:
    """The bytes that the log stores for a block."""
    header = _pack_header(identity, block.epoch, block.number, block.previous_hash, block.draft)
    return b"".join((header, block.draft.records, block.draft.heap, block.hash))


def decode_block(identity: LogIdentity, first_sequence: int, value: bytes) -> Block:
    """Reads a block back, believing nothing.

    Args:
        identity: whose log it must be.
        first_sequence: the key it was found under.
        value: the stored bytes.

    Raises:
        DamagedLogError: any byte is not as it was written.
    """
    name = f"the block at sequence {first_sequence}"
    if len(value) < HEADER_BYTES + RECORD_BYTES + HASH_BYTES:
        raise DamagedLogError(f"{name} is cut short: {len(value)} bytes")
    fields = HEADER.unpack_from(value)
    magic, format_, shard, cluster, epoch, number, first, count, heap_bytes, time_us, before = (
        fields
    )
    if magic != _MAGIC or format_ != _FORMAT:
        raise DamagedLogError(f"{name} is not a block of format {_FORMAT}")
    heap_at = HEADER_BYTES + count * RECORD_BYTES
    if not count or len(value) != heap_at + heap_bytes + HASH_BYTES:
        raise DamagedLogError(
            f"{name} has {len(value)} bytes, which its header does not account for"
        )
    draft = BlockDraft(
        first, count, time_us, value[HEADER_BYTES:heap_at], value[heap_at : heap_at + heap_bytes]
    )
    stored_hash = value[-HASH_BYTES:]
    if _hash(value[:HEADER_BYTES], draft.records, draft.heap) != stored_hash:
        raise DamagedLogError(f"block {number} ({name}) does not have the hash it was written with")
    if first != first_sequence:
        raise DamagedLogError(f"block {number} starts at {first} but stands at {first_sequence}")
    if shard != identity.shard_id or cluster != identity.cluster_id:
        raise DamagedLogError(f"block {number} belongs to another log (shard {shard})")
    return Block(number, epoch, draft, before, stored_hash)


def check_follows(before: Block | None, block: Block) -> None:
    """Promise 8 between neighbours: numbers, sequences, hashes, epochs and stamps go on.

    Raises:
        DamagedLogError: `block` cannot stand behind `before` (None = it must be the first).
    """
    number, sequence = (before.number, before.draft.last_sequence) if before else (0, 0)
    if block.number != number + 1 or block.draft.first_sequence != sequence + 1:
        raise DamagedLogError(
            f"block {block.number} (from sequence {block.draft.first_sequence}) does not follow "
            f"block {number} (up to sequence {sequence})"
        )
    if block.previous_hash != (before.hash if before else GENESIS_HASH):
        raise DamagedLogError(f"block {block.number} does not name the hash of block {number}")
    if before and (block.epoch < before.epoch or block.draft.time_us <= before.draft.time_us):
        raise DamagedLogError(
            f"block {block.number} has an older epoch or stamp than block {number}"
        )


def key_rows(draft: BlockDraft) -> list[tuple[bytes, bytes]]:
    """The rows that a block adds to the key index: 24 bytes of key and 8 of sequence each."""
    rows: list[tuple[bytes, bytes]] = []
    records, sequence = draft.records, draft.first_sequence
    for at in range(0, len(records), RECORD_BYTES):
        if records[at + BODY_BYTES] in KEYED:
            rows.append((records[at : at + KEY_BYTES], sequence.to_bytes(8, "little")))
        sequence += 1
    return rows


def heap_offset(record: bytes) -> int:
    """Where a transfer's or leg's metadata begins in its block's heap."""
    if record[BODY_BYTES] in (RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING):
        kind_and_offset: int = LEG.unpack_from(record, BODY_BYTES)[0]
        return kind_and_offset >> 8
    offset: int = EFFECTS.unpack_from(record, BODY_BYTES)[2]
    return offset


def records_of(draft: BlockDraft) -> Iterator[bytes]:
    """The 128 bytes of each record of a block, in order of sequence."""
    records = draft.records
    for at in range(0, len(records), RECORD_BYTES):
        yield records[at : at + RECORD_BYTES]


def _pack_header(
    identity: LogIdentity, epoch: int, number: int, previous_hash: bytes, draft: BlockDraft
) -> bytes:
    return HEADER.pack(
        _MAGIC,
        _FORMAT,
        identity.shard_id,
        identity.cluster_id,
        epoch,
        number,
        draft.first_sequence,
        draft.count,
        len(draft.heap),
        draft.time_us,
        previous_hash,
    )


def _hash(header: bytes, records: bytes, heap: bytes) -> bytes:
    digest = hashlib.blake2b(header, digest_size=HASH_BYTES, person=b"doubloon-block")
    digest.update(records)
    digest.update(heap)
    return digest.digest()
