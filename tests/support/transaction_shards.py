"""Shards that do two-phase commit in memory, naively: what coordinators are tested against.

Written from the packed contract alone and on purpose unlike the ledger: dictionaries, no log, one
currency. `tests.support.memory_shards` is the way to them.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from cluster.clock import HybridClock
from cluster.packed import (
    ANSWER,
    HEADER,
    KEY_BYTES,
    MEMBER,
    MEMBER_BODY,
    DifferingField,
    Fate,
    Outcome,
    Vote,
)
from cluster.refusals import RefusalReason, is_recorded
from cluster.topology import Topology
from doubloon.v1 import coordinator_service_pb2 as coordinator_pb2

START_US = 1_700_000_000_000_000
NO_ID = bytes(16)


class LoopClock:
    """A wall clock that follows the running loop, so that virtual time moves both."""

    def now_us(self) -> int:
        return START_US + round(asyncio.get_running_loop().time() * 1e6)


@dataclass(frozen=True)
class MemberRow:
    """One transfer of a transaction."""

    body: bytes
    source: int
    destination: int
    amount_minor: int
    metadata_bytes: int
    source_shard: int
    destination_shard: int


@dataclass(frozen=True)
class Order:
    """A transaction as a message brings it."""

    transaction_id: bytes
    deadline_us: int
    first_source: int
    home: int
    rows: tuple[MemberRow, ...]
    metadata: bytes

    @property
    def key(self) -> bytes:
        return self.rows[0].body[:16] + self.first_source.to_bytes(8, "little")

    @property
    def shards(self) -> tuple[int, ...]:
        """The participants."""
        named = (s for row in self.rows for s in (row.source_shard, row.destination_shard))
        return tuple(s for s in dict.fromkeys(named) if s != self.home)


def read_orders(headers: bytes, members: bytes, metadata: bytes) -> list[Order]:
    rows = []
    for body, source_shard, destination_shard in MEMBER.iter_unpack(members):
        _, source, destination, amount, _, _, _, length, *_ = MEMBER_BODY.unpack(body)
        rows.append(
            MemberRow(body, source, destination, amount, length, source_shard, destination_shard)
        )
    orders = []
    at = metadata_at = 0
    for transaction_id, deadline_us, first_source, home, count in HEADER.iter_unpack(headers):
        own = tuple(rows[at : at + count])
        end = metadata_at + sum(row.metadata_bytes for row in own)
        own_metadata = metadata[metadata_at:end]
        orders.append(Order(transaction_id, deadline_us, first_source, home, own, own_metadata))
        at, metadata_at = at + count, end
    assert (at, metadata_at) == (len(rows), len(metadata)), "headers say what follows"
    return orders


@dataclass
class Known:
    """What is recorded under a key."""

    order: Order
    reason: int
    index: int
    time_us: int
    balance_minor: int
    decided_us: int


@dataclass
class TransactionShard:
    """One shard; what it keeps survives whatever happens to a coordinator.

    Attributes:
        balances: by account; whoever is missing has not been opened.
        frozen: accounts.
        prepared: id → (order, since).
        decided: id → (order, decided).
        ended: ids that will not be prepared, or committed, any more.
        posted: (transaction id, account, change), in order.
    """

    shard_id: int
    clock: HybridClock
    balances: dict[int, int] = field(default_factory=dict)
    frozen: set[int] = field(default_factory=set)
    prepared: dict[bytes, tuple[Order, int]] = field(default_factory=dict)
    decided: dict[bytes, tuple[Order, int]] = field(default_factory=dict)
    ended: set[bytes] = field(default_factory=set)
    keys: dict[bytes, Known] = field(default_factory=dict)
    posted: list[tuple[bytes, int, int]] = field(default_factory=list)

    # --- the contract ---------------------------------------------------------------------------

    def prepare(self, order: Order) -> tuple[int, int, int]:
        transaction_id, now_us = order.transaction_id, self.clock.last_us
        if transaction_id in self.prepared:
            return Vote.YES, 0, 0
        if transaction_id in self.ended or order.deadline_us <= now_us:
            return Vote.LATE, 0, 0
        refusal, busy = self._check(order)
        if refusal is not None:
            return Vote.NO, *refusal
        if busy:
            return Vote.BUSY, 0, 0
        self.prepared[transaction_id] = order, now_us
        return Vote.YES, 0, 0

    def commit_home(self, order: Order, vote: tuple[int, int, int]) -> bytes:
        assert order.home == self.shard_id, "asked of the home"
        transaction_id, now_us = order.transaction_id, self.clock.last_us
        known = self.keys.get(order.key)
        if known is not None:
            return self._known(order, known)
        refusal, busy = self._check(order)
        if vote[0] == Vote.NO:
            refusal = min(refusal or (99, 0), (vote[1], vote[2]))
        elif transaction_id in self.ended or order.deadline_us <= now_us:
            return answer(Fate.ABORTED, Outcome.NONE)
        if refusal is not None:
            self.ended.add(transaction_id)
            return self._refuse(order, *refusal)
        if busy:
            self.ended.add(transaction_id)
            return answer(Fate.ABORTED, Outcome.NONE)
        self._post(order)
        balance = self.balances[order.first_source]
        known = self.keys[order.key] = Known(order, 0, 0, now_us, balance, now_us)
        self.decided[transaction_id] = order, now_us
        return self._known(order, known)

    def commit_prepared(self, transaction_id: bytes) -> None:
        if transaction_id in self.prepared:
            order, _ = self.prepared.pop(transaction_id)
            self._post(order)
            self.ended.add(transaction_id)

    def abort(self, transaction_id: bytes) -> None:
        self.prepared.pop(transaction_id, None)
        self.ended.add(transaction_id)

    def resolve(self, transaction_id: bytes, deadline_us: int) -> tuple[int, int]:
        for known in self.keys.values():
            if known.decided_us and known.order.transaction_id == transaction_id:
                return Fate.COMMITTED, known.decided_us
        if transaction_id in self.ended:
            return Fate.ABORTED, 0
        if deadline_us > self.clock.last_us:
            return Fate.UNDECIDED, 0
        self.ended.add(transaction_id)
        return Fate.ABORTED, 0

    def listing(self, since_us: int, limit: int) -> Iterator[coordinator_pb2.TransactionInfo]:
        states = coordinator_pb2.TransactionState
        held = [
            (since, states.TRANSACTION_STATE_PREPARED, order)
            for order, since in self.prepared.values()
        ] + [
            (since, states.TRANSACTION_STATE_COMMITTED, order)
            for order, since in self.decided.values()
        ]
        wanted = [one for one in held if not since_us or one[0] <= since_us]
        for since, state, order in sorted(wanted, key=lambda one: one[0])[:limit]:
            yield coordinator_pb2.TransactionInfo(
                transaction_id=order.transaction_id,
                state=state,
                shard_id=self.shard_id,
                home_shard_id=order.home,
                participant_shard_ids=order.shards,
                deadline_us=order.deadline_us,
                since_us=since,
                decided_us=since if state == states.TRANSACTION_STATE_COMMITTED else 0,
            )

    # --- the books ------------------------------------------------------------------------------

    def _changes(self, order: Order) -> Iterator[tuple[int, int, int, bool]]:
        """(index, account, change, is the source) of each leg on this shard, in request order."""
        for row in order.rows:
            place = row.body[61]  # its index in its group
            if row.source_shard == self.shard_id:
                yield place, row.source, -row.amount_minor, True
            if row.destination_shard == self.shard_id:
                yield place, row.destination, row.amount_minor, False

    def _check(self, order: Order) -> tuple[tuple[int, int] | None, bool]:
        """The refusal of highest precedence and its index, and whether something is in the way."""
        found: list[tuple[int, int]] = []
        sums: dict[int, int] = {}
        busy = False
        for index, account, change, is_source in self._changes(order):
            if account not in self.balances:
                reasons = RefusalReason.SOURCE_UNKNOWN, RefusalReason.DESTINATION_UNKNOWN
                found.append((reasons[not is_source], index))
                continue
            if account in self.frozen:
                reasons = RefusalReason.SOURCE_FROZEN, RefusalReason.DESTINATION_FROZEN
                found.append((reasons[not is_source], index))
            sums[account] = sums.get(account, 0) + change
            least, most = self._range(account)
            if change < 0 and most + sums[account] < 0:
                found.append((RefusalReason.INSUFFICIENT_FUNDS, index))
            elif change < 0 and least + sums[account] < 0:
                busy = True
        return min(found, default=None), busy

    def _range(self, account: int) -> tuple[int, int]:
        """What the account has at least and at most, whatever becomes of what is prepared."""
        least = most = self.balances[account]
        for order, _ in self.prepared.values():
            for _, held, change, _ in self._changes(order):
                if held == account:
                    least += min(change, 0)
                    most += max(change, 0)
        return least, most

    def _post(self, order: Order) -> None:
        for _, account, change, _ in self._changes(order):
            self.balances[account] += change
            self.posted.append((order.transaction_id, account, change))

    def _refuse(self, order: Order, reason: int, index: int) -> bytes:
        time_us = balance = 0
        if is_recorded(RefusalReason(reason)):
            time_us = self.clock.last_us
            balance = self.balances.get(order.first_source, 0)
            self.keys[order.key] = Known(order, reason, index, time_us, balance, 0)
        return answer(
            Fate.ABORTED, Outcome.REFUSED, reason, index=index, time_us=time_us, balance=balance
        )

    def _known(self, order: Order, known: Known) -> bytes:
        mine = known.order.transaction_id == order.transaction_id
        if [row.body for row in order.rows] != [row.body for row in known.order.rows]:
            differing = DifferingField.AMOUNT_MINOR
            reason = RefusalReason.KEY_REUSED
            return answer(Fate.ABORTED, Outcome.REFUSED, reason, differing)
        if known.reason:
            return answer(
                Fate.ABORTED,
                Outcome.REFUSED,
                known.reason,
                repeat=1,
                index=known.index,
                time_us=known.time_us,
                balance=known.balance_minor,
            )
        return answer(
            Fate.COMMITTED if mine else Fate.ABORTED,
            Outcome.COMMITTED,
            repeat=not mine,
            unposted=known.order.transaction_id in self.decided,
            time_us=known.time_us,
            balance=known.balance_minor,
            decided_us=known.decided_us,
            transaction_id=known.order.transaction_id,
        )


def answer(
    fate: int,
    outcome: int,
    reason: int = 0,
    differing: int = 0,
    *,
    repeat: int = 0,
    index: int = 0,
    unposted: int = 0,
    time_us: int = 0,
    balance: int = 0,
    decided_us: int = 0,
    transaction_id: bytes = NO_ID,
) -> bytes:
    """A packed answer of a home."""
    return ANSWER.pack(
        fate,
        outcome,
        reason,
        differing,
        repeat,
        index,
        unposted,
        time_us,
        balance,
        decided_us,
        transaction_id,
    )


def pack_member(
    topology: Topology,
    transfer_id: int,
    source: int,
    destination: int,
    amount_minor: int = 1,
    *,
    index: int = 0,
    size: int = 0,
    metadata: bytes = b"",
) -> bytes:
    """One packed member."""
    body = MEMBER_BODY.pack(
        transfer_id.to_bytes(16, "big"), source, destination, amount_minor, 0, 0, 1,
        len(metadata), 1, index, size,
    )  # fmt: skip
    return MEMBER.pack(body, topology.shard_of(source), topology.shard_of(destination))


assert KEY_BYTES == 24
