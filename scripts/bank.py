"""Real bank transactions (`bank_1993.csv`) as imports, and naive answers from the same file.

Pure but for reading the file. A deposit is a transfer from an operation's account to the customer,
a withdrawal one from the customer to it; each operation has an account of the game's own kind.
The file gives no time of day, so every row of a day happens at noon UTC; an account's rows keep the
file's order, and each waits for the one before. Accounts that the data overdraws are opened as
SYSTEM with the floor that the data needs, all others as PLAYER.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import NamedTuple

from doubloon import AccountKind, Transfer, TransferType
from scripts.naive import Flows

CURRENCY = "CZK"
SCALE = 2

_TYPE_OF_OPERATION = {
    "card_withdrawal": TransferType.PURCHASE,
    "cash_deposit": TransferType.TRANSFER,
    "cash_withdrawal": TransferType.TRANSFER,
    "interest_or_fee": TransferType.ADJUSTMENT,
    "transfer_in": TransferType.TRANSFER,
    "transfer_out": TransferType.TRANSFER,
}
_OPERATION_FIRST_ID = 1_000_000_000  # far above every account of the file
_OPERATION_FLOOR_MINOR = -(10**15)  # the whole file moves less than 10^12


class BankRow(NamedTuple):
    """One transaction of the file; the fields are its columns."""

    source_id: int
    account_id: int
    date: date
    is_credit: bool
    operation: str
    partner_bank: str
    amount_minor: int
    balance_minor: int

    @property
    def time_us(self) -> int:
        """When it is imported as having happened: noon of its day, microseconds."""
        noon = datetime.combine(self.date, time(12), UTC)
        return int(noon.timestamp()) * 1_000_000

    @property
    def operation_account_id(self) -> int:
        """The account on the other side."""
        return _OPERATION_FIRST_ID + sorted(_TYPE_OF_OPERATION).index(self.operation)

    def transfer(self) -> Transfer:
        """Return the row as an import; its id depends on the row alone."""
        accounts = (self.operation_account_id, self.account_id)
        source, destination = accounts if self.is_credit else reversed(accounts)
        # A UUIDv7 of the day whose random part is the bank's own unique number.
        id_ = (self.time_us // 1_000) << 80 | 0x7 << 76 | 0b10 << 62 | self.source_id
        return Transfer(
            transfer_id=id_.to_bytes(16, "big"),
            source=source,
            destination=destination,
            currency=CURRENCY,
            amount_minor=self.amount_minor,
            type=_TYPE_OF_OPERATION[self.operation],
            reference=self.source_id,
            metadata=self.partner_bank.encode(),
            import_time_us=self.time_us,
        )


@dataclass(frozen=True)
class BankAccount:
    """An account to open.

    Attributes:
        account_id: the customer's number, or an operation's account.
        kind: PLAYER, or SYSTEM where the floor is below 0.
        floor_minor: the lowest balance that the data needs.
    """

    account_id: int
    kind: AccountKind
    floor_minor: int


class DayBooks(NamedTuple):
    """What a day did to an account: its flows, and its balance when the day was over."""

    flows: Flows
    closing_minor: int


def read_rows(path: Path) -> list[BankRow]:
    """Read the file, in its order.

    Raises:
        ValueError: a row is not one of this file; the message names the line.
    """
    with path.open(newline="", encoding="utf-8") as text:
        reader = csv.DictReader(text)
        rows = []
        for record in reader:
            try:
                rows.append(_row(record))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error!r}") from error
    return rows


def _row(record: dict[str, str]) -> BankRow:
    if record["operation"] not in _TYPE_OF_OPERATION:
        raise ValueError(f"operation: {record['operation']!r} is not known")
    if record["direction"] not in {"credit", "debit"}:
        raise ValueError(f"direction: {record['direction']!r} is not credit or debit")
    return BankRow(
        source_id=int(record["source_id"]),
        account_id=int(record["account_id"]),
        date=date.fromisoformat(record["date"]),
        is_credit=record["direction"] == "credit",
        operation=record["operation"],
        partner_bank=record["partner_bank"],
        amount_minor=int(record["amount_minor"]),
        balance_minor=int(record["balance_minor"]),
    )


def accounts_of(rows: Sequence[BankRow]) -> list[BankAccount]:
    """Return every account that the rows need, in order of id."""
    lowest_minor: dict[int, int] = {}
    for row in rows:
        lowest = lowest_minor.get(row.account_id, 0)
        lowest_minor[row.account_id] = min(lowest, row.balance_minor)
    for account_id in hubs_of(rows):
        lowest_minor[account_id] = _OPERATION_FLOOR_MINOR
    return [
        BankAccount(
            account_id,
            AccountKind.SYSTEM if floor_minor else AccountKind.PLAYER,
            floor_minor,
        )
        for account_id, floor_minor in sorted(lowest_minor.items())
    ]


def hubs_of(rows: Iterable[BankRow]) -> frozenset[int]:
    """Return the operations' accounts, whose order does not matter."""
    return frozenset(row.operation_account_id for row in rows)


def naive_days(rows: Iterable[BankRow]) -> dict[tuple[int, date], DayBooks]:
    """Return what each day did to each account that it touched, from the file alone."""
    days: dict[tuple[int, date], DayBooks] = {}
    for row in rows:
        before, _ = days.get((row.account_id, row.date), (Flows(0, 0, 0, 0), 0))
        incoming, outgoing = (row.amount_minor, 0) if row.is_credit else (0, row.amount_minor)
        flows = Flows(
            before.incoming_minor + incoming,
            before.outgoing_minor + outgoing,
            before.incoming_count + row.is_credit,
            before.outgoing_count + (not row.is_credit),
        )
        days[row.account_id, row.date] = DayBooks(flows, row.balance_minor)
    return days
