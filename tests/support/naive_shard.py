"""A whole shard as naively as it can be said: transfers, groups, and its half of transactions.

As `naive_ledger`, whose entries, folds and words it uses: no arithmetic, no row and no table is
shared with the shard node. What is reserved is a fold over what is prepared; the position with
another shard is a fold over the legs whose other side lives there; what has ended is never
forgotten, so nothing may be asked of it that the contract allows a shard to have forgotten.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

from cluster.packed import DifferingField, Fate, Outcome, Vote
from cluster.refusals import RefusalReason, RetryClass, retry_class
from shard_node.transactions import DEADLINE_AHEAD_MAX_US
from tests.support.crossing import HERE, NOBODY, Answer, Attempt, GroupResult, Move, shard_of
from tests.support.naive_ledger import (
    ACTIVE,
    CLOSED,
    COMPLETED,
    HOUR_US,
    REFUSED,
    Ask,
    Entry,
    NaiveLedger,
    Result,
    first_difference,
)

BUSY = GroupResult(4, 3)
"""A fault, UNAVAILABLE and definite: only what is in doubt stands in the way."""

Key = tuple[bytes, int]
"""Transfer or group id, and the first source."""


class NaiveLeg(NamedTuple):
    """One account's side of the transfer `at` a place of its group; it pays when below zero."""

    at: int
    account_id: int
    currency: int
    amount_minor: int
    import_us: int
    peer: int
    ask: Ask


class Known(NamedTuple):
    """What is recorded under a key."""

    moves: tuple[Move, ...]
    is_group: bool
    reason: int
    refused_at: int
    time_us: int
    balance_minor: int
    transaction_id: bytes = NOBODY
    decided_us: int = 0


class Held(NamedTuple):
    """What is prepared."""

    attempt: Attempt
    legs: list[NaiveLeg]


