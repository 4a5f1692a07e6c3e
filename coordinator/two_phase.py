"""Two-phase commit as its coordinator sees it: one transaction, pure.

Theory of operation
-------------------

A *transaction* carries one key's intent (a transfer, or a group) through as many *attempts* as it
takes, one at a time. An attempt has a fresh id and a deadline, both given by the caller. Its *home*
(the shard of the first source) decides; the other shards are its *participants*. The coordinator
keeps nothing durable: everything that matters is in the shards' logs before they answer.

    message          durable before the answer                    so that
    PREPARE          YES: the reservation and PREPARED            a YES can always be posted
    COMMIT, to home  the home's legs and the decision, or the     there is one decision, and one
                     refusal; ABORTED says: never committed       place that has it
    COMMIT           the participant's legs                       COMPLETED means visible on both
    ABORT            that the id has ended                        a late PREPARE reserves nothing
    FINISH           nothing: the home forgets a decision that every participant has posted

The states of a transaction, and whether anybody still waits to hear of it:

    WAITING            no attempt is under way: before the first, and between two
    PREPARING          PREPARE is out; the home knows nothing, and may be left so
    INQUIRING          it cannot be decided now; the home is asked whether the key has an outcome
    DECIDING           the home has been asked to decide, and may have
    POSTING            committed; some participants have not said that they posted it
    FOLLOWING          another attempt of the same key has committed; as POSTING, for that one
    DECIDING_UNHEARD,  as DECIDING and POSTING, when the client's time was over before they ended
    POSTING_UNHEARD
    ENDED              nothing more will be done, and nothing that still comes in matters

The coordinator may crash at any point, because:

- PREPARING, INQUIRING: the home was never asked to commit this id. Past the deadline it refuses to,
  so whoever sweeps gets ABORTED from it, for ever, and frees the participants.
- DECIDING: the home's log knows. The sweep asks it, and commits or aborts the participants
  accordingly. The same question asked twice gets the same answer, since the decision is recorded
  with the key.
- POSTING, FOLLOWING: the home keeps the decision until FINISH, and each participant keeps what it
  prepared until it is told. The sweep does what is left. COMMIT of what is not prepared changes
  nothing: it was posted.
- Between attempts: nothing of the old attempt can happen any more. A new one begins only after the
  home said ABORTED, or was never asked and never will be.

And the client never hears more than is known: COMPLETED after every participant has answered;
COMMITTED_POSTING after the home has; a definite fault only while the home has not been asked to
decide; else an indefinite one.

ABORT is sent to a participant only on the home's ABORTED, or when the home was not asked to commit
and will not be. A participant that voted NO, BUSY or LATE holds nothing and is told nothing.

One inquiry serves everything that keeps an attempt from being decided (a participant away, or
something in doubt in the way): the home is told NO for a reason that leaves no record and precedes
all others, so it looks up the key and changes nothing. A retry of what has been committed is
thereby heard as such though a participant is down.
"""

from __future__ import annotations

from typing import Final

from mypy_extensions import mypyc_attr

from cluster.packed import (
    ANSWER,
    ANSWER_DECIDED_AT,
    ANSWER_ID_AT,
    ANSWER_TIME_AT,
    DECISION,
    GROUP_RESULT,
    VOTE,
    Fate,
    Outcome,
    Vote,
)
from cluster.refusals import RefusalReason
from coordinator.actions import (
    NOT_IN_TIME,
    NOT_KNOWN_IN_TIME,
    AbortPrepared,
    Actions,
    Answer,
    CommitHome,
    CommitPrepared,
    Finish,
    Prepare,
    Retry,
    Status,
)
from coordinator.states import TRANSITIONS, Event, State

# The same, by state and then by event: found without making a pair.
_AFTERS: Final = {
    state: {event: afters for (before, event), afters in TRANSITIONS.items() if before is state}
    for state in State
}


class IllegalTransition(Exception):  # noqa: N818 - it says what happened
    """An event that cannot occur in this state; nothing was changed."""


