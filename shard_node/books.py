"""The ledger's working memory: accounts, their balances, and the periods their entries fall into.

*Periods are prefix sums.* An account's entries in one currency are cut into periods: a new one
begins with the first entry of every UTC hour, and again after `PERIOD_ENTRIES_MAX` entries. A
period knows the lifetime sums before it and the sums within it, so the totals up to any instant
cost one look-up and a walk over at most one period's entries. The latest period also *is* the
balance: lifetime in minus lifetime out.

This room also fixes how they are written as rows of the state: an account, a balance (its current
period, which changes with every entry) and a period that ended (which never changes again). Keys
are big-endian, so that a key's order is the order of (account, currency, start, first sequence);
values little-endian.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from librt.strings import BytesWriter, read_i64_le, write_i64_be, write_i64_le
from mypy_extensions import i64, mypyc_attr

from shard_node.damage import unreadable_row

HOUR_US: Final = 3_600_000_000
PERIOD_ENTRIES_MAX: Final = 128
"""The most entries a question has to walk back over: 0.2 ms of unpacking, and a row per 128 entries
keeps the state a hundredth of the log."""

BALANCE_MAX_MINOR: Final = 2**63 - 1

ACCOUNT_KEY: Final = struct.Struct(">Q")
_ACCOUNT_ROW: Final = struct.Struct("<2B4qQ")
PERIOD_KEY: Final = struct.Struct(">QH2Q")
PERIOD_OWNER_BYTES: Final = 10
"""Of a period's key: account and currency, which are the key of their balance's row."""
BALANCE_KEY: Final = struct.Struct(">QH")
_BALANCE_START_BYTES: Final = PERIOD_KEY.size - PERIOD_OWNER_BYTES
_PERIOD_ROW: Final = struct.Struct("<13QqH")
PERIOD_ROW_BYTES: Final = _PERIOD_ROW.size
"""Of a period's row, without its checksum."""
_PERIOD_START: Final = struct.Struct(">10xQ")
_LOW_64: Final = 2**64 - 1
_NO_CURRENCY: Final = -1


class Period(NamedTuple):
    """A run of an account's entries in one currency, all in one UTC hour. Amounts in minor units.

    Attributes:
        start_us: the posting time of its first entry.
        first_sequence: the record of its first entry.
        incoming_before, outgoing_before: lifetime sums before it (they may pass 64 bits).
        incoming_count_before, outgoing_count_before: how many entries those are.
        incoming, outgoing: the sums within it.
        incoming_count, outgoing_count: how many entries those are, together 1 … 128.
        last_sequence, last_time_us: its last entry's record and posting time.
        last_log: the log that its last entry's record is in.
    """

    start_us: int
    first_sequence: int
    incoming_before: int
    outgoing_before: int
    incoming_count_before: int
    outgoing_count_before: int
    incoming: int
    outgoing: int
    incoming_count: int
    outgoing_count: int
    last_sequence: int
    last_time_us: int
    last_log: int

    @property
    def closing_minor(self) -> int:
        """The balance after its last entry."""
        return self.incoming_before + self.incoming - self.outgoing_before - self.outgoing


