"""Transfers and groups between accounts anywhere, sent through faults, and every answer kept.

`Traffic` makes them and remembers what it heard; `check` compares that with the statements of all
accounts, folded naively. Nothing is assumed of an answer that was lost.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain

from doubloon import (
    AsyncClient,
    Entry,
    EntryDirection,
    EntryOrder,
    Fault,
    FaultError,
    Group,
    GroupResult,
    Transfer,
    TransferResult,
    TransferType,
)
from scripts.latency import Latencies
from tests.support import eventually
from tests.support.clusters import GOLD, Town

BATCH, GROUP_BATCH = 200, 40
BATCH_TASKS, SINGLE_TASKS, GROUP_TASKS = 2, 4, 1
AGAIN_BATCH = 1_000  # both the groups and the transfers of one call when all is asked again
SETTLE_S = 60.0  # deadlines of seconds, sweeps, and restarts on a busy machine
READERS = 8  # statements read at once
PAGE = 1_000

Name = tuple[int, bytes]
"""The first source and the transfer's or group's id."""

Result = TransferResult | GroupResult


@dataclass(eq=False, slots=True)
class Asked:
    """A transfer or a group, and what was heard of it.

    Attributes:
        item: as it was asked for.
        answer: the first answer that says what happened, or a later one that says more.
        doubt: the first fault after which it may have happened.
        fault: the latest fault of all.
    """

    item: Transfer | Group
    answer: Result | None = None
    doubt: Fault | None = None
    fault: Fault | None = None

    @property
    def name(self) -> Name:
        """What it is called everywhere."""
        if isinstance(self.item, Group):
            return self.item.transfers[0].source, self.item.group_id
        return self.item.source, self.item.transfer_id

    @property
    def transfers(self) -> Sequence[Transfer]:
        """Its members; a transfer is its own."""
        return self.item.transfers if isinstance(self.item, Group) else [self.item]

    @property
    def is_open(self) -> bool:
        """Whether asking again will tell more."""
        if self.answer is None:
            return self.doubt is not None
        return self.answer.committed and not self.answer.completed

    def hear(self, result: Result | Fault) -> None:
        """Take an answer; it must not contradict an earlier one."""
        fault = result if isinstance(result, Fault) else result.fault
        if fault is not None:
            self.fault = fault
            if fault.indefinite and self.doubt is None:
                self.doubt = fault
            return
        assert isinstance(result, TransferResult | GroupResult)
        if self.answer is not None:
            assert result.repeat, (self.answer, result)
            assert _outcome(result) == _outcome(self.answer)
        if self.answer is None or not self.answer.completed:
            self.answer = result


def _outcome(result: Result) -> tuple[object, ...]:
    """What every answer for a key must agree on."""
    index = result.refused_index if isinstance(result, GroupResult) else 0
    return (
        result.committed,
        result.refusal,
        index,
        result.time_us,
        result.source_balance_after_minor,
    )


@dataclass
class Traffic:
    """Tasks that move money between random accounts of a town until they are told to stop.

    Attributes:
        asked: everything, in order of asking.
        answers: how many answers said what happened.
        calls: how long each call took.
    """

    client: AsyncClient
    town: Town
    rng: random.Random
    asked: list[Asked] = field(default_factory=list)
    answers: int = 0
    calls: Latencies = field(default_factory=Latencies)
    _stopping: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run for as long as the context lasts, then until the last answer."""
        self._stopping = False
        async with asyncio.TaskGroup() as tasks:
            for _ in range(BATCH_TASKS):
                tasks.create_task(self._keep_asking(BATCH, self.transfer))
            for _ in range(SINGLE_TASKS):
                tasks.create_task(self._keep_asking(1, self.transfer))
            for _ in range(GROUP_TASKS):
                tasks.create_task(self._keep_asking(GROUP_BATCH, self.group))
            try:
                yield
            finally:
                self._stopping = True

    async def progress(self, more: int) -> None:
        """Wait until so many more answers have been heard."""
        target = self.answers + more
        await eventually(lambda: self.answers >= target, f"{more} more answers", 60.0)

    def transfer(self) -> Transfer:
        """Make up a reward, a purchase or a gift, most often between shards; may be refused."""
        players = [*chain(*self.town.players.values())]
        treasury = self.rng.choice(list(self.town.treasuries.values()))
        one, other = self.rng.sample(players, 2)
        kind, (source, destination) = self.rng.choice(
            (
                (TransferType.REWARD, (treasury, one)),
                (TransferType.PURCHASE, (one, treasury)),
                (TransferType.TRANSFER, (one, other)),
            )
        )
        return Transfer(source, destination, GOLD, self.rng.randrange(1, 1_000), kind)

    def group(self) -> Group:
        """Make up a sale: the price to a seller, who pays a fee and perhaps a gift."""
        buyer, seller, friend = self.rng.sample([*chain(*self.town.players.values())], 3)
        house = self.rng.choice(list(self.town.treasuries.values()))
        legs = [
            Transfer(buyer, seller, GOLD, self.rng.randrange(100, 1_000), TransferType.SALE),
            Transfer(seller, house, GOLD, self.rng.randrange(1, 100), TransferType.FEE),
            Transfer(seller, friend, GOLD, self.rng.randrange(1, 500)),
        ]
        return Group(legs[: self.rng.randrange(1, 4)])

    async def _keep_asking(self, size: int, make: Callable[[], Transfer | Group]) -> None:
        while not self._stopping:
            new = [Asked(make()) for _ in range(size)]
            self.asked += new
            await self._ask(new, self.client)

    async def settle(self, client: AsyncClient) -> None:
        """Ask again for whatever is not known for certain, until it is."""
        async with asyncio.timeout(SETTLE_S):
            while found := [each for each in self.asked if each.is_open]:
                await self._ask_all(found, client)

    async def repeat(self, client: AsyncClient) -> None:
        """Ask again for whatever has an answer: it must be the same, and change nothing."""
        await self._ask_all([each for each in self.asked if each.answer is not None], client)

    async def _ask_all(self, asked: Sequence[Asked], client: AsyncClient) -> None:
        transfers = [each for each in asked if isinstance(each.item, Transfer)]
        groups = [each for each in asked if isinstance(each.item, Group)]
        for found in (transfers, groups):
            for start in range(0, len(found), AGAIN_BATCH):
                await self._ask(found[start : start + AGAIN_BATCH], client)

    async def _ask(self, asked: Sequence[Asked], client: AsyncClient) -> None:
        """Ask for either transfers or groups, in one call."""
        transfers = [each.item for each in asked if isinstance(each.item, Transfer)]
        groups = [each.item for each in asked if isinstance(each.item, Group)]
        heard: Sequence[Result | Fault]
        try:
            if groups:
                heard = await self.calls.timed(client.transfer_group_batch(groups))
            elif len(transfers) == 1:
                heard = [await self.calls.timed(_single(client, *transfers))]
            else:
                heard = await self.calls.timed(client.transfer_batch(transfers))
        except FaultError as error:
            heard = [error.fault] * len(asked)
        for each, result in zip(asked, heard, strict=True):
            each.hear(result)
        self.answers += sum(each.answer is not None for each in asked)

    async def check(self, client: AsyncClient) -> None:
        """Compare every answer with every account's statement; everything must be settled.

        Raises:
            AssertionError: one of the promises exactly once, atomicity or durability is broken, or
                a statement does not add up.
        """
        treasuries = self.town.treasuries.values()
        players = [*chain(*self.town.players.values())]
        statements = await read_statements(client, [*treasuries, *players])
        for account_id, entries in statements.items():
            balance_minor = _balance_of(entries)
            assert balance_minor >= 0 or account_id in treasuries
            held = await client.balance(account_id, GOLD)
            assert (held.posted_minor, held.reserved_minor) == (balance_minor, 0), account_id
        happened = fold(statements)
        asked = {each.name: each for each in self.asked}
        assert not any(each.is_open for each in self.asked)
        committed = {
            name: each for name, each in asked.items() if each.answer and each.answer.committed
        }
        missing, unasked = committed.keys() - happened.keys(), happened.keys() - committed.keys()
        assert not missing, f"{len(missing)} acknowledged and not there, such as {min(missing)}"
        assert not unasked, f"{len(unasked)} there, and said not to be: {asked[min(unasked)]}"
        for name, transfers in happened.items():
            expected = [
                (t.source, t.destination, t.amount_minor) for t in committed[name].transfers
            ]
            assert transfers == expected, name


