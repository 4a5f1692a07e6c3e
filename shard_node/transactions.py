"""The shard's table of transactions: prepared here, decided here, and ended a moment ago.

- *Prepared*: this participant has reserved what its legs need and waits for the decision.
- *Decided*: this home has committed it and does not know yet that every participant has posted.
- *Ended*: remembered by id for as long as a late message could do harm: until logged time is
  past its deadline, and `REMEMBERED_US` longer, so that whoever asks late hears the truth.

The first two are rows of the state. The ended are not: everything that ends a transaction is a
record, and no deadline lies further than `DEADLINE_AHEAD_MAX_US` beyond the record that mentions
it, so recovery reads the ended anew from the last seconds of the log (`ENDED_WINDOW_US`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from librt.strings import BytesWriter, read_i64_le, write_i64_le
from mypy_extensions import mypyc_attr

from cluster.packed import (
    GROUP_SIZE_AT,
    HEADER_BYTES,
    KEY_BYTES,
    KEY_SOURCE,
    TRANSACTION_ID_BYTES,
    TRANSFER_ID_BYTES,
)
from shard_node.damage import DamagedStateError, unreadable_row
from shard_node.ended import Ended

if TYPE_CHECKING:
    from shard_node.legs import Leg, Reservation

PREPARED_MAX: Final = 32_768
"""Transactions prepared at once; more are busy. Each pins two accounts and half a kilobyte."""

DECIDED_MAX: Final = 131_072
"""Transactions committed here and not finished; beyond it new ones are busy. They gather only while
a participant is away."""

DEADLINE_AHEAD_MAX_US: Final = 10_000_000
"""How far ahead of this shard's clock a deadline may lie: twice what coordinators give."""

REMEMBERED_US: Final = 3_000_000
"""How long past its deadline an ended transaction is remembered: longer than an audit or a sweep
takes from listing it to asking its home."""

ENDED_WINDOW_US: Final = DEADLINE_AHEAD_MAX_US + REMEMBERED_US
"""How much of the log recovery reads for what has ended: see above."""

NO_TRANSACTION: Final = bytes(16)
"""In place of a transaction's id, in the legs of a group that needed none."""

# Where a header has its words, see `cluster.packed.HEADER`.
_DEADLINE_AT: Final = 16
_FIRST_SOURCE_AT: Final = 24
_HOME_AT: Final = 32
_COUNT_AT: Final = 34

_ROW: Final = struct.Struct("<Bq2I")
_PREPARED, _DECIDED = 1, 2

Row = tuple[bytes, bytes | None]
"""A state row; None deletes it."""


