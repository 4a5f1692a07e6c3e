"""The way to `TransactionShard`s, as coordinators go it: losses, delays and repetitions on request.

`MemoryShards` plays `cluster.shard_pool.ShardPool` on the running loop's time. Every call that
reaches a shard counts as one sync.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from cluster.clock import HybridClock
from cluster.faults import Fault
from cluster.packed import DECISION, RESOLUTION, VOTE
from cluster.shard_client import Method, Q, R
from cluster.topology import Topology
from doubloon.v1 import shard_service_pb2 as shard_pb2
from tests.support.transaction_shards import LoopClock, TransactionShard, read_orders

LATENCY_S = 0.001

Hook = Callable[[int, str], Awaitable[None]]


@dataclass
class MemoryShards:
    """All shards, and the way to them.

    Attributes:
        topology: names them.
        before: awaited with (shard, method) before a call takes effect; may wait, or raise a Fault.
        after: the same, after it took effect and before it is answered.
        twice: calls take effect twice, as when the network repeats them.
        calls: (shard, method, how many transactions), of those that took effect.
    """

    topology: Topology
    before: Hook | None = None
    after: Hook | None = None
    twice: bool = False
    calls: list[tuple[int, str, int]] = field(default_factory=list)
    shards: dict[int, TransactionShard] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for shard_id in self.topology.shards:
            self.shards[shard_id] = TransactionShard(shard_id, HybridClock(LoopClock()))

    async def call(
        self,
        shard_id: int,
        method: Method[Q, R],
        request: Q,
        topology_version: int,
        deadline_s: float,
    ) -> R:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._call(shard_id, method, request, topology_version)
        except TimeoutError as error:
            raise Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time") from error

    async def _call(
        self, shard_id: int, method: Method[Q, R], request: Q, topology_version: int
    ) -> R:
        await asyncio.sleep(LATENCY_S)
        if self.before is not None:
            await self.before(shard_id, method.name)
        if topology_version != self.topology.version:
            raise Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                "another topology",
                topology_version=self.topology.version,
            )
        own: Any = type(request).FromString(request.SerializeToString())
        shard = self.shards[shard_id]
        for _ in range(1 + self.twice):
            shard.clock.observe(getattr(own, "clock_us", 0))
            shard.clock.tick()
            response: Any = getattr(self, method.name)(shard, own)
        if self.after is not None:
            await self.after(shard_id, method.name)
        answered: R = response
        return answered

    def _count(self, shard: TransactionShard, method: str, count: int) -> None:
        assert 1 <= count <= 8_192, "a call carries 1 … 8,192"
        self.calls.append((shard.shard_id, method, count))

    def Prepare(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.PrepareRequest
    ) -> shard_pb2.PrepareResponse:
        orders = read_orders(request.headers, request.members, request.metadata)
        self._count(shard, "Prepare", len(orders))
        for order in orders:
            legs = {s for row in order.rows for s in (row.source_shard, row.destination_shard)}
            assert shard.shard_id in legs, "every member touches this shard"
            assert order.home != shard.shard_id, "the home is never asked to prepare"
        votes = b"".join(VOTE.pack(*shard.prepare(order)) for order in orders)
        return shard_pb2.PrepareResponse(votes=votes, clock_us=shard.clock.last_us)

    def CommitHome(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.CommitHomeRequest
    ) -> shard_pb2.CommitHomeResponse:
        orders = read_orders(request.headers, request.members, request.metadata)
        self._count(shard, "CommitHome", len(orders))
        votes = list(VOTE.iter_unpack(request.votes))
        answers = b"".join(
            shard.commit_home(order, (vote[0], vote[1], vote[2]))
            for order, vote in zip(orders, votes, strict=True)
        )
        return shard_pb2.CommitHomeResponse(answers=answers, clock_us=shard.clock.last_us)

    def CommitPrepared(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.CommitPreparedRequest
    ) -> shard_pb2.CommitPreparedResponse:
        decisions = list(DECISION.iter_unpack(request.decisions))
        self._count(shard, "CommitPrepared", len(decisions))
        for transaction_id, decided_us in decisions:
            assert decided_us, "a decision has its time"
            shard.commit_prepared(transaction_id)
        return shard_pb2.CommitPreparedResponse(clock_us=shard.clock.last_us)

    def AbortPrepared(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.AbortPreparedRequest
    ) -> shard_pb2.AbortPreparedResponse:
        transactions = list(DECISION.iter_unpack(request.transactions))
        self._count(shard, "AbortPrepared", len(transactions))
        for transaction_id, _ in transactions:
            shard.abort(transaction_id)
        return shard_pb2.AbortPreparedResponse()

    def Resolve(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.ResolveRequest
    ) -> shard_pb2.ResolveResponse:
        transactions = list(DECISION.iter_unpack(request.transactions))
        self._count(shard, "Resolve", len(transactions))
        resolutions = b"".join(RESOLUTION.pack(*shard.resolve(*each)) for each in transactions)
        return shard_pb2.ResolveResponse(resolutions=resolutions, clock_us=shard.clock.last_us)

    def Finish(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.FinishRequest
    ) -> shard_pb2.FinishResponse:
        ids = [
            request.transaction_ids[at : at + 16]
            for at in range(0, len(request.transaction_ids), 16)
        ]
        self._count(shard, "Finish", len(ids))
        for transaction_id in ids:
            shard.decided.pop(transaction_id, None)
        return shard_pb2.FinishResponse()

    def ListTransactions(  # noqa: N802 - the contract's name
        self, shard: TransactionShard, request: shard_pb2.ListTransactionsRequest
    ) -> shard_pb2.ListTransactionsResponse:
        listed = list(shard.listing(request.since_us, request.limit or 1_000))
        return shard_pb2.ListTransactionsResponse(transactions=listed)

    # --- for tests ------------------------------------------------------------------------------

    def balance(self, account: int) -> int:
        """What an account has, wherever it lives."""
        return self.shards[self.topology.shard_of(account)].balances[account]

    def open(self, accounts: Sequence[int], balance_minor: int) -> None:
        """Open accounts."""
        for account in accounts:
            self.shards[self.topology.shard_of(account)].balances[account] = balance_minor

    @property
    def in_doubt(self) -> int:
        """How many transactions are prepared, or decided and not finished, anywhere."""
        return sum(len(each.prepared) + len(each.decided) for each in self.shards.values())

    def check(self, total_minor: int) -> None:
        """Money is conserved, nothing is in doubt, and no leg was posted twice."""
        assert self.in_doubt == 0
        assert sum(sum(each.balances.values()) for each in self.shards.values()) == total_minor
        by_transaction: dict[bytes, int] = {}
        for shard in self.shards.values():
            for transaction_id, _, change in shard.posted:
                by_transaction[transaction_id] = by_transaction.get(transaction_id, 0) + change
        assert not any(by_transaction.values()), "every leg of a transaction, or none"
        committed = [
            known.order.key
            for shard in self.shards.values()
            for known in shard.keys.values()
            if known.decided_us
        ]
        assert len(by_transaction) == len(committed) == len(set(committed))
