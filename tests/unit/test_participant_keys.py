"""One key, several attempts: what each hears, and which field differs when a body does."""

import pytest

from cluster.packed import DifferingField
from cluster.refusals import RefusalReason
from shard_node.records import RecordKind
from tests.support.crossing import (
    ANN,
    BOB,
    COMMITTED,
    HERE,
    LIFE_US,
    LOST,
    NOBODY,
    OTHER,
    REFUSED,
    RESTARTS,
    THIRD,
    YES,
    Attempt,
    Move,
    no,
    two_players,
)
from tests.support.ledgers import BANK, transfer_id
from tests.support.naive_ledger import Ask

INSUFFICIENT = RefusalReason.INSUFFICIENT_FUNDS
OUTGOING, INCOMING = RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING


PLAIN = Attempt(3, 0, (Move(ANN, OTHER, 4, metadata=b"m", reference=5),), 3)
SALE = Attempt(3, 0, (Move(ANN, OTHER, 4), Move(BOB, OTHER, 2, metadata=b"fee")), 3, is_group=True)


@pytest.mark.parametrize("committed", [True, False], ids=["committed", "refused"])
@pytest.mark.parametrize(
    ("was", "now", "field"),
    [
        (PLAIN, PLAIN.with_move(0, destination=8_002), "DESTINATION_ACCOUNT_ID"),
        (PLAIN, PLAIN.with_move(0, currency=2), "CURRENCY"),
        (PLAIN, PLAIN.with_move(0, amount_minor=5), "AMOUNT_MINOR"),
        (PLAIN, PLAIN.with_move(0, type=2), "TYPE"),
        (PLAIN, PLAIN.with_move(0, reference=6), "REFERENCE"),
        (PLAIN, PLAIN.with_move(0, metadata=b"n"), "METADATA"),
        (PLAIN, PLAIN.with_move(0, metadata=b""), "METADATA"),
        (PLAIN, PLAIN.with_move(0, import_us=1), "IMPORT_TIME_US"),
        (PLAIN, Attempt(3, 0, PLAIN.moves, 3, is_group=True), "TRANSFERS"),
        (Attempt(3, 0, PLAIN.moves, 3, is_group=True), PLAIN, "TRANSFERS"),
        (SALE, Attempt(3, 0, SALE.moves[:1], 3), "TRANSFERS"),
        (SALE, Attempt(3, 0, SALE.moves[:1], 3, is_group=True), "TRANSFERS"),
        (SALE, Attempt(3, 0, (*SALE.moves, SALE.moves[1]), 3, is_group=True), "TRANSFERS"),
        (SALE, SALE.with_move(1, source=BANK), "SOURCE_ACCOUNT_ID"),
        (SALE, SALE.with_move(1, destination=9_001), "DESTINATION_ACCOUNT_ID"),
        (SALE, SALE.with_move(1, metadata=b"fe2"), "METADATA"),
        (SALE, SALE.with_move(0, metadata=b"f").with_move(1, metadata=b"ee"), "METADATA"),
    ],
)
@pytest.mark.parametrize("restart", RESTARTS)
def test_a_key_of_another_body(
    was: Attempt, now: Attempt, field: str, *, committed: bool, restart: str
) -> None:
    rig = two_players()
    rig.transfer(Ask(transfer_id(2), BANK, BOB, 2))
    deadline_us = rig.stamp_us + LIFE_US
    was, now = was.again(3, deadline_us), now.again(4, deadline_us)
    vote = YES if committed else no(INSUFFICIENT)
    assert rig.commit_home(was, vote)[:2] == (COMMITTED if committed else REFUSED)
    RESTARTS[restart](rig, was)
    before = rig.picture()
    reused = (*REFUSED, RefusalReason.KEY_REUSED, DifferingField[field], 0, 0, 0, 0, 0, 0, NOBODY)
    assert rig.commit_home(now) == reused
    assert rig.commit_home(now, no(INSUFFICIENT)) == reused
    assert rig.picture() == before
    assert rig.commit_home(was.again(5))[:2] == (LOST if committed else REFUSED)
    if not now.is_group and len({now.moves[0].source, ANN}) == 1:
        move = now.moves[0]
        ask = Ask(now.transfer_id, *move[:4], move.type, move.reference, move.metadata)
        if not move.import_us:
            assert rig.transfer(ask)[0][:3] == (3, RefusalReason.KEY_REUSED, DifferingField[field])
    else:
        result = rig.group(now.key, *now.moves)
        assert result[:3] == (3, RefusalReason.KEY_REUSED, DifferingField[field])


def test_two_attempts_at_once_and_the_one_that_lost() -> None:
    """Both prepare; one wins; the other's reservation goes and nothing is posted twice."""
    rig = two_players()
    one = rig.attempt(3, Move(OTHER, BOB, 40))
    two = one.again(4)
    assert (rig.prepare(one), rig.prepare(two)) == (YES, YES)
    assert rig.reserved(BOB) == (0, 80)
    rig.commit_prepared(two)
    rig.abort(one)
    rig.commit_prepared(one)
    rig.commit_prepared(two)
    assert (rig.balance(BOB), rig.reserved(BOB)) == (40, (0, 0))


def test_a_group_over_three_shards_at_its_home() -> None:
    rig = two_players()
    moves = [
        Move(ANN, OTHER, 60, metadata=b"price"),
        Move(BOB, BANK, 30),
        Move(OTHER, BOB, 30),  # too late for the one before
        Move(THIRD, OTHER, 5, metadata=b"elsewhere"),
    ]
    it = rig.attempt(3, *moves, is_group=True)
    assert rig.commit_home(it)[:3] == (*REFUSED, INSUFFICIENT)
    moves[1], moves[2] = moves[2], moves[1]
    it = rig.attempt(4, *moves, is_group=True)
    before = rig.ledger.sequence
    answer = rig.commit_home(it)
    assert (answer[:2], answer.balance_minor) == (COMMITTED, 40)
    kinds = [RecordKind.COMMITTED, OUTGOING, INCOMING, OUTGOING, INCOMING]
    assert rig.kinds_after(before) == kinds
    assert rig.ledger.clearing.positions == {(8, 1): 30}
    assert rig.ledger.transactions.decided[it.transaction_id].participants == (8, 9)
    legs = list(rig.history(BOB).back_from(rig.account(BOB).balances[1].last_sequence))
    shown = [(one.incoming, one.group_index, one.group_size, one.key_account) for one in legs]
    assert shown == [(False, 2, 4, ANN), (True, 1, 4, ANN)]
    RESTARTS["replayed"](rig, it)
    assert rig.ledger.transactions.decided[it.transaction_id].participants == (8, 9)
    assert rig.commit_home(it) == answer
    assert HERE not in rig.ledger.transactions.decided[it.transaction_id].participants
