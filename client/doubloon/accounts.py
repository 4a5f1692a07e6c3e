"""Accounts: opening them, their attributes, and their balances."""

from dataclasses import dataclass
from datetime import datetime

from doubloon.enums import AccountKind, AccountStatus, OpenAccountStatus
from doubloon.faults import Fault, Refused
from doubloon.times import as_datetime


@dataclass(frozen=True, slots=True)
class AccountSpec:
    """The attributes of an account to be opened."""

    account_id: int
    """1 … 2^63 - 1."""
    kind: AccountKind = AccountKind.PLAYER
    """What it is for."""
    floor_minor: int = 0
    """The lowest balance in any currency, ≤ 0, minor units; must be 0 for a PLAYER."""
    cap_minor: int = 0
    """The highest balance in any currency, minor units; 0 = 2^63 - 1."""


@dataclass(frozen=True, slots=True)
class OpenAccountResult:
    """The outcome of opening one account."""

    account_id: int
    """The account asked for."""
    status: OpenAccountStatus
    """How it ended."""
    repeat: bool = False
    """True when the account was open already with the same attributes."""
    differing_field: str = ""
    """With REFUSED: the first attribute that differs; else ""."""
    fault: Fault | None = None
    """Set exactly when `status` is FAULT. `open_account()` raises it instead."""

    @property
    def opened(self) -> bool:
        """The account is open, durably, with these attributes, now or since earlier."""
        return self.status is OpenAccountStatus.OPENED

    @property
    def refused(self) -> bool:
        """The account was opened earlier with other attributes; nothing changed."""
        return self.status is OpenAccountStatus.REFUSED

    def raise_for_refusal(self) -> "OpenAccountResult":
        """Return itself, unless it was refused.

        Raises:
            AccountRefused: it was.
        """
        if self.refused:
            raise AccountRefused(self)
        return self


class AccountRefused(Refused):
    """An account was opened earlier with other attributes, as `result` says."""

    def __init__(self, result: OpenAccountResult) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return f"account {self.result.account_id} exists: {self.result.differing_field} differs"


@dataclass(frozen=True, slots=True)
class Account:
    """An account's attributes and status."""

    account_id: int
    """1 … 2^63 - 1."""
    kind: AccountKind
    """Fixed when opened."""
    status: AccountStatus
    """Today's."""
    floor_minor: int
    """The lowest balance it may reach in any currency, ≤ 0, minor units."""
    cap_minor: int
    """The highest balance it may reach in any currency, minor units; 0 = 2^63 - 1."""
    opened_time_us: int
    """When it was opened, microseconds."""
    status_time_us: int
    """When its status last changed, microseconds; 0 = never."""
    status_reason: str
    """The operator's reason for that; "" = never changed."""

    @property
    def opened_time(self) -> datetime | None:
        """`opened_time_us` as an aware datetime."""
        return as_datetime(self.opened_time_us)

    @property
    def status_time(self) -> datetime | None:
        """`status_time_us` as an aware datetime; None when it never changed."""
        return as_datetime(self.status_time_us)


@dataclass(frozen=True, slots=True)
class Balance:
    """An account's balance in one currency."""

    currency: str
    """The currency's code."""
    posted_minor: int
    """The sum of all entries up to the instant, minor units."""
    reserved_minor: int
    """Reserved by transfers between shards that are being decided, minor units."""
    available_minor: int
    """What can be spent: posted − reserved − floor, minor units."""
    latest_entry_time_us: int
    """The time of the latest entry up to the instant, microseconds; 0 = none yet."""

    @property
    def latest_entry_time(self) -> datetime | None:
        """`latest_entry_time_us` as an aware datetime; None before the first entry."""
        return as_datetime(self.latest_entry_time_us)


@dataclass(frozen=True, slots=True)
class Balances:
    """An account's balances at an instant."""

    as_of_us: int
    """The instant answered for, microseconds."""
    balances: tuple[Balance, ...]
    """One for each currency that the account has an entry in by then."""

    @property
    def as_of(self) -> datetime | None:
        """`as_of_us` as an aware datetime."""
        return as_datetime(self.as_of_us)

    def of(self, currency: str) -> Balance | None:
        """Return the balance in one currency; None when the account never held it by then."""
        return next((each for each in self.balances if each.currency == currency), None)