@mypyc_attr(acyclic=True)
class Balance:
    """What an account has in one currency: the current period, open for more entries.

    Attributes as in `Period`, and:
        minor: the balance now.
        hour_end_us: entries from this time on begin a new period.
        closed: periods that ended and that no committed checkpoint has yet, oldest first.
        reserved_outgoing, reserved_incoming: what prepared transactions need to be free below and
            above the balance, minor units.
    """

    __slots__ = (
        "closed", "currency", "first_sequence", "hour_end_us", "incoming", "incoming_before",
        "incoming_count", "incoming_count_before", "last_log", "last_sequence", "last_time_us",
        "minor", "outgoing", "outgoing_before", "outgoing_count", "outgoing_count_before",
        "reserved_incoming", "reserved_outgoing", "start_us",
    )  # fmt: skip

    def __init__(self, currency: int, log_id: int) -> None:
        # What the hot path reads and writes comes first, so that it shares few cache lines.
        self.currency = currency
        self.minor = 0
        self.reserved_outgoing = 0
        self.reserved_incoming = 0
        self.hour_end_us = 0
        self.last_sequence = 0
        self.last_time_us = 0
        self.last_log = log_id
        self.incoming_count = 0
        self.outgoing_count = 0
        self.incoming = 0
        self.outgoing = 0
        self.first_sequence = 0
        self.start_us = 0
        self.incoming_before = 0
        self.outgoing_before = 0
        self.incoming_count_before = 0
        self.outgoing_count_before = 0
        self.closed: list[Period] = []

    def go_on_from(self, period: Period) -> None:
        """Takes over, having no entry so far, the latest period that the state has."""
        self.minor = period.closing_minor
        self.start_us = period.start_us
        self.hour_end_us = _hour_end_us(period.start_us)
        self.first_sequence = period.first_sequence
        self.incoming_before = period.incoming_before
        self.outgoing_before = period.outgoing_before
        self.incoming_count_before = period.incoming_count_before
        self.outgoing_count_before = period.outgoing_count_before
        self.incoming = period.incoming
        self.outgoing = period.outgoing
        self.incoming_count = period.incoming_count
        self.outgoing_count = period.outgoing_count
        self.last_sequence = period.last_sequence
        self.last_time_us = period.last_time_us
        self.last_log = period.last_log

    def current(self) -> Period | None:
        """The current period as it stands; None before the first entry."""
        if not self.first_sequence:
            return None
        return Period(
            self.start_us,
            self.first_sequence,
            self.incoming_before,
            self.outgoing_before,
            self.incoming_count_before,
            self.outgoing_count_before,
            self.incoming,
            self.outgoing,
            self.incoming_count,
            self.outgoing_count,
            self.last_sequence,
            self.last_time_us,
            self.last_log,
        )

    def row(self, account_id: int) -> tuple[bytes, bytes]:
        """Its row: the current period, which must have an entry, under a key that stays the same.

        The period's start, the end of `PERIOD_KEY`, goes before what a period's row has.
        """
        row = _pack_period(
            account_id,
            self.currency,
            self.start_us,
            self.first_sequence,
            self.incoming_before,
            self.outgoing_before,
            self.incoming_count_before,
            self.outgoing_count_before,
            self.incoming,
            self.outgoing,
            self.incoming_count,
            self.outgoing_count,
            self.last_sequence,
            self.last_time_us,
            self.last_log,
        )
        return row[:PERIOD_OWNER_BYTES], row[PERIOD_OWNER_BYTES:]

    def post_incoming(
        self, amount_minor: int, balance_minor: int, sequence: int, time_us: int
    ) -> None:
        """Adds an entry that pays the account. It was checked before; it cannot fail."""
        if (
            time_us >= self.hour_end_us
            or self.incoming_count + self.outgoing_count >= PERIOD_ENTRIES_MAX
        ):
            self._begin_period(sequence, time_us)
        self.minor = balance_minor
        self.incoming += amount_minor
        self.incoming_count += 1
        self.last_sequence = sequence
        self.last_time_us = time_us

    def post_outgoing(
        self, amount_minor: int, balance_minor: int, sequence: int, time_us: int
    ) -> None:
        """Adds an entry by which the account pays. It was checked before; it cannot fail."""
        if (
            time_us >= self.hour_end_us
            or self.incoming_count + self.outgoing_count >= PERIOD_ENTRIES_MAX
        ):
            self._begin_period(sequence, time_us)
        self.minor = balance_minor
        self.outgoing += amount_minor
        self.outgoing_count += 1
        self.last_sequence = sequence
        self.last_time_us = time_us

    def _begin_period(self, sequence: int, time_us: int) -> None:
        ended = self.current()
        if ended is not None:
            self.closed.append(ended)
        self.incoming_before += self.incoming
        self.outgoing_before += self.outgoing
        self.incoming_count_before += self.incoming_count
        self.outgoing_count_before += self.outgoing_count
        self.incoming = self.outgoing = self.incoming_count = self.outgoing_count = 0
        self.start_us = time_us
        self.first_sequence = sequence
        self.hour_end_us = _hour_end_us(time_us)