async def _single(client: AsyncClient, t: Transfer) -> TransferResult:
    return await client.transfer(
        t.source, t.destination, t.currency, t.amount_minor, type=t.type, transfer_id=t.transfer_id
    )


async def read_statements(client: AsyncClient, accounts: Collection[int]) -> dict[int, list[Entry]]:
    """Read accounts' whole statements, oldest first."""
    free = asyncio.Semaphore(READERS)

    async def read(account_id: int) -> list[Entry]:
        async with free:
            entries = client.entries(account_id, order=EntryOrder.OLDEST_FIRST, page_size=PAGE)
            return [entry async for entry in entries]

    return dict(zip(accounts, await asyncio.gather(*map(read, accounts)), strict=True))


def _balance_of(entries: Sequence[Entry]) -> int:
    """Add a statement up; every balance on the way must follow from the one before."""
    balance_minor = 0
    for entry in entries:
        balance_minor += entry.change_minor
        assert entry.balance_after_minor == balance_minor, entry
    return balance_minor


def fold(statements: Mapping[int, Sequence[Entry]]) -> dict[Name, list[tuple[int, int, int]]]:
    """Put the two legs of each transfer, and the transfers of each group, together again.

    Returns:
        By name, in order of index: source, destination, amount.

    Raises:
        AssertionError: a leg is there twice, or without its counterpart, or its group.
    """
    legs: defaultdict[Name, dict[tuple[int, EntryDirection], tuple[int, Entry]]]
    legs = defaultdict(dict)
    for account_id, entries in statements.items():
        for entry in entries:
            found = legs[entry.key_account_id, entry.transfer_id]
            place = entry.group_index, entry.direction
            assert place not in found, f"took effect twice: {found[place]}, {entry}"
            found[place] = account_id, entry
    return {name: _whole(found) for name, found in legs.items()}


def _whole(
    legs: Mapping[tuple[int, EntryDirection], tuple[int, Entry]],
) -> list[tuple[int, int, int]]:
    (_, any_leg), *_ = legs.values()
    size = any_leg.group_size or 1
    assert len(legs) == 2 * size, f"half done: {[*legs.values()]}"
    transfers = []
    for index in range(size):
        source, paid = legs[index, EntryDirection.OUTGOING]
        destination, got = legs[index, EntryDirection.INCOMING]
        assert (paid.counterparty, got.counterparty) == (destination, source), (paid, got)
        for one, other in ((paid.amount_minor, got.amount_minor),
                           (paid.decided_time_us, got.decided_time_us),
                           (paid.group_size, got.group_size)):  # fmt: skip
            assert one == other, (paid, got)
        transfers.append((source, destination, paid.amount_minor))
    return transfers
