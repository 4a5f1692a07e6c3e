"""What is refused and what is only busy; what a reservation stops, and what goes on beside it."""

import pytest

from cluster.packed import Vote
from cluster.refusals import RefusalReason
from shard_node.ledger import StatusChange
from shard_node.records import RecordKind
from tests.support.crossing import (
    ANN,
    BOB,
    FUNDS,
    NOTHING,
    OTHER,
    REFUSED,
    RESTARTS,
    THIRD,
    YES,
    CrossingRig,
    Move,
    decide,
    no,
    two_players,
)
from tests.support.ledgers import BANK, transfer_id
from tests.support.naive_ledger import CLOSED, FROZEN, SYSTEM, Ask

INSUFFICIENT = RefusalReason.INSUFFICIENT_FUNDS
ABORTED, GROUP = RecordKind.ABORTED, RecordKind.GROUP


@pytest.mark.parametrize(
    ("theirs", "setup", "expected", "index"),
    [
        (no(INSUFFICIENT), "", INSUFFICIENT, 0),
        (no(RefusalReason.BALANCE_CAP_EXCEEDED, 1), "spent", INSUFFICIENT, 0),
        (no(INSUFFICIENT, 1), "spent", INSUFFICIENT, 0),
        (no(INSUFFICIENT, 1), "frozen", RefusalReason.SOURCE_FROZEN, 0),
        (no(RefusalReason.DESTINATION_FROZEN, 1), "frozen", RefusalReason.SOURCE_FROZEN, 0),
        (no(RefusalReason.DESTINATION_CLOSED, 1), "frozen", RefusalReason.DESTINATION_CLOSED, 1),
        (no(RefusalReason.DESTINATION_UNKNOWN, 1), "", RefusalReason.DESTINATION_UNKNOWN, 1),
        (no(RefusalReason.IMPORT_TOO_OLD, 1), "spent", RefusalReason.IMPORT_TOO_OLD, 1),
        (YES, "spent", INSUFFICIENT, 0),
        (YES, "frozen", RefusalReason.SOURCE_FROZEN, 0),
    ],
)
def test_the_refusal_of_highest_precedence_is_recorded(
    theirs: tuple[int, int, int], setup: str, expected: RefusalReason, index: int
) -> None:
    rig = two_players()
    if setup == "spent":
        rig.transfer(Ask(transfer_id(2), ANN, BANK, FUNDS))
    if setup == "frozen":
        rig.change_status(ANN, FROZEN)
    it = rig.attempt(3, Move(ANN, OTHER, 40), Move(ANN, THIRD, 1), is_group=True)
    before = rig.picture()
    answer = rig.commit_home(it, theirs)
    kinds = rig.kinds_after(before.sequence)
    assert answer[:3] == (*REFUSED, expected)
    assert (answer.refused_at, answer.repeat) == (index, 0)
    recorded = expected is not RefusalReason.IMPORT_TOO_OLD
    assert kinds == ([GROUP] if recorded else [ABORTED])
    assert rig.picture()[1:] == before[1:], "no account, no position"
    if recorded:
        again = rig.commit_home(it.again(4))
        assert again == answer._replace(repeat=1)
        assert (answer.time_us, answer.balance_minor) == (rig.stamp_us, rig.balance(ANN))
    else:
        assert answer.time_us == 0


def test_what_only_reservations_forbid_is_busy_and_never_recorded() -> None:
    rig = two_players()
    spend = rig.attempt(3, Move(OTHER, BANK, 1), Move(ANN, OTHER, 80), is_group=True)
    fill = rig.attempt(4, Move(OTHER, BOB, 80))
    assert rig.prepare(spend) == YES
    assert rig.prepare(fill) == YES
    before = rig.picture()
    pays = rig.attempt(5, Move(THIRD, BANK, 1), Move(ANN, THIRD, 21), is_group=True)
    fills = rig.attempt(6, Move(THIRD, BOB, 21))
    assert rig.prepare(pays)[0] == Vote.BUSY
    assert rig.prepare(fills)[0] == Vote.BUSY
    busy = (4, 3, 0, 0)
    assert rig.transfer(Ask(transfer_id(7), ANN, BANK, 21))[0][:4] == busy
    assert rig.transfer(Ask(transfer_id(7), BANK, BOB, 21))[0][:4] == busy
    assert rig.group(8, Move(ANN, BANK, 21))[:4] == busy
    assert rig.group(9, Move(BANK, BOB, 21))[:4] == busy
    assert rig.picture() == before
    assert rig.commit_home(rig.attempt(10, Move(ANN, THIRD, 21)))[:2] == NOTHING
    assert rig.kinds_after(before.sequence) == [ABORTED]
    # What nothing in doubt could help with is refused at once.
    pays = rig.attempt(11, Move(THIRD, BANK, 1), Move(ANN, THIRD, FUNDS + 1), is_group=True)
    assert rig.prepare(pays) == no(INSUFFICIENT, 1)
    fills = rig.attempt(12, Move(THIRD, BOB, FUNDS + 1))
    assert rig.prepare(fills) == no(RefusalReason.BALANCE_CAP_EXCEEDED)
    # What is in doubt is not counted on either.
    assert rig.transfer(Ask(transfer_id(13), BOB, BANK, 1))[0].reason == INSUFFICIENT
    # The same keys succeed once it is over.
    rig.abort(spend)
    rig.abort(fill)
    assert rig.transfer(Ask(transfer_id(7), ANN, BANK, 21))[0].status == 1
    assert rig.group(9, Move(BANK, BOB, 21)).status == 1


