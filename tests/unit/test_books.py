"""Periods are prefix sums: where they begin, what they sum up, and how they are written as rows."""

import random
from itertools import accumulate, pairwise

import pytest

from shard_node.books import (
    HOUR_US,
    PERIOD_ENTRIES_MAX,
    Account,
    Balance,
    Period,
    account_row,
    period_row,
    read_account_row,
    read_balance_row,
    read_period_row,
)
from shard_node.damage import DamagedStateError
from tests.support.ledgers import START_US
from tests.support.rows import balance_row

U64_MAX, I64_MAX = 2**64 - 1, 2**63 - 1
U128_MAX = 2**128 - 1
LOG = 7


def post(balance: Balance, amount: int, sequence: int, time_us: int) -> None:
    """Adds an entry; a negative amount is paid by the account."""
    after = balance.minor + amount
    if amount > 0:
        balance.post_incoming(amount, after, sequence, time_us)
    else:
        balance.post_outgoing(-amount, after, sequence, time_us)


def periods_of(balance: Balance) -> list[Period]:
    current = balance.current()
    return [*balance.closed, current] if current else []


@pytest.mark.parametrize(
    ("times_us", "starts"),
    [
        ([], []),
        ([0], [0]),
        ([0, HOUR_US - 1], [0]),
        ([HOUR_US - 1, HOUR_US], [HOUR_US - 1, HOUR_US]),
        ([5, HOUR_US + 5, HOUR_US + 6, 9 * HOUR_US], [5, HOUR_US + 5, 9 * HOUR_US]),
        ([3] * PERIOD_ENTRIES_MAX, [3]),
        ([3] * (PERIOD_ENTRIES_MAX + 1), [3, 3]),
        ([*range(PERIOD_ENTRIES_MAX + 1)], [0, PERIOD_ENTRIES_MAX]),
        ([1] * PERIOD_ENTRIES_MAX + [HOUR_US], [1, HOUR_US]),
        ([1] * (3 * PERIOD_ENTRIES_MAX), [1, 1, 1]),
    ],
    ids=lambda value: f"{len(value)}",
)
def test_a_period_begins_with_each_hour_and_after_128_entries(
    times_us: list[int], starts: list[int]
) -> None:
    balance = Balance(1, LOG)
    for sequence, time_us in enumerate(times_us, 1):
        post(balance, 1, sequence, START_US + time_us)
    assert [each.start_us - START_US for each in periods_of(balance)] == starts