@dataclass
class NaiveShard(NaiveLedger):
    """A shard among others.

    Attributes:
        known: what is recorded, by key.
        prepared: by transaction id.
        decided: when it was decided, by transaction id, until it is posted everywhere.
        ended: when it was decided, 0 = aborted, by transaction id, for ever.
        crossed: (other shard, currency, amount that an account here was paid) for each such leg.
    """

    known: dict[Key, Known] = field(default_factory=dict)
    prepared: dict[bytes, Held] = field(default_factory=dict)
    decided: dict[bytes, int] = field(default_factory=dict)
    ended: dict[bytes, int] = field(default_factory=dict)
    crossed: list[tuple[int, int, int]] = field(default_factory=list)

    def copy(self) -> Self:
        """As it is now."""
        return replace(
            self,
            accounts={each: replace(account) for each, account in self.accounts.items()},
            entries=list(self.entries),
            known=dict(self.known),
            prepared=dict(self.prepared),
            decided=dict(self.decided),
            ended=dict(self.ended),
            crossed=list(self.crossed),
        )

    # --- commands on one shard ------------------------------------------------------------------

    def change_status(self, account_id: int, status: int) -> bool:
        """As in `NaiveLedger`; what is prepared keeps its accounts open."""
        held = {leg.account_id for each in self.prepared.values() for leg in each.legs}
        if status == CLOSED and account_id in held:
            return False
        return super().change_status(account_id, status)

    def transfer(self, ask: Ask, stamp_us: int) -> Result:
        """Decides a plain transfer: a group of one, but for how it is recorded and told."""
        fields = ask.source, ask.destination, ask.amount_minor, ask.currency, ask.metadata
        move = Move(*fields, ask.reference, ask.type, ask.import_time_us)
        told = self.group(ask.transfer_id, (move,), stamp_us, is_group=False)
        return Result(*told[:4], time_us=told.time_us, balance_minor=told.balance_minor)

    def group(
        self, group_id: bytes, moves: tuple[Move, ...], stamp_us: int, *, is_group: bool = True
    ) -> GroupResult:
        """Decides a group whose accounts are all here."""
        wrong = [(reason, at) for at, move in enumerate(moves) for reason in _malformed(move)]
        if wrong:
            reason, index = min(wrong)
            return GroupResult(REFUSED, reason, refused_at=index)
        key = group_id, moves[0].source
        if known := self.known.get(key):
            if differing := _difference(known, moves, is_group=is_group):
                return GroupResult(REFUSED, RefusalReason.KEY_REUSED, differing)
            status = REFUSED if known.reason else COMPLETED
            told = GroupResult(status, known.reason, repeat=1, refused_at=known.refused_at)
            return told._replace(time_us=known.time_us, balance_minor=known.balance_minor)
        legs = _legs_of(group_id, moves)
        refusal, busy = self._check(legs, stamp_us)
        if refusal:
            return self._refuse(key, moves, refusal, stamp_us, is_group=is_group)
        if busy:
            return BUSY
        self.sequence += 1
        time_us = self._time_of(legs[0], stamp_us)
        for leg in legs:
            self.sequence += is_group
            self._post_leg(leg, stamp_us)
        minor = self.balance(moves[0].source, moves[0].currency)
        self.known[key] = Known(moves, is_group, 0, 0, time_us, minor)
        return GroupResult(COMPLETED, time_us=time_us, balance_minor=minor)

    # --- commands of transactions ---------------------------------------------------------------

    def prepare(self, it: Attempt, stamp_us: int) -> tuple[int, int, int]:
        """A participant's vote."""
        if it.transaction_id in self.prepared:
            return Vote.YES, 0, 0
        too_late = it.transaction_id in self.ended or it.deadline_us <= stamp_us
        if too_late or it.deadline_us > stamp_us + DEADLINE_AHEAD_MAX_US:
            return Vote.LATE, 0, 0
        legs = _legs_of(it.transfer_id, it.moves)
        refusal, busy = self._check(legs, stamp_us)
        if refusal:
            return Vote.NO, *refusal
        if busy:
            return Vote.BUSY, 0, 0
        self.sequence += 1
        self.prepared[it.transaction_id] = Held(it, legs)
        return Vote.YES, 0, 0

    def commit_home(self, it: Attempt, vote: tuple[int, int, int], stamp_us: int) -> Answer:
        """The home's decision."""
        key, id_ = (it.transfer_id, it.moves[0].source), it.transaction_id
        if known := self.known.get(key):
            return self._answer_known(it, known)
        legs = _legs_of(it.transfer_id, it.moves)
        refusal, busy = self._check(legs, stamp_us)
        is_over = id_ in self.ended or it.deadline_us <= stamp_us
        if vote[0] == Vote.NO or (refusal and not is_over):
            told = (RefusalReason(vote[1]), vote[2]) if vote[0] == Vote.NO else None
            reason, index = min(each for each in (told, refusal) if each)
            if retry_class(reason) is not RetryClass.NEW_KEY:
                self.abort(id_)
                return Answer(Fate.ABORTED, Outcome.REFUSED, reason, refused_at=index)
            refused = self._refuse(key, it.moves, (reason, index), stamp_us, is_group=it.is_group)
            answer = Answer(Fate.ABORTED, Outcome.REFUSED, reason, refused_at=index)
            return answer._replace(time_us=refused.time_us, balance_minor=refused.balance_minor)
        if is_over or busy:
            self.abort(id_)
            return Answer(Fate.ABORTED, Outcome.NONE)
        self.sequence += 1
        time_us = self._time_of(legs[0], stamp_us)
        self._post_legs(legs, stamp_us)
        minor = self.balance(it.moves[0].source, it.moves[0].currency)
        self.decided[id_] = stamp_us
        self.known[key] = Known(it.moves, it.is_group, 0, 0, time_us, minor, id_, stamp_us)
        return self._committed(Fate.COMMITTED, self.known[key], repeat=0)

    def commit_prepared(self, it: Attempt, decided_us: int, stamp_us: int) -> None:
        """Posts what is prepared."""
        held = self.prepared.pop(it.transaction_id, None)
        if held:
            self.ended[it.transaction_id] = decided_us
            self._post_legs(held.legs, stamp_us)

    def abort(self, transaction_id: bytes) -> None:
        """Ends what has not ended, without effect."""
        if transaction_id not in self.decided and transaction_id not in self.ended:
            self.prepared.pop(transaction_id, None)
            self.ended[transaction_id] = 0
            self.sequence += 1

    def resolve(self, it: Attempt, stamp_us: int) -> tuple[int, int]:
        """Tells a fate, and makes it one when it is too late for any other."""
        id_ = it.transaction_id
        if id_ in self.decided:
            return Fate.COMMITTED, self.decided[id_]
        if id_ in self.ended:
            decided_us = self.ended[id_]
            return (Fate.COMMITTED if decided_us else Fate.ABORTED), decided_us
        if it.deadline_us > stamp_us or id_ in self.prepared:
            return Fate.UNDECIDED, 0
        self.abort(id_)
        return Fate.ABORTED, 0

    def finish(self, it: Attempt) -> None:
        """Forgets a decision."""
        if it.transaction_id in self.decided:
            self.ended[it.transaction_id] = self.decided.pop(it.transaction_id)
            self.sequence += 1

    # --- answers --------------------------------------------------------------------------------

    def reserved(self, account_id: int, currency: int) -> tuple[int, int]:
        """What must stay below and above a balance, for all that is prepared: (out, in)."""
        outgoing = incoming = 0
        for held in self.prepared.values():
            course, points = 0, [0]
            for leg in held.legs:
                if (leg.account_id, leg.currency) == (account_id, currency):
                    course += leg.amount_minor
                    points.append(course)
            outgoing, incoming = outgoing - min(points), incoming + max(points)
        return outgoing, incoming

    def positions(self) -> dict[tuple[int, int], int]:
        """What other shards owe, by (shard, currency)."""
        owed: Counter[tuple[int, int]] = Counter()
        for peer, currency, amount_minor in self.crossed:
            owed[peer, currency] -= amount_minor
        return dict(owed)

    # --- small parts ----------------------------------------------------------------------------

    def _check(
        self, legs: Sequence[NaiveLeg], stamp_us: int
    ) -> tuple[tuple[RefusalReason, int] | None, bool]:
        """The refusal of highest precedence with its index, and whether reservations forbid it."""
        found: list[tuple[RefusalReason, int]] = []
        course: Counter[tuple[int, int]] = Counter()
        busy = False
        for leg in legs:
            found += [(reason, leg.at) for reason in self._speaks_against(leg, stamp_us)]
            account = self.accounts.get(leg.account_id)
            if account is None:
                continue
            place = leg.account_id, leg.currency
            course[place] += leg.amount_minor
            minor = self.balance(*place) + course[place]
            outgoing, incoming = self.reserved(*place)
            if leg.amount_minor < 0 and minor < account.floor_minor:
                found.append((RefusalReason.INSUFFICIENT_FUNDS, leg.at))
            if leg.amount_minor > 0 and minor > account.cap_minor:
                found.append((RefusalReason.BALANCE_CAP_EXCEEDED, leg.at))
            busy |= leg.amount_minor < 0 and minor - outgoing < account.floor_minor
            busy |= leg.amount_minor > 0 and minor + incoming > account.cap_minor
        return (min(found), False) if found else (None, busy)

    def _speaks_against(self, leg: NaiveLeg, stamp_us: int) -> Iterator[RefusalReason]:
        paid = leg.amount_minor > 0
        account = self.accounts.get(leg.account_id)
        if account is None:
            yield RefusalReason.DESTINATION_UNKNOWN if paid else RefusalReason.SOURCE_UNKNOWN
        elif account.status == CLOSED:
            yield RefusalReason.DESTINATION_CLOSED if paid else RefusalReason.SOURCE_CLOSED
        elif account.status != ACTIVE:
            yield RefusalReason.DESTINATION_FROZEN if paid else RefusalReason.SOURCE_FROZEN
        if leg.import_us > stamp_us:
            yield RefusalReason.IMPORT_IN_FUTURE
        elif leg.import_us and self._time_of(leg, stamp_us) - leg.import_us > HOUR_US:
            yield RefusalReason.IMPORT_TOO_OLD

    def _time_of(self, leg: NaiveLeg, stamp_us: int) -> int:
        return self._posting_time_us(leg.account_id, leg.ask, stamp_us)

    def _post_legs(self, legs: Sequence[NaiveLeg], stamp_us: int) -> None:
        for leg in legs:
            self.sequence += 1
            self._post_leg(leg, stamp_us)

    def _post_leg(self, leg: NaiveLeg, stamp_us: int) -> None:
        minor = self.balance(leg.account_id, leg.currency) + leg.amount_minor
        place = leg.account_id, leg.currency, leg.amount_minor, minor
        self.entries.append(Entry(self._time_of(leg, stamp_us), self.sequence, *place, leg.ask))
        if leg.peer != HERE:
            self.crossed.append((leg.peer, leg.currency, leg.amount_minor))

    def _refuse(
        self,
        key: Key,
        moves: tuple[Move, ...],
        refusal: tuple[RefusalReason, int],
        stamp_us: int,
        *,
        is_group: bool,
    ) -> GroupResult:
        reason, index = refusal
        if retry_class(reason) is not RetryClass.NEW_KEY:
            return GroupResult(REFUSED, reason, refused_at=index)
        self.sequence += 1
        minor = self.balance(moves[0].source, moves[0].currency)
        self.known[key] = Known(moves, is_group, reason, index, stamp_us, minor)
        told = GroupResult(REFUSED, reason, refused_at=index)
        return told._replace(time_us=stamp_us, balance_minor=minor)

    def _answer_known(self, it: Attempt, known: Known) -> Answer:
        if differing := _difference(known, it.moves, is_group=it.is_group):
            return Answer(Fate.ABORTED, Outcome.REFUSED, RefusalReason.KEY_REUSED, differing)
        if known.reason:
            answer = Answer(Fate.ABORTED, Outcome.REFUSED, known.reason, repeat=1)
            answer = answer._replace(refused_at=known.refused_at, time_us=known.time_us)
            return answer._replace(balance_minor=known.balance_minor)
        mine = known.transaction_id == it.transaction_id
        return self._committed(Fate.COMMITTED if mine else Fate.ABORTED, known, repeat=not mine)

    def _committed(self, fate: Fate, known: Known, *, repeat: int) -> Answer:
        return Answer(
            fate,
            Outcome.COMMITTED,
            repeat=int(repeat),
            unposted=int(known.transaction_id in self.decided),
            time_us=known.time_us,
            balance_minor=known.balance_minor,
            decided_us=known.decided_us,
            transaction_id=known.transaction_id,
        )


