"""The coordinator's state machine: the whole table, every answer, and what holds on every path."""

import functools
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from cluster.packed import ANSWER, DECISION, GROUP_RESULT, VOTE, Fate, Outcome, Vote
from cluster.refusals import RefusalReason, is_recorded
from coordinator.actions import (
    AbortPrepared,
    Actions,
    Answer,
    CommitHome,
    CommitPrepared,
    FaultKind,
    Finish,
    Prepare,
    Retry,
    Status,
)
from coordinator.states import TRANSITIONS, Event, State
from coordinator.two_phase import IllegalTransition, Transaction
from doubloon.v1 import types_pb2
from tests.support.transaction_shards import answer

if TYPE_CHECKING:
    from collections.abc import Callable

HOME, B, C = 1, 2, 3
ID, OTHER_ID = b"a" * 16, b"b" * 16
DEADLINE_US, DECIDED_US, TIME_US, BALANCE = 50, 40, 39, 7
NO_FUNDS = RefusalReason.INSUFFICIENT_FUNDS
FROZEN = RefusalReason.DESTINATION_FROZEN

YES = (Vote.YES, 0, 0)
VOTES = [YES, (Vote.NO, NO_FUNDS, 1), (Vote.NO, FROZEN, 0), (Vote.BUSY, 0, 0), (Vote.LATE, 0, 0)]

# What a home may say, by a name for each.
HOME_SAYS: dict[str, bytes] = {
    "committed": answer(
        Fate.COMMITTED, Outcome.COMMITTED, unposted=1, time_us=TIME_US, balance=BALANCE,
        decided_us=DECIDED_US, transaction_id=ID,
    ),
    "committed and finished": answer(
        Fate.COMMITTED, Outcome.COMMITTED, time_us=TIME_US, balance=BALANCE,
        decided_us=DECIDED_US, transaction_id=ID,
    ),
    "another committed": answer(
        Fate.ABORTED, Outcome.COMMITTED, repeat=1, unposted=1, time_us=TIME_US,
        balance=BALANCE, decided_us=DECIDED_US, transaction_id=OTHER_ID,
    ),
    "another posted": answer(
        Fate.ABORTED, Outcome.COMMITTED, repeat=1, time_us=TIME_US, balance=BALANCE
    ),
    "refused": answer(
        Fate.ABORTED, Outcome.REFUSED, NO_FUNDS, index=2, time_us=TIME_US, balance=BALANCE
    ),
    "key reused": answer(Fate.ABORTED, Outcome.REFUSED, RefusalReason.KEY_REUSED, 3),
    "no news": answer(Fate.ABORTED, Outcome.REFUSED, RefusalReason.UNKNOWN_CURRENCY),
    "aborted": answer(Fate.ABORTED, Outcome.NONE),
}  # fmt: skip
MEANINGLESS = {
    "undecided": answer(Fate.UNDECIDED, Outcome.NONE),
    "committed without an outcome": answer(Fate.COMMITTED, Outcome.NONE),
    "committed and refused": answer(Fate.COMMITTED, Outcome.REFUSED, NO_FUNDS),
    "undecided, and the key committed": answer(Fate.UNDECIDED, Outcome.COMMITTED),
}

Step = tuple[Event, tuple[Any, ...]]


def step(transaction: Transaction, event: Event, arguments: tuple[Any, ...]) -> Actions:
    methods: dict[Event, Callable[..., Actions]] = {
        Event.BEGIN: transaction.begin,
        Event.VOTE: transaction.vote,
        Event.UNREACHED: transaction.unreached,
        Event.HOME_ANSWER: transaction.home_answer,
        Event.HOME_UNKNOWN: transaction.home_unknown,
        Event.POSTED: transaction.posted,
        Event.POST_UNKNOWN: transaction.post_unknown,
        Event.DEADLINE: transaction.deadline,
    }
    return methods[event](*arguments)


def steps_of(participants: tuple[int, ...]) -> list[Step]:
    """Every event, with every argument that makes a difference."""
    return [
        (Event.BEGIN, (ID, DEADLINE_US)),
        *((Event.VOTE, (shard, *vote)) for shard in participants for vote in VOTES),
        *((Event.UNREACHED, (shard,)) for shard in participants),
        *((Event.HOME_ANSWER, (said,)) for said in HOME_SAYS.values()),
        (Event.HOME_UNKNOWN, ()),
        *((Event.POSTED, (shard,)) for shard in participants),
        *((Event.POST_UNKNOWN, (shard,)) for shard in participants),
        (Event.DEADLINE, ()),
    ]


