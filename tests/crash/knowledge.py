"""What is known of a shard from its answers alone, and what each further answer must agree with."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.packed import RESULT_BYTES, VOTE, Fate, Outcome, Vote
from cluster.refusals import RefusalReason, is_recorded
from tests.crash.workload import (
    ChangeStatus,
    Command,
    CommitHome,
    End,
    Finish,
    Groups,
    Open,
    Prepare,
    Resolve,
    Transfers,
)
from tests.support.crossing import ANSWER, HERE, RESOLUTION, RESULT, Answer, Attempt, Move, shard_of

COMPLETED, REFUSED = 1, 3
REPEAT = 2  # of an account that is opened

Moves = tuple[Move, ...]
Outcomes = tuple[int, ...] | tuple[int | bytes, ...]


@dataclass
class Knowledge:
    """All that was heard.

    Attributes:
        happened: what took effect under each key.
        outcomes: the answer for ever under each key, and for which request.
        fates: how transactions whose home is here ended.
        prepared: transactions that are prepared here.
        decided: transactions that were committed here and not finished.
        statuses: of the accounts whose status was changed.
        answers: how many transfers and groups were answered, for the first time or again.
    """

    happened: dict[int, Moves] = field(default_factory=dict)
    outcomes: dict[int, tuple[Moves, Outcomes]] = field(default_factory=dict)
    fates: dict[bytes, Fate] = field(default_factory=dict)
    prepared: dict[bytes, Attempt] = field(default_factory=dict)
    decided: dict[bytes, Attempt] = field(default_factory=dict)
    statuses: dict[int, int] = field(default_factory=dict)
    answers: int = 0
    opened: bool = False

    def hear(self, command: Command, answer: bytes) -> None:
        """Take an answer in.

        Raises:
            AssertionError: it contradicts an earlier one.
        """
        match command:
            case Open():
                assert not self.opened or set(answer) == {REPEAT}, "an account was opened twice"
                self.opened = True
            case Transfers(asked):
                single: list[tuple[int, Moves]] = [(key, (move,)) for key, move in asked]
                self._hear_results(single, answer)
            case Groups(asked):
                self._hear_results(asked, answer)
            case ChangeStatus(account_id):
                self.statuses[account_id] = answer[0]
            case Prepare(attempt) if VOTE.unpack(answer)[0] == Vote.YES:
                self.prepared[attempt.transaction_id] = attempt
            case End(attempt):
                self.end(attempt, commit=bool(answer[0]))
            case CommitHome(attempt):
                self._hear_home(attempt, Answer(*ANSWER.unpack(answer)))
            case Resolve(attempt):
                self._hear_fate(attempt, Fate(RESOLUTION.unpack(answer)[0]))
            case Finish(attempt):
                self.decided.pop(attempt.transaction_id, None)

    def end(self, attempt: Attempt, *, commit: bool) -> None:
        """What was prepared here has ended."""
        self.prepared.pop(attempt.transaction_id, None)
        if commit:
            self.happened[attempt.key] = attempt.moves

    def balances(self) -> dict[tuple[int, int], int]:
        """By (account, currency): all that happened on this shard, added up."""
        minor: defaultdict[tuple[int, int], int] = defaultdict(int)
        for moves in self.happened.values():
            for move in moves:
                for account_id, sign in ((move.source, -1), (move.destination, 1)):
                    if shard_of(account_id) == HERE:
                        minor[account_id, move.currency] += sign * move.amount_minor
        return dict(minor)

    def clearing(self) -> dict[tuple[int, int], int]:
        """By (other shard, currency): what it owes this one."""
        minor: defaultdict[tuple[int, int], int] = defaultdict(int)
        for moves in self.happened.values():
            for move in moves:
                source, destination = shard_of(move.source), shard_of(move.destination)
                if source == HERE != destination:
                    minor[destination, move.currency] += move.amount_minor
                elif destination == HERE != source:
                    minor[source, move.currency] -= move.amount_minor
        return dict(minor)

    def _hear_results(self, asked: Sequence[tuple[int, Moves]], packed: bytes) -> None:
        assert len(packed) == len(asked) * RESULT_BYTES, "not one result for each request"
        for (key, moves), fields in zip(asked, RESULT.iter_unpack(packed), strict=True):
            status, reason, _, repeat, index, _, time_us, minor = fields
            self.answers += 1
            if status == REFUSED and reason == RefusalReason.KEY_REUSED:
                assert self.outcomes[key][0] != moves, f"key {key} is refused its own request"
            elif status == COMPLETED or (status == REFUSED and is_recorded(RefusalReason(reason))):
                outcome = (status, reason, index, time_us, minor)
                self._hear_outcome(key, moves, outcome, repeat=bool(repeat))

    def _hear_outcome(self, key: int, moves: Moves, outcome: Outcomes, *, repeat: bool) -> None:
        if known := self.outcomes.get(key):
            assert known == (moves, outcome), f"key {key} had {known}, now {moves}, {outcome}"
            assert repeat, f"key {key} took effect twice"
        self.outcomes[key] = moves, outcome
        if outcome[0] == COMPLETED:
            self.happened[key] = moves

    def _hear_home(self, attempt: Attempt, answer: Answer) -> None:
        self.answers += 1
        self._hear_fate(attempt, Fate(answer.fate))
        status = {Outcome.COMMITTED: COMPLETED, Outcome.REFUSED: REFUSED}.get(
            Outcome(answer.outcome)
        )
        if status is None or (status == REFUSED and not is_recorded(RefusalReason(answer.reason))):
            return
        if status == COMPLETED and attempt.key not in self.outcomes:
            self.decided[attempt.transaction_id] = attempt
        fields = answer.refused_at, answer.time_us, answer.balance_minor, answer.decided_us
        outcome = (status, answer.reason, *fields, answer.transaction_id)
        # The home does not call it a repeat when the same transaction is asked about again.
        self._hear_outcome(attempt.key, attempt.moves, outcome, repeat=True)

    def _hear_fate(self, attempt: Attempt, fate: Fate) -> None:
        known = self.fates.setdefault(attempt.transaction_id, fate)
        assert known in (fate, Fate.UNDECIDED), f"{attempt} was {known!r} and is {fate!r}"
        self.fates[attempt.transaction_id] = fate
