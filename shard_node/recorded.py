"""What is recorded under a key, in whichever kind of record, and how a request compares with it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from cluster.packed import (
    BODY,
    BODY_BYTES,
    GROUP_SIZE_AT,
    MEMBER,
    MEMBER_BODY,
    DifferingField,
)
from shard_node.records import (
    COMMITTED,
    EFFECTS,
    GROUP,
    LEG,
    RecordKind,
    TransferRecord,
    transfer_of_body,
    unpack_transfer,
)

if TYPE_CHECKING:
    from typing import Any


class RecordReader(Protocol):
    """Reads records, durable or not."""

    @property
    def sequence(self) -> int:
        """Of the latest record."""
        ...

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """A record's 128 bytes and, of a transfer or leg, its metadata."""
        ...

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """Bytes of the heap of the block that a record is in."""
        ...


@dataclass(frozen=True, slots=True)
class Recorded:
    """The outcome under a key.

    Attributes:
        bodies, metadata: of the transfer, or of the group's transfers.
        reason, index: why it was refused, and which transfer; 0 = it completed.
        time_us: when it was posted at the (first) source, or refused.
        source_minor: that source's balance then.
        transaction_id: of the transaction that committed it; empty = it was no transaction.
        decided_us: when that was decided; 0 = it was no transaction.
    """

    bodies: bytes
    metadata: bytes
    reason: int
    index: int
    time_us: int
    source_minor: int
    transaction_id: bytes = b""
    decided_us: int = 0


def read_recorded(reader: RecordReader, sequence: int, key: bytes = b"") -> Recorded:
    """What the keyed record at this sequence says; it must be that of `key`, where given."""
    record, metadata = reader.read_transfer(sequence)
    assert record.startswith(key), f"the row of key {key.hex()} points to record {sequence}"
    kind, body = record[BODY_BYTES], record[:BODY_BYTES]
    if kind == RecordKind.TRANSFER:
        effects = EFFECTS.unpack_from(record, BODY_BYTES)
        return Recorded(body, metadata, effects[1], 0, effects[7], effects[3])
    if kind == RecordKind.GROUP:
        _, reason, index, size, offset, minor, time_us = GROUP.unpack_from(record, BODY_BYTES)
        bodies, metadata = read_group(reader, sequence, offset, size)
        return Recorded(bodies, metadata, reason, index, time_us, minor)
    assert kind == RecordKind.COMMITTED, f"record {sequence} answers for no key"
    _, size, _, offset, transaction_id, _ = COMMITTED.unpack_from(record, BODY_BYTES)
    if size:
        members = reader.read_heap(sequence, offset, size * MEMBER.size)
        body = b"".join(fields[0] for fields in MEMBER.iter_unpack(members))
        length = sum(fields[7] for fields in BODY.iter_unpack(body))
        metadata = reader.read_heap(sequence, offset + len(members), length)
    time_us, minor, decided_us = _first_source(reader, sequence, transaction_id)
    return Recorded(body, metadata, 0, 0, time_us, minor, transaction_id, decided_us)


def read_outcome(reader: RecordReader, sequence: int) -> tuple[TransferRecord, bytes]:
    """The (first) transfer under a key, with its outcome at the source, and its metadata."""
    record, metadata = reader.read_transfer(sequence)
    if record[BODY_BYTES] == RecordKind.TRANSFER:
        return unpack_transfer(record), metadata
    known = read_recorded(reader, sequence)
    outcome = replace(
        transfer_of_body(record),
        reason=known.reason,
        source_balance_minor=known.source_minor,
        source_time_us=known.time_us,
    )
    return outcome, known.metadata[: outcome.metadata_bytes]


def read_group(reader: RecordReader, sequence: int, offset: int, size: int) -> tuple[bytes, bytes]:
    """The bodies and the metadata of a group, which lie in the heap one behind the other."""
    bodies = reader.read_heap(sequence, offset, size * BODY_BYTES)
    length = sum(fields[7] for fields in BODY.iter_unpack(bodies))
    return bodies, reader.read_heap(sequence, offset + len(bodies), length)


def first_difference(recorded: Recorded, bodies: bytes, metadata: bytes) -> DifferingField:
    """The first field in which a request differs from what is recorded under its key."""
    if (
        len(bodies) != len(recorded.bodies)
        or bodies[GROUP_SIZE_AT] != recorded.bodies[GROUP_SIZE_AT]
    ):
        return DifferingField.TRANSFERS
    old_at = new_at = 0
    for was, now in zip(
        MEMBER_BODY.iter_unpack(recorded.bodies), MEMBER_BODY.iter_unpack(bodies), strict=True
    ):
        old_metadata = recorded.metadata[old_at : old_at + was[7]]
        new_metadata = metadata[new_at : new_at + now[7]]
        old_at, new_at = old_at + was[7], new_at + now[7]
        found = _difference(was, now, differs=old_metadata != new_metadata)
        if found is not DifferingField.NONE:
            return found
    return DifferingField.NONE


def _difference(was: tuple[Any, ...], now: tuple[Any, ...], *, differs: bool) -> DifferingField:
    """The first field, in the order of `DifferingField`, in which two bodies differ."""
    table = (
        (DifferingField.DESTINATION_ACCOUNT_ID, was[2] != now[2]),
        (DifferingField.CURRENCY, was[6] != now[6]),
        (DifferingField.AMOUNT_MINOR, was[3] != now[3]),
        (DifferingField.TYPE, was[8] != now[8]),
        (DifferingField.REFERENCE, was[4] != now[4]),
        (DifferingField.METADATA, differs),
        (DifferingField.IMPORT_TIME_US, was[5] != now[5]),
        (DifferingField.SOURCE_ACCOUNT_ID, was[1] != now[1]),
    )
    return next((field for field, is_it in table if is_it), DifferingField.NONE)


def _first_source(
    reader: RecordReader, sequence: int, transaction_id: bytes
) -> tuple[int, int, int]:
    """Tells, by the legs behind its record, how a committed transaction stands at its first source.

    Returns:
        When it was posted there, the balance after all of its legs, and when it was decided.
    """
    time_us = minor = decided_us = 0
    whose: tuple[int, int] | None = None
    while (sequence := sequence + 1) <= reader.sequence:
        record, _ = reader.read_transfer(sequence)
        kind, fields = record[BODY_BYTES], BODY.unpack_from(record)
        if kind not in (RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING):
            break
        leg = LEG.unpack_from(record, BODY_BYTES)
        if leg[7] != transaction_id:
            break
        account = fields[2] if kind == RecordKind.LEG_INCOMING else fields[1]
        if whose is None:
            whose, time_us, decided_us = (account, fields[6]), leg[5], leg[6]
        if (account, fields[6]) == whose:
            minor = leg[3]
    return time_us, minor, decided_us