def snapshot(transaction: Transaction) -> tuple[Any, ...]:
    """All that a transaction is, as values."""
    fields = (getattr(transaction, name) for name in Transaction.__slots__)
    return tuple(tuple(one) if isinstance(one, list) else one for one in fields)


def replay(path: tuple[Step, ...], participants: tuple[int, ...]) -> tuple[Transaction, Actions]:
    """A transaction that has come this way, and everything that it called for."""
    transaction = Transaction(HOME, participants)
    called: Actions = ()
    for event, arguments in path:
        called += step(transaction, event, arguments)
    return transaction, called


@functools.cache
def every_path(participants: tuple[int, ...]) -> dict[tuple[Any, ...], tuple[Step, ...]]:
    """Every state that can be reached, in full, and a shortest path to it."""
    start: tuple[Step, ...] = ()
    found = {snapshot(Transaction(HOME, participants)): start}
    todo: deque[tuple[Step, ...]] = deque([()])
    while todo:
        path = todo.popleft()
        for one in steps_of(participants):
            transaction, _ = replay(path, participants)
            try:
                step(transaction, *one)
            except IllegalTransition:
                continue
            if (reached := snapshot(transaction)) not in found:
                found[reached] = (*path, one)
                todo.append((*path, one))
    return found


SEVERAL: list[tuple[int, ...]] = [(B,), (B, C)]


def path_to(*steps: tuple[Any, ...]) -> tuple[Step, ...]:
    return ((Event.BEGIN, (ID, DEADLINE_US)), *((one[0], one[1:]) for one in steps))


PREPARING = path_to()
INQUIRING = path_to((Event.UNREACHED, B))
DECIDING = path_to((Event.VOTE, B, *YES))
REFUSING = path_to((Event.VOTE, B, Vote.NO, NO_FUNDS, 2))
POSTING = (*DECIDING, (Event.HOME_ANSWER, (HOME_SAYS["committed"],)))
FOLLOWING = (*DECIDING, (Event.HOME_ANSWER, (HOME_SAYS["another committed"],)))
DEADLINE: Step = (Event.DEADLINE, ())


def result_of(actions: Actions) -> tuple[int, ...] | None:
    """The fields of the client's result, if it was answered."""
    results = [action.result for action in actions if isinstance(action, Answer)]
    assert len(results) <= 1
    return GROUP_RESULT.unpack(results[0]) if results else None


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize("participants", SEVERAL)
def test_every_event_in_every_state_is_in_the_table_or_raises_and_changes_nothing(
    participants: tuple[int, ...],
) -> None:
    for path in every_path(participants).values():
        for event, arguments in steps_of(participants):
            transaction, _ = replay(path, participants)
            state, before = transaction.state, snapshot(transaction)
            try:
                step(transaction, event, arguments)
            except IllegalTransition:
                assert snapshot(transaction) == before
            else:
                assert transaction.state in TRANSITIONS[state, event]


def test_every_pair_of_the_table_is_legal_somewhere_and_all_others_nowhere() -> None:
    seen: dict[tuple[State, Event], set[State]] = {}
    for participants in SEVERAL:
        for path in every_path(participants).values():
            for event, arguments in steps_of(participants):
                transaction, _ = replay(path, participants)
                state = transaction.state
                try:
                    step(transaction, event, arguments)
                except IllegalTransition:
                    continue
                seen.setdefault((state, event), set()).add(transaction.state)
    assert seen == {pair: set(after) for pair, after in TRANSITIONS.items()}


@pytest.mark.parametrize("said", MEANINGLESS)
def test_an_answer_without_meaning_raises_and_changes_nothing(said: str) -> None:
    for path in (DECIDING, INQUIRING, (*DECIDING, DEADLINE)):
        transaction, _ = replay(path, (B,))
        before = snapshot(transaction)
        with pytest.raises(IllegalTransition):
            transaction.home_answer(MEANINGLESS[said])
        assert snapshot(transaction) == before


@pytest.mark.parametrize("path", [REFUSING, INQUIRING])
def test_a_home_that_commits_what_it_was_told_not_to_is_not_believed(
    path: tuple[Step, ...],
) -> None:
    transaction, _ = replay(path, (B,))
    before = snapshot(transaction)
    with pytest.raises(IllegalTransition):
        transaction.home_answer(HOME_SAYS["committed"])
    assert snapshot(transaction) == before