def _malformed(move: Move) -> Iterator[RefusalReason]:
    """What a transfer is refused for whoever asks, and whenever."""
    if move.amount_minor <= 0:
        yield RefusalReason.BAD_AMOUNT
    if move.source == move.destination:
        yield RefusalReason.SAME_ACCOUNT
    if not move.currency:
        yield RefusalReason.UNKNOWN_CURRENCY


def _ask_of(transfer_id: bytes, move: Move) -> Ask:
    fields = move.source, move.destination, move.amount_minor, move.currency, move.type
    return Ask(transfer_id, *fields, move.reference, move.metadata, move.import_us)


def _legs_of(transfer_id: bytes, moves: Sequence[Move]) -> list[NaiveLeg]:
    """The legs of accounts of this shard, in the order in which they apply."""
    legs = []
    for index, move in enumerate(moves):
        ask = _ask_of(transfer_id, move)
        sides = (
            (move.source, -move.amount_minor, move.destination),
            (move.destination, move.amount_minor, move.source),
        )
        for account_id, amount, other in sides:
            if shard_of(account_id) == HERE:
                what = account_id, move.currency, amount, move.import_us
                legs.append(NaiveLeg(index, *what, shard_of(other), ask))
    return legs


def _difference(known: Known, moves: tuple[Move, ...], *, is_group: bool) -> int:
    """The first field in which a request differs from what is recorded; 0 = none."""
    if known.is_group != is_group or len(known.moves) != len(moves):
        return DifferingField.TRANSFERS
    for was, now in zip(known.moves, moves, strict=True):
        if differing := first_difference(_ask_of(b"", was), _ask_of(b"", now)):
            return differing
        if was.source != now.source:
            return DifferingField.SOURCE_ACCOUNT_ID
    return 0
