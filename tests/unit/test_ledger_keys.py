"""Promise 3, exactly once: a key takes effect once, wherever its record is when it comes again."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cluster.packed import DifferingField
from cluster.refusals import RefusalReason
from tests.support.ledgers import BANK, Rig, transfer_id
from tests.support.naive_ledger import COMPLETED, REFUSED, Ask, Result

PLAYER_A, PLAYER_B = 10, 11
RECORDED = Ask(transfer_id(5), BANK, PLAYER_A, 70, 1, 1, 9, b"order 1", 0)

# In the order of the contract: the field as the request spells it, and another value.
OTHER: dict[DifferingField, dict[str, Any]] = {
    DifferingField.DESTINATION_ACCOUNT_ID: {"destination": PLAYER_B},
    DifferingField.CURRENCY: {"currency": 2},
    DifferingField.AMOUNT_MINOR: {"amount_minor": 71},
    DifferingField.TYPE: {"type": 2},
    DifferingField.REFERENCE: {"reference": 10},
    DifferingField.METADATA: {"metadata": b"order 2"},
    DifferingField.IMPORT_TIME_US: {"import_time_us": 1},
}


def rig_with_players(accounts_max: int = 1_000) -> Rig:
    rig = Rig(accounts_max)
    rig.open_bank()
    rig.open(PLAYER_A)
    rig.open(PLAYER_B)
    return rig


def reused(field: DifferingField) -> Result:
    return Result(REFUSED, RefusalReason.KEY_REUSED, field)


OF_GROUPS = (DifferingField.TRANSFERS, DifferingField.SOURCE_ACCOUNT_ID)
"""In what two plain transfers of one key cannot differ."""


def test_the_table_has_every_field_in_order() -> None:
    assert [DifferingField.NONE, *OTHER, *OF_GROUPS] == list(DifferingField)


@pytest.mark.parametrize("field", OTHER, ids=lambda field: field.name.lower())
def test_the_first_differing_field_is_named(field: DifferingField) -> None:
    rig = rig_with_players()
    assert rig.transfer(RECORDED)[0].status == COMPLETED
    alone = replace(RECORDED, **OTHER[field])
    later = {what: how for each in OTHER if each >= field for what, how in OTHER[each].items()}
    assert rig.transfer(alone, replace(RECORDED, **later)) == [reused(field)] * 2


@pytest.mark.parametrize("metadata", [b"", b"order", b"order 1 ", b"\0" * 7, b"x" * 256])
def test_metadata_differs_in_length_or_content(metadata: bytes) -> None:
    rig = rig_with_players()
    rig.transfer(RECORDED)
    answers = rig.transfer(replace(RECORDED, metadata=metadata), RECORDED)
    assert [each.reason for each in answers] == [RefusalReason.KEY_REUSED, 0]
    assert answers[0].differing == DifferingField.METADATA
    assert answers[1].repeat


def test_one_id_of_two_sources_is_two_keys() -> None:
    rig = rig_with_players()
    ask = Ask(transfer_id(1), BANK, PLAYER_A, 5)
    back = Ask(transfer_id(1), PLAYER_A, BANK, 5)
    assert [(each.status, each.repeat) for each in rig.transfer(ask, back)] == [(COMPLETED, 0)] * 2
    rig.checkpoint()
    assert [each.repeat for each in rig.transfer(ask, back)] == [1, 1]


def nothing(rig: Rig) -> None:
    """The record is in the open block."""


def seal(rig: Rig) -> None:
    rig.seal()


def sync(rig: Rig) -> None:
    rig.seal()
    rig.sync()


def begin(rig: Rig) -> None:
    rig.begin_checkpoint()


def take_one(rig: Rig) -> None:
    rig.begin_checkpoint()
    assert rig.take(1)


def commit(rig: Rig) -> None:
    rig.begin_checkpoint()
    rig.commit_checkpoint()


def release_one(rig: Rig) -> None:
    commit(rig)
    assert not rig.release(1)


def release_all(rig: Rig) -> None:
    rig.checkpoint()


def crash(rig: Rig) -> None:
    sync(rig)
    rig.crash()


def crash_with_a_draft(rig: Rig) -> None:
    sync(rig)
    take_one(rig)
    rig.crash()


def crash_after_a_commit(rig: Rig) -> None:
    commit(rig)
    rig.crash()


def next_checkpoint_begun(rig: Rig) -> None:
    rig.checkpoint()
    rig.open(12)
    take_one(rig)


MOMENTS = (
    nothing,
    seal,
    sync,
    begin,
    take_one,
    commit,
    release_one,
    release_all,
    crash,
    crash_with_a_draft,
    crash_after_a_commit,
    next_checkpoint_begun,
)


@pytest.mark.parametrize("accounts_max", [1, 1_000])
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: moment.__name__)
def test_a_key_is_known_wherever_its_record_is(
    moment: Callable[[Rig], None], accounts_max: int
) -> None:
    rig = rig_with_players(accounts_max)
    refused = Ask(transfer_id(6), PLAYER_B, PLAYER_A, 1)
    completed, no_funds = rig.transfer(RECORDED, refused)
    assert (completed.status, no_funds.reason) == (COMPLETED, RefusalReason.INSUFFICIENT_FUNDS)
    moment(rig)
    # Money arrives meanwhile: the refusal stands, and the outcomes tell the balances of their time.
    rig.transfer(Ask(transfer_id(7), BANK, PLAYER_B, 50))
    sequence, balances = rig.ledger.sequence, [rig.balance(each) for each in (BANK, 10, 11)]

    for _ in range(2):
        answers = rig.transfer(
            RECORDED,
            refused,
            replace(RECORDED, amount_minor=1),
            replace(refused, reference=4),
            RECORDED,
        )
        assert answers == [
            completed._replace(repeat=1),
            no_funds._replace(repeat=1),
            reused(DifferingField.AMOUNT_MINOR),
            reused(DifferingField.REFERENCE),
            completed._replace(repeat=1),
        ]
        rig.seal()
    assert rig.ledger.sequence == sequence
    assert [rig.balance(each) for each in (BANK, 10, 11)] == balances == [-120, 70, 50]


def test_a_key_is_known_in_whatever_order_they_came(rng: random.Random) -> None:
    rig, order = rig_with_players(), list(range(1, 41))
    rng.shuffle(order)
    asks = [Ask(transfer_id(number), BANK, PLAYER_A, number) for number in order]
    before = rig.transfer(*asks[:20])
    rig.begin_checkpoint()
    after = rig.transfer(*asks[20:])
    answers = rig.transfer(*asks)
    assert answers == [each._replace(repeat=1) for each in before + after]


def test_a_duplicate_in_its_own_batch_is_a_repeat() -> None:
    rig = rig_with_players()
    first, second, third = rig.transfer(RECORDED, RECORDED, replace(RECORDED, type=3))
    assert (first.status, first.repeat) == (COMPLETED, 0)
    assert second == first._replace(repeat=1)
    assert third == reused(DifferingField.TYPE)


def test_what_a_crash_took_back_may_be_sent_again() -> None:
    rig = rig_with_players()
    rig.seal()
    rig.sync()
    assert rig.transfer(RECORDED)[0].repeat == 0
    rig.seal()  # sealed, not synced: nobody was answered yet
    rig.crash()
    assert rig.balance(PLAYER_A) == 0
    (again,) = rig.transfer(RECORDED)
    assert (again.status, again.repeat, rig.balance(PLAYER_A)) == (COMPLETED, 0, 70)
