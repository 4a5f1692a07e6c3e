"""Three shards, two coordinators, two routers: what game servers see when money crosses.

Some of these tests need a transaction in doubt. They make one without guessing when: the home is
suspended first, so that the participant prepares and nobody can decide. `DOUBLOON_AUDIT_S` says for
how long audits run beside full load, by default a few seconds.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import chain, count
from pathlib import Path

import pytest
import pytest_asyncio

from cluster.shard_client import LIST_TRANSACTIONS, GrpcShardClient
from doubloon import (
    AsyncClient,
    AuditReport,
    DefiniteFault,
    FailedPrecondition,
    FaultCode,
    NotFound,
    RefusalReason,
    RetryPolicy,
    TransactionState,
    Transfer,
    TransferStatus,
    TransferType,
)
from doubloon.v1 import coordinator_service_pb2, shard_service_pb2
from scripts.local_cluster import COORDINATOR, SHARD
from scripts.processes import ProcessEnded, start_mark
from shard_node.clearing import clearing_row, read_clearing_row
from shard_node.rows import open_row, seal_row
from tests.support import POLL_S, eventually
from tests.support.cli import Answer, Cli
from tests.support.clusters import GOLD, LiveCluster, Town, live_cluster, settle_town
from tests.support.folders import edit
from tests.support.traffic import Traffic

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

Record = Callable[[str, object], None]

SHARDS = (1, 2, 3)
PLAYERS = 20
CROWD = 1_000
AUDIT_S = float(os.environ.get("DOUBLOON_AUDIT_S", "8"))
SECOND_US = 1_000_000
SEEN_S = (
    30.0  # what takes milliseconds, or a deadline of five seconds and a sweep, on a busy machine
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveCluster]:
    folder = tmp_path_factory.mktemp("between")
    async with live_cluster(folder, shards=len(SHARDS), coordinators=2, routers=2) as running:
        yield running


@pytest.fixture(scope="module")
def first_ids() -> Iterator[int]:
    """Every town of these tests has accounts of its own."""
    return count(1, 10_000)


@pytest_asyncio.fixture(loop_scope="module")
async def town(live: LiveCluster, first_ids: Iterator[int]) -> AsyncIterator[Town]:
    yield await settle_town(live, PLAYERS, next(first_ids))
    await until_settled(live)


async def until_settled(live: LiveCluster) -> None:
    """Nothing may be left in doubt by any test, nor undecided for long by anything."""
    async with asyncio.timeout(SEEN_S):
        while not (await live.admin.in_doubt()).is_nothing:  # noqa: ASYNC110 - no event reaches us from another process
            await asyncio.sleep(POLL_S)


async def until_voted(live: LiveCluster, shard_id: int) -> None:
    """Wait until a shard has prepared a transaction and said so.

    Its own node is asked: a router would wait for the shards that are suspended, too.
    """
    client = GrpcShardClient(shard_id, live.processes.address(SHARD, shard_id))
    version = live.processes.topology.version
    listing = shard_service_pb2.ListTransactionsRequest()
    try:
        async with asyncio.timeout(SEEN_S):
            while True:
                listed = await client.call(LIST_TRANSACTIONS, listing, version, SEEN_S)
                # What it has decided as a home, and not heard to be posted everywhere, stands there
                # as well for a moment.
                if any(
                    each.state == coordinator_service_pb2.TRANSACTION_STATE_PREPARED
                    for each in listed.transactions
                ):
                    break
                await asyncio.sleep(POLL_S)
            # The list is answered once what it shows is durable, and so is the vote, which was
            # asked for earlier; what is answered next comes after both.
            await client.call(LIST_TRANSACTIONS, listing, version, SEEN_S)
    finally:
        await client.close(0.0)


@asynccontextmanager
async def suspended(live: LiveCluster, shard_id: int) -> AsyncIterator[None]:
    """A shard's node does nothing for as long as the context lasts."""
    live.processes.signal(SHARD, shard_id, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessEnded):  # it was killed meanwhile
            live.processes.signal(SHARD, shard_id, signal.SIGCONT)


@asynccontextmanager
async def client_of(live: LiveCluster, timeout_s: float) -> AsyncIterator[AsyncClient]:
    """A client that asks once."""
    once = RetryPolicy(attempts_max=1, attempt_timeout_s=timeout_s)
    async with AsyncClient(live.processes.routers, timeout_s=timeout_s, retry=once) as client:
        yield client