# Initialisers of their own: see `legs`. None of these values is ever changed. Acyclic: a garbage
# collector that looked at tens of thousands in doubt took a sixteenth of a shard's time.


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Header:
    """A transaction, as every message about it names it.

    Attributes:
        transaction_id: 16 bytes, see `cluster.packed`.
        deadline_us: past it nobody prepares it and its home does not commit it.
        first_source: the first member's source account, the second part of the key.
        home: the shard of that account, which decides.
        members_count: how many members follow in this message.
    """

    transaction_id: bytes
    deadline_us: int
    first_source: int
    home: int
    members_count: int

    def __init__(
        self,
        transaction_id: bytes,
        deadline_us: int,
        first_source: int,
        home: int,
        members_count: int,
    ) -> None:
        self.transaction_id = transaction_id
        self.deadline_us = deadline_us
        self.first_source = first_source
        self.home = home
        self.members_count = members_count

    @staticmethod
    def unpack(packed: bytes, at: int = 0) -> Header:
        """From its 40 bytes, which begin at `at`. Raises: struct.error: there are fewer."""
        if len(packed) < at + HEADER_BYTES:
            raise struct.error(f"{len(packed) - at} bytes are no header of {HEADER_BYTES}")
        # Word by word, see `records.write_transfer`: a third of what `HEADER.unpack` costs.
        # An `int`: as the `i64` that it is read as, it could not become what it stands for.
        first_source: int = read_i64_le(packed, at + _FIRST_SOURCE_AT)
        return Header(
            packed[at : at + TRANSACTION_ID_BYTES],
            read_i64_le(packed, at + _DEADLINE_AT),
            first_source if first_source >= 0 else first_source + 2**64,
            packed[at + _HOME_AT] | packed[at + _HOME_AT + 1] << 8,
            packed[at + _COUNT_AT],
        )

    def pack(self) -> bytes:
        """Its 40 bytes."""
        writer = BytesWriter()
        self.write(writer)
        return writer.getvalue()

    def write(self, writer: BytesWriter) -> None:
        """Writes its 40 bytes: what `HEADER.pack` would give."""
        first_source = self.first_source
        writer.write(self.transaction_id)
        write_i64_le(writer, self.deadline_us)
        write_i64_le(writer, first_source if first_source < 2**63 else first_source - 2**64)
        write_i64_le(writer, self.home | self.members_count << 16)


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Request:
    """A transaction as a message brings it. Never changed.

    Attributes:
        header: what concerns it as a whole.
        members: packed, 72 bytes each: to a participant those that touch it, to the home all.
        metadata: of those members.
    """

    header: Header
    members: bytes
    metadata: bytes

    def __init__(self, header: Header, members: bytes, metadata: bytes) -> None:
        self.header = header
        self.members = members
        self.metadata = metadata


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Prepared:
    """A transaction prepared here.

    Attributes:
        header: as it was received.
        since_us: when it was prepared.
        members, metadata: as received, of this shard's legs.
        legs: unpacked from them.
        reservations: what they need.
        is_stored: whether a checkpoint has taken its row.
    """

    header: Header
    since_us: int
    members: bytes
    metadata: bytes
    legs: tuple[Leg, ...]
    reservations: tuple[Reservation, ...]
    is_stored: bool = field(init=False, compare=False, repr=False)

    def __init__(
        self,
        header: Header,
        since_us: int,
        members: bytes,
        metadata: bytes,
        legs: tuple[Leg, ...],
        reservations: tuple[Reservation, ...],
    ) -> None:
        self.header = header
        self.since_us = since_us
        self.members = members
        self.metadata = metadata
        self.legs = legs
        self.reservations = reservations
        self.is_stored = False

    @property
    def key(self) -> bytes:
        """Of its transfer or group."""
        return self.members[:TRANSFER_ID_BYTES] + KEY_SOURCE.pack(self.header.first_source)

    @property
    def size(self) -> int:
        """Of its group; 1 for a plain transfer."""
        return max(self.members[GROUP_SIZE_AT], 1)


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Decided:
    """A transaction committed here.

    Attributes:
        header: as it was received.
        decided_us: when.
        key, size, is_stored: as in `Prepared`.
        participants: the other shards.
    """

    header: Header
    decided_us: int
    key: bytes
    size: int
    participants: tuple[int, ...]
    is_stored: bool = field(init=False, compare=False, repr=False)

    def __init__(
        self, header: Header, decided_us: int, key: bytes, size: int, participants: tuple[int, ...]
    ) -> None:
        self.header = header
        self.decided_us = decided_us
        self.key = key
        self.size = size
        self.participants = participants
        self.is_stored = False

    @property
    def since_us(self) -> int:
        """Since when it waits for its participants: as in `Prepared`."""
        return self.decided_us


Changed = tuple[bytes, Prepared | Decided | None]
"""A transaction that changed, and what it is now; None = it has ended."""


@dataclass(frozen=True, slots=True)
class StoredPrepared:
    """What the row of a prepared transaction says; the rest follows from it."""

    header: Header
    since_us: int
    members: bytes
    metadata: bytes


