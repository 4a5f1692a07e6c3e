"""Groups on one shard, and what legs need to stay possible, against brute force."""

import random
from itertools import permutations

import pytest

from cluster.packed import GROUP_SIZE_MAX, DifferingField
from cluster.refusals import RefusalReason
from shard_node.records import RecordKind
from tests.support.crossing import (
    YES,
    Attempt,
    CrossingRig,
    GroupResult,
    Move,
)
from tests.support.ledgers import BANK, fold_of, tables, transfer_id
from tests.support.naive_ledger import COMPLETED, FROZEN, HOUR_US, REFUSED, Ask

ANN, BOB, HOUSE = 10, 20, 30
OTHER = 8_001
FUNDS = 100
OUTGOING, INCOMING = RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING


@pytest.fixture
def rig() -> CrossingRig:
    rig = CrossingRig()
    rig.open_bank()
    for account_id in (ANN, BOB, HOUSE):
        rig.open(account_id, cap_minor=2 * FUNDS)
    rig.transfer(Ask(transfer_id(1), BANK, ANN, FUNDS))
    return rig


def test_a_sale(rig: CrossingRig) -> None:
    before = rig.ledger.sequence
    sale = Move(ANN, BOB, 60, metadata=b"price", type=2), Move(ANN, HOUSE, 5, metadata=b"fee")
    result = rig.group(7, *sale)
    assert result == GroupResult(COMPLETED, time_us=rig.stamp_us, balance_minor=35)
    assert rig.kinds_after(before) == [RecordKind.GROUP, OUTGOING, INCOMING, OUTGOING, INCOMING]
    assert [rig.balance(each) for each in (ANN, BOB, HOUSE)] == [35, 60, 5]
    assert rig.ledger.clearing.positions == {}
    assert rig.group(7, *sale) == result._replace(repeat=1)
    assert rig.ledger.sequence == before + 5
    rig.checkpoint()
    rig.crash()
    assert rig.group(7, *sale) == result._replace(repeat=1)
    assert tables(rig.state) == fold_of(rig.log)


def test_statements_show_legs(rig: CrossingRig) -> None:
    rig.group(7, Move(ANN, BOB, 60, metadata=b"price"), Move(BOB, HOUSE, 5, metadata=b"fee"))
    first = rig.ledger.sequence - 3
    for restart in (rig.seal, rig.checkpoint, rig.crash):
        restart()
        legs = list(rig.history(BOB).newest_first(2**62, 0))
        shown = [
            (leg.sequence, leg.incoming, leg.balance_minor, leg.metadata, leg.group_index)
            for leg in legs
        ]
        assert shown == [(first + 2, False, 55, b"fee", 1), (first + 1, True, 60, b"price", 0)]
        assert {(leg.key_account, leg.group_size) for leg in legs} == {(ANN, 2)}
        assert {leg.transfer.transfer_id for leg in legs} == {transfer_id(7)}
        assert legs[0].previous == legs[1].sequence
        totals = rig.history(BOB).totals_at(rig.clock.last_us)
        assert (totals.incoming, totals.outgoing, totals.balance_minor) == (60, 5, 55)


@pytest.mark.parametrize(
    ("moves", "reason", "index"),
    [
        ([Move(ANN, BOB, 60), Move(ANN, HOUSE, 41)], RefusalReason.INSUFFICIENT_FUNDS, 1),
        # What comes in later does not help: the lowest point counts.
        ([Move(BOB, HOUSE, 10), Move(ANN, BOB, 60)], RefusalReason.INSUFFICIENT_FUNDS, 0),
        # Nor does it help that the money goes on at once: so does the highest.
        (
            [Move(BANK, ANN, 2 * FUNDS), Move(ANN, BOB, FUNDS)],
            RefusalReason.BALANCE_CAP_EXCEEDED,
            0,
        ),
        ([Move(ANN, BOB, 1), Move(ANN, 77, 1)], RefusalReason.DESTINATION_UNKNOWN, 1),
        (
            [Move(ANN, BOB, 101), Move(BANK, HOUSE, 1), Move(77, BOB, 1)],
            RefusalReason.SOURCE_UNKNOWN,
            2,
        ),
    ],
)
def test_all_or_nothing(
    rig: CrossingRig, moves: list[Move], reason: RefusalReason, index: int
) -> None:
    before = rig.picture()
    result = rig.group(7, *moves)
    assert result[:5] == (REFUSED, reason, 0, 0, index)
    assert rig.kinds_after(before.sequence) == [RecordKind.GROUP]
    assert rig.picture()[1:] == before[1:]
    rig.transfer(Ask(transfer_id(2), BANK, BOB, 50))
    rig.open(77)
    for restart in (rig.seal, rig.checkpoint, rig.crash):
        restart()
        assert rig.group(7, *moves) == result._replace(repeat=1)