# Taken from its enumeration, a member costs ten times what a global does (CPython 3.11); one
# transaction needs some forty.
_DECIDING: Final = State.DECIDING
_DECIDING_UNHEARD: Final = State.DECIDING_UNHEARD
_ENDED: Final = State.ENDED
_FOLLOWING: Final = State.FOLLOWING
_INQUIRING: Final = State.INQUIRING
_POSTING: Final = State.POSTING
_POSTING_UNHEARD: Final = State.POSTING_UNHEARD
_PREPARING: Final = State.PREPARING
_WAITING: Final = State.WAITING
_EVENT_BEGIN: Final = Event.BEGIN
_EVENT_DEADLINE: Final = Event.DEADLINE
_EVENT_HOME_ANSWER: Final = Event.HOME_ANSWER
_EVENT_HOME_UNKNOWN: Final = Event.HOME_UNKNOWN
_EVENT_POSTED: Final = Event.POSTED
_EVENT_POST_UNKNOWN: Final = Event.POST_UNKNOWN
_EVENT_UNREACHED: Final = Event.UNREACHED
_EVENT_VOTE: Final = Event.VOTE
_VOTE_NO: Final = int(Vote.NO)
_VOTE_YES: Final = int(Vote.YES)
_FATE_ABORTED: Final = int(Fate.ABORTED)
_FATE_COMMITTED: Final = int(Fate.COMMITTED)
_OUTCOME_COMMITTED: Final = int(Outcome.COMMITTED)
_OUTCOME_REFUSED: Final = int(Outcome.REFUSED)
_STATUS_COMMITTED_POSTING: Final = Status.COMMITTED_POSTING
_STATUS_COMPLETED: Final = Status.COMPLETED
_STATUS_REFUSED: Final = Status.REFUSED

_INQUIRY_REASON: Final = RefusalReason.UNKNOWN_CURRENCY

_NOTHING: Final[Actions] = ()
_PREPARE: Final[Actions] = (Prepare(),)
_RETRY: Final = Retry()
_FINISH: Final = Finish()
_COMMIT: Final = CommitHome(VOTE.pack(Vote.YES, 0, 0))
_INQUIRE: Final = CommitHome(VOTE.pack(Vote.NO, _INQUIRY_REASON, 0))

# A completed result up to where it has what the home's answer says.
_COMPLETED_HEAD: Final = bytes((Status.COMPLETED, 0, 0, 0, 0, 0, 0, 0))
_REPEATED_HEAD: Final = bytes((Status.COMPLETED, 0, 0, 1, 0, 0, 0, 0))

# Behind every (reason, index).
_NO_REFUSAL: Final = (len(RefusalReason) + 1, 0)