class Transactions:
    """The table. Pure bookkeeping: whoever changes it has decided to.

    Attributes:
        prepared, decided: by transaction id, oldest first.
        records_promised: how many records it takes to end everything that is prepared: room for
            them must stay.
    """

    def __init__(self) -> None:
        self.prepared: dict[bytes, Prepared] = {}
        self.decided: dict[bytes, Decided] = {}
        self.records_promised = 0
        self._ended = Ended()
        self._gone: list[bytes] = []  # of those that the state has

    def add_prepared(self, prepared: Prepared) -> None:
        """Enters a prepared transaction."""
        self.prepared[prepared.header.transaction_id] = prepared
        self.records_promised += 1 + len(prepared.legs)

    def add_decided(self, decided: Decided) -> None:
        """Enters a committed transaction."""
        self.decided[decided.header.transaction_id] = decided

    def end(self, transaction_id: bytes, deadline_us: int, decided_us: int, now_us: int) -> None:
        """Removes a transaction and remembers how it ended (`decided_us` 0 = aborted)."""
        # Not `pop` with a default, which compiled costs as much as both looks together.
        prepared = self.prepared.get(transaction_id)
        if prepared is not None:
            del self.prepared[transaction_id]
            self.records_promised -= 1 + len(prepared.legs)
            if prepared.is_stored:
                self._gone.append(transaction_id)
        decided = self.decided.get(transaction_id)
        if decided is not None:
            del self.decided[transaction_id]
            if decided.is_stored:
                self._gone.append(transaction_id)
        self.recall(transaction_id, max(deadline_us, now_us), decided_us)
        self._ended.forget(now_us)

    def recall(self, transaction_id: bytes, until_us: int, decided_us: int) -> None:
        """Remembers how a transaction ended, until logged time is well past `until_us`."""
        self._ended.add(transaction_id, until_us + REMEMBERED_US, decided_us)

    def ended(self, transaction_id: bytes) -> int | None:
        """How one ended lately: when it was decided, 0 = aborted; None = not known."""
        return self._ended.get(transaction_id)

    def oldest_us(self) -> int:
        """Since when the oldest has been prepared or decided; 0 = there is none."""
        prepared = next(iter(self.prepared.values()), None)
        decided = next(iter(self.decided.values()), None)
        times_us = (prepared and prepared.since_us, decided and decided.decided_us)
        return min((each for each in times_us if each), default=0)

    def take_changed(self) -> list[Changed]:
        """What changed since it was last taken, for a checkpoint; see `transaction_row`."""
        changed: dict[bytes, Prepared | Decided | None] = dict.fromkeys(self._gone)
        self._gone = []
        # The latest come last, and whatever came before one that was taken was taken with it.
        for prepared in reversed(self.prepared.values()):
            if prepared.is_stored:
                break
            prepared.is_stored = True
            changed[prepared.header.transaction_id] = prepared
        for decided in reversed(self.decided.values()):
            if decided.is_stored:
                break
            decided.is_stored = True
            changed[decided.header.transaction_id] = decided
        return list(changed.items())

    def mark_stored(self) -> None:
        """Notes that all that was entered so far came from the state."""
        self.take_changed()


def transaction_row(transaction_id: bytes, known: Prepared | Decided | None) -> Row:
    """The row of a transaction that changed: 3 µs, and there may be tens of thousands in doubt."""
    if known is None:
        return transaction_id, None
    if isinstance(known, Prepared):
        head = _ROW.pack(_PREPARED, known.since_us, len(known.members), 0)
        return transaction_id, head + known.header.pack() + known.members + known.metadata
    shards = known.participants
    head = _ROW.pack(_DECIDED, known.decided_us, known.size, len(shards))
    tail = known.key + struct.pack(f"<{len(shards)}H", *shards)
    return transaction_id, head + known.header.pack() + tail


def read_transaction_row(value: bytes) -> StoredPrepared | Decided:
    """A transaction from its row. Raises: DamagedStateError."""
    header_end = _ROW.size + HEADER_BYTES
    try:
        kind, time_us, size, count = _ROW.unpack_from(value)
        header, tail = Header.unpack(value[_ROW.size : header_end]), value[header_end:]
        if kind == _PREPARED:
            return StoredPrepared(header, time_us, tail[:size], tail[size:])
        participants = struct.unpack(f"<{min(count, len(value))}H", tail[KEY_BYTES:])
    except struct.error as error:
        raise unreadable_row("transactions", value[:header_end], error) from error
    if kind != _DECIDED:
        raise DamagedStateError(f"a row of transactions is of kind {kind}")
    return Decided(header, time_us, tail[:KEY_BYTES], size, participants)


def pack_answer(
    fate: int,
    outcome: int,
    *,
    reason: int = 0,
    differing: int = 0,
    repeat: bool = False,
    index: int = 0,
    unposted: bool = False,
    time_us: int = 0,
    minor: int = 0,
    decided_us: int = 0,
    transaction_id: bytes = NO_TRANSACTION,
) -> bytes:
    """What a home answers of a transaction: see `cluster.packed.ANSWER`."""
    writer = BytesWriter()
    write_i64_le(
        writer,
        fate
        | outcome << 8
        | reason << 16
        | differing << 24
        | repeat << 32
        | index << 40
        | unposted << 48,
    )
    write_i64_le(writer, time_us)
    write_i64_le(writer, minor)
    write_i64_le(writer, decided_us)
    writer.write(transaction_id)
    return writer.getvalue()