def test_legs_apply_in_order(rig: CrossingRig) -> None:
    """Each lives on what the one before brought."""
    result = rig.group(7, Move(ANN, BOB, 100), Move(BOB, HOUSE, 100), Move(HOUSE, ANN, 100))
    assert (result.status, result.balance_minor) == (COMPLETED, 100)
    assert [rig.balance(each) for each in (ANN, BOB, HOUSE)] == [100, 0, 0]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (Move(ANN, ANN, 1), RefusalReason.SAME_ACCOUNT),
        (Move(ANN, BOB, 0), RefusalReason.BAD_AMOUNT),
        (Move(ANN, BOB, -1), RefusalReason.BAD_AMOUNT),
        (Move(ANN, BOB, 1, currency=0), RefusalReason.UNKNOWN_CURRENCY),
        (Move(ANN, BOB, 1, import_us=2**60), RefusalReason.IMPORT_IN_FUTURE),
        (Move(ANN, BOB, 1, import_us=1), RefusalReason.IMPORT_TOO_OLD),
    ],
)
def test_what_leaves_no_record(rig: CrossingRig, wrong: Move, reason: RefusalReason) -> None:
    before = rig.picture()
    assert rig.group(7, Move(ANN, BOB, 1), wrong) == GroupResult(REFUSED, reason, refused_at=1)
    assert rig.picture() == before
    assert rig.group(7, Move(ANN, BOB, 1)).status == COMPLETED


def test_groups_and_plain_transfers_share_their_keys(rig: CrossingRig) -> None:
    reused = (REFUSED, RefusalReason.KEY_REUSED, DifferingField.TRANSFERS, 0)
    assert rig.group(7, Move(ANN, BOB, 1)).status == COMPLETED
    assert rig.transfer(Ask(transfer_id(7), ANN, BOB, 1))[0][:4] == reused
    assert rig.transfer(Ask(transfer_id(8), ANN, BOB, 1))[0].status == COMPLETED
    assert rig.group(8, Move(ANN, BOB, 1))[:4] == reused
    assert rig.group(7, Move(ANN, BOB, 1), Move(ANN, BOB, 1))[:4] == reused
    assert rig.group(7, Move(BOB, ANN, 1)).status == COMPLETED, "another source, another key"
    source = (REFUSED, RefusalReason.KEY_REUSED, DifferingField.SOURCE_ACCOUNT_ID, 0)
    assert rig.group(9, Move(ANN, BOB, 1), Move(ANN, HOUSE, 1)).status == COMPLETED
    assert rig.group(9, Move(ANN, BOB, 1), Move(BOB, HOUSE, 1))[:4] == source


def test_the_largest_group_there_is(rig: CrossingRig) -> None:
    metadata = b"m" * 256
    moves = [Move(ANN, BOB, 1, metadata=metadata) for _ in range(GROUP_SIZE_MAX)]
    assert rig.group(7, *moves).balance_minor == FUNDS - GROUP_SIZE_MAX
    rig.seal()
    rig.sync()
    rig.crash()
    assert rig.group(7, *moves)[:4] == (COMPLETED, 0, 0, 1)
    changed = [*moves[:-1], moves[-1]._replace(metadata=metadata[:-1] + b"n")]
    assert rig.group(7, *changed).differing == DifferingField.METADATA


