"""Answers from an account's history: totals at any instant, hourly series, statements.

Everything rests on one primitive, `totals_at`: seek the period that an instant falls into, take its
sums, and walk back over its entries that are later, 128 at the most. From two of these come exact
flows over any window; from one range read of periods, the hourly series; from the periods and the
chains of entries behind them, statements in either order.

An `AccountHistory` joins what memory has of an account's periods (the current one and those that no
committed checkpoint has) with what the state has. It is read within one turn of the event loop,
after the engine has fixed the instant and waited for the account to be durable.
"""

from __future__ import annotations

import heapq
import struct
from bisect import bisect_left
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from cluster.packed import BODY_BYTES, MEMBER_BODY
from shard_node.books import HOUR_US
from shard_node.errors import BadRequestError
from shard_node.hours import hours_between
from shard_node.records import (
    LEG,
    RecordKind,
    TransferRecord,
    entry_of,
    transfer_of_body,
    unpack_transfer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shard_node.books import Account, Period
    from shard_node.hours import Hour, Sums
    from shard_node.ledger import Ledger
    from shard_node.store import Store

_SEQUENCE_END: Final = 2**64 - 1
_TOKEN: Final = struct.Struct(">qQ8s")
_END_OF_TIME_US: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Totals:
    """An account's lifetime sums in one currency up to an instant, that instant's entries included.

    Attributes:
        incoming, outgoing: minor units; they may pass 64 bits.
        incoming_count, outgoing_count: entries.
        last_time_us: the latest entry's time; 0 = no entry yet.
    """

    incoming: int = 0
    outgoing: int = 0
    incoming_count: int = 0
    outgoing_count: int = 0
    last_time_us: int = 0

    @property
    def sums(self) -> tuple[int, int]:
        """Incoming and outgoing."""
        return self.incoming, self.outgoing

    @property
    def balance_minor(self) -> int:
        """The balance at that instant."""
        return self.incoming - self.outgoing


@dataclass(frozen=True, slots=True)
class Leg:
    """One account's side of a transfer.

    Attributes:
        sequence: its record.
        transfer: the record.
        metadata: the transfer's.
        incoming: whether the account was paid.
        time_us: when it was posted on this account.
        balance_minor: the account's balance after it.
        previous: the record of the account's entry before in this currency; 0 = it is the first.
        key_account: the account in the transfer's name: its source, or its group's first.
        decided_us: when it was decided; 0 = at the stamp of the record's block.
        group_index, group_size: its place in its group; 0, 0 = it is not of a group.
    """

    sequence: int
    transfer: TransferRecord
    metadata: bytes
    incoming: bool
    time_us: int
    balance_minor: int
    previous: int
    key_account: int
    decided_us: int = 0
    group_index: int = 0
    group_size: int = 0


class AccountHistory:
    """An account's entries in one currency, for one turn of the event loop."""

    def __init__(self, ledger: Ledger, store: Store, account: Account, currency: int) -> None:
        self.account_id = account.account_id
        self.currency = currency
        self._ledger = ledger
        self._state = store.state
        balance = account.balance(currency)
        current = balance.current() if balance else None
        # Not copied: there may be thousands, and a question is answered slice by slice.
        self._closed = balance.closed if balance else []
        self._current = current

    def totals_at(self, instant_us: int) -> Totals:
        """The sums up to an instant. At most one seek and 128 entries."""
        # A window may begin before all time, where rows cannot be looked up.
        period = self.period_before(instant_us + 1, 0) if instant_us > 0 else None
        if period is None:
            return Totals()
        incoming = period.incoming_before + period.incoming
        outgoing = period.outgoing_before + period.outgoing
        incoming_count = period.incoming_count_before + period.incoming_count
        outgoing_count = period.outgoing_count_before + period.outgoing_count
        last_us = period.last_time_us
        sequence = period.last_sequence if last_us > instant_us else 0
        while sequence:
            record, _ = self._ledger.read_transfer(sequence)
            last_us, amount_minor, is_incoming, sequence = entry_of(record, self.account_id)
            if last_us <= instant_us:
                break
            if is_incoming:
                incoming -= amount_minor
                incoming_count -= 1
            else:
                outgoing -= amount_minor
                outgoing_count -= 1
        return Totals(incoming, outgoing, incoming_count, outgoing_count, last_us)

    def series(self, first_hour_us: int, to_us: int) -> tuple[int, list[Hour]]:
        """The opening balance, and each hour from `first_hour_us` to the one `to_us` is in."""
        before = self.totals_at(first_hour_us - 1).sums
        last_hour_us = to_us - to_us % HOUR_US
        ends = self._hour_ends(first_hour_us, to_us)
        ends[last_hour_us] = self.totals_at(to_us).sums
        return before[0] - before[1], hours_between(first_hour_us, last_hour_us, before, ends)

    def back_from(self, sequence: int) -> Iterator[Leg]:
        """The entry of this record, and those before it, latest first, to the very first."""
        while sequence:
            leg = self._leg(sequence)
            yield leg
            sequence = leg.previous

    def newest_first(self, time_us: int, sequence: int) -> Iterator[Leg]:
        """The entries before (time, sequence), latest first."""
        period = self.period_before(time_us, sequence)
        if period is not None:
            for leg in self.back_from(period.last_sequence):
                if (leg.time_us, leg.sequence) < (time_us, sequence):
                    yield leg

    def oldest_first(self, time_us: int, sequence: int) -> Iterator[Leg]:
        """The entries from (time, sequence) on, earliest first. Keeps one period's at a time."""
        period = self.period_before(time_us, sequence)
        start = (time_us, sequence) if period is None else (period.start_us, period.first_sequence)
        while periods := self.periods(*start, 1):
            period = periods[0]
            for leg in reversed(self._legs_of(period)):
                if (leg.time_us, leg.sequence) >= (time_us, sequence):
                    yield leg
            start = (period.start_us, period.first_sequence + 1)

    def period_before(self, time_us: int, sequence: int) -> Period | None:
        """The last period whose (start, first sequence) is below (time, sequence)."""
        start = time_us, sequence
        current = self._current
        # A period is a tuple that begins with its start.
        if current is not None and current < start:
            return current
        at = bisect_left(self._closed, start)
        if at:
            return self._closed[at - 1]
        return self._state.period_before(self.account_id, self.currency, time_us, sequence)

    def periods(self, time_us: int, sequence: int, count: int) -> list[Period]:
        """The next periods from (start, first sequence) = (time, sequence) on, at most so many."""
        start = time_us, sequence
        at = bisect_left(self._closed, start)
        found: list[Period] = []
        if at == 0:
            stored = self._state.periods(self.account_id, self.currency, time_us, sequence, count)
            # Until memory lets go of what a checkpoint wrote, both have it.
            earliest = self._earliest
            found = [each for each in stored if earliest is None or each < earliest[:2]]
        found += self._closed[at : at + count - len(found)]
        if self._current is not None and self._current >= start and len(found) < count:
            found.append(self._current)
        return found

    @property
    def _earliest(self) -> Period | None:
        """The first period that memory has: from there on it has all."""
        return self._closed[0] if self._closed else self._current

    def _hour_ends(self, first_hour_us: int, to_us: int) -> dict[int, Sums]:
        """The lifetime sums at the end of every hour with an entry, by the hour's start.

        An hour's end is the last period that starts in it, so a month costs at most 720 rows.
        """
        earliest = self._earliest
        stored_to_us = min(to_us + 1, earliest.start_us) if earliest else to_us + 1
        stored = self._state.hour_ends(
            self.account_id, self.currency, first_hour_us, max(first_hour_us, stored_to_us)
        )
        ends = dict(stored)
        first = bisect_left(self._closed, (first_hour_us,))
        end = bisect_left(self._closed, (to_us + 1,))
        recent = self._closed[first:end]
        if self._current is not None and first_hour_us <= self._current.start_us <= to_us:
            recent.append(self._current)
        for period in recent:
            ends[period.start_us - period.start_us % HOUR_US] = _sums_after(period)
        return ends

    def _legs_of(self, period: Period) -> list[Leg]:
        legs = []
        for leg in self.back_from(period.last_sequence):
            legs.append(leg)
            if leg.sequence == period.first_sequence:
                break
        return legs

    def _leg(self, sequence: int) -> Leg:
        record, metadata = self._ledger.read_transfer(sequence)
        if record[BODY_BYTES] != RecordKind.TRANSFER:
            return self._crossing_leg(sequence, record, metadata)
        transfer = unpack_transfer(record)
        incoming = transfer.destination == self.account_id
        assert incoming or transfer.source == self.account_id, f"record {sequence}: not its entry"
        return Leg(
            sequence,
            transfer,
            metadata,
            incoming,
            transfer.destination_time_us if incoming else transfer.source_time_us,
            transfer.destination_balance_minor if incoming else transfer.source_balance_minor,
            transfer.destination_previous if incoming else transfer.source_previous,
            key_account=transfer.source,
        )

    def _crossing_leg(self, sequence: int, record: bytes, metadata: bytes) -> Leg:
        _, _, _, minor, previous, time_us, decided_us, _, first_source = LEG.unpack_from(
            record, BODY_BYTES
        )
        index, size = MEMBER_BODY.unpack_from(record)[9:11]
        return Leg(
            sequence,
            transfer_of_body(record),
            metadata,
            record[BODY_BYTES] == RecordKind.LEG_INCOMING,
            time_us,
            minor,
            previous,
            first_source,
            decided_us,
            index,
            size,
        )


@dataclass(frozen=True, slots=True)
class StatementRequest:
    """Which entries of an account to list.

    Attributes:
        account_id: whose.
        currency: in this one; 0 = in all.
        from_us, to_us: with from ≤ time < to.
        oldest_first: in this order.
        page_size: at most so many, ≥ 1.
        page_token: where the page before ended; empty = the first page.
    """

    account_id: int
    currency: int
    from_us: int
    to_us: int
    oldest_first: bool
    page_size: int
    page_token: bytes

    def token_after(self, time_us: int, sequence: int) -> bytes:
        """The token of a page that ended with this entry.

        It is good for this request alone; but the page's size and the end of the time range may
        change on the way, since a range that ends now ends later with every page.
        """
        fields = (self.account_id, self.currency, self.from_us, self.oldest_first)
        seal = blake2b(repr((*fields, time_us, sequence)).encode(), digest_size=8)
        return _TOKEN.pack(time_us, sequence, seal.digest())


def statement(
    histories: list[AccountHistory], request: StatementRequest
) -> tuple[list[Leg], bytes]:
    """A page of an account's statement, and the token for the next (empty = this was the last).

    Raises:
        BadRequestError: `page_token` was not made for this request.
    """
    at = _read_token(request)
    legs: list[Leg] = []
    for leg in _merged(histories, request, at):
        if not request.from_us <= leg.time_us < request.to_us:
            break
        if len(legs) == request.page_size:
            last = legs[-1]
            return legs, request.token_after(last.time_us, last.sequence)
        legs.append(leg)
    return legs, b""


def _merged(
    histories: list[AccountHistory], request: StatementRequest, at: tuple[int, int] | None
) -> Iterator[Leg]:
    if request.oldest_first:
        time_us, sequence = (at[0], at[1] + 1) if at else (request.from_us, 0)
        return heapq.merge(
            *(each.oldest_first(time_us, sequence) for each in histories),
            key=lambda leg: (leg.time_us, leg.sequence),
        )
    end = request.to_us, 0
    time_us, sequence = min(at, end) if at else end
    return heapq.merge(
        *(each.newest_first(time_us, sequence) for each in histories),
        key=lambda leg: (-leg.time_us, -leg.sequence),
    )


def _read_token(request: StatementRequest) -> tuple[int, int] | None:
    token = request.page_token
    if not token:
        return None
    if len(token) != _TOKEN.size:
        raise BadRequestError("page_token", "no page ended with this token")
    time_us, sequence, _ = _TOKEN.unpack(token)
    if time_us < 0 or sequence >= _SEQUENCE_END:  # sealed rightly, but by no page of ours
        raise BadRequestError("page_token", "no page ended with this token")
    if token != request.token_after(time_us, sequence):
        raise BadRequestError("page_token", "this token was made for another request")
    return time_us, sequence


def _sums_after(period: Period) -> Sums:
    return period.incoming_before + period.incoming, period.outgoing_before + period.outgoing
