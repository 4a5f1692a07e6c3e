"""Every command in every state of a transaction, on either side, before and after a restart."""

from collections.abc import Callable

import pytest

from cluster.packed import DifferingField, Fate, Vote
from cluster.refusals import RefusalReason
from shard_node import participant
from shard_node.ledger import StatusChange
from shard_node.records import RecordKind
from shard_node.transactions import DEADLINE_AHEAD_MAX_US
from tests.support.crossing import (
    COMMITTED,
    HERE,
    LIFE_US,
    LOST,
    NOBODY,
    NOTHING,
    REFUSED,
    SECOND_US,
    YES,
    Attempt,
    CrossingRig,
    Move,
    no,
)
from tests.support.ledgers import BANK, transfer_id
from tests.support.naive_ledger import CLOSED, FROZEN, SYSTEM, Ask

ANN, BOB = 10, 20
OTHER, THIRD = 8_001, 9_001
FUNDS = 100
INSUFFICIENT = RefusalReason.INSUFFICIENT_FUNDS

PREPARED, ABORTED, FINISHED = RecordKind.PREPARED, RecordKind.ABORTED, RecordKind.FINISHED
OUTGOING, INCOMING = RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING
TRANSFER, GROUP = RecordKind.TRANSFER, RecordKind.GROUP

Act = Callable[[CrossingRig, Attempt], object]


def make() -> CrossingRig:
    """A shard with two players, Ann with `FUNDS`."""
    rig = CrossingRig()
    rig.open_bank()
    rig.open(ANN)
    rig.open(BOB, cap_minor=FUNDS)
    rig.transfer(Ask(transfer_id(1), BANK, ANN, FUNDS))
    return rig


def pass_deadline(rig: CrossingRig, us: int = SECOND_US) -> None:
    rig.let_time_pass(LIFE_US + us)


def end_another(rig: CrossingRig) -> None:
    """What makes the table look for what it may forget."""
    rig.abort(rig.attempt(99, Move(OTHER, ANN, 1)))


RESTARTS: dict[str, Act] = {
    "running": lambda rig, _: rig.seal(),
    "replayed": lambda rig, _: (rig.seal(), rig.sync(), rig.crash()),
    "checkpointed": lambda rig, _: (rig.checkpoint(), rig.crash()),
}


def decide(rig: CrossingRig, it: Attempt) -> None:
    assert rig.commit_home(it)[:2] == COMMITTED


def find_busy(rig: CrossingRig, it: Attempt) -> None:
    """Makes the attempt abort because of another, which then goes away."""
    another = rig.attempt(50, Move(OTHER, BOB, 1), Move(ANN, OTHER, FUNDS), is_group=True)
    assert rig.prepare(another) == YES
    assert rig.commit_home(it)[:2] == NOTHING
    rig.abort(another)


# --- as participant -----------------------------------------------------------------------------

STATES_THERE: dict[str, list[Act]] = {
    "unknown": [],
    "prepared": [CrossingRig.prepare],
    "posted": [CrossingRig.prepare, CrossingRig.commit_prepared],
    "aborted": [CrossingRig.prepare, CrossingRig.abort],
    "aborted before": [CrossingRig.abort],
    "late": [lambda rig, _: pass_deadline(rig)],
    "prepared, late": [CrossingRig.prepare, lambda rig, _: pass_deadline(rig)],
    "posted, late": [
        CrossingRig.prepare,
        CrossingRig.commit_prepared,
        lambda rig, _: pass_deadline(rig),
    ],
    "aborted, late": [CrossingRig.abort, lambda rig, _: pass_deadline(rig)],
    "forgotten": [
        CrossingRig.prepare,
        CrossingRig.commit_prepared,
        lambda rig, _: pass_deadline(rig, 30 * SECOND_US),
        lambda rig, _: end_another(rig),
    ],
}
IN_DOUBT = {"prepared", "prepared, late"}

