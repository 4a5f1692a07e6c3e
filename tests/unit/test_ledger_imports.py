"""Imports bring their own past time: where they are posted, and which come too late."""

import pytest

from cluster.refusals import RefusalReason
from tests.support.ledgers import BANK, START_US, Rig, transfer_id
from tests.support.naive_ledger import COMPLETED, HOUR_US, Ask

A, B = 10, 11
DAY_US = 24 * HOUR_US
THEN_US = START_US - 10 * DAY_US


def rig_with_history(a_us: int, b_us: int) -> Rig:
    """A and B hold 100 each; their latest entries, in different currencies, are of these times."""
    rig = Rig()
    rig.open_bank()
    rig.open(2, 2, floor_minor=-1_000)
    rig.open(A)
    rig.open(B)
    seed = [
        # Each from its own bank account, whose own latest entry must not shift the other's.
        Ask(transfer_id(1), BANK, A, 100, currency=1, import_time_us=a_us - DAY_US),
        Ask(transfer_id(2), BANK, A, 7, currency=2, import_time_us=a_us),
        Ask(transfer_id(3), 2, B, 100, currency=1, import_time_us=b_us - DAY_US),
        Ask(transfer_id(4), 2, B, 7, currency=3, import_time_us=b_us),
    ]
    assert [each.status for each in rig.transfer(*seed)] == [COMPLETED] * 4
    return rig


@pytest.mark.parametrize(
    ("a_after_us", "b_after_us", "a_at", "b_at"),
    [
        (-1, -1, 0, 0),
        (0, 0, 0, 0),
        (5, -5, 5, 0),
        (-5, 5, 0, 5),
        (7, 9, 7, 9),
        (HOUR_US, 0, HOUR_US, 0),
        (0, HOUR_US, 0, HOUR_US),
        (HOUR_US, HOUR_US, HOUR_US, HOUR_US),
        (HOUR_US + 1, 0, None, None),
        (0, HOUR_US + 1, None, None),
    ],
)
def test_an_import_is_posted_at_the_later_of_its_time_and_the_accounts_latest_entry(
    a_after_us: int, b_after_us: int, a_at: int | None, b_at: int | None
) -> None:
    """Times are relative to the import's own; None = too old."""
    rig = rig_with_history(THEN_US + a_after_us, THEN_US + b_after_us)
    before = rig.ledger.sequence
    (result,) = rig.transfer(Ask(transfer_id(9), A, B, 30, import_time_us=THEN_US))
    if a_at is None or b_at is None:
        assert result.reason == RefusalReason.IMPORT_TOO_OLD
        assert rig.ledger.sequence == before
        return
    assert (result.status, result.time_us, result.balance_minor) == (COMPLETED, THEN_US + a_at, 70)
    paying = next(rig.history(A).back_from(rig.ledger.sequence))
    paid = next(rig.history(B).back_from(rig.ledger.sequence))
    assert (paying.time_us, paid.time_us) == (THEN_US + a_at, THEN_US + b_at)
    assert paying.transfer.import_time_us == THEN_US
    assert (rig.balance(A), rig.balance(B)) == (70, 130)
    rig.seal()
    rig.sync()
    rig.crash()  # and the same from the log
    assert rig.account(A).latest_time_us() == THEN_US + a_at
    assert rig.account(B).latest_time_us() == THEN_US + b_at


def test_an_import_may_be_of_this_instant_and_of_none_later() -> None:
    rig = rig_with_history(THEN_US, THEN_US)
    now_us = rig.stamp_us
    late = Ask(transfer_id(8), A, B, 1, import_time_us=now_us + 1)
    on_time = Ask(transfer_id(9), A, B, 1, import_time_us=now_us)
    refused, completed = rig.transfer(late, on_time)
    assert refused.reason == RefusalReason.IMPORT_IN_FUTURE
    assert (completed.status, completed.time_us) == (COMPLETED, now_us)


def test_an_ordinary_transfer_ends_the_hour_for_imports() -> None:
    rig = rig_with_history(THEN_US, THEN_US)
    (ordinary,) = rig.transfer(Ask(transfer_id(7), A, B, 1))
    assert ordinary.time_us == rig.stamp_us
    edge_us = ordinary.time_us - HOUR_US
    too_old, shifted = rig.transfer(
        Ask(transfer_id(8), A, B, 1, import_time_us=edge_us - 1),
        Ask(transfer_id(9), A, B, 1, import_time_us=edge_us),
    )
    assert too_old.reason == RefusalReason.IMPORT_TOO_OLD
    assert (shifted.status, shifted.time_us) == (COMPLETED, ordinary.time_us)


def test_the_first_entries_of_an_account_may_be_as_old_as_can_be() -> None:
    rig = Rig()
    rig.open_bank()
    rig.open(A)
    (result,) = rig.transfer(Ask(transfer_id(1), BANK, A, 5, import_time_us=1))
    assert (result.status, result.time_us) == (COMPLETED, 1)
    assert rig.history(A).totals_at(0).balance_minor == 0
    assert rig.history(A).totals_at(1).balance_minor == 5


def test_an_account_is_opened_now_and_may_have_a_past() -> None:
    rig = rig_with_history(THEN_US, THEN_US)
    assert rig.account(A).opened_us == START_US
    assert rig.account(A).latest_time_us() == THEN_US