def test_nothing_is_locked() -> None:
    rig = two_players()
    spend = rig.attempt(3, Move(OTHER, BANK, 1), Move(ANN, OTHER, 80), is_group=True)
    assert rig.prepare(spend) == YES
    assert rig.transfer(Ask(transfer_id(4), ANN, BOB, 20))[0].status == 1
    assert rig.transfer(Ask(transfer_id(5), BANK, ANN, 5))[0].status == 1
    assert rig.group(6, Move(ANN, BANK, 5), Move(BANK, ANN, 7)).status == 1
    another = rig.attempt(7, Move(ANN, OTHER, 7))
    decide(rig, another)
    assert rig.balance(ANN) == 80
    rig.commit_prepared(spend)
    assert rig.balance(ANN) == 0


def test_freezing_does_not_stop_what_is_prepared_and_closing_waits_for_it() -> None:
    rig = two_players()
    it = rig.attempt(3, Move(OTHER, BOB, 40))
    assert rig.prepare(it) == YES
    assert rig.change_status(BOB, CLOSED) is StatusChange.IN_DOUBT
    assert rig.change_status(BOB, FROZEN) is StatusChange.CHANGED
    assert rig.prepare(rig.attempt(4, Move(OTHER, BOB, 1))) == no(RefusalReason.DESTINATION_FROZEN)
    rig.commit_prepared(it)
    assert rig.balance(BOB) == 40
    assert rig.change_status(BOB, CLOSED) is StatusChange.HOLDS_MONEY
    rig = two_players()
    it = rig.attempt(3, Move(OTHER, BOB, 40))
    assert rig.prepare(it) == YES
    rig.abort(it)
    assert rig.change_status(BOB, CLOSED) is StatusChange.CHANGED


def test_prepared_accounts_stay_and_reserve_after_a_restart() -> None:
    rig = CrossingRig(accounts_max=1)
    rig.open_bank()
    players = range(100, 120)
    for player in players:
        rig.open(player)
        rig.transfer(Ask(transfer_id(player), BANK, player, FUNDS))
    moves = [Move(player, OTHER, 90) for player in players[:3]]
    it = rig.attempt(3, Move(OTHER, BANK, 1), *moves, is_group=True)
    assert rig.prepare(it) == YES
    for restart in RESTARTS.values():
        restart(rig, it)
        for player in players:  # to push the others out
            rig.ledger.memory.account(player)
        assert [rig.reserved(each)[0] for each in players[:4]] == [90, 90, 90, 0]
        assert rig.change_status(players[0], CLOSED) is StatusChange.IN_DOUBT
        assert rig.transfer(Ask(transfer_id(4), players[0], BANK, 11))[0].status == 4
    rig.commit_prepared(it)
    assert [rig.balance(each) for each in players[:4]] == [10, 10, 10, FUNDS]


def test_system_accounts_reserve_down_to_their_own_floor() -> None:
    rig = two_players()
    rig.open(30, SYSTEM, floor_minor=-10)
    it = rig.attempt(3, Move(OTHER, BANK, 1), Move(30, OTHER, 10), is_group=True)
    assert rig.prepare(it) == YES
    assert rig.transfer(Ask(transfer_id(4), 30, BANK, 1))[0].status == 4
    rig.commit_prepared(it)
    assert rig.balance(30) == -10