@mypyc_attr(acyclic=True)
class Account(Balance):
    """An account in memory. It is the balance, too, in the currency that it came to hold first.

    Most accounts have one currency: this way their balance lies beside what else a transfer looks
    at, and costs no object and dictionary of its own.

    Attributes, besides those of that balance, whose currency is −1 while there is none:
        account_id: 1 … 2^63 − 1.
        kind, status: the contract's AccountKind and AccountStatus.
        floor_minor, cap_minor: the bounds of its balance in every currency, both inclusive.
        opened_us: when it was opened.
        status_time_us, status_reason: its last change of status; 0 and "" = never.
        changed_sequence: the record that last changed any of the above.
        touched_epoch: the ledger's checkpoint epoch in which it last changed; 0 = as in the state.
        taken_epoch: the latest of which a checkpoint has taken its rows; 0 = none.
        cached: whether the ledger finds it in memory.
        pins: reservations that must not be lost; it stays in memory while there are any.
    """

    __slots__ = (
        "_further", "account_id", "cached", "cap_minor", "changed_sequence", "floor_minor", "kind",
        "opened_us", "pins", "status", "status_reason", "status_time_us", "taken_epoch",
        "touched_epoch",
    )  # fmt: skip

    def __init__(
        self,
        account_id: i64,
        kind: int,
        status: int,
        floor_minor: int,
        cap_minor: i64,  # mostly 2^63 − 1, which as an `int` would be an object
        opened_us: int,
        status_time_us: int = 0,
        status_reason: str = "",
        changed_sequence: int = 0,
    ) -> None:
        super().__init__(_NO_CURRENCY, 0)
        # What the hot path reads comes first, so that it shares as few cache lines as can be.
        self.account_id = account_id
        self.status = status
        self.touched_epoch = 0
        self.floor_minor = floor_minor
        self.cap_minor = cap_minor
        self.taken_epoch = 0
        self.cached = False
        self._further: dict[int, Balance] | None = None
        self.changed_sequence = changed_sequence
        self.pins = 0
        self.kind = kind
        self.opened_us = opened_us
        self.status_time_us = status_time_us
        self.status_reason = status_reason

    def balance(self, currency: int) -> Balance | None:
        """What it has in a currency; None = it never had any."""
        if self.currency == currency:
            return self
        return None if self._further is None else self._further.get(currency)

    def open_balance(self, currency: int, log_id: int) -> Balance:
        """A balance without entries in a currency of which it has none."""
        if self.currency == _NO_CURRENCY:
            self.currency = currency
            self.last_log = log_id
            return self
        if self._further is None:
            self._further = {}
        balance = self._further[currency] = Balance(currency, log_id)
        return balance

    @property
    def balances(self) -> dict[int, Balance]:
        """All that it has, by currency."""
        if self.currency == _NO_CURRENCY:
            return {}
        if self._further is None:
            return {self.currency: self}
        return {self.currency: self, **self._further}

    def latest_time_us(self) -> int:
        """The posting time of its latest entry in any currency; 0 = none."""
        if self._further is None:
            return self.last_time_us
        return max(balance.last_time_us for balance in self.balances.values())

    def latest_sequence(self) -> int:
        """The latest record that this account's answers depend on."""
        return max(
            self.changed_sequence, *[each.last_sequence for each in self.balances.values()], 0
        )


def account_row(account: Account) -> tuple[bytes, bytes]:
    """The key and value of an account's row; its balances have rows of their own."""
    head = _ACCOUNT_ROW.pack(
        account.kind,
        account.status,
        account.floor_minor,
        account.cap_minor,
        account.opened_us,
        account.status_time_us,
        account.changed_sequence,
    )
    return ACCOUNT_KEY.pack(account.account_id), head + account.status_reason.encode()


def read_account_row(key: bytes, value: bytes) -> Account:
    """An account, without balances, from its row. Raises: DamagedStateError."""
    try:
        kind, status, floor, cap, opened_us, status_us, changed = _ACCOUNT_ROW.unpack_from(value)
        (account_id,) = ACCOUNT_KEY.unpack(key)
        reason = value[_ACCOUNT_ROW.size :].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise unreadable_row("accounts", key, error) from error
    if account_id >> 63:
        raise unreadable_row("accounts", key, OverflowError("no account has such an id"))
    return Account(
        account_id, kind, status, floor, cap, opened_us, status_us, reason, changed_sequence=changed
    )


def period_row(account_id: int, currency: int, period: Period) -> tuple[bytes, bytes]:
    """The key and value of the row of a period that ended."""
    row = _pack_period(
        account_id,
        currency,
        period.start_us,
        period.first_sequence,
        period.incoming_before,
        period.outgoing_before,
        period.incoming_count_before,
        period.outgoing_count_before,
        period.incoming,
        period.outgoing,
        period.incoming_count,
        period.outgoing_count,
        period.last_sequence,
        period.last_time_us,
        period.last_log,
    )
    return row[: PERIOD_KEY.size], row[PERIOD_KEY.size :]


