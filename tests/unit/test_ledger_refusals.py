"""Every reason for a refusal: its precedence, what it leaves behind, and what a retry hears.

The table `HOLDS` says how the world and the request are when a reason holds. Two reasons can hold
at once unless they need the same thing to be different, so all pairs follow from the table.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import pytest

from cluster.packed import DifferingField
from cluster.refusals import RefusalReason, RetryClass, is_recorded, retry_class
from shard_node.ledger import StatusChange
from tests.support.ledgers import BANK, Rig, transfer_id
from tests.support.naive_ledger import (
    ACTIVE,
    CLOSED,
    COMPLETED,
    FROZEN,
    HOUR_US,
    REFUSED,
    Ask,
    Result,
)

SOURCE, DESTINATION = 10, 20
ABSENT = 0
AMOUNT = 100
KEY = transfer_id(77)


class World(NamedTuple):
    """How things stand. By itself, everything is just enough for the transfer to complete.

    Attributes:
        source, destination: the accounts' statuses, or ABSENT.
        amount: what is asked for.
        funds: what the source has.
        room: how much the destination may still be paid.
        currency, same: of the request; whether it names one account twice.
        import_hours: how far the import's own time lies from the accounts' latest entry; 0 = none.
        reused: whether the key was used before, with another reference.
    """

    source: int = ACTIVE
    destination: int = ACTIVE
    amount: int = AMOUNT
    funds: int = AMOUNT
    room: int = AMOUNT
    currency: int = 1
    same: bool = False
    import_hours: int = 0
    reused: bool = False


HOLDS: dict[RefusalReason, dict[str, Any]] = {
    RefusalReason.BAD_AMOUNT: {"amount": 0},
    RefusalReason.SAME_ACCOUNT: {"same": True},
    RefusalReason.UNKNOWN_CURRENCY: {"currency": 0},
    RefusalReason.KEY_REUSED: {"reused": True},
    RefusalReason.SOURCE_UNKNOWN: {"source": ABSENT},
    RefusalReason.DESTINATION_UNKNOWN: {"destination": ABSENT},
    # A closed account is empty, so that INSUFFICIENT_FUNDS holds beside SOURCE_CLOSED always.
    RefusalReason.SOURCE_CLOSED: {"source": CLOSED, "funds": 0},
    RefusalReason.DESTINATION_CLOSED: {"destination": CLOSED},
    RefusalReason.SOURCE_FROZEN: {"source": FROZEN},
    RefusalReason.DESTINATION_FROZEN: {"destination": FROZEN},
    RefusalReason.IMPORT_IN_FUTURE: {"import_hours": 2},
    RefusalReason.IMPORT_TOO_OLD: {"import_hours": -2},
    RefusalReason.INSUFFICIENT_FUNDS: {"amount": AMOUNT, "funds": AMOUNT - 1},
    RefusalReason.BALANCE_CAP_EXCEEDED: {"amount": AMOUNT, "room": AMOUNT - 1},
}

PAIRS = [
    (higher, lower)
    for higher, lower in combinations(sorted(HOLDS), 2)
    if all(HOLDS[lower].get(what, how) == how for what, how in HOLDS[higher].items())
]


def world_of(*reasons: RefusalReason) -> World:
    """The world in which all of these hold."""
    return World(**{what: how for reason in reasons for what, how in HOLDS[reason].items()})


def build(world: World) -> tuple[Rig, Ask]:
    """The shard in that world, all of it durable, and the request."""
    rig = Rig()
    rig.open_bank()
    for account_id, status in ((SOURCE, world.source), (DESTINATION, world.destination)):
        if status != ABSENT:
            cap = world.room if account_id == DESTINATION else 0
            rig.open(account_id, cap_minor=cap)
            # Their latest entry is in another currency: the import's rule looks at all of them.
            in_and_out = [
                Ask(transfer_id(account_id), BANK, account_id, 5, currency=9),
                Ask(transfer_id(account_id), account_id, BANK, 5, currency=9),
            ]
            assert [each.status for each in rig.transfer(*in_and_out)] == [COMPLETED] * 2
    if world.source != ABSENT and world.funds:
        assert rig.transfer(Ask(transfer_id(1), BANK, SOURCE, world.funds))[0].status == COMPLETED
    latest_us = rig.stamp_us
    for account_id, status in ((SOURCE, world.source), (DESTINATION, world.destination)):
        if status not in {ABSENT, ACTIVE}:
            assert rig.change_status(account_id, status) is StatusChange.CHANGED
    ask = Ask(
        KEY,
        SOURCE,
        SOURCE if world.same else DESTINATION,
        world.amount,
        currency=world.currency,
        import_time_us=latest_us + world.import_hours * HOUR_US if world.import_hours else 0,
    )
    if world.reused:
        earlier = Ask(KEY, SOURCE, DESTINATION, AMOUNT, reference=5)
        assert rig.transfer(earlier)[0].time_us, "it completed, or was refused and recorded"
    rig.seal()
    rig.sync()
    rig.wall.advance(1_000)
    return rig, ask


def books(rig: Rig) -> dict[int, tuple[Any, ...]]:
    """All that the accounts show."""
    return {
        account_id: (
            account.status,
            account.changed_sequence,
            {each.currency: (each.current(), each.minor) for each in account.balances.values()},
        )
        for account_id in (BANK, SOURCE, DESTINATION)
        if (account := rig.ledger.memory.account(account_id))
    }


def expected(reason: RefusalReason, world: World, stamp_us: int) -> Result:
    if is_recorded(reason):
        funds = 0 if world.source == ABSENT else world.funds
        return Result(REFUSED, reason, time_us=stamp_us, balance_minor=funds)
    reused = reason is RefusalReason.KEY_REUSED
    return Result(REFUSED, reason, DifferingField.REFERENCE if reused else 0)


def refuse(rig: Rig, ask: Ask, reason: RefusalReason, world: World) -> None:
    """Asks, and shows that nothing changed but for the record under the key."""
    before, sequence = books(rig), rig.ledger.sequence
    rows = rig.ledger.memory.rows_not_checkpointed
    (result,) = rig.transfer(ask)
    assert result == expected(reason, world, rig.stamp_us)
    recorded = int(is_recorded(reason))
    assert books(rig) == before
    assert rig.ledger.sequence == sequence + recorded
    assert rig.ledger.memory.rows_not_checkpointed == rows + recorded
    assert rig.ledger.block.count == recorded


def test_the_table_has_every_reason() -> None:
    assert list(HOLDS) == list(RefusalReason)


def test_what_is_just_enough_completes() -> None:
    rig, ask = build(World())
    assert rig.transfer(ask) == [Result(COMPLETED, time_us=rig.stamp_us, balance_minor=0)]


def test_neighbours_in_precedence_are_paired_unless_they_exclude_each_other() -> None:
    missing = set(zip(sorted(HOLDS), sorted(HOLDS)[1:], strict=False)) - set(PAIRS)
    assert missing == {(RefusalReason.IMPORT_IN_FUTURE, RefusalReason.IMPORT_TOO_OLD)}
    assert len(PAIRS) > 70


@pytest.mark.parametrize(("higher", "lower"), PAIRS, ids=lambda reason: reason.name.lower())
def test_of_two_reasons_the_higher_is_answered(higher: RefusalReason, lower: RefusalReason) -> None:
    world = world_of(higher, lower)
    rig, ask = build(world)
    (result,) = rig.transfer(ask)
    assert RefusalReason(result.reason) is higher


@pytest.mark.parametrize("reason", RefusalReason, ids=lambda reason: reason.name.lower())
def test_a_refusal_changes_nothing_else_and_every_retry_hears_the_same(
    reason: RefusalReason,
) -> None:
    world = world_of(reason)
    rig, ask = build(world)
    if world.reused:
        world = world._replace(funds=0)  # spent by the transfer that has the key
    refuse(rig, ask, reason, world)
    first = expected(reason, world, rig.stamp_us)
    retry = first._replace(repeat=int(is_recorded(reason)))

    def retry_hears_the_same() -> None:
        sequence = rig.ledger.sequence
        assert rig.transfer(ask, ask) == [retry, retry]
        assert rig.ledger.sequence == sequence, "a retry records nothing"

    retry_hears_the_same()
    for step in (rig.seal, rig.sync, rig.crash, rig.checkpoint, rig.crash):
        step()
        retry_hears_the_same()


@pytest.mark.parametrize("amount", [0, -1, -(2**63)])
def test_every_amount_that_is_not_positive_is_bad(amount: int) -> None:
    rig, ask = build(World())
    refuse(rig, replace(ask, amount_minor=amount), RefusalReason.BAD_AMOUNT, World())


def open_rich_source(rig: Rig) -> None:
    rig.open(SOURCE)
    fund_source(rig)


def fund_source(rig: Rig) -> None:
    (result,) = rig.transfer(Ask(transfer_id(98), BANK, SOURCE, AMOUNT))
    assert result.status == COMPLETED


def activate(account_id: int) -> Callable[[Rig], object]:
    return lambda rig: rig.change_status(account_id, ACTIVE)


REMEDIES: dict[RefusalReason, Callable[[Rig], object] | None] = {
    RefusalReason.SOURCE_UNKNOWN: open_rich_source,
    RefusalReason.DESTINATION_UNKNOWN: lambda rig: rig.open(DESTINATION),
    RefusalReason.SOURCE_CLOSED: None,
    RefusalReason.DESTINATION_CLOSED: None,
    RefusalReason.SOURCE_FROZEN: activate(SOURCE),
    RefusalReason.DESTINATION_FROZEN: activate(DESTINATION),
    RefusalReason.INSUFFICIENT_FUNDS: fund_source,
    RefusalReason.BALANCE_CAP_EXCEEDED: lambda rig: rig.transfer(
        Ask(transfer_id(97), DESTINATION, BANK, 1)
    ),
}
"""What makes the transfer possible after all; None = nothing can."""


def test_the_remedies_have_every_recorded_reason() -> None:
    assert set(REMEDIES) == {each for each in RefusalReason if is_recorded(each)}


@pytest.mark.parametrize("reason", REMEDIES, ids=lambda reason: reason.name.lower())
def test_a_recorded_refusal_outlives_its_cause_and_a_new_key_does_not(
    reason: RefusalReason,
) -> None:
    world = world_of(reason)
    rig, ask = build(world)
    if reason is RefusalReason.BALANCE_CAP_EXCEEDED:  # room for the first 1, not for 99 more
        ask = replace(ask, amount_minor=AMOUNT - 1)
        rig.transfer(Ask(transfer_id(96), BANK, DESTINATION, 1))
    (first,) = rig.transfer(ask)
    assert first.reason == reason
    again = replace(ask, transfer_id=transfer_id(78))
    remedy = REMEDIES[reason]
    if remedy is None:
        assert rig.transfer(again)[0].reason == reason
        return
    remedy(rig)
    assert rig.transfer(ask) == [first._replace(repeat=1)]
    assert rig.transfer(again)[0].status == COMPLETED


def test_what_left_no_record_may_succeed_under_the_same_key() -> None:
    rig, ask = build(world_of(RefusalReason.IMPORT_IN_FUTURE))
    assert retry_class(RefusalReason.IMPORT_IN_FUTURE) is RetryClass.SAME_KEY
    assert rig.transfer(ask)[0].reason == RefusalReason.IMPORT_IN_FUTURE
    rig.seal()
    rig.wall.advance(2 * HOUR_US)
    assert rig.transfer(ask)[0].status == COMPLETED

    rig, ask = build(world_of(RefusalReason.UNKNOWN_CURRENCY))
    assert retry_class(RefusalReason.UNKNOWN_CURRENCY) is RetryClass.SAME_KEY
    assert rig.transfer(ask)[0].reason == RefusalReason.UNKNOWN_CURRENCY
    assert rig.transfer(replace(ask, currency=1))[0].status == COMPLETED


def test_a_key_that_was_refused_takes_no_other_body_either() -> None:
    rig, ask = build(world_of(RefusalReason.INSUFFICIENT_FUNDS))
    (first,) = rig.transfer(ask)
    smaller = replace(ask, amount_minor=1)
    assert rig.transfer(smaller) == [
        Result(REFUSED, RefusalReason.KEY_REUSED, DifferingField.AMOUNT_MINOR)
    ]
    assert rig.transfer(ask) == [first._replace(repeat=1)]
