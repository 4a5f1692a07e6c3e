"""The words of a history: what clients asked and heard, and what the logs say for ever.

All of it is about one currency. Times of questions and answers are nanoseconds of one monotonic
clock that all clients share (`invoked_ns`, `answered_ns`); the cluster's own times are microseconds
(`_us`). Nothing here decides anything.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final, NamedTuple

Key = tuple[int, bytes]
"""The first source and the transfer's or group's id."""


class Move(NamedTuple):
    """A transfer's body, as far as it can be told from what the log has."""

    source: int
    destination: int
    amount_minor: int
    reference: int = 0


class Fate(enum.Enum):
    """What an answer said became of a key."""

    COMPLETED = "completed"
    COMMITTED = "committed, posting"
    REFUSED = "refused, on record"
    REUSED = "refused: the key has another body"
    NOTHING = "a definite fault"
    """Or a refusal that leaves no record: nothing of this try happened, or ever will."""
    UNKNOWN = "an indefinite fault, or no answer"


@dataclass(frozen=True, slots=True)
class Try:
    """One asking for a transfer or a group, and its answer.

    Attributes:
        moves: of a transfer one; of a group all, in order.
        reason, member: with REFUSED.
        repeat, time_us, balance_minor: as answered, with COMPLETED, COMMITTED and REFUSED.
    """

    key: Key
    moves: tuple[Move, ...]
    invoked_ns: int
    answered_ns: int
    fate: Fate
    reason: int = 0
    member: int = 0
    repeat: bool = False
    time_us: int = 0
    balance_minor: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """An answer about one account: what it had at an instant, or what moved up to it.

    Attributes:
        from_us, to_us: what moved after the first and up to the second, or the balance then.
        is_now: it was asked for now, so it must show all that had been answered before.
        balance_minor, latest_us: at `to_us`; None = not told.
        flows: incoming, outgoing, and how many of each; None = not told. Counts of −1 = not told.
    """

    account_id: int
    invoked_ns: int
    answered_ns: int
    from_us: int
    to_us: int
    is_now: bool
    balance_minor: int | None = None
    latest_us: int | None = None
    flows: tuple[int, int, int, int] | None = None


class Line(NamedTuple):
    """An entry of a statement."""

    log_id: int
    sequence: int
    time_us: int
    change_minor: int
    balance_minor: int
    key: Key
    member: int


@dataclass(frozen=True, slots=True)
class Statement:
    """The latest entries of an account, oldest first, as they were read."""

    account_id: int
    invoked_ns: int
    answered_ns: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """A transfer looked up by its name; `fate` None = nothing is on record."""

    key: Key
    invoked_ns: int
    answered_ns: int
    fate: Fate | None
    first: Move | None = None
    reason: int = 0
    log_id: int = 0
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Audit:
    """What shards said to owe each other of what was decided before an instant.

    Attributes:
        positions: (shard, other shard) → by the first's books.
        balanced: whether it said so.
    """

    as_of_us: int
    positions: dict[tuple[int, int], int]
    balanced: bool


@dataclass(slots=True)
class History:
    """Everything that clients asked and heard, in no order that matters."""

    tries: list[Try] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)
    books_balanced: list[bool] = field(default_factory=list)

    @property
    def operations(self) -> int:
        """How many questions."""
        reads = len(self.looks) + len(self.statements) + len(self.lookups)
        return len(self.tries) + reads + len(self.audits) + len(self.books_balanced)


class Posting(NamedTuple):
    """One leg in a log.

    Attributes:
        log_id, sequence: the name of its record.
        decided_us: when its transfer was decided.
        member: its place in its group.
        peer_log: where the other leg is.
    """

    log_id: int
    sequence: int
    time_us: int
    decided_us: int
    account_id: int
    change_minor: int
    balance_minor: int
    key: Key
    member: int
    peer_log: int


class Outcome(NamedTuple):
    """What a log has under a key: committed (`reason` 0) or refused."""

    key: Key
    log_id: int
    sequence: int
    time_us: int
    moves: tuple[Move, ...]
    reason: int = 0
    member: int = 0


@dataclass(slots=True)
class Ledger:
    """All logs.

    Attributes:
        postings: of each log in its order.
        outcomes: likewise.
        floors: account → the lowest balance that it may have.
        in_doubt: transactions prepared in some log and neither posted nor aborted there.
    """

    postings: list[Posting] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    floors: dict[int, int] = field(default_factory=dict)
    in_doubt: list[bytes] = field(default_factory=list)


class Rule(enum.Enum):
    """What a history can break."""

    CHAIN = "a balance does not follow from the one before"
    FLOOR = "an account was overdrawn"
    TIME = "time went back on an account"
    ONCE = "something took effect twice"
    ATOMIC = "something is half done"
    MOVED = "what was refused has entries"
    IN_DOUBT = "something was left in doubt"
    LOST = "what was acknowledged is not on record"
    UNASKED = "something is on record that nobody asked for"
    NOTHING = "what was said not to have happened is on record"
    OPEN = "nobody found out what became of a key"
    ANSWER = "an answer does not agree with the ledger"
    GROUNDLESS = "a refusal for funds that were there"
    ORDER = "the ledger's order is not that of real time"
    STALE = "a read does not show what had been answered"
    BACK = "a read shows less than an earlier one"
    FUTURE = "a read shows what nobody had asked for yet"
    BOOKS = "the books between shards do not agree"


AT_REST: Final = frozenset({Rule.ATOMIC, Rule.IN_DOUBT, Rule.OPEN})
"""What can only be judged once nothing is under way any more."""


class Violation(NamedTuple):
    """A promise that a history breaks, and how."""

    rule: Rule
    what: str
