"""Real bank transactions through router, client and ledger: every balance as the bank had it.

The file is replayed as imports on a cluster of one shard. What the cluster then says is compared
with what the bank recorded and with naive folds of the file: statements, both queries on every day
of every account, and random instants between.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol, TypeVar

import pytest
import pytest_asyncio
from google.protobuf.message import Message

from cluster.shard_client import GET_BALANCE_SERIES, GET_FLOWS, GrpcShardClient, Method
from doubloon import (
    AccountSpec,
    AsyncClient,
    EntryDirection,
    EntryOrder,
    RetryPolicy,
    Transfer,
    TransferResult,
)
from doubloon.v1 import wallet_service_pb2 as pb
from scripts import naive
from scripts.bank import (
    CURRENCY,
    SCALE,
    BankRow,
    DayBooks,
    accounts_of,
    hubs_of,
    naive_days,
    read_rows,
)
from scripts.local_cluster import SHARD
from scripts.naive import DAY_US, HOUR_US
from scripts.playing import Tally, play
from scripts.schedule import batches
from tests.support.clusters import LiveCluster, live_cluster

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ROWS = 46_997
CALLS = 48  # questions in flight together: more would only wait in the router
SERIES_HOURS_MAX = 8_784  # the contract's limit for one question
QUERY_TIMEOUT_S = 20.0
INSTANTS = 1_500
SDK_EVERY = (
    10  # one in so many questions that are asked by the thousand goes through SDK and router
)

# Small enough that a replay of the file checkpoints some ten times and evicts most accounts.
SHARD_OPTIONS = ("--checkpoint-rows", "6000", "--accounts-cached", "300")


Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


class Ask(Protocol):
    """Asks a shard node."""

    async def __call__(self, method: Method[Q, R], question: Q) -> R: ...


@dataclass
class Bank:
    """The file, the cluster it was replayed on, and what the cluster answered.

    Attributes:
        answers: result by the bank's own transaction number.
    """

    rows: list[BankRow]
    live: LiveCluster
    answers: dict[int, TransferResult]

    @property
    def by_account(self) -> dict[int, list[BankRow]]:
        """Each customer's rows, in the file's order."""
        found = defaultdict(list)
        for row in self.rows:
            found[row.account_id].append(row)
        return found


def ordered_batches(rows: Sequence[BankRow]) -> Iterable[list[Transfer]]:
    """Each account's rows in the file's order, never two in a batch; those of many together."""
    return batches((row.transfer() for row in rows), hubs_of(rows))


async def open_bank(live: LiveCluster, rows: Sequence[BankRow]) -> None:
    await live.admin.register_currency(CURRENCY, scale=SCALE)
    specs = [AccountSpec(a.account_id, a.kind, a.floor_minor) for a in accounts_of(rows)]
    assert all(result.opened for result in await live.wallet.open_accounts(specs))


async def replay(
    client: AsyncClient, rows: Sequence[BankRow]
) -> tuple[Tally, dict[int, TransferResult]]:
    """Play the file from its beginning; results by the bank's transaction number."""
    answers: dict[int, TransferResult] = {}

    async def send(batch: Sequence[Transfer]) -> Sequence[TransferResult]:
        results = await client.transfer_batch(batch)
        answers.update((t.reference, r) for t, r in zip(batch, results, strict=True))
        return results

    tally = Tally()
    await play(send, ordered_batches(rows), tally)
    return tally, answers


async def each(items: Iterable[int], ask: Callable[[int], Awaitable[None]]) -> None:
    """Ask about every item, `CALLS` at a time."""
    free = asyncio.Semaphore(CALLS)

    async def one(item: int) -> None:
        async with free:
            await ask(item)

    async with asyncio.TaskGroup() as asking:
        for item in items:
            asking.create_task(one(item))


async def check_statements(bank: Bank) -> None:
    """Every customer's statement is the file's rows, one by one, with the bank's balances."""
    compared = 0

    async def compare(account_id: int) -> None:
        nonlocal compared
        entries = bank.live.wallet.entries(
            account_id, order=EntryOrder.OLDEST_FIRST, page_size=1_000
        )
        found = [
            (e.reference, e.change_minor, e.balance_after_minor, e.time_us, e.metadata)
            async for e in entries
        ]
        assert found == [
            (
                row.source_id,
                row.amount_minor if row.is_credit else -row.amount_minor,
                row.balance_minor,
                row.time_us,
                row.partner_bank.encode(),
            )
            for row in by_account[account_id]
        ]
        compared += len(found)

    by_account = bank.by_account
    await each(by_account, compare)
    assert compared == ROWS


