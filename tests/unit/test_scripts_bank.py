"""Real bank transactions as imports: nothing lost, nothing invented, every balance as recorded."""

from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from doubloon import AccountKind
from scripts.bank import CURRENCY, BankRow, accounts_of, hubs_of, naive_days, read_rows
from scripts.naive import DAY_US, Books, Flows, flows
from scripts.schedule import batches

HEADER = "source_id,account_id,date,direction,operation,partner_bank,amount_minor,balance_minor\n"
NOON_OF_1993_US = 725_889_600_000_000


def bank_row(source_id: int, amount: int, balance: int, day: int = 1, account: int = 5) -> BankRow:
    operation = "cash_deposit" if amount > 0 else "transfer_out"
    partner = "" if amount > 0 else "AB"
    return BankRow(
        source_id, account, date(1993, 1, day), amount > 0, operation, partner, abs(amount), balance
    )


def test_a_deposit_comes_from_its_operation_and_a_withdrawal_goes_to_it() -> None:
    deposit, withdrawal = bank_row(7, 100, 100), bank_row(8, -30, 70)
    into, out = deposit.transfer(), withdrawal.transfer()
    assert (into.source, into.destination) == (deposit.operation_account_id, 5)
    assert (out.source, out.destination) == (5, withdrawal.operation_account_id)
    assert (into.amount_minor, out.amount_minor) == (100, 30)
    assert (into.reference, out.metadata) == (7, b"AB")
    assert into.import_time_us == NOON_OF_1993_US
    assert into == deposit.transfer(), "a second replay asks with the same key and body"
    assert into.transfer_id != out.transfer_id


def test_only_overdrawn_accounts_get_a_floor() -> None:
    rows = [bank_row(1, 10, 10), bank_row(2, -30, -20), bank_row(3, 50, 50, account=6)]
    opened = {account.account_id: account for account in accounts_of(rows)}
    assert (opened[5].kind, opened[5].floor_minor) == (AccountKind.SYSTEM, -20)
    assert (opened[6].kind, opened[6].floor_minor) == (AccountKind.PLAYER, 0)
    assert set(opened) == {5, 6} | hubs_of(rows)
    assert all(opened[hub].kind is AccountKind.SYSTEM for hub in hubs_of(rows))


def test_naive_days_fold_by_account_and_day() -> None:
    rows = [bank_row(1, 10, 10), bank_row(2, -3, 7), bank_row(3, 5, 12, day=2)]
    days = naive_days(rows)
    assert days[5, date(1993, 1, 1)] == (Flows(10, 3, 1, 1), 7)
    assert days[5, date(1993, 1, 2)] == (Flows(5, 0, 1, 0), 12)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("1,2,1993-01-01,credit,gift,,5,5", "operation"),
        ("1,2,1993-01-01,sideways,cash_deposit,,5,5", "direction"),
        ("1,2,1993-13-01,credit,cash_deposit,,5,5", "month"),
        ("x,2,1993-01-01,credit,cash_deposit,,5,5", "invalid literal"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "bank.csv"
    path.write_text(HEADER + "1,2,1993-01-01,credit,cash_deposit,,5,5\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"line 3: .*{named}"):
        read_rows(path)


def test_the_whole_file_replays_in_naive_books(shared_data: Path) -> None:
    rows = read_rows(shared_data / "bank_1993.csv")
    assert len(rows) == 46_997
    opened = accounts_of(rows)
    assert Counter(account.floor_minor < 0 for account in opened) == {False: 1_203, True: 32}
    books = Books({account.account_id: account.floor_minor for account in opened})
    row_of = {row.source_id: row for row in rows}
    assert len(row_of) == len(rows)
    replayed = 0
    for batch in batches((row.transfer() for row in rows), hubs_of(rows)):
        for transfer in batch:
            assert books.apply(transfer)
            row = row_of[transfer.reference]
            assert books.balance_minor(row.account_id, CURRENCY) == row.balance_minor
            replayed += 1
    assert replayed == len(rows)


def test_naive_days_agree_with_naive_flows(shared_data: Path) -> None:
    rows = read_rows(shared_data / "bank_1993.csv")
    account = Counter(row.account_id for row in rows).most_common(1)[0][0]
    own = [row for row in rows if row.account_id == account]
    history = [row.transfer() for row in own]
    for row in own:
        day = naive_days(own)[account, row.date]
        assert day.flows == flows(history, account, CURRENCY, row.time_us - DAY_US, row.time_us)