COMMANDS: dict[str, Act] = {
    "prepare": lambda rig, it: Vote(rig.prepare(it)[0]).name,
    "commit": lambda rig, it: rig.commit_prepared(it),
    "abort": lambda rig, it: rig.abort(it),
    "resolve": lambda rig, it: Fate(rig.resolve(it)[0]).name,
    "finish": lambda rig, it: rig.finish(it),
    "home yes": lambda rig, it: rig.commit_home(it)[:2],
    "home no": lambda rig, it: rig.commit_home(it, no(INSUFFICIENT))[:2],
}

# (command, state) → its answer, and the kinds of the records that it makes.
Table = dict[tuple[str, str], tuple[object, list[RecordKind]]]

THERE: Table = {
    ("prepare", "unknown"): ("YES", [PREPARED]),
    ("prepare", "prepared"): ("YES", []),
    ("prepare", "posted"): ("LATE", []),
    ("prepare", "aborted"): ("LATE", []),
    ("prepare", "aborted before"): ("LATE", []),
    ("prepare", "late"): ("LATE", []),
    ("prepare", "prepared, late"): ("YES", []),
    ("prepare", "posted, late"): ("LATE", []),
    ("prepare", "aborted, late"): ("LATE", []),
    ("prepare", "forgotten"): ("LATE", []),
    **{
        ("commit", state): (None, [INCOMING] if state in IN_DOUBT else []) for state in STATES_THERE
    },
    ("abort", "unknown"): (None, [ABORTED]),
    ("abort", "prepared"): (None, [ABORTED]),
    ("abort", "posted"): (None, []),
    ("abort", "aborted"): (None, []),
    ("abort", "aborted before"): (None, []),
    ("abort", "late"): (None, [ABORTED]),
    ("abort", "prepared, late"): (None, [ABORTED]),
    ("abort", "posted, late"): (None, []),
    ("abort", "aborted, late"): (None, []),
    ("abort", "forgotten"): (None, [ABORTED]),
    # Nobody asks these here, whose home is elsewhere; if somebody does, nothing comes of it.
    ("resolve", "unknown"): ("UNDECIDED", []),
    ("resolve", "prepared"): ("UNDECIDED", []),
    ("resolve", "posted"): ("COMMITTED", []),
    ("resolve", "aborted"): ("ABORTED", []),
    ("resolve", "aborted before"): ("ABORTED", []),
    ("resolve", "late"): ("ABORTED", [ABORTED]),
    ("resolve", "prepared, late"): ("UNDECIDED", []),
    ("resolve", "posted, late"): ("COMMITTED", []),
    ("resolve", "aborted, late"): ("ABORTED", []),
    ("resolve", "forgotten"): ("ABORTED", [ABORTED]),
    **{("finish", state): (None, []) for state in STATES_THERE},
}

# --- as home ------------------------------------------------------------------------------------

STATES_HOME: dict[str, list[Act]] = {
    "unknown": [],
    "late": [lambda rig, _: pass_deadline(rig)],
    "decided": [decide],
    "decided, late": [decide, lambda rig, _: pass_deadline(rig, 30 * SECOND_US)],
    "finished": [decide, CrossingRig.finish],
    "finished, late": [decide, CrossingRig.finish, lambda rig, _: pass_deadline(rig)],
    "busy": [find_busy],
    "busy, late": [find_busy, lambda rig, _: pass_deadline(rig)],
    "resolved": [lambda rig, _: pass_deadline(rig), CrossingRig.resolve],
    "refused": [lambda rig, it: rig.commit_home(it, no(INSUFFICIENT))],
    "another won": [lambda rig, it: decide(rig, it.again(70))],
    "another won, finished": [
        lambda rig, it: (decide(rig, it.again(70)), rig.finish(it.again(70)))
    ],
}

