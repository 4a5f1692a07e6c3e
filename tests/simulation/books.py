"""The naive model: a shard's books as a fold over its records, and what must be true of each.

It shares the records' layout with the shard node and nothing else: no reservation, no index, no
checkpoint. It is fed with every record as the ledger makes it, so it objects at the very step that
is wrong; what a crash took back it forgets by folding the log anew.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.packed import (
    ANSWER,
    BODY_BYTES,
    KEY_BYTES,
    MEMBER,
    MEMBER_BODY,
    VOTE,
    Outcome,
    Vote,
)
from cluster.refusals import RefusalReason, is_recorded
from shard_node.records import ACCOUNT, COMMITTED, EFFECTS, ENDED, GROUP, LEG, RecordKind
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from shard_node.ledger import Ledger
    from shard_node.log import MemoryLog
    from shard_node.transactions import Request

ACTIVE: Final = 1
FROZEN: Final = 2
CLOSED: Final = 3
NO_TRANSACTION: Final = bytes(16)

# By status, of the source and of the destination.
STATUS_REASONS: Final = {
    (FROZEN, False): RefusalReason.SOURCE_FROZEN,
    (FROZEN, True): RefusalReason.DESTINATION_FROZEN,
    (CLOSED, False): RefusalReason.SOURCE_CLOSED,
    (CLOSED, True): RefusalReason.DESTINATION_CLOSED,
}

# What the model judges; of others it has no opinion.
JUDGED: Final = frozenset(
    {
        *STATUS_REASONS.values(),
        RefusalReason.SOURCE_UNKNOWN,
        RefusalReason.DESTINATION_UNKNOWN,
        RefusalReason.INSUFFICIENT_FUNDS,
        RefusalReason.BALANCE_CAP_EXCEEDED,
    }
)


@dataclass
class Holder:
    """An account's attributes."""

    floor_minor: int
    cap_minor: int
    status: int


@dataclass(frozen=True)
class Known:
    """What a log has under a key: bodies, and why it was refused (0 = it was not)."""

    bodies: bytes
    reason: int
    transaction_id: bytes


