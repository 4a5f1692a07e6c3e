"""Three shards behind one router, nothing broken: what game servers and operators see."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import chain, count
from pathlib import Path

import pytest
import pytest_asyncio

from doubloon import (
    AccountStatus,
    AlreadyExists,
    Client,
    EntryOrder,
    FailedPrecondition,
    FaultCode,
    NotFound,
    RefusalReason,
    RetryClass,
    Transfer,
    TransferType,
)
from scripts.local_cluster import COORDINATOR, ROUTER, SHARD
from scripts.naive import HOUR_US, Books
from tests.support.clusters import (
    GOLD,
    TREASURY_FLOOR_MINOR,
    LiveCluster,
    Town,
    accounts_on,
    live_cluster,
    settle_town,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARDS = (1, 2, 3)
PLAYERS = 20
NEVER_OPENED = 2**62


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveCluster]:
    async with live_cluster(tmp_path_factory.mktemp("cluster"), shards=len(SHARDS)) as running:
        yield running


@pytest.fixture(scope="module")
def first_ids() -> Iterator[int]:
    """Every town of these tests has accounts of its own."""
    return count(1, 1_000)


@pytest_asyncio.fixture(loop_scope="module")
async def town(live: LiveCluster, first_ids: Iterator[int]) -> Town:
    return await settle_town(live, PLAYERS, next(first_ids))


def local_transfers(town: Town, rng: random.Random, number: int) -> list[Transfer]:
    """Rewards inside each shard, all shards mixed. All complete, in whatever order."""
    transfers = []
    for _ in range(number):
        shard_id = rng.choice(SHARDS)
        transfers.append(
            Transfer(
                town.treasuries[shard_id],
                rng.choice(town.players[shard_id]),
                GOLD,
                rng.randrange(1, 10_000),
                TransferType.REWARD,
                reference=rng.randrange(2**64),
                metadata=rng.randbytes(rng.choice((0, 1, 256))),
            )
        )
    return transfers


def books_of(town: Town, transfers: Sequence[Transfer]) -> Books:
    books = Books(dict.fromkeys(town.treasuries.values(), TREASURY_FLOOR_MINOR))
    assert all(books.apply(each) for each in transfers)
    return books


async def check_balances(live: LiveCluster, town: Town, books: Books) -> None:
    for account_id in chain(town.treasuries.values(), *town.players.values()):
        held = await live.wallet.balance(account_id, GOLD)
        assert held.posted_minor == books.balance_minor(account_id, GOLD)


async def test_a_batch_is_answered_in_its_order_whatever_shards_it_is_for(
    live: LiveCluster, town: Town, rng: random.Random
) -> None:
    good = local_transfers(town, rng, 3_000)
    treasury = town.treasuries[1]
    bad = {
        RefusalReason.SAME_ACCOUNT: Transfer(treasury, treasury, GOLD, 1),
        RefusalReason.BAD_AMOUNT: Transfer(treasury, town.players[1][0], GOLD, 0),
        RefusalReason.DESTINATION_UNKNOWN: Transfer(
            treasury, next(accounts_on(live.processes.topology, 1, NEVER_OPENED)), GOLD, 1
        ),
        RefusalReason.INSUFFICIENT_FUNDS: Transfer(
            town.players[2][0], town.treasuries[2], GOLD, 2**62
        ),
        RefusalReason.UNKNOWN_CURRENCY: Transfer(treasury, town.players[1][0], "NONE", 1),
    }
    malformed = Transfer(0, treasury, GOLD, 1)
    batch = [*good, *bad.values(), malformed]
    rng.shuffle(batch)
    results = await live.wallet.transfer_batch(batch)
    expected = {each.transfer_id: reason for reason, each in bad.items()}
    for place, (transfer, result) in enumerate(zip(batch, results, strict=True)):
        assert result.transfer_id == transfer.transfer_id
        if transfer is malformed:
            assert result.fault is not None
            assert result.fault.code is FaultCode.INVALID_ARGUMENT
            assert result.fault.field == "transfers.source_account_id"
            assert (result.fault.index, result.fault.indefinite) == (place, False)
        elif reason := expected.get(transfer.transfer_id):
            assert result.refusal is not None
            assert result.refusal.reason is reason
        else:
            assert result.completed
            assert not result.repeat
    await check_balances(live, town, books_of(town, good))


async def test_results_do_not_tell_whether_a_transfer_crossed_shards(
    live: LiveCluster, town: Town, rng: random.Random
) -> None:
    good = local_transfers(town, rng, 200)
    for a in SHARDS:
        for b in SHARDS:
            good += [Transfer(town.treasuries[a], player, GOLD, 7) for player in town.players[b]]
    poor, rich = town.players[1][0], town.players[2][0]
    nobody = next(accounts_on(live.processes.topology, 3, NEVER_OPENED))
    bad = {
        RefusalReason.BAD_AMOUNT: Transfer(rich, poor, GOLD, 0),
        RefusalReason.UNKNOWN_CURRENCY: Transfer(rich, poor, "NONE", 1),
        RefusalReason.SOURCE_UNKNOWN: Transfer(nobody, poor, GOLD, 1),
        RefusalReason.DESTINATION_UNKNOWN: Transfer(poor, nobody, GOLD, 1),
        RefusalReason.INSUFFICIENT_FUNDS: Transfer(poor, rich, GOLD, 2**62),
    }
    batch = [*good, *bad.values()]
    rng.shuffle(batch)
    for repeat in (False, True):
        results = await live.wallet.transfer_batch(batch)
        for transfer, result in zip(batch, results, strict=True):
            reason = next((why for why, each in bad.items() if each is transfer), None)
            if reason is None:
                assert result.completed
                assert result.repeat == repeat
            else:
                assert result.refusal is not None
                assert result.refusal.reason is reason
                recorded = result.refusal.retry_class is RetryClass.NEW_KEY
                assert result.repeat == (repeat and recorded)
    await check_balances(live, town, books_of(town, good))


async def test_a_stream_answers_in_its_order_and_a_second_one_repeats(
    live: LiveCluster, town: Town, rng: random.Random
) -> None:
    sizes = [rng.choice((1, 10, 500)) for _ in range(20)]
    made = [local_transfers(town, rng, size) for size in sizes]

    async def batches() -> AsyncIterator[Sequence[Transfer]]:
        for batch in made:
            yield batch

    for is_repeat in (False, True):
        answered = 0
        async for results in live.wallet.stream_transfers(batches(), window=4):
            assert [r.transfer_id for r in results] == [t.transfer_id for t in made[answered]]
            assert all(r.completed and r.repeat is is_repeat for r in results)
            answered += 1
        assert answered == len(made)
    await check_balances(live, town, books_of(town, [*chain(*made)]))


async def test_single_transfers_of_many_tasks_are_gathered(live: LiveCluster, town: Town) -> None:
    treasury, player = town.treasuries[2], town.players[2][0]
    before = sum(shard.log_syncs for shard in (await live.admin.cluster_status()).shards)
    results = await asyncio.gather(
        *(live.wallet.transfer(treasury, player, GOLD, 5) for _ in range(500))
    )
    assert all(result.completed for result in results)
    assert len({result.source_balance_after_minor for result in results}) == len(results)
    after = sum(shard.log_syncs for shard in (await live.admin.cluster_status()).shards)
    assert after - before < len(results) / 10, "one sync is for many transfers"
    assert (await live.wallet.balance(player, GOLD)).posted_minor == 2_500


async def test_statements_and_both_queries(live: LiveCluster, town: Town) -> None:
    treasury, player, other = town.treasuries[3], *town.players[3][:2]
    amounts = [500, 20, 1, 70, 300]
    for place, amount_minor in enumerate(amounts):
        pair = (treasury, player) if place % 2 == 0 else (player, other)
        result = await live.wallet.transfer(*pair, GOLD, amount_minor, reference=place + 1)
        result.raise_for_refusal()
    changes = [500, -20, 1, -70, 300]
    newest = [entry async for entry in live.wallet.entries(player, page_size=2)]
    oldest = [entry async for entry in live.wallet.entries(player, order=EntryOrder.OLDEST_FIRST)]
    assert newest == oldest[::-1]
    assert [entry.change_minor for entry in oldest] == changes
    assert [entry.balance_after_minor for entry in oldest] == [500, 480, 481, 411, 711]
    assert [entry.reference for entry in oldest] == [1, 2, 3, 4, 5]
    assert [entry.counterparty for entry in oldest] == [treasury, other, treasury, other, treasury]
    since_third = live.wallet.entries(player, from_time=oldest[2].time_us)
    assert [entry async for entry in since_third] == newest[:3]

    flows = (await live.wallet.flows(player)).of(GOLD)
    assert (flows.incoming_minor, flows.outgoing_minor) == (801, 90)
    assert (flows.incoming_count, flows.outgoing_count) == (3, 2)
    exact = await live.wallet.flows(
        player,
        currency=GOLD,
        as_of=oldest[3].time_us,
        window=oldest[3].time_us - oldest[0].time_us,
    )
    assert (exact.flows[0].incoming_minor, exact.flows[0].outgoing_minor) == (1, 90)
    series = await live.wallet.balance_series(player, GOLD)
    assert len(series.hours) == 720
    assert series.opening_balance_minor == 0
    assert series.hours[-1].balance_minor == 711
    assert sum(hour.incoming_minor for hour in series.hours[-2:]) == 801  # an hour may just end
    then = await live.wallet.balance(player, GOLD, as_of=oldest[1].time_us)
    assert then.posted_minor == 480


async def test_a_transfer_is_found_by_its_name(live: LiveCluster, town: Town) -> None:
    treasury, player = town.treasuries[1], town.players[1][0]
    done = await live.wallet.transfer(treasury, player, GOLD, 30, metadata=b"quest")
    found = await live.wallet.get_transfer(treasury, done.transfer_id)
    assert found.result.completed
    assert (found.transfer.metadata, found.transfer.amount_minor) == (b"quest", 30)
    refused = await live.wallet.transfer(player, treasury, GOLD, 31)
    assert refused.refusal is not None
    found = await live.wallet.get_transfer(player, refused.transfer_id)
    assert found.result.refusal == refused.refusal
    reused = await live.wallet.transfer(
        treasury, player, GOLD, 31, transfer_id=done.transfer_id, metadata=b"quest"
    )
    assert reused.refusal is not None
    assert reused.refusal.reason is RefusalReason.KEY_REUSED
    assert reused.refusal.differing_field == "amount_minor"


async def test_accounts_are_frozen_unfrozen_and_closed(live: LiveCluster, town: Town) -> None:
    treasury, player = town.treasuries[1], town.players[1][0]
    await live.wallet.transfer(treasury, player, GOLD, 10)

    async def change(status: AccountStatus) -> bool:
        made = await live.admin.change_account_status(player, status, f"to {status.name}")
        assert (made.account.status, made.account.status_reason) == (status, f"to {status.name}")
        assert await live.wallet.account(player) == made.account
        return made.repeat

    async def refusals() -> list[RefusalReason | None]:
        results = await live.wallet.transfer_batch(
            [Transfer(player, treasury, GOLD, 1), Transfer(treasury, player, GOLD, 1)]
        )
        return [result.refusal.reason if result.refusal else None for result in results]

    assert not await change(AccountStatus.FROZEN)
    assert await change(AccountStatus.FROZEN), "the same again is a repeat"
    frozen = [RefusalReason.SOURCE_FROZEN, RefusalReason.DESTINATION_FROZEN]
    assert await refusals() == frozen
    await change(AccountStatus.ACTIVE)
    assert await refusals() == [None, None]
    with pytest.raises(FailedPrecondition):  # it holds money
        await change(AccountStatus.CLOSED)
    (await live.wallet.transfer(player, treasury, GOLD, 10)).raise_for_refusal()
    assert not await change(AccountStatus.CLOSED)
    assert await refusals() == [RefusalReason.SOURCE_CLOSED, RefusalReason.DESTINATION_CLOSED]
    with pytest.raises(FailedPrecondition):
        await change(AccountStatus.ACTIVE)
    assert len([entry async for entry in live.wallet.entries(player)]) == 4, "history stays"


async def test_a_currency_registered_while_running_can_be_used_at_once(
    live: LiveCluster, town: Town
) -> None:
    early = Transfer(town.treasuries[2], town.players[2][0], "RUBY", 3)
    (unknown,) = await live.wallet.transfer_batch([early])
    assert unknown.refusal is not None
    assert unknown.refusal.reason is RefusalReason.UNKNOWN_CURRENCY
    assert unknown.refusal.retry_class is RetryClass.SAME_KEY
    made = await live.admin.register_currency("RUBY", scale=3)
    assert made in await live.admin.currencies()
    (done,) = await live.wallet.transfer_batch([early])
    assert done.completed, "the refusal left no record under the key"
    assert (await live.wallet.balances(town.players[2][0])).of("RUBY") is not None
    assert await live.admin.register_currency("RUBY", scale=3) == made
    with pytest.raises(AlreadyExists):
        await live.admin.register_currency("RUBY", scale=2)


async def test_imports_are_for_routers_that_allow_them(live: LiveCluster, town: Town) -> None:
    payer, player = town.treasuries[1], town.players[1][0]
    ordinary = Transfer(payer, player, GOLD, 1)
    imported = Transfer(payer, player, GOLD, 1, import_time_us=HOUR_US)
    results = await live.wallet.transfer_batch([imported, ordinary])
    assert results[0].fault is not None
    assert results[0].fault.code is FaultCode.PERMISSION_DENIED
    assert results[0].fault.field == "transfers.import_time_us"
    assert not results[0].fault.indefinite
    assert results[1].completed
    with pytest.raises(NotFound):
        await live.wallet.get_transfer(payer, imported.transfer_id)


async def test_the_books_balance_and_the_status_is_whole(live: LiveCluster, town: Town) -> None:
    await live.wallet.transfer(town.treasuries[3], town.players[3][0], GOLD, 1)
    report = await live.admin.check_conservation()
    assert report.balanced
    assert {book.shard_id for book in report.books if book.currency == GOLD} >= {3}
    assert all(book.positive_minor + book.negative_minor == 0 for book in report.books)
    status = await live.admin.cluster_status()
    assert status.etcd_connected
    assert [shard.shard_id for shard in status.shards] == list(SHARDS)
    assert all(shard.reachable and not shard.space_exhausted for shard in status.shards)
    assert sum(shard.slots for shard in status.shards) == 4_096
    assert {(m.role, m.id) for m in status.members} >= {
        ("router", "router-1"),
        *(("shard_node", f"shard-{shard_id}") for shard_id in SHARDS),
    }
    health = await live.admin.process_health()
    assert {c.name for c in health.checks if c.healthy} >= {"etcd", "topology", "shards"}


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this system has no such policy")
async def test_routers_alone_are_scheduled_as_batch_with_all_their_threads(
    live: LiveCluster, town: Town
) -> None:
    def policies(role: str) -> set[int]:
        threads = Path(f"/proc/{live.processes.pid(role, 1)}/task").iterdir()
        return {os.sched_getscheduler(int(each.name)) for each in threads}

    assert policies(ROUTER) == {os.SCHED_BATCH}
    assert policies(SHARD) == policies(COORDINATOR) == {os.SCHED_OTHER}


async def test_the_plain_client_works_without_asyncio(live: LiveCluster, town: Town) -> None:
    def play() -> int:
        with Client(live.processes.routers) as client:
            for _ in range(3):
                done = client.transfer(town.treasuries[2], town.players[2][1], GOLD, 4)
                done.raise_for_refusal()
            return len(list(client.entries(town.players[2][1])))

    assert await asyncio.to_thread(play) == 3
