"""Three shards, two coordinators, two routers: groups, audits, and coordinators that die."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from doubloon import (
    DefiniteFault,
    Group,
    GroupResult,
    NotFound,
    RefusalReason,
    Transfer,
    TransferType,
)
from scripts.commands.session import EXIT_FAILED, EXIT_REFUSED
from scripts.local_cluster import COORDINATOR
from scripts.naive import Books
from tests.support import POLL_S
from tests.support.cli import NOTHING_IN_DOUBT, Cli
from tests.support.clusters import (
    GOLD,
    TREASURY_FLOOR_MINOR,
    LiveCluster,
    Town,
    live_cluster,
    settle_town,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHARDS = (1, 2, 3)
PLAYERS = 20
WORKERS = 4
BATCH = 100
KILLS = 4
SETTLE_S = 20.0  # a deadline of five seconds, a sweep a second, and a slow machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LiveCluster]:
    folder = tmp_path_factory.mktemp("crossing")
    async with live_cluster(folder, shards=3, coordinators=2, routers=2) as running:
        yield running


@pytest.fixture(scope="module")
def first_ids() -> Iterator[int]:
    """Every town of these tests has accounts of its own."""
    return count(1, 1_000)


@pytest_asyncio.fixture(loop_scope="module")
async def town(live: LiveCluster, first_ids: Iterator[int]) -> Town:
    return await settle_town(live, PLAYERS, next(first_ids))


def everybody(town: Town) -> list[int]:
    return [player for players in town.players.values() for player in players]


async def fund(live: LiveCluster, town: Town, amount_minor: int) -> list[Transfer]:
    """Give every player as much, from a treasury that is mostly on another shard."""
    gifts = [
        Transfer(town.treasuries[1 + place % 3], player, GOLD, amount_minor, TransferType.REWARD)
        for place, player in enumerate(everybody(town))
    ]
    assert all(result.completed for result in await live.wallet.transfer_batch(gifts))
    return gifts


async def check_books(live: LiveCluster, town: Town, transfers: Sequence[Transfer]) -> None:
    """Balances are those of these transfers, whatever their order, and every promise holds."""
    balances: Counter[int] = Counter()
    for each in transfers:
        balances[each.source] -= each.amount_minor
        balances[each.destination] += each.amount_minor
    for account_id in (*everybody(town), *town.treasuries.values()):
        held = await live.wallet.balance(account_id, GOLD)
        assert (held.posted_minor, held.reserved_minor) == (balances[account_id], 0)
    assert (await live.admin.check_conservation()).balanced


async def until_nothing_is_in_doubt(live: LiveCluster) -> None:
    async with asyncio.timeout(SETTLE_S):
        while not (await live.admin.in_doubt()).is_nothing:  # noqa: ASYNC110 - no event reaches us from another process
            await asyncio.sleep(POLL_S)


async def test_a_group_over_three_shards_happens_whole(live: LiveCluster, town: Town) -> None:
    gifts = await fund(live, town, 1_000)
    buyer, seller, house = (town.players[shard][0] for shard in SHARDS)
    sale = [
        Transfer(buyer, seller, GOLD, 600, TransferType.SALE),
        Transfer(seller, house, GOLD, 1_600, TransferType.FEE),  # only with what he has just got
    ]
    result = await live.wallet.transfer_group(sale)
    assert result.completed
    assert result.source_balance_after_minor == 400
    again = await live.wallet.transfer_group(sale, group_id=result.group_id)
    assert (again.completed, again.repeat, again.time_us) == (True, True, result.time_us)
    fee, price = [entry async for entry in live.wallet.entries(seller, page_size=2)][:2]
    assert {fee.transfer_id, price.transfer_id} == {result.group_id}
    assert (price.group_index, fee.group_index, fee.group_size) == (0, 1, 2)
    assert (fee.key_account_id, price.decided_time_us) == (buyer, fee.decided_time_us)
    await check_books(live, town, [*gifts, *sale])


async def test_a_refused_group_moves_nothing_and_says_which_transfer(
    live: LiveCluster, town: Town
) -> None:
    gifts = await fund(live, town, 100)
    buyer, seller, house = (town.players[shard][0] for shard in SHARDS)
    for order in ((buyer, seller, house), (seller, house, buyer), (house, buyer, seller)):
        group = [
            Transfer(order[0], order[1], GOLD, 50),
            Transfer(order[2], order[0], GOLD, 101),
        ]
        result = await live.wallet.transfer_group(group)
        assert result.refusal is not None
        assert result.refusal.reason is RefusalReason.INSUFFICIENT_FUNDS
        assert result.refused_index == 1
        again = await live.wallet.transfer_group(group, group_id=result.group_id)
        assert (again.refused, again.repeat, again.refused_index) == (True, True, 1)
    payer = Transfer(buyer, buyer, GOLD, 5)
    itself = await live.wallet.transfer_group([Transfer(buyer, seller, GOLD, 5), payer])
    assert itself.refusal is not None
    assert (itself.refusal.reason, itself.refused_index) == (RefusalReason.SAME_ACCOUNT, 1)
    await check_books(live, town, gifts)


async def test_random_groups_end_as_naive_books_say(
    live: LiveCluster, town: Town, rng: random.Random
) -> None:
    made = await fund(live, town, 1_000)
    books = Books(dict.fromkeys(town.treasuries.values(), TREASURY_FLOOR_MINOR))
    for gift in made:
        assert books.apply(gift)
    for _ in range(60):
        # Of one group after the other, the books know what becomes of each.
        accounts = rng.sample(everybody(town), rng.randrange(2, 6))
        pairs = [rng.sample(accounts, 2) for _ in range(rng.randrange(1, 17))]
        group = [Transfer(a, b, GOLD, rng.randrange(1, 600)) for a, b in pairs]
        result = await live.wallet.transfer_group(group)
        assert result.completed == books.apply(*group)
        if result.completed:
            made += group
    await check_books(live, town, made)


async def test_operators_commands_about_what_crosses(
    live: LiveCluster, town: Town, tmp_path: Path
) -> None:
    await fund(live, town, 100)
    cli, router = Cli(tmp_path, "none"), ("--router", ",".join(live.processes.routers))
    one, other, third = (town.players[shard][1] for shard in SHARDS)
    sale = (f"{one}:{other}:0.50:GOLD:SALE", f"{other}:{third}:0.05:GOLD:FEE")

    made = await asyncio.to_thread(cli.ask, "group", *sale, *router)
    assert made["status"] == "COMPLETED"
    again = await asyncio.to_thread(cli.run, "group", *sale, "--id", made["group_id"], *router)
    assert (again.code, again.output.splitlines()[0]) == (0, "COMPLETED (repeat)")
    poor = await asyncio.to_thread(cli.run, "group", f"{one}:{other}:99:GOLD", *router)
    assert poor.code == EXIT_REFUSED
    assert "INSUFFICIENT_FUNDS (retry: NEW_KEY), transfer 0" in poor.output
    audit = await asyncio.to_thread(cli.run, "audit", *router)
    assert audit.code == 0
    assert "the shards' books agree" in audit.output
    await until_nothing_is_in_doubt(live)
    assert await asyncio.to_thread(cli.ask, "txn", "list", *router) == NOTHING_IN_DOUBT
    for command, said in (("show", "is in doubt nowhere"), ("resolve", "NOT_FOUND")):
        answer = await asyncio.to_thread(cli.run, "txn", command, "00" * 16, *router)
        assert answer.code == EXIT_FAILED
        assert said in answer.output + answer.errors


async def test_an_audit_raises_no_false_alarm_while_coordinators_die(
    tmp_path: Path, rng: random.Random
) -> None:
    async with live_cluster(tmp_path, shards=3, coordinators=2, routers=2) as live:
        await play_while_coordinators_die(live, await settle_town(live, PLAYERS), rng)


async def play_while_coordinators_die(live: LiveCluster, town: Town, rng: random.Random) -> None:
    made = await fund(live, town, 10_000)
    settled: dict[bytes, Group] = {}
    running = True

    async def work(dice: random.Random) -> None:
        while running:
            groups = [group_of(dice) for _ in range(BATCH)]
            while groups:  # until each has an answer that says what happened
                answers = list(zip(groups, await ask(groups), strict=True))
                settled.update((each.group_id, each) for each, its in answers if its.committed)
                groups = [each for each, its in answers if its.fault is not None]

    def group_of(dice: random.Random) -> Group:
        accounts = dice.sample(everybody(town), 3)
        first, second, third = accounts
        legs = [Transfer(first, second, GOLD, dice.randrange(1, 20))]
        if dice.random() < 0.5:
            legs.append(Transfer(second, third, GOLD, 1))
        return Group(legs)

    async def ask(groups: Sequence[Group]) -> Sequence[GroupResult]:
        while True:
            try:
                return await live.wallet.transfer_group_batch(groups)
            except DefiniteFault:
                continue  # nothing happened

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WORKERS):
            tasks.create_task(work(random.Random(rng.getrandbits(32))))
        for kill in range(KILLS):
            await asyncio.sleep(rng.random())
            number = 1 + kill % 2
            live.processes.kill(COORDINATOR, number)
            report = await live.admin.audit()
            assert report.balanced, report
            await live.processes.restart(COORDINATOR, number)
        running = False
    await until_nothing_is_in_doubt(live)
    assert len(settled) > KILLS * BATCH
    moved = [transfer for group in settled.values() for transfer in group.transfers]
    await check_books(live, town, [*made, *moved])
    report = await live.admin.audit()
    assert (report.balanced, report.in_doubt) == (True, 0)


async def test_a_transaction_that_nobody_knows_is_not_found(live: LiveCluster) -> None:
    with pytest.raises(NotFound):
        await live.admin.resolve_transaction(bytes(16))
    assert (await live.admin.in_doubt(transaction_id=bytes(16))).is_nothing
