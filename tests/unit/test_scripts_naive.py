"""The naive answers themselves, on cases small enough to check by eye."""

import pytest

from doubloon import Transfer
from scripts.naive import HOUR_US, Books, Flows, flows, hourly_balances

ANNE, BORIS, BANK = 2, 3, 1


def made(source: int, destination: int, amount: int, time_us: int = 0) -> Transfer:
    return Transfer(source, destination, "GOLD", amount, import_time_us=time_us)


def test_books_keep_every_floor() -> None:
    books = Books({BANK: -100})
    assert books.apply(made(BANK, ANNE, 100))
    assert not books.apply(made(BANK, ANNE, 1)), "the bank is at its floor"
    assert not books.apply(made(BORIS, ANNE, 1)), "nobody else may go below 0"
    assert books.apply(made(ANNE, BORIS, 100))
    assert [books.balance_minor(a, "GOLD") for a in (BANK, ANNE, BORIS)] == [-100, 0, 100]
    assert books.balance_minor(ANNE, "GEMS") == 0


def test_flows_count_the_end_of_a_window_and_not_its_start() -> None:
    history = [made(BANK, ANNE, 5, 10), made(BANK, ANNE, 7, 20), made(ANNE, BORIS, 3, 20)]
    assert flows(history, ANNE, "GOLD", 10, 20) == Flows(7, 3, 1, 1)
    assert flows(history, ANNE, "GOLD", 9, 19) == Flows(5, 0, 1, 0)
    assert flows(history, ANNE, "GEMS", 0, 99) == Flows(0, 0, 0, 0)


def test_hourly_balances_carry_silent_hours_forward() -> None:
    history = [
        made(BANK, ANNE, 5, HOUR_US // 2),
        made(BANK, ANNE, 7, HOUR_US),
        made(ANNE, BORIS, 3, 4 * HOUR_US - 1),
        made(ANNE, BORIS, 1, 4 * HOUR_US + 10),
        made(ANNE, BORIS, 1, 4 * HOUR_US + 11),
    ]
    assert hourly_balances(history, ANNE, "GOLD", HOUR_US, 4 * HOUR_US + 10) == [12, 12, 9, 8]


@pytest.mark.parametrize(
    ("amounts_minor", "completes"),
    [([5, 5], True), ([5, 6], False), ([11, 1], False), ([], True)],
)
def test_a_group_happens_whole_or_not_at_all(amounts_minor: list[int], completes: bool) -> None:  # noqa: FBT001 - a column of the table
    books = Books({1: -100})
    assert books.apply(Transfer(1, 2, "GOLD", 10))
    group = [Transfer(2, 3, "GOLD", amount_minor) for amount_minor in amounts_minor]
    assert books.apply(*group) == completes
    moved_minor = sum(amounts_minor) if completes else 0
    assert books.balance_minor(2, "GOLD") == 10 - moved_minor
    assert books.balance_minor(3, "GOLD") == moved_minor


def test_the_transfers_of_a_group_may_spend_what_earlier_ones_brought() -> None:
    books = Books({1: -100})
    assert books.apply(Transfer(1, 2, "GOLD", 10), Transfer(2, 3, "GOLD", 10))
    assert not books.apply(Transfer(2, 4, "GOLD", 10), Transfer(1, 2, "GOLD", 10))
