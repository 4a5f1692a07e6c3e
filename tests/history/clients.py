"""Clients that keep asking, and write down every question and every answer.

They use the SDK as games do, with less patience, so that many answers are lost. All run in one
process and read one monotonic clock.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final, TypeVar

from msgspec import structs

from doubloon import (
    AsyncAdminClient,
    AsyncClient,
    Entry,
    EntryOrder,
    Fault,
    FaultCode,
    FaultError,
    Group,
    NotFound,
    RetryPolicy,
    Transfer,
    TransferResult,
)
from tests.history.book import Book, Item, Result, key_of
from tests.history.history import Audit, Fate, Line, Look, Lookup, Move, Statement
from tests.support.clusters import GOLD, Town

# Short of what a restart takes, so that answers are lost and have to be asked for again.
IMPATIENT_S: Final = 2.0
IMPATIENT: Final = RetryPolicy(attempts_max=3, attempt_timeout_s=1.2)

HOUR_US: Final = 3_600_000_000
EVER_US: Final = 2**61  # a window from before all time
AHEAD_US: Final = 900_000  # an instant so far ahead is answered for
PAGE: Final = 40
BATCH_MAX: Final = 12
AMOUNT_MAX: Final = 400
HOURS: Final = 3
SERIES_HOURS: Final = 5  # read of a series at most, since a clock may have jumped
RECENT: Final = 50  # a key is as likely asked for again when it is so young as when it is old
PAUSE_S: Final = 0.4  # a breath after a fault: a router that is away need not be asked for ever

NO_ANSWER: Final = Fault(FaultCode.DEADLINE_EXCEEDED, "nobody waits any more", indefinite=True)

T = TypeVar("T")


@dataclass
class Client:
    """One client of the cluster: it writes, reads and audits until told to stop.

    Args:
        wallet, admin: its connections.
        town: whose accounts.
        book: shared.
        rng: its own.
    """

    wallet: AsyncClient
    admin: AsyncAdminClient
    town: Town
    book: Book
    rng: random.Random
    stopping: bool = False

    # --- loops ----------------------------------------------------------------------------------

    async def write(self) -> None:
        """Keep asking for transfers and groups, new and old ones."""
        while not self.stopping:
            await self.rng.choices(
                (self._single, self._batch, self._groups, self._again, self._reuse, self._doubtful),
                (40, 20, 15, 12, 3, 10),
            )[0]()

    async def read(self) -> None:
        """Keep asking questions."""
        kinds = (
            self._balance, self._flows, self._ahead, self._series, self._statement, self._lookup,
        )  # fmt: skip
        while not self.stopping:
            await self.rng.choices(kinds, (30, 25, 10, 5, 15, 15))[0]()

    async def audit(self) -> None:
        """Keep comparing the books."""
        while not self.stopping:
            await self._audit() if self.rng.random() < 0.9 else await self._conservation()
            await asyncio.sleep(PAUSE_S)

    # --- writing --------------------------------------------------------------------------------

    def _accounts(self, count: int) -> list[int]:
        return self.rng.sample([*chain(*self.town.players.values())], count)

    def _transfer(self) -> Transfer:
        one, other = self._accounts(2)
        treasury = self.rng.choice(list(self.town.treasuries.values()))
        pair = self.rng.choice(((treasury, one), (one, treasury), (one, other), (one, other)))
        return Transfer(*pair, GOLD, self.rng.randrange(1, AMOUNT_MAX))

    def _group(self) -> Group:
        buyer, seller, friend = self._accounts(3)
        house = self.rng.choice(list(self.town.treasuries.values()))
        pairs = ((buyer, seller), (seller, house), (seller, friend), (house, buyer))
        legs = [Transfer(*each, GOLD, self.rng.randrange(1, AMOUNT_MAX)) for each in pairs]
        return Group(legs[: self.rng.randrange(1, len(legs) + 1)])

    async def _single(self) -> None:
        await self.ask([self._new(self._transfer())])

    async def _batch(self) -> None:
        count = self.rng.randrange(2, BATCH_MAX)
        await self.ask([self._new(self._transfer()) for _ in range(count)])

    async def _groups(self) -> None:
        count = self.rng.randrange(1, 4)
        await self.ask([self._new(self._group()) for _ in range(count)])

    async def _again(self) -> None:
        """With the same id, soon or long after."""
        if self.book.items:
            await self.ask([self._old()])

    async def _reuse(self) -> None:
        """With the same id, and another body."""
        if not self.book.items:
            return
        old, number = self._old(), self.rng.randrange(1, 3)
        if isinstance(old, Group):
            legs = [structs.replace(each, reference=number) for each in old.transfers]
            await self.ask([replace(old, transfers=legs)])
        else:
            await self.ask([structs.replace(old, reference=number)])

    async def _doubtful(self) -> None:
        """Whatever is not known."""
        if self.book.doubts:
            await self.ask([self.rng.choice(list(self.book.doubts.values()))])

    def _new(self, item: Item) -> Item:
        self.book.items.append(item)
        return item

    def _old(self) -> Item:
        items = self.book.items
        count = min(len(items), RECENT) if self.rng.random() < 0.5 else len(items)
        return items[-self.rng.randrange(1, count + 1)]

    async def ask(self, items: Sequence[Item]) -> None:
        """Ask for transfers, or for groups, in one call."""
        transfers = [each for each in items if isinstance(each, Transfer)]
        groups = [each for each in items if isinstance(each, Group)]
        invoked_ns = time.monotonic_ns()
        heard: Sequence[Result | Fault]
        try:
            if groups:
                heard = await self.wallet.transfer_group_batch(groups)
            elif len(transfers) == 1:
                heard = [await self._ask_one(transfers[0])]
            else:
                heard = await self.wallet.transfer_batch(transfers)
        except FaultError as error:
            heard = [error.fault] * len(items)
        except asyncio.CancelledError:  # it was asked for, all the same
            self._hear(items, invoked_ns, [NO_ANSWER] * len(items))
            raise
        self._hear(items, invoked_ns, heard)
        if all(isinstance(each, Fault) or each.fault for each in heard):
            await asyncio.sleep(PAUSE_S * self.rng.random())

    def _hear(
        self, items: Sequence[Item], invoked_ns: int, heard: Sequence[Result | Fault]
    ) -> None:
        answered_ns = time.monotonic_ns()
        for item, result in zip(items, heard, strict=True):
            self.book.hear(item, invoked_ns, answered_ns, result)

    async def _ask_one(self, t: Transfer) -> TransferResult:
        return await self.wallet.transfer(
            t.source, t.destination, t.currency, t.amount_minor,
            type=t.type, reference=t.reference, transfer_id=t.transfer_id,
        )  # fmt: skip

    # --- reading --------------------------------------------------------------------------------

    def _account(self) -> int:
        if self.rng.random() < 0.2:
            return self.rng.choice(list(self.town.treasuries.values()))
        return self._accounts(1)[0]

    async def _timed(self, question: Callable[[], Awaitable[T]]) -> tuple[int, int, T] | None:
        """Ask; return when, and the answer; None when there was none."""
        invoked_ns = time.monotonic_ns()
        try:
            answer = await question()
        except NotFound:
            raise
        except FaultError as error:
            self.book.faults[f"read: {error.fault.code.name}"] += 1
            await asyncio.sleep(PAUSE_S * self.rng.random())
            return None
        return invoked_ns, time.monotonic_ns(), answer

    async def look_at(self, account: int) -> None:
        """Read an account in every way, its statement whole."""
        await self._ask_whole_statement(account)
        await self._ask_balance(account)
        await self._ask_flows(account, 0, EVER_US)
        await self._ask_series(account)

    async def _balance(self) -> None:
        await self._ask_balance(self._account())

    async def _ask_balance(self, account: int) -> None:
        if heard := await self._timed(lambda: self.wallet.balances(account)):
            invoked_ns, answered_ns, told = heard
            self.book.latest_us = max(self.book.latest_us, told.as_of_us)
            held = told.of(GOLD)
            minor, latest_us = (held.posted_minor, held.latest_entry_time_us) if held else (0, 0)
            look = Look(
                account, invoked_ns, answered_ns, 0, told.as_of_us,
                is_now=True, balance_minor=minor, latest_us=latest_us,
            )  # fmt: skip
            self.book.history.looks.append(look)

    async def _flows(self) -> None:
        """Now or then, over all time or a while."""
        account, as_of_us = self._account(), 0
        if self.book.latest_us and self.rng.random() < 0.5:
            as_of_us = self.book.latest_us - self.rng.randrange(1, 20_000_000)
        window_us = self.rng.choice((EVER_US, self.rng.randrange(1, 20_000_000)))
        await self._ask_flows(account, as_of_us, window_us)

    async def _ahead(self) -> None:
        """At an instant that is not over yet."""
        account = self._account()
        await self._ask_balance(account)  # which tells what time it is there
        as_of_us = self.book.latest_us + self.rng.randrange(1, AHEAD_US)
        await self._ask_flows(account, as_of_us, EVER_US)

    async def _ask_flows(self, account: int, as_of_us: int, window_us: int) -> None:
        heard = await self._timed(
            lambda: self.wallet.flows(
                account, currency=GOLD, as_of=as_of_us or None, window=window_us
            )
        )
        if heard:
            invoked_ns, answered_ns, told = heard
            flows = told.of(GOLD)
            moved = (
                flows.incoming_minor, flows.outgoing_minor,
                flows.incoming_count, flows.outgoing_count,
            )  # fmt: skip
            look = Look(
                account,
                invoked_ns,
                answered_ns,
                told.from_us,
                told.to_us,
                not as_of_us,
                flows=moved,
            )
            self.book.history.looks.append(look)
            if not as_of_us:
                self.book.latest_us = max(self.book.latest_us, told.to_us)

    async def _series(self) -> None:
        await self._ask_series(self._account())

    async def _ask_series(self, account: int) -> None:
        from_us = max(1, self.book.latest_us - HOURS * HOUR_US)
        heard = await self._timed(
            lambda: self.wallet.balance_series(account, GOLD, from_time=from_us)
        )
        if heard:
            invoked_ns, answered_ns, told = heard
            for hour in told.hours[-SERIES_HOURS:]:
                end_us = min(hour.hour_start_us + HOUR_US - 1, told.to_us)
                moved = hour.incoming_minor, hour.outgoing_minor, -1, -1
                is_now = end_us == told.to_us
                look = Look(
                    account, invoked_ns, answered_ns, hour.hour_start_us - 1, end_us, is_now,
                    hour.balance_minor, None, moved,
                )  # fmt: skip
                self.book.history.looks.append(look)

    async def _statement(self) -> None:
        account = self._account()
        heard = await self._timed(
            lambda: self.wallet.entries_page(account, currency=GOLD, page_size=PAGE)
        )
        if heard:
            invoked_ns, answered_ns, page = heard
            lines = tuple(map(_line, reversed(page.entries)))
            self.book.history.statements.append(Statement(account, invoked_ns, answered_ns, lines))

    async def _ask_whole_statement(self, account: int) -> None:
        """Read all of it, page by page."""
        invoked_ns = time.monotonic_ns()
        entries = self.wallet.entries(account, currency=GOLD, order=EntryOrder.OLDEST_FIRST)
        lines = tuple([_line(each) async for each in entries])
        statement = Statement(account, invoked_ns, time.monotonic_ns(), lines)
        self.book.history.statements.append(statement)

    async def _lookup(self) -> None:
        if not self.book.items:
            return
        key = key_of(self._old())
        invoked_ns = time.monotonic_ns()
        try:
            heard = await self._timed(lambda: self.wallet.get_transfer(*key))
        except NotFound:
            nothing = Lookup(key, invoked_ns, time.monotonic_ns(), None)
            self.book.history.lookups.append(nothing)
            return
        if heard:
            invoked_ns, answered_ns, told = heard
            result, t = told.result, told.transfer
            fate = Fate.COMPLETED if result.completed else Fate.COMMITTED
            lookup = Lookup(
                key,
                invoked_ns,
                answered_ns,
                Fate.REFUSED if result.refusal else fate,
                Move(t.source, t.destination, t.amount_minor, t.reference),
                result.refusal.reason if result.refusal else 0,
                told.record.log_id,
                told.record.sequence,
            )
            self.book.history.lookups.append(lookup)

    # --- books ----------------------------------------------------------------------------------

    async def compare_books(self) -> None:
        """Audit, and add up every shard."""
        await self._audit()
        await self._conservation()

    async def _audit(self) -> None:
        if heard := await self._timed(self.admin.audit):
            report = heard[2]
            positions = {}
            for pair in report.pairs:
                positions[pair.shard_id, pair.peer_shard_id] = pair.position_minor
                positions[pair.peer_shard_id, pair.shard_id] = pair.peer_position_minor
            audit = Audit(report.as_of_us, positions, report.balanced)
            self.book.history.audits.append(audit)

    async def _conservation(self) -> None:
        if heard := await self._timed(self.admin.check_conservation):
            self.book.history.books_balanced.append(heard[2].balanced)


def _line(entry: Entry) -> Line:
    return Line(
        entry.record.log_id,
        entry.record.sequence,
        entry.time_us,
        entry.change_minor,
        entry.balance_after_minor,
        (entry.key_account_id, entry.transfer_id),
        entry.group_index,
    )