@pytest.mark.parametrize("event", [Event.VOTE, Event.UNREACHED])
def test_a_participant_answers_once(event: Event) -> None:
    transaction, _ = replay(path_to((Event.VOTE, B, *YES)), (B, C))
    before = snapshot(transaction)
    with pytest.raises(IllegalTransition):
        step(transaction, event, (B, *YES) if event is Event.VOTE else (B,))
    assert snapshot(transaction) == before


def test_the_numbers_are_those_of_the_contract() -> None:
    for status in Status:
        assert types_pb2.TransferStatus.Value(f"TRANSFER_STATUS_{status.name}") == int(status)
    for code in FaultKind:
        assert types_pb2.FaultCode.Value(f"FAULT_CODE_{code.name}") == int(code)


# --- what holds on every path ---------------------------------------------------------------------


@pytest.mark.parametrize("participants", SEVERAL)
def test_the_client_is_answered_once_and_an_ended_transaction_has_been(
    participants: tuple[int, ...],
) -> None:
    for path in every_path(participants).values():
        transaction, called = replay(path, participants)
        answers = [action for action in called if isinstance(action, Answer)]
        assert len(answers) == transaction.is_answered
        assert transaction.is_answered == (
            transaction.state in {State.ENDED, State.DECIDING_UNHEARD, State.POSTING_UNHEARD}
        )


@pytest.mark.parametrize("participants", SEVERAL)
def test_a_definite_fault_is_said_only_while_the_home_was_not_asked_to_decide(
    participants: tuple[int, ...],
) -> None:
    for path in every_path(participants).values():
        if not path or path[-1][0] is not Event.DEADLINE:
            continue
        before, _ = replay(path[:-1], participants)
        _, called = replay(path, participants)
        status, code, *_, indefinite, _, _ = result_of(called) or (0,) * 8
        if status == Status.FAULT:
            asked = before.state is State.DECIDING
            assert (code, bool(indefinite)) == (
                (FaultKind.DEADLINE_EXCEEDED, True) if asked else (FaultKind.UNAVAILABLE, False)
            )
        else:
            assert status == Status.COMMITTED_POSTING
            assert before.state in {State.POSTING, State.FOLLOWING}


@pytest.mark.parametrize("participants", SEVERAL)
def test_what_is_sent_follows_only_from_what_is_certain(participants: tuple[int, ...]) -> None:
    """COMMIT only after the home's word; ABORT only once COMMIT cannot be; one vote an attempt."""
    for path in every_path(participants).values():
        transaction = Transaction(HOME, participants)
        votes: set[bytes] = set()
        decided: set[bytes] = set()
        may_commit = False
        for event, arguments in path:
            actions = step(transaction, event, arguments)
            said = ANSWER.unpack(arguments[0]) if event is Event.HOME_ANSWER else None
            if said is not None and said[1] == Outcome.COMMITTED:
                own = transaction.transaction_id if said[0] == Fate.COMMITTED else said[10]
                decided.add(DECISION.pack(own, said[9]))
            if said is not None and said[0] == Fate.ABORTED:
                may_commit = False
            for action in actions:
                match action:
                    case Prepare():
                        votes.clear()
                    case CommitHome(vote):
                        votes.add(vote)
                        assert len(votes) == 1
                        may_commit = VOTE.unpack(vote)[0] == Vote.YES
                    case CommitPrepared(decision, _):
                        assert decision in decided
                    case AbortPrepared(aborted, shards):
                        assert not may_commit
                        assert aborted == DECISION.pack(ID, DEADLINE_US)
                        assert shards
                    case Retry():
                        assert not may_commit


@pytest.mark.parametrize("participants", SEVERAL)
def test_only_those_that_may_hold_a_reservation_are_told_to_abort(
    participants: tuple[int, ...],
) -> None:
    for path in every_path(participants).values():
        begun = max((at for at, one in enumerate(path) if one[0] is Event.BEGIN), default=0)
        transaction, _ = replay(path[: begun + 1], participants)
        free = set()
        for event, arguments in path[begun + 1 :]:
            if event is Event.VOTE and transaction.state is State.PREPARING:
                shard, vote, *_ = arguments
                free |= {shard} if vote != Vote.YES else set()
            for action in step(transaction, event, arguments):
                if isinstance(action, AbortPrepared):
                    assert set(action.shards) == set(participants) - free


# --- what follows from what -----------------------------------------------------------------------