async def check_hubs(bank: Bank) -> None:
    """The operations' own statements: complete, and every balance follows from the one before."""
    for hub in sorted(hubs_of(bank.rows)):
        own = {row.source_id: row for row in bank.rows if row.operation_account_id == hub}
        balance_minor = 0
        async for entry in bank.live.wallet.entries(hub, order=EntryOrder.OLDEST_FIRST):
            row = own.pop(entry.reference)
            balance_minor += entry.change_minor
            assert entry.balance_after_minor == balance_minor
            assert entry.counterparty == row.account_id
            paid = EntryDirection.OUTGOING if row.is_credit else EntryDirection.INCOMING
            assert (entry.direction, entry.amount_minor) == (paid, row.amount_minor)
        assert not own, "rows that the statement does not have"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bank(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bank]:
    """The file, replayed once on a fresh cluster."""
    rows = read_rows(shared_data / "bank_1993.csv")
    folder = tmp_path_factory.mktemp("bank")
    async with live_cluster(folder, allow_imports=True, shard_options=SHARD_OPTIONS) as live:
        await open_bank(live, rows)
        tally, answers = await replay(live.wallet, rows)
        assert (tally.completed, tally.sent, tally.stopped) == (ROWS, ROWS, "")
        yield Bank(rows, live, answers)


async def test_after_every_transaction_the_balance_is_the_banks(bank: Bank) -> None:
    withdrawals = [row for row in bank.rows if not row.is_credit]
    assert [bank.answers[row.source_id].source_balance_after_minor for row in withdrawals] == [
        row.balance_minor for row in withdrawals
    ]
    await check_statements(bank)
    await check_hubs(bank)
    assert (await bank.live.admin.check_conservation()).balanced


async def test_a_second_replay_changes_nothing(bank: Bank) -> None:
    before = (await bank.live.admin.cluster_status()).shards[0]
    tally, answers = await replay(bank.live.wallet, bank.rows)
    assert (tally.repeats, tally.sent, tally.stopped) == (ROWS, ROWS, "")
    after = (await bank.live.admin.cluster_status()).shards[0]
    assert after.durable_sequence == before.durable_sequence, "nothing was recorded"
    assert after.transfers_repeated - before.transfers_repeated == ROWS
    for source_id, answer in answers.items():
        first = bank.answers[source_id]
        assert (answer.time_us, answer.source_balance_after_minor) == (
            first.time_us,
            first.source_balance_after_minor,
        )


def end_of_day_us(day: date) -> int:
    """The day's last microsecond."""
    return (day.toordinal() + 1 - date(1970, 1, 1).toordinal()) * DAY_US - 1


@asynccontextmanager
async def shard_of(bank: Bank) -> AsyncIterator[Ask]:
    """Ask the shard node itself: a router passes questions on as they are, at twice the cost."""
    processes = bank.live.processes
    shard = GrpcShardClient(1, processes.address(SHARD, 1))

    async def ask(method: Method[Q, R], question: Q) -> R:
        return await shard.call(method, question, processes.topology.version, QUERY_TIMEOUT_S)

    try:
        yield ask
    finally:
        await shard.close(0.0)


async def flows_of(bank: Bank, account_id: int, as_of_us: int, window_us: int) -> naive.Flows:
    answer = await bank.live.wallet.flows(
        account_id, currency=CURRENCY, as_of=as_of_us, window=window_us
    )
    (flows,) = answer.flows
    return naive.Flows(
        flows.incoming_minor, flows.outgoing_minor, flows.incoming_count, flows.outgoing_count
    )


async def test_flows_of_every_day_are_the_files(bank: Bank) -> None:
    """Query 1 for each day on which an account did anything, and for all days together.

    Counts are never negative, so that the whole has as many entries as these days shows that the
    days between had none.
    """
    days = list(naive_days(bank.rows).items())
    end_us = end_of_day_us(max(row.date for row in bank.rows))

    async def ask_day(index: int) -> None:
        (account_id, day), books = days[index]
        if index % SDK_EVERY == 0:
            assert await flows_of(bank, account_id, end_of_day_us(day), DAY_US) == books.flows
            return
        question = pb.GetFlowsRequest(
            account_id=account_id, currency=CURRENCY, as_of_us=end_of_day_us(day), window_us=DAY_US
        )
        (found,) = (await ask(GET_FLOWS, question)).flows
        assert books.flows == naive.Flows(
            found.incoming_minor, found.outgoing_minor, found.incoming_count, found.outgoing_count
        )

    async def ask_all(account_id: int) -> None:
        rows = by_account[account_id]
        expected = naive.flows([r.transfer() for r in rows], account_id, CURRENCY, 0, end_us)
        assert await flows_of(bank, account_id, end_us, end_us) == expected

    by_account = bank.by_account
    async with shard_of(bank) as ask:
        await each(range(len(days)), ask_day)
    await each(by_account, ask_all)


