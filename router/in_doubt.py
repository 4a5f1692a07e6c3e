"""Transactions in doubt, as operators see and end them.

Coordinators resolve what is in doubt by themselves, within seconds. This is for whoever wants to
see it, or not to wait. It takes the same steps as they do, and may take them at the same time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import grpc

from cluster.faults import Fault
from cluster.packed import DECISION, RESOLUTION, Fate
from cluster.shard_client import (
    ABORT_PREPARED,
    COMMIT_PREPARED,
    FINISH,
    LIST_TRANSACTIONS,
    RESOLVE,
)
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import coordinator_service_pb2 as coordinator
from doubloon.v1 import shard_service_pb2 as shard
from router.asking import Shards

_COMMITTED = admin.TRANSACTION_FATE_COMMITTED
_ABORTED = admin.TRANSACTION_FATE_ABORTED


@dataclass(frozen=True, slots=True)
class Found:
    """What shards have in doubt.

    Attributes:
        transactions: of the shards that answered.
        away: those that did not, with the reason.
    """

    transactions: list[coordinator.TransactionInfo]
    away: dict[int, Fault]


class InDoubt:
    """Lists and resolves transactions. Deadlines are in the running loop's time."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def find(self, since_us: int, transaction_id: bytes, deadline_s: float) -> Found:
        """Return what the shards have in doubt, or decided and not finished; the oldest first.

        Args:
            since_us: only what has stood so since then or before, microseconds; 0 = all.
            transaction_id: only this one; empty = all.
            deadline_s: when to stop.

        Raises:
            Fault: no topology is known.
        """
        request = shard.ListTransactionsRequest(since_us=since_us, transaction_id=transaction_id)
        answers = await self._shards.ask_each(LIST_TRANSACTIONS, request, deadline_s)
        found: list[coordinator.TransactionInfo] = []
        away: dict[int, Fault] = {}
        for shard_id, answer in answers.items():
            if isinstance(answer, Fault):
                away[shard_id] = answer
            else:
                found += answer.transactions
        found.sort(key=lambda info: (info.since_us, info.shard_id))
        return Found(found, away)

    async def _find_all(
        self, transaction_id: bytes, deadline_s: float
    ) -> list[coordinator.TransactionInfo]:
        """Return how every shard sees a transaction.

        Raises:
            Fault: that of a shard that did not answer, so that not all is known.
        """
        found = await self.find(0, transaction_id, deadline_s)
        for fault in found.away.values():
            raise fault
        return found.transactions

    async def resolve(
        self, transaction_id: bytes, deadline_s: float
    ) -> admin.TransactionFate.ValueType:
        """Ask a transaction's home what became of it, and finish or abort it accordingly.

        Raises:
            Fault: NOT_FOUND: no shard has it in doubt (any more). FAILED_PRECONDITION: it is
                undecided, and its deadline is not over. Or what a shard answered.
        """
        found = await self._find_all(transaction_id, deadline_s)
        if not found:
            raise _gone("no shard has this transaction in doubt")
        home, deadline_us = found[0].home_shard_id, found[0].deadline_us
        request = shard.ResolveRequest(transactions=DECISION.pack(transaction_id, deadline_us))
        answer = await self._shards.ask(home, RESOLVE, request, deadline_s)
        fate, decided_us = RESOLUTION.unpack(answer.resolutions)
        if fate == Fate.UNDECIDED:
            raise Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                "it is undecided, and its deadline is not over",
                "transaction_id",
            )
        # A home forgets what all have posted, and then knows no better than that the deadline is
        # over. Whoever still has it prepared now had it while the home was asked.
        now = await self._find_all(transaction_id, deadline_s)
        if fate == Fate.COMMITTED:
            await self._commit(transaction_id, home, decided_us, [*found, *now], deadline_s)
            return _COMMITTED
        prepared = [info.shard_id for info in now if info.shard_id != home]
        if not prepared:
            raise _gone("somebody else has just resolved this transaction")
        abort = shard.AbortPreparedRequest(transactions=DECISION.pack(transaction_id, deadline_us))
        for shard_id in prepared:
            await self._shards.ask(shard_id, ABORT_PREPARED, abort, deadline_s)
        return _ABORTED

    async def _commit(
        self,
        transaction_id: bytes,
        home: int,
        decided_us: int,
        found: Sequence[coordinator.TransactionInfo],
        deadline_s: float,
    ) -> None:
        """Have every participant post it, then let the home forget it."""
        commit = shard.CommitPreparedRequest(
            decisions=DECISION.pack(transaction_id, decided_us), clock_us=decided_us
        )
        for shard_id in _participants(found, home):
            await self._shards.ask(shard_id, COMMIT_PREPARED, commit, deadline_s)
        finish = shard.FinishRequest(transaction_ids=transaction_id)
        await self._shards.ask(home, FINISH, finish, deadline_s)


def _participants(found: Iterable[coordinator.TransactionInfo], home: int) -> list[int]:
    """Return every shard but the home that any of these says takes part."""
    named = {shard_id for info in found for shard_id in info.participant_shard_ids}
    return sorted((named | {info.shard_id for info in found}) - {home})


def _gone(message: str) -> Fault:
    return Fault(grpc.StatusCode.NOT_FOUND, message, "transaction_id")