@dataclass
class ShardBooks:
    """One shard's books.

    Attributes:
        holders: accounts by id.
        balances: by account and currency, minor units.
        clearing: by other shard and currency.
        keys: what is recorded under each.
        committed: of this home: transaction → its members.
        prepared, aborted: transactions that have such a record.
        legs: transaction → its legs here.
        posted: (body, whether incoming) → the record that posted it.
        recorded: key → the record that answers for it.
        sequence: of the latest record folded.
    """

    shard_id: int
    holders: dict[int, Holder] = field(default_factory=dict)
    balances: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    clearing: dict[tuple[int, int], int] = field(default_factory=lambda: defaultdict(int))
    keys: dict[bytes, Known] = field(default_factory=dict)
    committed: dict[bytes, Known] = field(default_factory=dict)
    prepared: set[bytes] = field(default_factory=set)
    aborted: set[bytes] = field(default_factory=set)
    legs: dict[bytes, list[tuple[bytes, bool]]] = field(default_factory=lambda: defaultdict(list))
    posted: dict[tuple[bytes, bool], int] = field(default_factory=dict)
    recorded: dict[bytes, int] = field(default_factory=dict)
    sequence: int = 0

    @classmethod
    def of(cls, shard_id: int, log: MemoryLog) -> ShardBooks:
        """The books as a log tells them."""
        books = cls(shard_id)
        books.fold(log, log.last.draft.last_sequence if log.last else 0)
        return books

    def must(self, holds: bool, what: str) -> None:  # noqa: FBT001 - it reads as an assertion
        """Raises unless it is so."""
        if not holds:
            raise Violation(f"shard {self.shard_id}: {what}")

    # --- records --------------------------------------------------------------------------------

    def take(self, ledger: Ledger) -> None:
        """Folds what the ledger has recorded since."""
        self.fold(ledger, ledger.sequence)

    def fold(self, reader: Ledger | MemoryLog, sequence: int) -> None:
        """Folds the records up to this one."""
        while self.sequence < sequence:
            self.sequence += 1
            record, _ = reader.read_transfer(self.sequence)
            self._fold(reader, record)

    def _fold(self, reader: Ledger | MemoryLog, record: bytes) -> None:
        kind, body = RecordKind(record[BODY_BYTES]), record[:BODY_BYTES]
        match kind:
            case RecordKind.TRANSFER:
                effects = EFFECTS.unpack_from(record, BODY_BYTES)
                self._record_key(body, Known(body, effects[1], NO_TRANSACTION))
                if not effects[1]:
                    self._post(body, incoming=False, minor_after=effects[3])
                    self._post(body, incoming=True, minor_after=effects[4])
            case RecordKind.ACCOUNT_OPENED:
                account_id, floor, cap, _, _, _, status = ACCOUNT.unpack(body)
                self.holders[account_id] = Holder(floor, cap, status)
            case RecordKind.ACCOUNT_STATUS_CHANGED:
                account_id, _, _, _, _, _, status = ACCOUNT.unpack(body)
                self.holders[account_id].status = status
            case RecordKind.GROUP:
                _, reason, _, size, offset, _, _ = GROUP.unpack_from(record, BODY_BYTES)
                bodies = reader.read_heap(self.sequence, offset, size * BODY_BYTES)
                self._record_key(body, Known(bodies, reason, NO_TRANSACTION))
            case RecordKind.COMMITTED:
                self._fold_committed(reader, record)
            case RecordKind.LEG_INCOMING | RecordKind.LEG_OUTGOING:
                self._fold_leg(record, incoming=kind is RecordKind.LEG_INCOMING)
            case RecordKind.PREPARED:
                self.prepared.add(body[:16])
            case RecordKind.ABORTED:
                self.aborted.add(ENDED.unpack_from(record)[0])
            case _:
                pass  # an epoch, or decisions forgotten

    def _fold_committed(self, reader: Ledger | MemoryLog, record: bytes) -> None:
        _, size, _, offset, transaction_id, _ = COMMITTED.unpack_from(record, BODY_BYTES)
        bodies = record[:BODY_BYTES]
        if size:
            members = reader.read_heap(self.sequence, offset, size * MEMBER.size)
            bodies = b"".join(fields[0] for fields in MEMBER.iter_unpack(members))
        known = Known(bodies, 0, transaction_id)
        self._record_key(bodies, known)
        self.must(transaction_id not in self.committed, "a transaction was committed twice")
        self.must(transaction_id not in self.aborted, "a transaction was aborted, then committed")
        self.committed[transaction_id] = known

    def _fold_leg(self, record: bytes, *, incoming: bool) -> None:
        body = record[:BODY_BYTES]
        _, _, peer, minor_after, _, _, _, transaction_id, _ = LEG.unpack_from(record, BODY_BYTES)
        self._post(body, incoming=incoming, minor_after=minor_after)
        fields = MEMBER_BODY.unpack(body)
        if peer != self.shard_id:
            self.clearing[peer, fields[6]] += -fields[3] if incoming else fields[3]
        if transaction_id != NO_TRANSACTION:
            self.must(transaction_id not in self.aborted, "a leg of an aborted transaction")
            self.legs[transaction_id].append((body, incoming))

    def _record_key(self, body: bytes, known: Known) -> None:
        key = body[:KEY_BYTES]
        self.must(key not in self.keys, "two records answer for one key")
        self.keys[key] = known
        self.recorded[key] = self.sequence

    def _post(self, body: bytes, *, incoming: bool, minor_after: int) -> None:
        _, source, destination, amount, _, _, currency, *_ = MEMBER_BODY.unpack(body)
        account_id = destination if incoming else source
        self.must((body, incoming) not in self.posted, "one leg was posted twice")
        self.posted[body, incoming] = self.sequence
        holder, place = self.holders[account_id], (account_id, currency)
        self.balances[place] += amount if incoming else -amount
        minor = self.balances[place]
        self.must(minor == minor_after, f"account {account_id} has {minor}, not {minor_after}")
        self.must(minor >= holder.floor_minor, f"account {account_id} was overdrawn: {minor}")
        self.must(minor <= holder.cap_minor, f"account {account_id} is over its cap: {minor}")

    # --- judgements -----------------------------------------------------------------------------

    def check_vote(self, ledger: Ledger, request: Request, vote: bytes) -> None:
        """A participant's NO must be true of what is posted, whatever is in doubt."""
        kind, reason, index = VOTE.unpack(vote)
        if kind == Vote.NO:
            self.take(ledger)
            self._check_refusal(request, reason, index)

    def check_decision(
        self, ledger: Ledger, request: Request, vote: tuple[int, int, int], answer: bytes
    ) -> None:
        """So must a refusal that the home found itself."""
        _, outcome, reason, _, repeat, index, *_ = ANSWER.unpack(answer)
        is_new = outcome == Outcome.REFUSED and not repeat and is_recorded(RefusalReason(reason))
        if is_new and (Vote.NO, reason, index) != vote:
            self._check_refusal(request, reason, index)

    def _check_refusal(self, request: Request, reason: int, index: int) -> None:
        if reason not in JUDGED:
            return
        found = list(self._refusals(request.members))
        what = f"refused for {RefusalReason(reason).name} of {index}, but there is only {found}"
        self.must((reason, index) in found, what)

    def _refusals(self, members: bytes) -> list[tuple[int, int]]:
        """All that speaks against legs here, by what is posted alone."""
        found: list[tuple[int, int]] = []
        course: dict[tuple[int, int], int] = {}
        for body, *shards in MEMBER.iter_unpack(members):
            _, source, destination, amount, _, _, currency, _, _, index, _ = MEMBER_BODY.unpack(
                body
            )
            for shard, account_id, change in zip(
                shards, (source, destination), (-amount, amount), strict=True
            ):
                if shard != self.shard_id:
                    continue
                holder, place = self.holders.get(account_id), (account_id, currency)
                incoming = change > 0
                if holder is None:
                    unknown = RefusalReason.SOURCE_UNKNOWN, RefusalReason.DESTINATION_UNKNOWN
                    found.append((unknown[incoming], index))
                    continue
                if reason := STATUS_REASONS.get((holder.status, incoming)):
                    found.append((reason, index))
                    continue
                minor = course[place] = course.get(place, self.balances[place]) + change
                if not incoming and minor < holder.floor_minor:
                    found.append((RefusalReason.INSUFFICIENT_FUNDS, index))
                if incoming and minor > holder.cap_minor:
                    found.append((RefusalReason.BALANCE_CAP_EXCEEDED, index))
        return found

    def compare(self, ledger: Ledger) -> None:
        """The ledger's memory must say the same, and its own books must balance (promise 1)."""
        sums: dict[int, int] = defaultdict(int)
        for account_id in self.holders:
            account = ledger.memory.account(account_id)
            self.must(account is not None, f"account {account_id} is lost")
            assert account
            for currency, balance in account.balances.items():
                naive = self.balances[account_id, currency]
                what = f"account {account_id} has {balance.minor}, the log says {naive}"
                self.must(balance.minor == naive, what)
                sums[currency] += balance.minor
        for (peer, currency), position in ledger.clearing.positions.items():
            naive = self.clearing[peer, currency]
            self.must(position == naive, f"clearing {peer}: {position}, the log says {naive}")
            sums[currency] += position
        self.must(not any(sums.values()), f"its books do not balance: {dict(sums)}")