_YES_AT_HOME: dict[str, tuple[object, list[RecordKind]]] = {
    "unknown": (COMMITTED, [RecordKind.COMMITTED, OUTGOING]),
    "late": (NOTHING, [ABORTED]),
    "busy": (NOTHING, []),
    "busy, late": (NOTHING, []),
    "resolved": (NOTHING, []),
    "refused": (REFUSED, []),
    "another won": (LOST, []),
    "another won, finished": (LOST, []),
}
_RESOLVED_AT_HOME: dict[str, tuple[object, list[RecordKind]]] = {
    "unknown": ("UNDECIDED", []),
    "late": ("ABORTED", [ABORTED]),
    "busy": ("ABORTED", []),
    "busy, late": ("ABORTED", []),
    "resolved": ("ABORTED", []),
    "refused": ("UNDECIDED", []),
    "another won": ("UNDECIDED", []),
    "another won, finished": ("UNDECIDED", []),
}
_OPEN_AT_HOME = {"unknown", "late", "refused", "another won", "another won, finished"}
_NO_KEY = {"unknown", "late", "busy", "busy, late", "resolved"}

HOME: Table = {
    **{("home yes", each): _YES_AT_HOME.get(each, (COMMITTED, [])) for each in STATES_HOME},
    **{
        ("home no", each): (REFUSED, [TRANSFER])
        if each in _NO_KEY
        else _YES_AT_HOME.get(each, (COMMITTED, []))
        for each in STATES_HOME
    },
    **{("resolve", each): _RESOLVED_AT_HOME.get(each, ("COMMITTED", [])) for each in STATES_HOME},
    **{("abort", each): (None, [ABORTED] * (each in _OPEN_AT_HOME)) for each in STATES_HOME},
    **{("finish", each): (None, [FINISHED] * each.startswith("decided")) for each in STATES_HOME},
    **{("commit", each): (None, []) for each in STATES_HOME},
}


def bring(rig: CrossingRig, it: Attempt, steps: list[Act], restart: str) -> None:
    for step in steps:
        step(rig, it)
    RESTARTS[restart](rig, it)


@pytest.mark.parametrize("restart", RESTARTS)
@pytest.mark.parametrize(("command", "state"), [*THERE, *((a, f"home: {b}") for a, b in HOME)])
def test_every_command_in_every_state(command: str, state: str, restart: str) -> None:
    rig = make()
    if state.startswith("home: "):
        state = state.removeprefix("home: ")
        it, states, table = rig.attempt(3, Move(ANN, OTHER, 40)), STATES_HOME, HOME
    else:
        it, states, table = rig.attempt(3, Move(OTHER, BOB, 40)), STATES_THERE, THERE
    bring(rig, it, states[state], restart)
    answer, kinds = table[command, state]
    before = rig.picture()
    assert COMMANDS[command](rig, it) == answer
    assert rig.kinds_after(before.sequence) == kinds
    if not kinds:
        assert rig.picture() == before
    if ABORTED in kinds:
        there = {**before.prepared}
        there.pop(it.transaction_id, None)
        assert (rig.picture().prepared, rig.picture().decided) == (there, before.decided)
        assert rig.picture().positions == before.positions
        assert (rig.reserved(ANN), rig.reserved(BOB)) == ((0, 0), (0, 0))
    # Said twice, everything is as said once.
    after = rig.picture()
    again = COMMANDS[command](rig, it)
    assert rig.picture() == after
    assert again == answer
    rig.seal()


def test_the_tables_are_complete() -> None:
    assert {state for _, state in THERE} == set(STATES_THERE)
    assert len(THERE) == len(STATES_THERE) * 5
    assert len(HOME) == len(STATES_HOME) * 6


# --- what the answers say -----------------------------------------------------------------------