def test_periods_are_the_sums_of_their_entries(rng: random.Random) -> None:
    balance = Balance(1, LOG)
    time_us, sequence, entries = START_US, 0, []
    for _ in range(3_000):
        time_us += rng.choice((0, 1, 60_000_000, HOUR_US // 3))
        if rng.random() < 0.5:  # a rush
            time_us = max(time_us, START_US)
        for _ in range(rng.choice((1, 1, 1, 40))):
            sequence += rng.randrange(1, 4)
            amount = rng.choice((-1, 1)) * rng.randrange(1, 10**6)
            entries.append((time_us, sequence, amount))
            post(balance, amount, sequence, time_us)
    periods = periods_of(balance)
    bounds = [(each.start_us, each.first_sequence) for each in periods]
    assert bounds == sorted(set(bounds))
    for number, period in enumerate(periods):
        end = bounds[number + 1] if number + 1 < len(bounds) else (I64_MAX, 0)
        mine = [each for each in entries if bounds[number] <= each[:2] < end]
        before = [each for each in entries if each[:2] < bounds[number]]
        assert 1 <= len(mine) <= PERIOD_ENTRIES_MAX
        assert len({each[0] // HOUR_US for each in mine}) == 1, "no period spans two hours"
        assert period == Period(
            *mine[0][:2],
            sum(each[2] for each in before if each[2] > 0),
            -sum(each[2] for each in before if each[2] < 0),
            sum(each[2] > 0 for each in before),
            sum(each[2] < 0 for each in before),
            sum(each[2] for each in mine if each[2] > 0),
            -sum(each[2] for each in mine if each[2] < 0),
            sum(each[2] > 0 for each in mine),
            sum(each[2] < 0 for each in mine),
            mine[-1][1],
            mine[-1][0],
            LOG,
        )
        assert period.closing_minor == sum(each[2] for each in entries if each[:2] < end)
        if number > 50:
            break
    assert balance.minor == periods[-1].closing_minor == sum(each[2] for each in entries)
    for one, next_ in pairwise(periods):
        assert next_.incoming_before == one.incoming_before + one.incoming
        assert next_.outgoing_before == one.outgoing_before + one.outgoing
        assert next_.incoming_count_before == one.incoming_count_before + one.incoming_count
        assert next_.outgoing_count_before == one.outgoing_count_before + one.outgoing_count


def test_a_balance_goes_on_from_its_latest_row() -> None:
    """At every entry: written, read back and gone on with, the periods are those of one run."""
    times = [START_US + at * HOUR_US // 150 for at in range(400)]
    amounts = [at % 7 - 3 or 11 for at in range(400)]
    straight = Balance(1, LOG)
    for sequence, (amount, time_us) in enumerate(zip(amounts, times, strict=True), 1):
        post(straight, amount, sequence, time_us)
    broken, rows = Balance(1, LOG), dict[bytes, bytes]()
    for sequence, (amount, time_us) in enumerate(zip(amounts, times, strict=True), 1):
        post(broken, amount, sequence, time_us)
        rows.update(period_row(9, 1, each) for each in broken.closed)
        currency, period = read_balance_row(*broken.row(9))
        broken = Balance(currency, period.last_log)
        broken.go_on_from(period)
    assert broken.minor == straight.minor == list(accumulate(amounts))[-1]
    ended = [read_period_row(key, rows[key]) for key in sorted(rows)]
    assert [*ended, broken.current()] == periods_of(straight)


EXTREMES = [
    Period(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    Period(1, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1),
    Period(
        I64_MAX, U64_MAX, U128_MAX, U128_MAX, U64_MAX, U64_MAX,
        U128_MAX, U128_MAX, U64_MAX, U64_MAX, U64_MAX, I64_MAX, 65_535,
    ),
    Period(
        START_US, 5, 2**64, 2**64 - 1, 3, 4, 2**64 + 1, 2**127, 100, 28, 2**63, START_US + 9, LOG
    ),
]  # fmt: skip


@pytest.mark.parametrize("period", EXTREMES, ids=range(len(EXTREMES)))
@pytest.mark.parametrize("account_id", [1, I64_MAX, U64_MAX])
@pytest.mark.parametrize("currency", [1, 65_535])
def test_a_periods_row_comes_back(period: Period, account_id: int, currency: int) -> None:
    key, value = period_row(account_id, currency, period)
    assert read_period_row(key, value) == period
    assert key == b"".join(
        (
            account_id.to_bytes(8, "big"),
            currency.to_bytes(2, "big"),
            period.start_us.to_bytes(8, "big"),
            period.first_sequence.to_bytes(8, "big"),
        )
    )


@pytest.mark.parametrize("period", EXTREMES, ids=range(len(EXTREMES)))
@pytest.mark.parametrize("account_id", [1, I64_MAX, U64_MAX])
@pytest.mark.parametrize("currency", [1, 65_535])
def test_a_balances_row_comes_back(period: Period, account_id: int, currency: int) -> None:
    key, value = balance_row(account_id, currency, period)
    assert read_balance_row(key, value) == (currency, period)
    assert key + value == b"".join(period_row(account_id, currency, period))
    assert key == account_id.to_bytes(8, "big") + currency.to_bytes(2, "big")
    for cut in (value[:-1], value[:15], b"", value + b"\0"):
        with pytest.raises(DamagedStateError, match=key.hex()):
            read_balance_row(key, cut)
    with pytest.raises(DamagedStateError, match=key.hex()):
        read_balance_row(key + b"\0", value)


def test_keys_sort_by_account_currency_start_and_sequence(rng: random.Random) -> None:
    edges = (1, 255, 256, 2**31, 2**32, I64_MAX)
    names = [
        (rng.choice(edges), rng.choice((1, 255, 256, 65_535)), rng.choice(edges), rng.choice(edges))
        for _ in range(300)
    ]
    keys = {
        period_row(account, currency, Period(start, first, *([0] * 11)))[0]: (
            account, currency, start, first
        )
        for account, currency, start, first in names
    }  # fmt: skip
    assert [keys[key] for key in sorted(keys)] == sorted(set(names))
    ids = [account_row(Account(each, 1, 1, 0, 1, 0))[0] for each in edges]
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    "account",
    [
        Account(1, 1, 1, 0, 0, 0),
        Account(I64_MAX, 2, 3, -I64_MAX, I64_MAX, I64_MAX, I64_MAX, "x" * 256, U64_MAX),
        Account(5, 2, 2, -1, 1, START_US, START_US + 1, "Verdacht auf Betrug – geprüft ✓", 12),
    ],
    ids=["least", "greatest", "text"],
)
def test_an_accounts_row_comes_back(account: Account) -> None:
    assert account_row(read_account_row(*account_row(account))) == account_row(account)


def test_a_row_of_what_can_be_no_account_is_damage() -> None:
    _, value = account_row(Account(1, 1, 1, 0, 1, 0))
    for account_id in (2**63, 2**64 - 1):
        with pytest.raises(DamagedStateError, match="no account has such an id"):
            read_account_row(account_id.to_bytes(8, "big"), value)


def test_an_account_is_its_first_balance_and_has_the_others() -> None:
    account = Account(1, 1, 1, 0, I64_MAX, START_US)
    assert account.balances == {}
    assert all(account.balance(currency) is None for currency in (0, 1, 2))
    first = account.open_balance(7, LOG)
    assert first is account.balance(7)
    assert (first.currency, first.minor, first.last_log) == (7, 0, LOG)
    assert account.balance(1) is None
    others = [account.open_balance(currency, LOG + currency) for currency in (1, 2)]
    post(others[0], 4, 9, START_US)
    assert [account.balance(currency) for currency in (7, 1, 2)] == [first, *others]
    assert account.balances == {7: first, 1: others[0], 2: others[1]}
    assert [each.last_log for each in account.balances.values()] == [LOG, LOG + 1, LOG + 2]
    assert (first.minor, others[0].minor, others[1].minor) == (0, 4, 0)


def test_an_account_without_entries_has_no_latest_entry() -> None:
    account = Account(1, 1, 1, 0, I64_MAX, START_US, changed_sequence=3)
    assert (account.latest_time_us(), account.latest_sequence()) == (0, 3)
    for currency, (time_us, sequence) in {1: (50, 9), 2: (70, 5)}.items():
        post(account.open_balance(currency, LOG), 4, sequence, time_us)
    assert (account.latest_time_us(), account.latest_sequence()) == (70, 9)