# Acyclic, as what ends leaves its route: a collector that looked at tens of thousands of them under
# way took a seventh of a coordinator's time.
@mypyc_attr(acyclic=True)
class Transaction:
    """One transaction.

    Every method but the properties is an event; it returns what is to be done, in an order in which
    it may be done.

    Args:
        home: the shard that decides.
        participants: the other shards, at least one, none twice.

    Attributes:
        state: where it stands.
        transaction_id, deadline_us: of the attempt under way, or the last.
    """

    __slots__ = (
        "_asked",
        "_awaited",
        "_decision",
        "_held",
        "_refusal",
        "_repeat",
        "_shown",
        "_undecidable",
        "deadline_us",
        "home",
        "participants",
        "state",
        "transaction_id",
    )

    def __init__(self, home: int, participants: tuple[int, ...]) -> None:
        self.home = home
        self.participants = participants
        self.state = _WAITING
        self.transaction_id = b""
        self.deadline_us = 0
        self._awaited: tuple[int, ...] = ()  # participants that have yet to answer
        self._held: tuple[int, ...] = ()  # participants that may hold a reservation
        self._refusal = _NO_REFUSAL
        self._undecidable = False
        self._asked: CommitHome | None = None  # what the home is
        self._decision = b""
        self._repeat = 0
        self._shown = b""  # of what has been committed: time and balance, packed

    @property
    def is_answered(self) -> bool:
        """Whether the client has heard."""
        return self.state >= _DECIDING_UNHEARD

    # --- events ---------------------------------------------------------------------------------

    def begin(self, transaction_id: bytes, deadline_us: int) -> Actions:
        """A new attempt, with an id of its own."""
        self._go(_EVENT_BEGIN, _PREPARING)
        self.transaction_id = transaction_id
        self.deadline_us = deadline_us
        self._awaited = self.participants
        self._held = self.participants
        self._refusal = _NO_REFUSAL
        self._undecidable = False
        return _PREPARE

    def vote(self, shard: int, vote: int, reason: int, index: int) -> Actions:
        """A participant has answered PREPARE.

        A NO counts once every participant's answer is final: only then the reason of highest
        precedence is known. BUSY is final but for what is in doubt: its participant has found
        nothing else to refuse.
        """
        if self.state is _ENDED:
            return self._ignore(_EVENT_VOTE)
        self._check_awaited(_EVENT_VOTE, shard)
        if vote == _VOTE_YES:
            return self._count_vote(_EVENT_VOTE, shard)
        held = tuple(each for each in self._held if each != shard)
        if vote == _VOTE_NO:
            refusal = min(self._refusal, (reason, index))
            return self._count_vote(_EVENT_VOTE, shard, held, refusal)
        return self._count_vote(_EVENT_VOTE, shard, held, undecidable=True)

    def unreached(self, shard: int) -> Actions:
        """A participant has not answered PREPARE; it may have reserved."""
        if self.state is _ENDED:
            return self._ignore(_EVENT_UNREACHED)
        self._check_awaited(_EVENT_UNREACHED, shard)
        return self._count_vote(_EVENT_UNREACHED, shard, undecidable=True)

    def home_answer(self, answer: bytes) -> Actions:
        """The home has answered COMMIT, packed: this attempt's fate, and the key's outcome."""
        if self.state is _ENDED:
            return self._ignore(_EVENT_HOME_ANSWER)
        fate, outcome = answer[0], answer[1]
        if outcome == _OUTCOME_COMMITTED:
            if fate == _FATE_COMMITTED:
                return self._committed(answer)
            if fate == _FATE_ABORTED:
                return self._committed_by_another(answer)
        elif fate == _FATE_ABORTED:
            if outcome == _OUTCOME_REFUSED and not self._is_no_news(answer):
                return self._refused(answer)
            return self._aborted(_EVENT_HOME_ANSWER)
        raise IllegalTransition(f"home answered fate {fate}, outcome {outcome}")

    def home_unknown(self) -> Actions:
        """The home has not answered. Asked again it says the same, so it is; an inquiry is not."""
        match self.state:
            case State.DECIDING:
                assert self._asked is not None, "so it is deciding"
                self._go(_EVENT_HOME_UNKNOWN, _DECIDING)
                return (self._asked,)
            case State.INQUIRING:
                return self._aborted(_EVENT_HOME_UNKNOWN)
            case _:
                self._go(_EVENT_HOME_UNKNOWN, _ENDED)
                return _NOTHING

    def posted(self, shard: int) -> Actions:
        """A participant has posted what was committed."""
        state = self.state
        if state is _ENDED:
            return self._ignore(_EVENT_POSTED)
        self._check_awaited(_EVENT_POSTED, shard)
        if len(self._awaited) > 1:
            self._go(_EVENT_POSTED, state)
            self._await_no_more(shard)
            return _NOTHING
        self._go(_EVENT_POSTED, _ENDED)
        self._awaited = ()
        if state is _POSTING:
            return Answer(self._completed(_STATUS_COMPLETED)), _FINISH
        if state is _FOLLOWING:
            return (Answer(self._completed(_STATUS_COMPLETED)),)
        return (_FINISH,)

    def post_unknown(self, shard: int) -> Actions:
        """A participant has not said that it posted. While somebody waits, it is told again."""
        state = self.state
        if state is _ENDED:
            return self._ignore(_EVENT_POST_UNKNOWN)
        self._check_awaited(_EVENT_POST_UNKNOWN, shard)
        if state is _POSTING_UNHEARD:
            self._go(_EVENT_POST_UNKNOWN, _ENDED)
            return _NOTHING
        self._go(_EVENT_POST_UNKNOWN, state)
        return (CommitPrepared(self._decision, (shard,)),)

    def deadline(self) -> Actions:
        """The client's time is over: it hears what is known, which is never more than is true."""
        match self.state:
            case State.PREPARING | State.INQUIRING:
                self._go(_EVENT_DEADLINE, _ENDED)
                return Answer(NOT_IN_TIME), *self._abort()
            case State.DECIDING:
                self._go(_EVENT_DEADLINE, _DECIDING_UNHEARD)
                return (Answer(NOT_KNOWN_IN_TIME),)
            case State.POSTING:
                self._go(_EVENT_DEADLINE, _POSTING_UNHEARD)
                return (Answer(self._completed(_STATUS_COMMITTED_POSTING)),)
            case State.FOLLOWING:
                self._go(_EVENT_DEADLINE, _ENDED)
                return (Answer(self._completed(_STATUS_COMMITTED_POSTING)),)
            case _:
                self._go(_EVENT_DEADLINE, _ENDED)
                return (Answer(NOT_IN_TIME),)

    # --- what follows from answers --------------------------------------------------------------

    def _count_vote(
        self,
        event: Event,
        shard: int,
        held: tuple[int, ...] | None = None,
        refusal: tuple[int, int] | None = None,
        *,
        undecidable: bool = False,
    ) -> Actions:
        """Count an awaited participant's answer; ask the home once it is the last."""
        refusal = refusal or self._refusal
        undecidable = undecidable or self._undecidable
        after: State = _DECIDING
        ask: CommitHome | None = _COMMIT
        if len(self._awaited) > 1:
            after, ask = _PREPARING, None
        elif undecidable:
            after, ask = _INQUIRING, _INQUIRE
        elif refusal != _NO_REFUSAL:
            ask = CommitHome(VOTE.pack(_VOTE_NO, *refusal))
        self._go(event, after)
        self._await_no_more(shard)
        if held is not None:
            self._held = held
        self._refusal = refusal
        self._undecidable = undecidable
        self._asked = ask
        return _NOTHING if ask is None else (ask,)

    def _committed(self, answer: bytes) -> Actions:
        """This attempt has been committed: now, or when the home was asked before."""
        if self._asked is not _COMMIT:
            raise IllegalTransition("the home has committed what it was told not to")
        state, unposted = self.state, answer[6]
        unheard = state is _DECIDING_UNHEARD
        if not unposted:
            # It was committed when asked before, and a sweep has finished it since.
            self._go(_EVENT_HOME_ANSWER, _ENDED)
            self._keep(answer, repeat=0)
            return _NOTHING if unheard else (Answer(self._completed(_STATUS_COMPLETED)),)
        self._go(_EVENT_HOME_ANSWER, _POSTING_UNHEARD if unheard else _POSTING)
        self._keep(answer, repeat=0)
        self._decision = self.transaction_id + answer[ANSWER_DECIDED_AT:ANSWER_ID_AT]
        self._awaited = self.participants
        return (CommitPrepared(self._decision, self.participants),)

    def _committed_by_another(self, answer: bytes) -> Actions:
        """Another attempt has won; its participants are the same, and the client waits for them."""
        abort = self._abort()
        unposted = answer[6]
        if self.state is _DECIDING_UNHEARD:
            self._go(_EVENT_HOME_ANSWER, _ENDED)
            return abort
        if not unposted:
            self._go(_EVENT_HOME_ANSWER, _ENDED)
            self._keep(answer, repeat=answer[4])
            return Answer(self._completed(_STATUS_COMPLETED)), *abort
        self._go(_EVENT_HOME_ANSWER, _FOLLOWING)
        self._keep(answer, repeat=answer[4])
        self._decision = answer[ANSWER_ID_AT:] + answer[ANSWER_DECIDED_AT:ANSWER_ID_AT]
        self._awaited = self.participants
        return CommitPrepared(self._decision, self.participants), *abort

    def _refused(self, answer: bytes) -> Actions:
        unheard = self.state is _DECIDING_UNHEARD
        self._go(_EVENT_HOME_ANSWER, _ENDED)
        if unheard:
            return self._abort()
        _, _, reason, differing, repeat, index, _, time_us, balance, _, _ = ANSWER.unpack(answer)
        result = GROUP_RESULT.pack(
            _STATUS_REFUSED, reason, differing, repeat, index, 0, time_us, balance
        )
        return Answer(result), *self._abort()

    def _aborted(self, event: Event) -> Actions:
        """The key has no outcome, and this attempt will never give it one."""
        if self.state is _DECIDING_UNHEARD:
            self._go(event, _ENDED)
            return self._abort()
        self._go(event, _WAITING)
        return *self._abort(), _RETRY

    def _is_no_news(self, answer: bytes) -> bool:
        """Whether the home only gave an inquiry's own reason back."""
        return self.state is _INQUIRING and answer[2] == _INQUIRY_REASON

    # --- small parts ----------------------------------------------------------------------------

    def _go(self, event: Event, after: State) -> None:
        """Change the state, or raise; called before anything else is changed."""
        if after not in _AFTERS[self.state].get(event, ()):
            raise IllegalTransition(f"{event.name} in {self.state.name}")
        self.state = after

    def _ignore(self, event: Event) -> Actions:
        self._go(event, _ENDED)
        return _NOTHING

    def _check_awaited(self, event: Event, shard: int) -> None:
        # Whether the event is legal in this state is looked at by `_go`, which follows.
        if shard not in self._awaited:
            raise IllegalTransition(f"{event.name} of shard {shard} in {self.state.name}")

    def _await_no_more(self, shard: int) -> None:
        self._awaited = tuple([each for each in self._awaited if each != shard])

    def _keep(self, answer: bytes, repeat: int) -> None:
        self._repeat = repeat
        self._shown = answer[ANSWER_TIME_AT:ANSWER_DECIDED_AT]

    def _abort(self) -> Actions:
        if not self._held:
            return _NOTHING
        return (AbortPrepared(DECISION.pack(self.transaction_id, self.deadline_us), self._held),)

    def _completed(self, status: Status) -> bytes:
        if status is _STATUS_COMPLETED:
            return (_REPEATED_HEAD if self._repeat else _COMPLETED_HEAD) + self._shown
        return bytes((status, 0, 0, self._repeat, 0, 0, 0, 0)) + self._shown