def test_what_a_participant_posts() -> None:
    rig = make()
    it = rig.attempt(3, Move(OTHER, BOB, 40, metadata=b"order 7"))
    assert rig.prepare(it) == YES
    assert rig.balance(BOB) == 0
    assert rig.reserved(BOB) == (0, 40)
    rig.let_time_pass(SECOND_US)
    decided_us = rig.stamp_us - 7
    rig.commit_prepared(it, decided_us)
    assert rig.balance(BOB) == 40
    assert rig.reserved(BOB) == (0, 0)
    assert rig.ledger.clearing.positions == {(8, 1): -40}
    leg = next(rig.history(BOB).back_from(rig.ledger.sequence))
    assert (leg.incoming, leg.metadata, leg.key_account) == (True, b"order 7", OTHER)
    assert (leg.time_us, leg.decided_us) == (rig.stamp_us, decided_us)
    assert (leg.group_index, leg.group_size) == (0, 0)


def test_what_a_home_decides_and_what_its_retries_hear() -> None:
    rig = make()
    it = rig.attempt(3, Move(ANN, OTHER, 40))
    said = rig.commit_home(it)
    now_us, id_ = rig.stamp_us, it.transaction_id
    first = (*COMMITTED, 0, 0, 0, 0, 1, now_us, 60, now_us, id_)
    assert said == first
    assert rig.ledger.clearing.positions == {(8, 1): 40}
    assert rig.transfer(Ask(transfer_id(4), ANN, BANK, 10))[0].balance_minor == 50
    rig.let_time_pass(SECOND_US)
    assert rig.commit_home(it) == first, "as at first, not as it is now"
    other = it.again(5, it.deadline_us + SECOND_US)
    won = (*LOST, 0, 0, 1, 0, 1, now_us, 60, now_us, id_)
    assert rig.commit_home(other) == won
    assert rig.commit_home(other, no(INSUFFICIENT)) == won
    rig.finish(it)
    assert rig.commit_home(other) == won[:6] + (0,) + won[7:]
    assert rig.commit_home(it) == first[:6] + (0,) + first[7:]


def test_a_decision_is_written_once() -> None:
    rig = make()
    it = rig.attempt(3, Move(ANN, OTHER, 40))
    rig.abort(it)
    assert rig.commit_home(it)[:2] == NOTHING
    it = it.again(4)
    decide(rig, it)
    rig.abort(it)
    pass_deadline(rig, 60 * SECOND_US)
    assert rig.resolve(it)[0] == Fate.COMMITTED
    rig.finish(it)
    rig.abort(it)
    assert rig.resolve(it)[0] == Fate.COMMITTED