INQUIRY = VOTE.pack(Vote.NO, RefusalReason.UNKNOWN_CURRENCY, 0)
SAYS_YES = VOTE.pack(*YES)


@pytest.mark.parametrize(
    ("from_b", "from_c", "asked"),
    [
        (YES, YES, SAYS_YES),
        ((Vote.NO, NO_FUNDS, 1), YES, VOTE.pack(Vote.NO, NO_FUNDS, 1)),
        ((Vote.NO, NO_FUNDS, 1), (Vote.NO, FROZEN, 2), VOTE.pack(Vote.NO, FROZEN, 2)),
        ((Vote.NO, NO_FUNDS, 5), (Vote.NO, NO_FUNDS, 3), VOTE.pack(Vote.NO, NO_FUNDS, 3)),
        ((Vote.BUSY, 0, 0), YES, INQUIRY),
        ((Vote.BUSY, 0, 0), (Vote.NO, FROZEN, 2), INQUIRY),
        ((Vote.LATE, 0, 0), (Vote.NO, FROZEN, 2), INQUIRY),
        (None, YES, INQUIRY),
        (None, (Vote.NO, NO_FUNDS, 0), INQUIRY),
        (None, None, INQUIRY),
    ],
)
def test_what_the_home_is_asked_after_the_votes(
    from_b: tuple[int, int, int] | None, from_c: tuple[int, int, int] | None, asked: bytes
) -> None:
    for order in ((B, C), (C, B)):
        transaction, _ = replay(PREPARING, (B, C))
        actions: Actions = ()
        for shard in order:
            assert actions == ()
            vote = from_b if shard == B else from_c
            if vote is None:
                actions = transaction.unreached(shard)
            else:
                actions = transaction.vote(shard, *vote)
        assert actions == (CommitHome(asked),)


def test_an_inquiry_leaves_no_record_and_precedes_whatever_a_shard_may_find() -> None:
    _, reason, _ = VOTE.unpack(INQUIRY)
    decided_by_shards = [each for each in RefusalReason if is_recorded(each)]
    assert not is_recorded(RefusalReason(reason))
    assert all(reason < each for each in decided_by_shards)


ABORT = AbortPrepared(DECISION.pack(ID, DEADLINE_US), (B,))
DONE = (Status.COMPLETED, 0, 0, 0, 0, 0, TIME_US, BALANCE)
REPEATED = (Status.COMPLETED, 0, 0, 1, 0, 0, TIME_US, BALANCE)
IS_REFUSED = (Status.REFUSED, NO_FUNDS, 0, 0, 2, 0, TIME_US, BALANCE)
IS_REUSED = (Status.REFUSED, RefusalReason.KEY_REUSED, 3, 0, 0, 0, 0, 0)
COMMIT_OWN = CommitPrepared(DECISION.pack(ID, DECIDED_US), (B,))
COMMIT_OTHERS = CommitPrepared(DECISION.pack(OTHER_ID, DECIDED_US), (B,))


@pytest.mark.parametrize(
    ("path", "said", "state", "result", "others"),
    [
        (DECIDING, "committed", State.POSTING, None, (COMMIT_OWN,)),
        (DECIDING, "committed and finished", State.ENDED, DONE, ()),
        (DECIDING, "another committed", State.FOLLOWING, None, (COMMIT_OTHERS, ABORT)),
        (DECIDING, "another posted", State.ENDED, REPEATED, (ABORT,)),
        (DECIDING, "refused", State.ENDED, IS_REFUSED, (ABORT,)),
        (DECIDING, "key reused", State.ENDED, IS_REUSED, (ABORT,)),
        (DECIDING, "aborted", State.WAITING, None, (ABORT, Retry())),
        (REFUSING, "refused", State.ENDED, IS_REFUSED, ()),
        (REFUSING, "another posted", State.ENDED, REPEATED, ()),
        (INQUIRING, "another committed", State.FOLLOWING, None, (COMMIT_OTHERS, ABORT)),
        (INQUIRING, "another posted", State.ENDED, REPEATED, (ABORT,)),
        (INQUIRING, "refused", State.ENDED, IS_REFUSED, (ABORT,)),
        (INQUIRING, "no news", State.WAITING, None, (ABORT, Retry())),
        ((*DECIDING, DEADLINE), "committed", State.POSTING_UNHEARD, None, (COMMIT_OWN,)),
        ((*DECIDING, DEADLINE), "committed and finished", State.ENDED, None, ()),
        ((*DECIDING, DEADLINE), "another committed", State.ENDED, None, (ABORT,)),
        ((*DECIDING, DEADLINE), "refused", State.ENDED, None, (ABORT,)),
        ((*DECIDING, DEADLINE), "aborted", State.ENDED, None, (ABORT,)),
        ((*INQUIRING, DEADLINE), "another posted", State.ENDED, None, ()),
    ],
)
def test_what_follows_from_the_homes_answer(
    path: tuple[Step, ...],
    said: str,
    state: State,
    result: tuple[int, ...] | None,
    others: Actions,
) -> None:
    transaction, _ = replay(path, (B,))
    actions = transaction.home_answer(HOME_SAYS[said])
    assert transaction.state is state
    assert result_of(actions) == result
    assert tuple(one for one in actions if not isinstance(one, Answer)) == others