def test_imports_in_groups(rig: CrossingRig) -> None:
    rig.open(40)
    rig.open(41)
    past_us = rig.stamp_us - HOUR_US // 2
    result = rig.group(
        7, Move(ANN, BOB, 1, import_us=past_us), Move(ANN, 41, 1, import_us=past_us + 5)
    )
    assert result.time_us == rig.stamp_us, "behind the source's latest entry"
    assert [rig.account(each).latest_time_us() for each in (BOB, 41)] == [past_us, past_us + 5]


def test_frozen_accounts_take_no_part(rig: CrossingRig) -> None:
    rig.change_status(HOUSE, FROZEN)
    result = rig.group(7, Move(ANN, BOB, 1), Move(ANN, HOUSE, 1))
    assert result[:5] == (REFUSED, RefusalReason.DESTINATION_FROZEN, 0, 0, 1)


def test_busy_accounts_alone_bring_a_checkpoint_about(rig: CrossingRig) -> None:
    rig.checkpoint()
    for number in range(50):
        it = rig.attempt(100 + number, Move(OTHER, BOB, 1))
        assert rig.prepare(it) == YES
        rig.commit_prepared(it)
    assert rig.ledger.memory.rows_not_checkpointed >= 50


# --- reservations, by brute force ---------------------------------------------------------------


def course_fits(start: int, changes: list[int], cap: int) -> bool:
    for change in changes:
        start += change
        if not 0 <= start <= cap:
            return False
    return True


def changes_of(it: Attempt) -> list[int]:
    """What an attempt does to Ann, leg by leg."""
    return [
        move.amount_minor if move.destination == ANN else -move.amount_minor
        for move in it.moves
        if ANN in move[:2]
    ]


def test_whatever_is_accepted_beside_it_what_is_prepared_can_be_posted(rng: random.Random) -> None:
    """In any order, any of them aborted: the ledger's sums against all courses there are."""
    seen = {1: 0, 2: 0, 3: 0}
    for _ in range(60):
        rig = CrossingRig()
        rig.open_bank()
        cap = rng.choice((100, 150))
        rig.open(ANN, cap_minor=cap)
        start = rng.randint(0, 100)
        if start:
            rig.transfer(Ask(transfer_id(1), BANK, ANN, start))
        prepared: list[Attempt] = []
        for number in range(2, 14):
            minor = rig.balance(ANN)
            moves = [
                Move(*rng.choice([(ANN, OTHER), (OTHER, ANN)]), rng.randint(1, 60))
                for _ in range(rng.randint(1, 4))
            ]
            choice = rng.random()
            if choice < 0.5 and len(prepared) < 4:
                it = rig.attempt(number, Move(OTHER, BANK, 1), *moves, is_group=True)
                vote = rig.prepare(it)[0]
                fits = course_fits(minor, changes_of(it), cap)
                seen[vote] += 1
                assert (vote == 2) == (not fits), "refused exactly for what stands alone"
                if vote == 1:
                    prepared.append(it)
            elif choice < 0.75:
                amount = rng.randint(1, 40)
                pair = rng.choice([(ANN, BANK), (BANK, ANN)])
                rig.transfer(Ask(transfer_id(number), *pair, amount))
            elif prepared:
                one = prepared.pop(rng.randrange(len(prepared)))
                rng.choice([rig.abort, rig.commit_prepared])(one)
            minor = rig.balance(ANN)
            for order in permutations(prepared):
                for skipped in (None, *prepared):
                    course = [c for it in order if it is not skipped for c in changes_of(it)]
                    assert course_fits(minor, course, cap)
            low, high = rig.reserved(ANN)
            assert minor - low >= 0
            assert minor + high <= cap
        for it in rng.sample(prepared, len(prepared)):
            rig.commit_prepared(it)
        assert rig.reserved(ANN) == (0, 0)
        rig.seal()
    assert all(seen.values()), "each vote was heard"
