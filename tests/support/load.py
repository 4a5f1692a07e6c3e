"""Transfers and questions that never pause, and an account of every answer."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from doubloon import AsyncClient, Transfer, TransferResult, TransferType
from scripts.latency import Latencies
from scripts.naive import Flows
from scripts.schedule import BATCH_TRANSFERS_MAX
from tests.support.clusters import GOLD, Town

BATCH = 200  # transfers of one batch: some calls a second even on a busy machine
BATCH_TASKS, SINGLE_TASKS, QUERY_TASKS = 2, 4, 1


@dataclass
class Load:
    """Tasks that make transfers within shards and ask both queries, until they are told to stop.

    Attributes:
        answered: every transfer with its result, in order of answer.
        queries: how many questions were answered.
        calls: how long each call took, transfers and questions alike.
    """

    client: AsyncClient
    town: Town
    rng: random.Random
    answered: list[tuple[Transfer, TransferResult]] = field(default_factory=list)
    queries: int = 0
    calls: Latencies = field(default_factory=Latencies)
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run for as long as the context lasts, then until the last answer; a fault raises."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(BATCH_TASKS):
                tasks.create_task(self._batches())
            for _ in range(SINGLE_TASKS):
                tasks.create_task(self._singles())
            for _ in range(QUERY_TASKS):
                tasks.create_task(self._queries())
            try:
                yield
            finally:
                self._stopping = True

    def transfer(self) -> Transfer:
        """Make up a reward, a purchase or a trade inside a shard; it may be refused."""
        shard_id = self.rng.choice(list(self.town.players))
        players, treasury = self.town.players[shard_id], self.town.treasuries[shard_id]
        kind, (source, destination) = self.rng.choice(
            (
                (TransferType.REWARD, (treasury, self.rng.choice(players))),
                (TransferType.PURCHASE, (self.rng.choice(players), treasury)),
                (TransferType.TRANSFER, tuple(self.rng.sample(players, 2))),
            )
        )
        return Transfer(source, destination, GOLD, self.rng.randrange(1, 1_000), kind)

    async def _batches(self) -> None:
        while not self._stopping:
            batch = [self.transfer() for _ in range(BATCH)]
            results = await self.calls.timed(self.client.transfer_batch(batch))
            self.answered += zip(batch, results, strict=True)

    async def _singles(self) -> None:
        while not self._stopping:
            t = self.transfer()
            call = self.client.transfer(
                t.source,
                t.destination,
                t.currency,
                t.amount_minor,
                type=t.type,
                transfer_id=t.transfer_id,
            )
            self.answered.append((t, await self.calls.timed(call)))

    async def _queries(self) -> None:
        while not self._stopping:
            shard_id = self.rng.choice(list(self.town.players))
            player = self.rng.choice(self.town.players[shard_id])
            await self.calls.timed(self.client.flows(player))
            await self.calls.timed(self.client.balance_series(player, GOLD))
            self.queries += 2

    async def check(self, client: AsyncClient) -> None:
        """Every transfer was completed or refused, once, and the balances are their sums.

        Asks for everything again, which changes nothing and brings the same answers.
        """
        for start in range(0, len(self.answered), BATCH_TRANSFERS_MAX):
            part = self.answered[start : start + BATCH_TRANSFERS_MAX]
            again = await client.transfer_batch([transfer for transfer, _ in part])
            for (_, first), second in zip(part, again, strict=True):
                assert first.fault is None, first.fault
                assert second.repeat
                assert outcome(first) == outcome(second)
        for account_id, expected in self._totals():
            (found,) = (await client.flows(account_id, currency=GOLD)).flows
            assert expected == (
                found.incoming_minor,
                found.outgoing_minor,
                found.incoming_count,
                found.outgoing_count,
            )
            balance = await client.balance(account_id, GOLD)
            assert balance.posted_minor == expected.incoming_minor - expected.outgoing_minor

    def _totals(self) -> Iterator[tuple[int, Flows]]:
        """Every account with what it was paid and paid."""
        totals: dict[int, list[int]] = {}
        for shard_id, players in self.town.players.items():
            totals |= {each: [0, 0, 0, 0] for each in (self.town.treasuries[shard_id], *players)}
        for transfer, result in self.answered:
            if result.completed:
                into, out = totals[transfer.destination], totals[transfer.source]
                into[0] += transfer.amount_minor
                out[1] += transfer.amount_minor
                into[2] += 1
                out[3] += 1
        return ((account_id, Flows(*sums)) for account_id, sums in totals.items())


def outcome(result: TransferResult) -> tuple[object, ...]:
    """All of a result but whether it is a repeat."""
    return (
        result.transfer_id,
        result.status,
        result.refusal,
        result.time_us,
        result.source_balance_after_minor,
    )