@pytest.mark.parametrize(
    ("path", "event", "state", "actions"),
    [
        (DECIDING, Event.HOME_UNKNOWN, State.DECIDING, (CommitHome(SAYS_YES),)),
        (REFUSING, Event.HOME_UNKNOWN, State.DECIDING, (CommitHome(VOTE.pack(2, NO_FUNDS, 2)),)),
        (INQUIRING, Event.HOME_UNKNOWN, State.WAITING, (ABORT, Retry())),
        ((*DECIDING, DEADLINE), Event.HOME_UNKNOWN, State.ENDED, ()),
        (POSTING, Event.POST_UNKNOWN, State.POSTING, (COMMIT_OWN,)),
        (FOLLOWING, Event.POST_UNKNOWN, State.FOLLOWING, (COMMIT_OTHERS,)),
        ((*POSTING, DEADLINE), Event.POST_UNKNOWN, State.ENDED, ()),
        ((*POSTING, DEADLINE), Event.POSTED, State.ENDED, (Finish(),)),
    ],
)
def test_what_follows_from_other_answers_or_none(
    path: tuple[Step, ...], event: Event, state: State, actions: Actions
) -> None:
    transaction, _ = replay(path, (B,))
    of_shard = event in {Event.POSTED, Event.POST_UNKNOWN}
    assert step(transaction, event, (B,) if of_shard else ()) == actions
    assert transaction.state is state


def test_completed_is_said_once_every_participant_has_posted() -> None:
    path = (
        *path_to((Event.VOTE, B, *YES), (Event.VOTE, C, *YES)),
        (Event.HOME_ANSWER, (HOME_SAYS["committed"],)),
    )
    transaction, _ = replay(path, (B, C))
    assert transaction.posted(C) == ()
    again = CommitPrepared(DECISION.pack(ID, DECIDED_US), (B,))
    assert transaction.post_unknown(B) == (again,)
    actions = transaction.posted(B)
    assert result_of(actions) == DONE
    assert actions[1:] == (Finish(),)


POSTING_STILL = (Status.COMMITTED_POSTING, 0, 0, 0, 0, 0, TIME_US, BALANCE)
FOLLOWING_STILL = (Status.COMMITTED_POSTING, 0, 0, 1, 0, 0, TIME_US, BALANCE)
NOTHING_HAPPENED = (Status.FAULT, FaultKind.UNAVAILABLE, 0, 0, 0, 0, 0, 0)
NOT_KNOWN = (Status.FAULT, FaultKind.DEADLINE_EXCEEDED, 0, 0, 0, 1, 0, 0)


@pytest.mark.parametrize(
    ("path", "state", "result", "others"),
    [
        ((), State.ENDED, NOTHING_HAPPENED, ()),
        (PREPARING, State.ENDED, NOTHING_HAPPENED, (ABORT,)),
        (INQUIRING, State.ENDED, NOTHING_HAPPENED, (ABORT,)),
        (DECIDING, State.DECIDING_UNHEARD, NOT_KNOWN, ()),
        (REFUSING, State.DECIDING_UNHEARD, NOT_KNOWN, ()),
        (POSTING, State.POSTING_UNHEARD, POSTING_STILL, ()),
        (FOLLOWING, State.ENDED, FOLLOWING_STILL, ()),
    ],
)
def test_what_the_client_hears_when_its_time_is_over(
    path: tuple[Step, ...], state: State, result: tuple[int, ...], others: Actions
) -> None:
    transaction, _ = replay(path, (B,))
    actions = transaction.deadline()
    assert transaction.state is state
    assert result_of(actions) == result
    assert tuple(one for one in actions if not isinstance(one, Answer)) == others
