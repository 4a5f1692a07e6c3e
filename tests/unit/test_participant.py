"""Every command in every state of a transaction, on either side, before and after a restart."""

import pytest

from cluster.packed import Fate, Vote
from cluster.refusals import RefusalReason
from shard_node import participant
from shard_node.records import RecordKind
from shard_node.transactions import DEADLINE_AHEAD_MAX_US
from tests.support.crossing import (
    ANN,
    BOB,
    COMMITTED,
    FUNDS,
    LIFE_US,
    LOST,
    NOTHING,
    OTHER,
    REFUSED,
    RESTARTS,
    SECOND_US,
    YES,
    Act,
    Attempt,
    CrossingRig,
    Move,
    decide,
    no,
    two_players,
)
from tests.support.ledgers import BANK, transfer_id
from tests.support.naive_ledger import Ask

INSUFFICIENT = RefusalReason.INSUFFICIENT_FUNDS

PREPARED, ABORTED, FINISHED = RecordKind.PREPARED, RecordKind.ABORTED, RecordKind.FINISHED
OUTGOING, INCOMING = RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING
TRANSFER, GROUP = RecordKind.TRANSFER, RecordKind.GROUP


def pass_deadline(rig: CrossingRig, us: int = SECOND_US) -> None:
    rig.let_time_pass(LIFE_US + us)


def end_another(rig: CrossingRig) -> None:
    """What makes the table look for what it may forget."""
    rig.abort(rig.attempt(99, Move(OTHER, ANN, 1)))


def lose(rig: CrossingRig, it: Attempt) -> None:
    """Lets another attempt win, and be posted everywhere."""
    decide(rig, it.again(70))
    rig.finish(it.again(70))


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
    "another won, finished": [lose],
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
    rig = two_players()
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
    rig = two_players()
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
    rig = two_players()
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
    assert rig.commit_home(other) == (*won[:6], 0, *won[7:])
    assert rig.commit_home(it) == (*first[:6], 0, *first[7:])


def test_a_decision_is_written_once() -> None:
    rig = two_players()
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
    rig = two_players()
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
    rig = two_players()
    soon_us = rig.stamp_us + SECOND_US
    it = rig.attempt(3, Move(ANN, OTHER, 40, import_us=soon_us))
    answer = rig.commit_home(it)
    assert answer[:3] == (*REFUSED, RefusalReason.IMPORT_IN_FUTURE)
    rig.let_time_pass(2 * SECOND_US)
    assert rig.commit_home(it)[:2] == NOTHING, "its participants were told to abort"
    assert rig.commit_home(it.again(4))[:2] == COMMITTED


def test_a_participant_refuses_what_lies_too_far_ahead() -> None:
    rig = two_players()
    now_us = rig.stamp_us
    it = Attempt(3, now_us + DEADLINE_AHEAD_MAX_US, (Move(OTHER, BOB, 1),), 3)
    assert rig.prepare(it.again(4, it.deadline_us + 1))[0] == Vote.LATE
    assert rig.prepare(it) == YES


def test_bounds_make_new_work_busy_and_finish_what_was_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(participant, "PREPARED_MAX", 1)
    monkeypatch.setattr(participant, "DECIDED_MAX", 1)
    rig = two_players()
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


def test_the_oldest_comes_first_also_after_a_restart() -> None:
    rig = two_players()
    since_us = []
    for number in (9, 8, 7):
        rig.let_time_pass(1)
        since_us.append(rig.stamp_us)
        assert rig.prepare(rig.attempt(number, Move(OTHER, BOB, 1))) == YES
        decide(rig, rig.attempt(number + 10, Move(ANN, OTHER, 1)))
    for restart in RESTARTS.values():
        restart(rig, rig.attempt(1, Move(ANN, OTHER, 1)))
        table = rig.ledger.transactions
        assert [each.since_us for each in table.prepared.values()] == since_us
        assert [each.since_us for each in table.decided.values()] == since_us
        assert table.oldest_us() == since_us[0]
