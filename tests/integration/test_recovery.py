"""Promises 3, 5 and 7 under kills: what was answered is there, once, and the state is fold(log)."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from shard_node.ledger import COMPLETED, KIND_SYSTEM
from shard_node.verify import verify_history
from tests.support.engines import FLOOR_MINOR, IDENTITY, abandon, body, results_of
from tests.support.folders import LIMITS, open_here
from tests.support.nodes import Load, running_node

KILLS = 5
KILL_WITHIN_S = 0.8  # of load; a checkpoint is taken several times in that time


async def test_kills_at_random_moments_under_load(tmp_path: Path, rng: random.Random) -> None:
    async with running_node(tmp_path, "--checkpoint-rows", "3000") as node:
        await node.open_accounts(300)
        load = Load(node, rng, accounts=300)
        for _ in range(KILLS):
            callers = load.begin()
            answered = len(load.answered)
            await asyncio.sleep(rng.uniform(0.05, KILL_WITHIN_S))
            node.kill()
            await asyncio.gather(*callers)
            assert load.unknown, "calls were in flight"
            await node.start()
            await load.settle_unknown()
            assert len(load.answered) > answered
        balances = await load.check_all_once()
        assert await node.stop() == 0
        replayed = [line["replayed_records"] for line in node.events("recovered")]
        assert len(replayed) == KILLS + 1
        assert sum(replayed[1:]) > 0
        verified = node.verify()
        assert verified.records >= sum(len(one) for one in load.answered) // 64

        # After a clean stop there is nothing to replay.
        await node.start("--verify-all")
        assert node.events("recovered")[-1]["replayed_records"] == 0
        assert node.events("verified")[-1]["records"] == verified.records
        for account_id in rng.sample(range(1, 301), 20):
            assert await node.balance_minor(account_id) == balances[account_id]


@pytest.mark.parametrize("checkpoint_rows", [50, 250_000])
async def test_a_tail_is_replayed_whatever_its_length(
    tmp_path: Path, rng: random.Random, checkpoint_rows: int
) -> None:
    """A long tail makes recovery itself take checkpoints, so that memory stays bounded."""
    limits = replace(LIMITS, checkpoint_rows=checkpoint_rows, accounts_max=20)
    engine, fatal = open_here(tmp_path)
    await engine.start(1)
    await engine.open_accounts([(each, KIND_SYSTEM, FLOOR_MINOR, 0) for each in range(1, 201)])
    balances = dict.fromkeys(range(1, 201), 0)
    sent: list[bytes] = []
    for number in range(1, 1_500, 3):
        bodies = []
        for each in range(number, number + 3):
            source, destination = rng.sample(range(1, 201), 2)
            balances[source] -= each
            balances[destination] += each
            bodies.append(body(each, source, destination, each))
        await engine.execute(b"".join(bodies), b"")
        sent += bodies
    await engine.change_status(7, 2, "asked to")
    assert not fatal
    records = engine.ledger.sequence
    await abandon(engine)
    engine.store.state.close()
    engine.store.log.close()

    again, fatal = open_here(tmp_path, limits, epoch=2)
    assert again.ledger.sequence == records
    assert again.ledger.memory.rows_not_checkpointed < limits.checkpoint_rows + 200
    await again.start(2)
    for account_id, minor in balances.items():
        account = await again.settle_account(account_id)
        assert sum(each.minor for each in account.balances.values()) == minor
        assert account.status == (2 if account_id == 7 else 1)
    (repeat,) = results_of(await again.execute(sent[-1], b""))
    assert (repeat.status, repeat.repeat) == (COMPLETED, 1)
    await again.stop()
    assert not fatal
    verify_history(tmp_path, IDENTITY, limits)


async def test_an_empty_shard_recovers(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        engine, fatal = open_here(tmp_path, epoch=epoch)
        await engine.start(epoch)
        await engine.stop()
        assert not fatal
    assert verify_history(tmp_path, IDENTITY, LIMITS).records == 3


async def test_more_accounts_than_the_cache_holds(tmp_path: Path, rng: random.Random) -> None:
    cached, accounts, changed_rows = 1_000, 50_000, 5_000
    limits = replace(LIMITS, accounts_max=cached, checkpoint_rows=changed_rows)
    engine, fatal = open_here(tmp_path, limits)
    await engine.start(1)
    specs = [(each, KIND_SYSTEM, FLOOR_MINOR, 0) for each in range(1, accounts + 1)]
    for at in range(0, accounts, 5_000):
        await engine.open_accounts(specs[at : at + 5_000])
    balances = [0] * (accounts + 1)
    number, most = 0, 0
    order = rng.sample(range(1, accounts + 1), accounts)
    for at in range(0, accounts, 500):
        bodies = []
        for source in order[at : at + 500]:
            number += 1
            destination = rng.choice((source % accounts + 1, 1 + number % 10))
            if destination == source:
                continue
            balances[source] -= number
            balances[destination] += number
            bodies.append(body(number, source, destination, number))
        await engine.execute(b"".join(bodies), b"")
        most = max(most, len(engine.ledger.memory.accounts))
    for account_id in range(1, accounts + 1):
        account = await engine.settle_account(account_id)
        assert sum(each.minor for each in account.balances.values()) == balances[account_id]
        most = max(most, len(engine.ledger.memory.accounts))
    # What no committed checkpoint has yet is kept besides: two checkpoints' worth, and a turn's.
    assert most <= cached + 2 * (2 * changed_rows) + 2_048
    await engine.checkpoint()
    await engine.settle_account(1)
    assert len(engine.ledger.memory.accounts) <= cached + 1
    await engine.stop()
    assert not fatal