def test_late_by_a_clock_that_a_restart_puts_back() -> None:
    """A stamp that no record bears is not remembered; what was said on its ground must be."""
    rig = make()
    it = rig.attempt(3, Move(ANN, OTHER, 40))
    rig.let_time_pass(0)
    rig.sync()
    rig.clock.observe(it.deadline_us - LIFE_US + SECOND_US)
    rig.wall.advance(LIFE_US - SECOND_US // 2)
    rig.clock.observe(it.deadline_us + 1)
    assert rig.commit_home(it)[:2] == NOTHING
    rig.seal()
    rig.sync()
    rig.clock = type(rig.clock)(rig.wall, 0)
    rig.crash()
    assert rig.stamp_us < it.deadline_us
    assert rig.commit_home(it)[:2] == NOTHING


def test_a_refusal_that_leaves_no_record_ends_the_attempt_all_the_same() -> None:
    rig = make()
    soon_us = rig.stamp_us + SECOND_US
    it = rig.attempt(3, Move(ANN, OTHER, 40, import_us=soon_us))
    answer = rig.commit_home(it)
    assert answer[:3] == (*REFUSED, RefusalReason.IMPORT_IN_FUTURE)
    rig.let_time_pass(2 * SECOND_US)
    assert rig.commit_home(it)[:2] == NOTHING, "its participants were told to abort"
    assert rig.commit_home(it.again(4))[:2] == COMMITTED


def test_a_participant_refuses_what_lies_too_far_ahead() -> None:
    rig = make()
    now_us = rig.stamp_us
    it = Attempt(3, now_us + DEADLINE_AHEAD_MAX_US, (Move(OTHER, BOB, 1),), 3)
    assert rig.prepare(it.again(4, it.deadline_us + 1))[0] == Vote.LATE
    assert rig.prepare(it) == YES


def test_bounds_make_new_work_busy_and_finish_what_was_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(participant, "PREPARED_MAX", 1)
    monkeypatch.setattr(participant, "DECIDED_MAX", 1)
    rig = make()
    one, two = (rig.attempt(each, Move(OTHER, BOB, 1)) for each in (3, 4))
    before = rig.picture()
    assert rig.prepare(one, room=False)[0] == Vote.BUSY
    assert rig.picture() == before
    assert rig.prepare(one) == YES
    assert rig.prepare(one, room=False) == YES
    assert rig.prepare(two)[0] == Vote.BUSY
    rig.commit_prepared(one)
    assert rig.prepare(two) == YES
    three, four = (rig.attempt(each, Move(ANN, OTHER, 1)) for each in (5, 6))
    decide(rig, three)
    assert rig.commit_home(four)[:2] == NOTHING
    assert rig.commit_home(three)[:2] == COMMITTED
    rig.finish(three)
    decide(rig, four.again(7))


# --- refusals and what is only busy -------------------------------------------------------------


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
    rig = make()
    if setup == "spent":
        rig.transfer(Ask(transfer_id(2), ANN, BANK, FUNDS))
    if setup == "frozen":
        rig.change_status(ANN, FROZEN)
    it = rig.attempt(3, Move(ANN, OTHER, 40), Move(ANN, THIRD, 1), is_group=True)
    before = rig.picture()
    answer = rig.commit_home(it, theirs)
    kinds = rig.kinds_after(before.sequence)
    assert answer[:3] == (*REFUSED, expected)
    assert (answer.index, answer.repeat) == (index, 0)
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
    rig = make()
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
    rig = make()
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
    rig = make()
    it = rig.attempt(3, Move(OTHER, BOB, 40))
    assert rig.prepare(it) == YES
    assert rig.change_status(BOB, CLOSED) is StatusChange.IN_DOUBT
    assert rig.change_status(BOB, FROZEN) is StatusChange.CHANGED
    assert rig.prepare(rig.attempt(4, Move(OTHER, BOB, 1))) == no(RefusalReason.DESTINATION_FROZEN)
    rig.commit_prepared(it)
    assert rig.balance(BOB) == 40
    assert rig.change_status(BOB, CLOSED) is StatusChange.HOLDS_MONEY
    rig = make()
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


# --- one key ------------------------------------------------------------------------------------

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
    rig = make()
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
    rig = make()
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
    rig = make()
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


def test_the_oldest_comes_first_also_after_a_restart() -> None:
    rig = make()
    since_us = []
    for number in (9, 8, 7):
        rig.let_time_pass(1)
        since_us.append(rig.stamp_us)
        assert rig.prepare(rig.attempt(number, Move(OTHER, BOB, 1))) == YES
        decide(rig, rig.attempt(number + 10, Move(ANN, OTHER, 1)))
    for restart in RESTARTS.values():
        restart(rig, PLAIN)
        table = rig.ledger.transactions
        assert [each.since_us for each in table.prepared.values()] == since_us
        assert [each.since_us for each in table.decided.values()] == since_us
        assert table.oldest_us() == since_us[0]


def test_system_accounts_reserve_down_to_their_own_floor() -> None:
    rig = make()
    rig.open(30, SYSTEM, floor_minor=-10)
    it = rig.attempt(3, Move(OTHER, BANK, 1), Move(30, OTHER, 10), is_group=True)
    assert rig.prepare(it) == YES
    assert rig.transfer(Ask(transfer_id(4), 30, BANK, 1))[0].status == 4
    rig.commit_prepared(it)
    assert rig.balance(30) == -10