async def test_balances_at_the_end_of_every_day_are_the_files(bank: Bank) -> None:
    """Query 2 for every hour from an account's first day to the file's last, silent ones too."""
    days: defaultdict[int, list[tuple[date, DayBooks]]] = defaultdict(list)
    for (account_id, day), books in naive_days(bank.rows).items():
        days[account_id].append((day, books))
    end_us = end_of_day_us(max(row.date for row in bank.rows))

    async def ask_account(account_id: int) -> None:
        own = sorted(days[account_id])
        from_us = end_of_day_us(own[0][0]) - DAY_US + 1
        expected = naive_hours(own, end_us)
        found: list[tuple[int, int, int]] = []
        for start_us in range(from_us, end_us, SERIES_HOURS_MAX * HOUR_US):
            question = pb.GetBalanceSeriesRequest(
                account_id=account_id,
                currency=CURRENCY,
                from_us=start_us,
                to_us=min(end_us, start_us + SERIES_HOURS_MAX * HOUR_US - 1),
            )
            # Ten million hours in all: messages as they are, with no object made of each hour.
            answer = await ask(GET_BALANCE_SERIES, question)
            assert answer.opening_balance_minor == (found[-1][0] if found else 0)
            assert answer.hours[0].hour_start_us == start_us
            found += [(h.balance_minor, h.incoming_minor, h.outgoing_minor) for h in answer.hours]
        assert found == expected
        if account_id % SDK_EVERY == 0:  # and its last month as a game server would ask
            last = await bank.live.wallet.balance_series(account_id, CURRENCY, to_time=end_us)
            hours = [(h.balance_minor, h.incoming_minor, h.outgoing_minor) for h in last.hours]
            before = [(0, 0, 0)] * (len(hours) - len(expected))
            assert hours == before + expected[-len(hours) :]

    async with shard_of(bank) as ask:
        await each(days, ask_account)


