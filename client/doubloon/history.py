"""What happened on an account: its statement, its flows, and its balance hour by hour."""

from dataclasses import dataclass
from datetime import datetime

from msgspec import Struct

from doubloon.enums import EntryDirection, TransferType
from doubloon.times import as_datetime
from doubloon.transfers import RecordName


@dataclass(frozen=True, slots=True)
class Entry:
    """One leg of a transfer as one account sees it."""

    direction: EntryDirection
    """Paid or was paid."""
    currency: str
    """The currency's code."""
    amount_minor: int
    """Minor units, positive."""
    balance_after_minor: int
    """The account's balance right after it, minor units."""
    counterparty: int
    """The other account."""
    transfer_id: bytes
    """16 bytes, of the transfer or its group: its name is (`key_account_id`, this)."""
    type: TransferType
    """What the transfer was for."""
    reference: int
    """The application's own number; 0 = none."""
    metadata: bytes
    """The application's own bytes."""
    time_us: int
    """When it was posted on this account, microseconds."""
    decided_time_us: int
    """When the transfer was decided, microseconds."""
    import_time_us: int
    """The time its import brought, microseconds; 0 = not imported."""
    record: RecordName
    """Where it is recorded."""
    key_account_id: int
    """The account in the transfer's name: the paying account, or its group's first source."""
    group_index: int
    """Which transfer of its group it is, from 0; 0 when it is not of a group."""
    group_size: int
    """How many transfers its group has; 0 when it is not of a group."""

    @property
    def time(self) -> datetime | None:
        """`time_us` as an aware datetime."""
        return as_datetime(self.time_us)

    @property
    def change_minor(self) -> int:
        """What it did to the balance, minor units: the amount, negative when the account paid."""
        return (
            self.amount_minor if self.direction is EntryDirection.INCOMING else -self.amount_minor
        )


@dataclass(frozen=True, slots=True)
class EntryPage:
    """One page of a statement."""

    entries: tuple[Entry, ...]
    """In the order asked for."""
    next_page_token: bytes
    """Ask with this for the next page; b"" = there is none."""


@dataclass(frozen=True, slots=True)
class Flows:
    """What came in and went out of an account in one currency."""

    currency: str
    """The currency's code."""
    incoming_minor: int
    """The sum of incoming amounts, minor units."""
    outgoing_minor: int
    """The sum of outgoing amounts, minor units."""
    incoming_count: int
    """The number of incoming entries."""
    outgoing_count: int
    """The number of outgoing entries."""


@dataclass(frozen=True, slots=True)
class FlowsWindow:
    """The flows in the window (from_us, to_us]."""

    from_us: int
    """The window's start, microseconds; entries at exactly that time do not count."""
    to_us: int
    """The window's end, microseconds; entries at exactly that time count."""
    flows: tuple[Flows, ...]
    """With a currency asked for: exactly one. Else one for each currency ever held by `to_us`."""

    @property
    def from_time(self) -> datetime | None:
        """`from_us` as an aware datetime."""
        return as_datetime(self.from_us)

    @property
    def to_time(self) -> datetime | None:
        """`to_us` as an aware datetime."""
        return as_datetime(self.to_us)

    def of(self, currency: str) -> Flows:
        """Return the flows of one currency; all zero when the account never held it by then."""
        none = Flows(currency, 0, 0, 0, 0)
        return next((each for each in self.flows if each.currency == currency), none)


class HourPoint(Struct, frozen=True, gc=False):
    """One UTC hour of an account's balance in one currency. A month has 720: see `Transfer`."""

    hour_start_us: int
    """The hour's start, microseconds."""
    balance_minor: int
    """The balance at the end of the hour (in the last hour: at `to_us`), minor units."""
    incoming_minor: int
    """The sum of incoming amounts in the hour, minor units."""
    outgoing_minor: int
    """The sum of outgoing amounts in the hour, minor units."""

    @property
    def hour_start(self) -> datetime | None:
        """`hour_start_us` as an aware datetime."""
        return as_datetime(self.hour_start_us)


@dataclass(frozen=True, slots=True)
class BalanceSeries:
    """An account's balance hour by hour, in one currency."""

    to_us: int
    """The instant the last hour is counted up to, microseconds."""
    opening_balance_minor: int
    """The balance just before the first hour, minor units."""
    hours: tuple[HourPoint, ...]
    """One for each hour, silent ones too, oldest first."""

    @property
    def to_time(self) -> datetime | None:
        """`to_us` as an aware datetime."""
        return as_datetime(self.to_us)