def _pack_period(
    account_id: int,
    currency: int,
    start_us: int,
    first_sequence: int,
    incoming_before: int,
    outgoing_before: int,
    incoming_count_before: int,
    outgoing_count_before: int,
    incoming: int,
    outgoing: int,
    incoming_count: int,
    outgoing_count: int,
    last_sequence: int,
    last_time_us: int,
    last_log: int,
) -> bytes:
    """Packs `PERIOD_KEY` and `_PERIOD_ROW`, word by word (see `records.write_transfer`)."""
    writer = BytesWriter()
    write_i64_be(writer, _signed(account_id))
    writer.append(currency >> 8)
    writer.append(currency & 0xFF)
    write_i64_be(writer, _signed(start_us))
    write_i64_be(writer, _signed(first_sequence))
    _write_wide(writer, incoming_before)
    _write_wide(writer, outgoing_before)
    write_i64_le(writer, _signed(incoming_count_before))
    write_i64_le(writer, _signed(outgoing_count_before))
    _write_wide(writer, incoming)
    _write_wide(writer, outgoing)
    write_i64_le(writer, _signed(incoming_count))
    write_i64_le(writer, _signed(outgoing_count))
    write_i64_le(writer, _signed(last_sequence))
    write_i64_le(writer, last_time_us)
    writer.append(last_log & 0xFF)
    writer.append(last_log >> 8)
    return writer.getvalue()


def _write_wide(writer: BytesWriter, total: int) -> None:
    """Writes a sum, which may take up to 128 bits."""
    if total <= BALANCE_MAX_MINOR:
        write_i64_le(writer, total)
        write_i64_le(writer, 0)
    else:
        write_i64_le(writer, _signed(total & _LOW_64))
        write_i64_le(writer, _signed(total >> 64))


def _signed(word: int) -> int:
    """The signed number that has the bits of an unsigned one."""
    return word if word <= BALANCE_MAX_MINOR else word - 2**64


def read_period_row(key: bytes, value: bytes) -> Period:
    """A period from its row. Raises: DamagedStateError."""
    try:
        _, _, start_us, first_sequence = PERIOD_KEY.unpack(key)
        (
            in_before, in_before_high, out_before, out_before_high, in_count_before,
            out_count_before, incoming, incoming_high, outgoing, outgoing_high, *counts_and_last,
        ) = _PERIOD_ROW.unpack(value)  # fmt: skip
    except struct.error as error:
        raise unreadable_row("periods", key, error) from error
    return Period(
        start_us,
        first_sequence,
        in_before | in_before_high << 64,
        out_before | out_before_high << 64,
        in_count_before,
        out_count_before,
        incoming | incoming_high << 64,
        outgoing | outgoing_high << 64,
        *counts_and_last,
    )


def read_balance_row(key: bytes, value: bytes) -> tuple[int, Period]:
    """A balance's currency and its current period, from its row. Raises: DamagedStateError."""
    start, rest = value[:_BALANCE_START_BYTES], value[_BALANCE_START_BYTES:]
    if len(key) != PERIOD_OWNER_BYTES or len(start) != _BALANCE_START_BYTES:
        message = f"a key of {len(key)} bytes, a value of {len(value)}"
        raise unreadable_row("balances", key, ValueError(message))
    currency: int = BALANCE_KEY.unpack(key)[1]
    return currency, read_period_row(key + start, rest)


def period_start_us(key: bytes) -> int:
    """The posting time of a period's first entry, from its key. Raises: struct.error."""
    start_us: int = _PERIOD_START.unpack_from(key)[0]
    return start_us


def sums_before(value: bytes) -> tuple[int, int]:
    """The lifetime sums, incoming and outgoing, before a period, from its row, which is whole."""
    return _read_wide(value, 0), _read_wide(value, 16)


def sums_after(value: bytes) -> tuple[int, int]:
    """The lifetime sums, incoming and outgoing, at a period's end, from its row, which is whole."""
    return (
        _read_wide(value, 0) + _read_wide(value, 48),
        _read_wide(value, 16) + _read_wide(value, 64),
    )


def _read_wide(row: bytes, at: i64) -> int:
    """A sum as `_write_wide` has written it."""
    low, high = read_i64_le(row, at), read_i64_le(row, at + 8)
    if low >= 0 and high == 0:
        return int(low)
    return int(low) & _LOW_64 | (int(high) & _LOW_64) << 64


def _hour_end_us(time_us: int) -> int:
    return time_us - time_us % HOUR_US + HOUR_US