async def fund(live: LiveCluster, town: Town, amount_minor: int) -> None:
    """Give every player as much, from the treasury of another shard."""
    gifts = [
        Transfer(town.treasuries[shard % 3 + 1], player, GOLD, amount_minor, TransferType.REWARD)
        for shard, players in town.players.items()
        for player in players
    ]
    assert all(result.completed for result in await live.wallet.transfer_batch(gifts))


async def posted(client: AsyncClient, account_id: int) -> int:
    return (await client.balance(account_id, GOLD)).posted_minor


async def test_what_is_acknowledged_is_read_through_every_router(
    live: LiveCluster, town: Town, rng: random.Random
) -> None:
    await fund(live, town, 1_000)
    balances = dict.fromkeys(chain(*town.players.values()), 1_000)
    one, other = live.processes.routers
    async with AsyncClient(one) as asking, AsyncClient(other) as reading:
        for _ in range(60):
            first, second, third = (rng.choice(town.players[s]) for s in rng.sample(SHARDS, 3))
            transfers = [Transfer(first, second, GOLD, 3), Transfer(second, third, GOLD, 2)]
            if rng.random() < 0.5:
                transfers = transfers[:1]
                done = await asking.transfer(first, second, GOLD, 3)
                id_, name = done.transfer_id, (first, done.transfer_id)
                assert done.completed
            else:
                whole = await asking.transfer_group(transfers)
                id_, name = whole.group_id, (first, whole.group_id)
                assert whole.completed
            for each in transfers:
                balances[each.source] -= each.amount_minor
                balances[each.destination] += each.amount_minor
            for account_id in {each.source for each in transfers} | {second}:
                assert await posted(reading, account_id) == balances[account_id]
                page = await reading.entries_page(account_id, page_size=2)
                assert id_ in {entry.transfer_id for entry in page.entries}
            # Its home may not have heard yet that every shard shows it.
            assert (await reading.get_transfer(*name)).result.committed


async def test_the_same_key_twice_in_a_batch_is_a_retry(live: LiveCluster, town: Town) -> None:
    payer, payee = town.treasuries[1], town.players[2][0]
    once = Transfer(payer, payee, GOLD, 10)
    more = Transfer(payer, payee, GOLD, 11, transfer_id=once.transfer_id)
    results = await live.wallet.transfer_batch([once, once, once])
    assert all(result.completed for result in results)
    assert sorted(result.repeat for result in results) == [False, True, True]
    (reused,) = await live.wallet.transfer_batch([more])
    assert reused.refusal is not None
    assert reused.refusal.reason is RefusalReason.KEY_REUSED
    assert reused.refusal.differing_field == "amount_minor"
    # Together, either may be the first; the other one reuses its key.
    one = Transfer(payer, payee, GOLD, 7)
    other = Transfer(payer, payee, GOLD, 8, transfer_id=one.transfer_id)
    results = await live.wallet.transfer_batch([one, other])
    assert sorted(result.completed for result in results) == [False, True]
    won_minor = 7 if results[0].completed else 8
    assert await posted(live.wallet, payee) == 10 + won_minor


async def test_committed_and_still_posting_while_a_participant_is_away(
    live: LiveCluster, town: Town
) -> None:
    home, away = 1, 2
    transfer = Transfer(town.treasuries[home], town.players[away][0], GOLD, 5)
    async with AsyncExitStack() as later, client_of(live, 4.0) as client:
        async with suspended(live, home):
            asking = asyncio.create_task(client.transfer_batch([transfer]))
            await until_voted(live, away)
            await later.enter_async_context(suspended(live, away))
        (first,) = await asking
        assert first.status is TransferStatus.COMMITTED_POSTING, first
        assert (first.committed, first.completed, first.repeat) == (True, False, False)
        assert first.source_balance_after_minor == await posted(client, transfer.source) == -5
        (second,) = await client.transfer_batch([transfer])
        assert second.status is TransferStatus.COMMITTED_POSTING, second
        assert second.repeat
    (third,) = await live.wallet.transfer_batch([transfer])
    assert (third.completed, third.repeat, third.time_us) == (True, True, first.time_us)
    for router in live.processes.routers:
        async with AsyncClient(router) as reading:
            assert await posted(reading, transfer.destination) == 5


