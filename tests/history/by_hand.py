"""Histories written by hand, small enough to see what is wrong with them, or that nothing is."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tests.history.history import (
    Audit,
    Fate,
    History,
    Key,
    Ledger,
    Line,
    Look,
    Lookup,
    Move,
    Outcome,
    Posting,
    Statement,
    Try,
)

BANK, ANN, BOB, EVE = 1, 2, 3, 4
LOG_OF: Final = {BANK: 1, ANN: 1, BOB: 2, EVE: 1}
FUNDS: Final = 13  # of `doubloon.v1.RefusalReason`


@dataclass
class Story:
    """Builds a history and its ledger, one sentence at a time.

    Times of clients are given as (invoked, answered); every sentence's stamp is one later than the
    one before, in whichever log.
    """

    history: History = field(default_factory=History)
    ledger: Ledger = field(default_factory=lambda: Ledger(floors={BANK: -1_000}))
    balances: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    sequences: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    stamp_us: int = 0

    def moves(self, name: str, *moves: tuple[int, int, int], asked: tuple[int, int]) -> None:
        """A transfer, or a group, is asked for, committed and answered."""
        key = self.commits(name, *moves)
        last = max(self.place(key, moves[0][0]), key=lambda each: each.sequence)
        self.tries(
            name, *moves, asked=asked, time_us=last.time_us, balance_minor=last.balance_minor
        )

    def commits(self, name: str, *moves: tuple[int, int, int]) -> Key:
        """The logs say that it happened."""
        key, made = self._key(name, moves), tuple(Move(*each) for each in moves)
        self.stamp_us += 1
        home = LOG_OF[moves[0][0]]
        self.sequences[home] += 1
        outcome = Outcome(key, home, self.sequences[home], self.stamp_us, made)
        self.ledger.outcomes.append(outcome)
        for member, move in enumerate(made):
            for account, change, other in (
                (move.source, -move.amount_minor, move.destination),
                (move.destination, move.amount_minor, move.source),
            ):
                log_id = LOG_OF[account]
                self.sequences[log_id] += 1
                self.balances[account] += change
                self.ledger.postings.append(
                    Posting(
                        log_id, self.sequences[log_id], self.stamp_us, self.stamp_us, account,
                        change, self.balances[account], key, member, LOG_OF[other],
                    )
                )  # fmt: skip
        return key

    def refuses(self, name: str, move: tuple[int, int, int], asked: tuple[int, int]) -> None:
        """A transfer is asked for, and refused for lack of funds."""
        self.stamp_us += 1
        home = LOG_OF[move[0]]
        self.sequences[home] += 1
        key, balance = self._key(name, [move]), self.balances[move[0]]
        self.ledger.outcomes.append(
            Outcome(key, home, self.sequences[home], self.stamp_us, (Move(*move),), FUNDS)
        )
        self.tries(
            name, move, asked=asked, fate=Fate.REFUSED, reason=FUNDS,
            time_us=self.stamp_us, balance_minor=balance,
        )  # fmt: skip

    def tries(
        self, name: str, *moves: tuple[int, int, int], asked: tuple[int, int], **answer: Any
    ) -> None:
        """Somebody asks, and hears something."""
        key, made = self._key(name, moves), tuple(Move(*each) for each in moves)
        answer = {"fate": Fate.COMPLETED, **answer}
        self.history.tries.append(Try(key, made, *asked, **answer))

    def looks(self, account: int, asked: tuple[int, int], **told: Any) -> None:
        """Somebody reads an account's balance, now."""
        told = {"to_us": self.stamp_us, "from_us": 0, "is_now": True, **told}
        if not told.keys() & {"flows", "balance_minor"}:
            told["balance_minor"] = self.balances[account]
        self.history.looks.append(Look(account, *asked, **told))

    def states(self, account: int, asked: tuple[int, int], **changes: Any) -> None:
        """Somebody reads an account's statement; `changes` are made to its last line."""
        lines = [
            Line(
                each.log_id,
                each.sequence,
                each.time_us,
                each.change_minor,
                each.balance_minor,
                each.key,
                each.member,
            )
            for each in self.ledger.postings
            if each.account_id == account
        ]
        lines[-1] = lines[-1]._replace(**changes)
        self.history.statements.append(Statement(account, *asked, tuple(lines)))

    def looks_up(self, source: int, name: str, asked: tuple[int, int], **told: Any) -> None:
        """Somebody looks a transfer up by its name, and finds it."""
        outcome = self.outcome(source, name)
        told = {
            "fate": Fate.REFUSED if outcome.reason else Fate.COMPLETED,
            "first": outcome.moves[0],
            "reason": outcome.reason,
            "log_id": outcome.log_id,
            "sequence": outcome.sequence,
            **told,
        }
        self.history.lookups.append(Lookup(outcome.key, *asked, **told))

    def finds_nothing(self, source: int, name: str, asked: tuple[int, int]) -> None:
        """Somebody looks a transfer up by its name, and it is not there."""
        self.history.lookups.append(Lookup((source, _id(name)), *asked, None))

    def audits(self, position: int, other: int, **told: Any) -> None:
        """Somebody audits everything up to now: what log 2 owes log 1, and the other way round."""
        told = {"as_of_us": self.stamp_us + 1, "balanced": True, **told}
        self.history.audits.append(Audit(positions={(1, 2): position, (2, 1): other}, **told))

    def outcome(self, source: int, name: str) -> Outcome:
        """What the logs have under a name."""
        return next(each for each in self.ledger.outcomes if each.key == (source, _id(name)))

    def place(self, key: Key, account: int) -> list[Posting]:
        """An account's postings under a key."""
        postings = self.ledger.postings
        return [each for each in postings if (each.key, each.account_id) == (key, account)]

    def last_try(self, **changes: Any) -> None:
        """Changes what was heard last."""
        self.history.tries[-1] = replace(self.history.tries[-1], **changes)

    def last_posting(self, **changes: Any) -> None:
        """Changes what was posted last."""
        self.ledger.postings[-1] = self.ledger.postings[-1]._replace(**changes)

    def _key(self, name: str, moves: Any) -> Key:
        return moves[0][0], _id(name)


def _id(name: str) -> bytes:
    return name.encode().rjust(16, b"\0")
