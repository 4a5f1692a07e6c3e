"""Promises 1 and 2: sums are zero after every block, and no balance leaves its bounds."""

import random

import pytest

from cluster.refusals import RefusalReason
from shard_node.ledger import OpenStatus, StatusChange
from tests.support.ledgers import BANK, START_US, Rig, fold_of, tables, transfer_id
from tests.support.naive_ledger import ACTIVE, CLOSED, COMPLETED, FROZEN, HOUR_US, SYSTEM, Ask

INT64_MAX = 2**63 - 1
A, B = 10, 11


def test_sums_are_zero_after_every_block(rng: random.Random) -> None:
    rig = Rig(accounts_max=5)
    rig.open_bank()
    players = range(2, 30)
    for each in players:
        rig.open(each, cap_minor=rng.choice((0, 0, 500)))
    completed = 0
    for block in range(60):
        asks = [
            Ask(
                rng.randbytes(16),
                BANK if rng.random() < 0.3 else rng.choice(players),
                rng.choice((BANK, *players)),
                rng.randrange(1, 200),
                currency=rng.randrange(1, 4),
            )
            for _ in range(rng.randrange(1, 40))
        ]
        completed += sum(each.status == COMPLETED for each in rig.transfer(*asks))
        rig.seal()
        for currency in range(1, 4):
            balances = [rig.balance(each, currency) for each in (BANK, *players)]
            assert sum(balances) == 0, "conservation"
            assert min(balances[1:]) >= 0, "no overdraft"
        if block % 7 == 0:
            rig.checkpoint()
        rig.wall.advance(HOUR_US // 10)
    assert completed > 300, "the test says something"
    rig.checkpoint()
    assert tables(rig.state) == fold_of(rig.log)


@pytest.mark.parametrize(
    ("floor", "cap", "amount", "reason"),
    [
        (-100, 0, 100, None),
        (-100, 0, 101, RefusalReason.INSUFFICIENT_FUNDS),
        (0, 0, 1, RefusalReason.INSUFFICIENT_FUNDS),
        (-100, 99, 99, None),
        (-100, 99, 100, RefusalReason.BALANCE_CAP_EXCEEDED),
        (-INT64_MAX, 0, INT64_MAX, None),
        (1 - INT64_MAX, 0, INT64_MAX, RefusalReason.INSUFFICIENT_FUNDS),
        (-INT64_MAX, INT64_MAX, INT64_MAX, None),
        (-INT64_MAX, INT64_MAX - 1, INT64_MAX, RefusalReason.BALANCE_CAP_EXCEEDED),
    ],
)
def test_floors_and_caps_are_inclusive(
    floor: int, cap: int, amount: int, reason: RefusalReason | None
) -> None:
    rig = Rig()
    rig.open(A, SYSTEM, floor_minor=floor)
    rig.open(B, cap_minor=cap)
    (result,) = rig.transfer(Ask(transfer_id(1), A, B, amount))
    assert result.reason == (reason or 0)
    assert (rig.balance(A), rig.balance(B)) == ((0, 0) if reason else (-amount, amount))


def test_bounds_hold_in_each_currency_by_itself() -> None:
    rig = Rig()
    rig.open(A, SYSTEM, floor_minor=-10)
    rig.open(B, cap_minor=10)
    asks = [Ask(transfer_id(each), A, B, 10, currency=each) for each in (1, 2, 65_535)]
    assert [each.status for each in rig.transfer(*asks)] == [COMPLETED] * 3
    more = [Ask(transfer_id(each + 10), A, B, 1, currency=each) for each in (1, 2)]
    assert [each.reason for each in rig.transfer(*more)] == [13, 13]


def test_a_balance_never_passes_what_it_can_hold() -> None:
    rig = Rig()
    for each in (A, B):
        rig.open(each, SYSTEM, floor_minor=-INT64_MAX)
    rig.open(12)
    full, over, low, under = rig.transfer(
        Ask(transfer_id(1), A, 12, INT64_MAX),
        Ask(transfer_id(2), B, 12, 1),
        Ask(transfer_id(3), B, A, 1),
        Ask(transfer_id(4), A, B, 2),
    )
    assert (full.status, full.balance_minor) == (COMPLETED, -INT64_MAX)
    assert over.reason == RefusalReason.BALANCE_CAP_EXCEEDED
    assert low.status == COMPLETED
    assert under.reason == RefusalReason.INSUFFICIENT_FUNDS
    assert [rig.balance(each) for each in (A, B, 12)] == [1 - INT64_MAX, -1, INT64_MAX]


def test_lifetime_sums_pass_64_bits_and_come_back_from_the_state() -> None:
    """The same money goes back and forth: the balance stays small, the sums do not."""
    rig = Rig()
    for each in (A, B):
        rig.open(each, SYSTEM, floor_minor=-INT64_MAX)
    turns = 150  # more than one period
    for number in range(turns):
        there = Ask(transfer_id(2 * number), A, B, INT64_MAX)
        back = Ask(transfer_id(2 * number + 1), B, A, INT64_MAX)
        assert [each.status for each in rig.transfer(there, back)] == [COMPLETED] * 2
    total = turns * INT64_MAX
    assert total > 2**64

    def check() -> None:
        for each in (A, B):
            totals = rig.history(each).totals_at(rig.clock.last_us)
            assert (totals.incoming, totals.outgoing) == (total, total)
            assert (totals.incoming_count, totals.outgoing_count) == (turns, turns)
            opening, hours = rig.history(each).series(START_US, rig.clock.last_us)
            assert (opening, hours[-1].balance_minor, hours[-1].incoming) == (0, 0, total)

    rig.seal()
    check()
    rig.checkpoint()
    check()
    rig.crash()
    check()


def test_opening_again_is_a_repeat_and_names_what_differs() -> None:
    rig = Rig()
    assert rig.open(A, SYSTEM, -5, 9) == (OpenStatus.OPENED, "")
    for step in (rig.seal, rig.checkpoint, rig.crash):
        sequence = rig.ledger.sequence
        assert rig.open(A, SYSTEM, -5, 9) == (OpenStatus.REPEAT, "")
        assert rig.open(A, 1, 0, 8) == (OpenStatus.DIFFERS, "kind")
        assert rig.open(A, SYSTEM, -6, 8) == (OpenStatus.DIFFERS, "floor_minor")
        assert rig.open(A, SYSTEM, -5, 8) == (OpenStatus.DIFFERS, "cap_minor")
        assert rig.ledger.sequence == sequence
        step()
    assert rig.open(B) == (OpenStatus.OPENED, "")
    assert rig.open(B, cap_minor=INT64_MAX) == (OpenStatus.REPEAT, ""), "no cap is the greatest cap"


@pytest.mark.parametrize(
    ("path", "outcomes"),
    [
        ((ACTIVE,), (StatusChange.REPEAT,)),
        (
            (FROZEN, FROZEN, ACTIVE),
            (StatusChange.CHANGED, StatusChange.REPEAT, StatusChange.CHANGED),
        ),
        ((FROZEN, CLOSED), (StatusChange.CHANGED, StatusChange.CHANGED)),
        ((CLOSED, CLOSED), (StatusChange.CHANGED, StatusChange.REPEAT)),
        ((CLOSED, ACTIVE), (StatusChange.CHANGED, StatusChange.CLOSED_FOR_EVER)),
        ((CLOSED, FROZEN), (StatusChange.CHANGED, StatusChange.CLOSED_FOR_EVER)),
    ],
)
def test_status_changes(path: tuple[int, ...], outcomes: tuple[StatusChange, ...]) -> None:
    rig = Rig(accounts_max=1)
    rig.open(A)
    for status, outcome in zip(path, outcomes, strict=True):
        rig.checkpoint()
        rig.wall.advance(1_000)
        sequence, before = rig.ledger.sequence, rig.account(A).status
        assert rig.change_status(A, status) is outcome
        changed = outcome is StatusChange.CHANGED
        assert rig.ledger.sequence == sequence + changed
        assert rig.account(A).status == (status if changed else before)
        if changed:
            assert rig.account(A).status_reason == f"to {status}"
            assert rig.account(A).status_time_us == rig.stamp_us
    shown = rig.account(A)
    rig.seal()
    rig.sync()
    rig.crash()
    again = rig.account(A)
    names = ("status", "status_reason", "status_time_us", "changed_sequence", "opened_us")
    assert [getattr(again, each) for each in names] == [getattr(shown, each) for each in names]


@pytest.mark.parametrize("balance", [1, -1])
def test_an_account_that_is_not_empty_stays_open(balance: int) -> None:
    rig = Rig()
    rig.open(A, SYSTEM, floor_minor=-10)
    rig.open(B, SYSTEM, floor_minor=-10)
    source, destination = (B, A) if balance > 0 else (A, B)
    rig.transfer(Ask(transfer_id(1), source, destination, 1, currency=3))
    assert rig.change_status(A, CLOSED) is StatusChange.HOLDS_MONEY
    assert rig.account(A).status == ACTIVE
    rig.transfer(Ask(transfer_id(2), destination, source, 1, currency=3))
    assert rig.change_status(A, CLOSED) is StatusChange.CHANGED