async def test_what_is_reserved_cannot_be_spent_and_nothing_else_waits(
    live: LiveCluster, town: Town
) -> None:
    await fund(live, town, 100)
    home, away = 1, 2
    buyer, seller, friend = town.players[home][0], *town.players[away][:2]
    group = [Transfer(buyer, seller, GOLD, 30), Transfer(seller, buyer, GOLD, 70)]
    async with client_of(live, 20.0) as patient, client_of(live, 1.0) as hasty:
        async with suspended(live, home):
            asking = asyncio.create_task(patient.transfer_group(group))
            await until_voted(live, away)
            held = await hasty.balance(seller, GOLD)
            assert (held.posted_minor, held.reserved_minor, held.available_minor) == (100, 40, 60)
            spend = Transfer(seller, friend, GOLD, 59)
            (spent,) = await hasty.transfer_batch([spend])
            assert spent.completed
            too_much = Transfer(seller, friend, GOLD, 2)
            with pytest.raises(DefiniteFault) as caught:  # not refused, and it has not happened
                await hasty.transfer_batch([too_much])
            assert caught.value.fault.code is FaultCode.UNAVAILABLE
        assert (await asking).completed
    held = await live.wallet.balance(seller, GOLD)
    assert (held.posted_minor, held.reserved_minor, held.available_minor) == (1, 0, 1)
    (refused,) = await live.wallet.transfer_batch([too_much])
    assert refused.refusal is not None
    assert refused.refusal.reason is RefusalReason.INSUFFICIENT_FUNDS
    assert not refused.repeat


async def test_an_operator_ends_what_no_coordinator_is_left_to_end(tmp_path: Path) -> None:
    home, away = 1, 2
    async with live_cluster(tmp_path, shards=2) as live:
        processes, town = live.processes, await settle_town(live, PLAYERS)
        transfer = Transfer(town.treasuries[home], town.players[away][0], GOLD, 5)
        async with client_of(live, 3.0) as client:
            async with suspended(live, home):
                asking = asyncio.create_task(client.transfer_batch([transfer]))
                await until_voted(live, away)
                processes.kill(COORDINATOR, 1)
                processes.kill(SHARD, home)  # and with it what it was being told
            (lost,) = await asking
            assert lost.fault is not None
            assert lost.fault.indefinite
        listed = await live.admin.in_doubt()  # most of all while a shard is away
        assert ([each.shard_id for each in listed.transactions]) == [away]
        assert listed.unreachable_shard_ids == (home,)
        await processes.restart(SHARD, home)
        (seen,) = (await live.admin.in_doubt()).transactions
        assert (seen.state, seen.shard_id) == (TransactionState.PREPARED, away)
        assert (seen.home_shard_id, seen.size) == (home, 1)
        assert (seen.key_account_id, seen.transfer_id) == (transfer.source, transfer.transfer_id)
        shards = (await live.admin.cluster_status()).shards
        assert [shard.transactions_prepared for shard in shards] == [0, 1]
        await operators_end(Cli(tmp_path, "unused"), live, seen.transaction_id.hex())
        assert (await live.admin.in_doubt()).is_nothing
        with pytest.raises(NotFound):
            await live.wallet.get_transfer(transfer.source, transfer.transfer_id)
        await processes.restart(COORDINATOR, 1)
        (done,) = await live.wallet.transfer_batch([transfer])
        assert (done.completed, done.repeat) == (True, False)
        assert await posted(live.wallet, transfer.destination) == 5


async def operators_end(cli: Cli, live: LiveCluster, id_: str) -> None:
    """See a transaction in doubt, and end it as soon as its deadline is over, by command."""

    async def doubloon(*args: str) -> Answer:
        router = live.processes.routers[0]
        return await asyncio.to_thread(cli.run, *args, "--json", "--router", router)

    (listed,) = (await doubloon("txn", "list")).value["transactions"]
    assert (listed["transaction_id"], listed["state"]) == (id_, "PREPARED")
    assert (await doubloon("txn", "show", id_)).value["transactions"] == [listed]
    async with asyncio.timeout(SEEN_S):
        while (ended := await doubloon("txn", "resolve", id_)).code:
            assert ended.value["fault"]["code"] == "FAILED_PRECONDITION", "its deadline is not over"
    assert ended.value == {"transaction_id": id_, "fate": "ABORTED"}
    assert (await doubloon("txn", "list")).value["transactions"] == []
    assert (await doubloon("txn", "show", id_)).code == 1
    assert (await doubloon("txn", "resolve", id_)).value["fault"]["code"] == "NOT_FOUND"