def naive_hours(days: Sequence[tuple[date, DayBooks]], end_us: int) -> list[tuple[int, int, int]]:
    """Balance, incoming and outgoing of each hour from the first day's first up to `end_us`.

    All that a day did happened in its thirteenth hour, at noon.
    """
    hours: list[tuple[int, int, int]] = []
    balance_minor = 0
    first_us = end_of_day_us(days[0][0]) - DAY_US + 1
    for day, books in days:
        noon = (end_of_day_us(day) - DAY_US + 1 - first_us) // HOUR_US + 12
        hours += [(balance_minor, 0, 0)] * (noon - len(hours))
        balance_minor = books.closing_minor
        hours.append((balance_minor, books.flows.incoming_minor, books.flows.outgoing_minor))
    hours += [(balance_minor, 0, 0)] * ((end_us + 1 - first_us) // HOUR_US - len(hours))
    return hours


async def test_random_instants_are_a_naive_fold(bank: Bank, rng: random.Random) -> None:
    """Flows and balances at instants on, beside and between entries, of customers and hubs."""
    history: defaultdict[int, list[Transfer]] = defaultdict(list)
    for row in bank.rows:
        history[row.account_id].append(row.transfer())
        history[row.operation_account_id].append(row.transfer())
    hubs = sorted(hubs_of(bank.rows))
    first_us, last_us = bank.rows[0].time_us, bank.rows[-1].time_us
    accounts = sorted(history)
    asked = [rng.choice(hubs if rng.random() < 0.1 else accounts) for _ in range(INSTANTS)]

    def instant_us(account_id: int) -> int:
        if rng.random() < 0.3:
            return rng.randrange(first_us - DAY_US, last_us + DAY_US)
        return rng.choice(history[account_id]).import_time_us + rng.choice((-1, 0, 0, 1))

    windows = [sorted((instant_us(a), instant_us(a))) for a in asked]

    async def ask(index: int) -> None:
        account_id, (from_us, to_us) = asked[index], windows[index]
        own, window_us = history[account_id], max(1, to_us - from_us)
        expected = naive.flows(own, account_id, CURRENCY, to_us - window_us, to_us)
        assert await flows_of(bank, account_id, to_us, window_us) == expected
        ever = naive.flows(own, account_id, CURRENCY, 0, to_us)
        held = (await bank.live.wallet.balances(account_id, as_of=to_us)).of(CURRENCY)
        assert (held.posted_minor if held else 0) == ever.incoming_minor - ever.outgoing_minor

    await each(range(INSTANTS), ask)


async def test_on_three_shards_every_balance_is_again_the_banks(
    shared_data: Path, tmp_path: Path
) -> None:
    rows = read_rows(shared_data / "bank_1993.csv")
    async with live_cluster(
        tmp_path, shards=3, coordinators=2, allow_imports=True, shard_options=SHARD_OPTIONS
    ) as live:
        await open_bank(live, rows)
        tally, answers = await replay(live.wallet, rows)
        # On a machine that is held up the SDK asks again for what took longer than an attempt may:
        # then the answer says that it is a repeat, and everything has happened once all the same.
        done = tally.completed + tally.repeats
        assert (done, tally.sent, tally.stopped) == (ROWS, ROWS, ""), tally
        shard_of = live.processes.topology.shard_of
        crossing = sum(shard_of(r.account_id) != shard_of(r.operation_account_id) for r in rows)
        assert crossing > ROWS / 2, "most transfers cross"
        bank = Bank(rows, live, answers)
        assert all(
            answers[row.source_id].source_balance_after_minor == row.balance_minor
            for row in rows
            if not row.is_credit
        )
        await check_statements(bank)
        await check_hubs(bank)
        some = rows[: ROWS // 4]
        again, _ = await replay(live.wallet, some)
        assert (again.repeats, again.sent, again.stopped) == (len(some), len(some), "")
        await check_statements(bank)
        assert (await live.admin.check_conservation()).balanced
        report = await live.admin.audit()
        assert (report.balanced, report.in_doubt) == (True, 0)


async def test_a_kill_in_the_middle_and_a_resumed_replay_give_the_same_end(
    shared_data: Path, tmp_path: Path, rng: random.Random
) -> None:
    rows = read_rows(shared_data / "bank_1993.csv")
    options = (*SHARD_OPTIONS, "--verify-all")
    async with live_cluster(tmp_path, allow_imports=True, shard_options=options) as live:
        await open_bank(live, rows)
        before = await replay_until_killed(live, rows, rng)
        await live.processes.restart(SHARD, 1)
        tally, answers = await replay(live.wallet, rows)
        assert (tally.sent, tally.stopped) == (ROWS, "")
        assert tally.completed + tally.repeats == ROWS
        known = {source_id for source_id, answer in before.items() if answer.completed}
        assert all(answers[source_id].repeat for source_id in known), "acknowledged, so it stays"
        assert all(
            answers[source_id].source_balance_after_minor
            == before[source_id].source_balance_after_minor
            for source_id in known
        )
        again = Bank(rows, live, answers)
        await check_statements(again)
        await check_hubs(again)
        assert (await live.admin.check_conservation()).balanced


async def replay_until_killed(
    live: LiveCluster, rows: Sequence[BankRow], rng: random.Random
) -> dict[int, TransferResult]:
    """Replay until the shard node is killed with a batch in flight; what was answered till then."""
    answers: dict[int, TransferResult] = {}
    kill_after = rng.randrange(ROWS // 5, ROWS * 4 // 5)
    turns = rng.randrange(12)  # of our event loop between sending the batch and killing the node

    async def send(batch: Sequence[Transfer]) -> Sequence[TransferResult]:
        sending = asyncio.create_task(client.transfer_batch(batch))
        if len(answers) >= kill_after:
            for _ in range(turns):
                await asyncio.sleep(0)
            live.processes.kill(SHARD, 1)
        results = await sending
        answers.update((t.reference, r) for t, r in zip(batch, results, strict=True))
        return results

    tally = Tally()
    impatient = RetryPolicy(attempts_max=1)
    async with AsyncClient(live.processes.routers, timeout_s=2.0, retry=impatient) as client:
        await play(send, ordered_batches(rows), tally)
    assert tally.stopped, "the killed node was missed"
    assert kill_after <= tally.sent < ROWS
    return answers