async def test_one_account_is_paid_as_fast_as_a_thousand(
    live: LiveCluster, first_ids: Iterator[int], record_testsuite_property: Record
) -> None:
    town = await settle_town(live, CROWD, next(first_ids))
    await fund(live, Town(town.treasuries, {1: town.players[1]}), 1_000)
    crowd = town.players[2]
    took_s: dict[int, list[float]] = {1: [], CROWD: []}
    for payees in (CROWD, 1, CROWD, 1, 1, CROWD, CROWD, 1):
        calls = [
            live.wallet.transfer(payer, crowd[place % payees], GOLD, 1)
            for place, payer in enumerate(town.players[1])
        ]
        start_s = time.perf_counter()
        results = await asyncio.gather(*calls)
        took_s[payees].append(time.perf_counter() - start_s)
        assert all(result.completed for result in results)
    ratio = min(took_s[CROWD]) / min(took_s[1])
    record_testsuite_property("one account's rate over many accounts'", round(ratio, 2))
    assert ratio > 0.5, took_s
    assert await posted(live.wallet, crowd[0]) == CROWD * len(took_s[1]) + len(took_s[CROWD])


async def test_an_audit_of_a_moment_ago_never_raises_a_false_alarm_under_full_load(
    live: LiveCluster, town: Town, rng: random.Random, record_testsuite_property: Record
) -> None:
    """Most of all not of the second that has just ended: some of it is not posted yet."""
    traffic = Traffic(live.wallet, town, rng)
    audits = unposted = 0
    async with traffic.running():
        await traffic.progress(1_000)
        end_us = now_us() + int(AUDIT_S * SECOND_US)
        while (second_us := now_us() // SECOND_US * SECOND_US + SECOND_US) < end_us:
            await until_time(second_us)
            earlier_us = second_us - rng.randrange(1, 5) * SECOND_US
            for report in await asyncio.gather(
                live.admin.audit(second_us), live.admin.audit(earlier_us)
            ):
                assert report.balanced, report
                audits += 1
                unposted += any(pair.unposted_minor for pair in report.pairs)
    record_testsuite_property("audits", audits)
    record_testsuite_property("audits with something not posted yet", unposted)
    assert len((await live.admin.audit()).pairs) == len(SHARDS)
    await traffic.settle(live.wallet)
    await traffic.check(live.wallet)


async def test_a_position_that_was_tampered_with_is_found_by_the_audit_alone(
    tmp_path: Path,
) -> None:
    async with live_cluster(tmp_path, shards=len(SHARDS)) as live:
        town = await settle_town(live, PLAYERS)
        await fund(live, town, 1_000)
        # An audit of the very second in which the gifts were decided would show some of them only.
        await until_time(now_us() + 2 * SECOND_US)
        live.processes.signal(SHARD, 1, signal.SIGTERM)
        pid = live.processes.pid(SHARD, 1)
        await eventually(lambda: start_mark(pid) is None, "it stops")
        shift(live.processes.data_folder(SHARD, 1) / "state", {2: 7, 3: -7})
        await live.processes.restart(SHARD, 1)
        assert (await live.admin.check_conservation()).balanced, "its own books still balance"
        report = await audited(live)
        assert not report.balanced
        assert len(report.pairs) == len(SHARDS)
        for pair in report.pairs:
            wrong_minor = {(1, 2): 7, (1, 3): -7}.get((pair.shard_id, pair.peer_shard_id), 0)
            assert pair.position_minor + pair.peer_position_minor == wrong_minor
            assert pair.balanced == (wrong_minor == 0)
        command = Cli(tmp_path, "unused").run
        shown = await asyncio.to_thread(command, "audit", "--router", live.processes.routers[0])
        assert shown.code == 1
        assert "THE SHARDS' BOOKS DISAGREE" in shown.output


def now_us() -> int:
    """The machine's time, which all clocks of the cluster are close to."""
    return time.time_ns() // 1_000


async def until_time(at_us: int) -> None:
    await eventually(lambda: now_us() >= at_us, "the time")


async def audited(live: LiveCluster) -> AuditReport:
    """Audit as soon as every shard can tell: a restarted one knows nothing from before."""
    async with asyncio.timeout(SEEN_S):
        while True:
            try:
                return await live.admin.audit()
            except FailedPrecondition:
                await asyncio.sleep(POLL_S)


def shift(state: Path, by_peer_minor: dict[int, int]) -> None:
    """Change a stopped shard's positions, as somebody who knows the format could."""
    with edit(state) as (env, table):
        positions = table("clearing")
        with env.begin(write=True, db=positions) as txn:
            for key, value in list(txn.cursor()):
                pair, position_minor = read_clearing_row(key, open_row(key, value))
                row = clearing_row(pair, position_minor + by_peer_minor.pop(pair[0], 0))
                assert txn.put(key, seal_row(*row))
    assert not by_peer_minor, "every peer has a position"
