"""The shard node as a process: how it starts, what it refuses to start on, how it ends."""

import asyncio
import os
import random
import signal
from pathlib import Path

import grpc
import pytest

from cluster.packed import BODY_BYTES
from cluster.runtime import EXIT_FATAL, EXIT_OK, EXIT_REFUSED
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import wallet_service_pb2 as wallet
from scripts.processes import ManagedProcess
from shard_node import startup
from tests.support import ROOT, eventually
from tests.support.folders import edit, flip_in_file
from tests.support.nodes import Load, Node, running_node


def children_of(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def second_process(node: Node, tmp_path: Path, log_name: str, *options: str) -> ManagedProcess:
    """Another shard node on the same data folder."""
    args = node.cluster._processes["shard", 1]._popen.args
    assert isinstance(args, list)
    command = [str(each) for each in args]
    command[command.index("--id") + 1] = "another"
    return ManagedProcess("shard", "another", [*command, *options], tmp_path / log_name, ROOT)


async def test_a_clean_stop_under_load(tmp_path: Path, rng: random.Random) -> None:
    async with running_node(tmp_path, "--checkpoint-rows", "5000") as node:
        await node.open_accounts(200)
        load = Load(node, rng, accounts=200)
        callers = load.begin()
        await eventually(lambda: len(load.answered) > 50, "there is load")
        assert await node.stop() == EXIT_OK
        await asyncio.gather(*callers)
        await node.start()
        assert node.events("recovered")[-1]["replayed_records"] == 0
        await load.settle_unknown()
        await load.check_all_once()


async def test_without_its_checkpointing_child_it_ends_and_recovers(
    tmp_path: Path, rng: random.Random
) -> None:
    async with running_node(tmp_path, "--checkpoint-rows", "2000") as node:
        await node.open_accounts(200)
        load = Load(node, rng, accounts=200)
        callers = load.begin()
        await eventually(lambda: len(load.answered) > 20, "there is load")
        child = min(children_of(node.pid))  # the scrub is started after it
        os.kill(child, signal.SIGKILL)
        assert await node.ended() == EXIT_FATAL
        await asyncio.gather(*callers)
        (fatal,) = node.events("fatal")
        assert "checkpointing process ended" in fatal["reason"]
        await node.start()
        await load.settle_unknown()
        await load.check_all_once()


async def test_a_cache_smaller_than_the_shard_and_a_folder_in_use(
    tmp_path: Path, rng: random.Random
) -> None:
    options = ("--accounts-cached", "1000", "--checkpoint-rows", "4000")
    async with running_node(tmp_path, *options) as node:
        # Another waits for the folder, longer than a killed node's child may take; then gives up.
        other = second_process(node, tmp_path, "other.log")
        await node.open_accounts(50_000)
        load = Load(node, rng, accounts=50_000, batch=500)
        while len(load.answered) < 60:
            bodies = load.make()
            await load.send(bodies)
            load.answered.append(bodies)
        answer = await node.call("CheckConservation", admin.CheckConservationRequest())
        assert answer.balanced
        balances = load.balances()
        touched = rng.sample(sorted(balances), 1_500)
        for at in range(0, len(touched), 50):
            some = touched[at : at + 50]
            found = await asyncio.gather(*(node.balance_minor(each) for each in some))
            assert found == [balances[each] for each in some]
        status = await node.status()
        assert status.accounts_cached <= 1_001
        assert status.transfers_completed == 60 * 500

        await eventually(lambda: not other.is_alive(), "the other gives up", 30.0)
        assert other._popen.returncode == EXIT_REFUSED
        assert f"another shard node has {node.data}" in other.log.read_text()
        assert (await node.status()).epoch == 1, "it never claimed the shard"


async def test_damage_is_refused_with_the_blocks_name(tmp_path: Path, rng: random.Random) -> None:
    async with running_node(tmp_path) as node:
        await node.open_accounts(20)
        load = Load(node, rng, accounts=20, batch=30)
        batches = [load.make() for _ in range(20)]
        for each in batches:
            await load.send(each)
        last = await node.status()
        node.kill()
        path = node.data / "log" / "data.mdb"
        undamaged = path.read_bytes()
        assert flip_in_file(path, batches[-1][-BODY_BYTES:], 3, 1) == 1
        node.spawn()
        assert await node.ended() == EXIT_REFUSED
        (refused,) = node.events("start_refused")
        assert f"block {last.durable_block} " in refused["reason"]

        # Long before the checkpoint only a full verification looks.
        path.write_bytes(undamaged)
        await node.start()
        assert await node.stop() == EXIT_OK
        assert flip_in_file(path, batches[0][:BODY_BYTES], 3, 1) == 1
        node.spawn("--verify-all")
        assert await node.ended() == EXIT_REFUSED
        assert "block 3 " in node.events("start_refused")[-1]["reason"]


async def test_a_full_map(tmp_path: Path, rng: random.Random) -> None:
    async with running_node(tmp_path, "--log-map-mib", "3", "--state-map-mib", "16") as node:
        await node.open_accounts(100)
        load = Load(node, rng, accounts=100)
        sent = load.make()
        await load.send(sent)
        load.answered.append(sent)
        callers = load.begin()
        await asyncio.gather(*callers)
        status = await node.status()
        assert status.space_exhausted
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await load.send(load.make())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(node.events("space_low")) == 1
        assert await node.balance_minor(1) == load.balances()[1]
        page = await node.call("ListEntries", wallet.ListEntriesRequest(account_id=1))
        assert len(page.entries) == 100
        load.unknown.clear()  # refused, and known to be
        assert await node.stop() == EXIT_OK
        await node.start("--log-map-mib", "64")
        await load.check_all_once()
        await load.send(load.make())
        assert not (await node.status()).space_exhausted


async def test_health_of_a_process_and_status_of_its_shard(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        health = await node.call("GetProcessHealth", admin.GetProcessHealthRequest())
        assert (health.role, health.id) == ("shard_node", "shard-1")
        assert {check.name: check.healthy for check in health.checks} == {
            "etcd": True,
            "event_loop": True,
            "space": True,
            "scrub": True,
        }
        status = (await node.call("GetShardStatus", shard.GetShardStatusRequest())).status
        assert (status.epoch, status.primary, status.slots) == (1, "shard-1", 4_096)
        assert (status.durable_sequence, status.durable_block) == (1, 1)
        await node.start()
        status = (await node.call("GetShardStatus", shard.GetShardStatusRequest())).status
        assert (status.epoch, status.durable_sequence, status.records_since_checkpoint) == (2, 2, 1)


@pytest.mark.parametrize("account_id", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
async def test_no_account_has_such_an_id(tmp_path: Path, account_id: int) -> None:
    async with running_node(tmp_path) as node:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await node.balance_minor(account_id)
        assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_damage_that_a_question_meets_ends_the_node_until_all_is_verified(
    tmp_path: Path, rng: random.Random
) -> None:
    async with running_node(tmp_path) as node:
        await node.open_accounts(20)
        load = Load(node, rng, accounts=20, batch=30)
        await load.send(bodies := load.make())
        load.answered.append(bodies)
        assert await node.stop() == EXIT_OK
        with (
            edit(node.data / "state") as (env, open_table),
            env.begin(write=True, db=open_table("accounts")) as txn,
        ):
            key = (7).to_bytes(8, "big")
            value = bytes(txn.get(key))
            txn.put(key, bytes([value[0] ^ 1]) + value[1:])

        await node.start()
        assert await node.balance_minor(6) == load.balances()[6]
        with pytest.raises(grpc.aio.AioRpcError):
            await node.balance_minor(7)
        assert await node.ended() == EXIT_FATAL
        assert key.hex() in node.events("fatal")[-1]["reason"]
        node.spawn()
        assert await node.ended() == EXIT_REFUSED
        assert key.hex() in node.events("start_refused")[-1]["reason"]

        (node.data / "state").rename(tmp_path / "moved away")
        await node.start("--verify-all")
        assert await node.balance_minor(7) == load.balances()[7]
        assert not startup.known_damage(node.data)
        assert (await node.status()).epoch == 3, "who was refused did not claim the shard"


async def test_a_start_from_an_empty_folder_leaves_who_serves_alone(tmp_path: Path) -> None:
    async with running_node(tmp_path) as node:
        await node.open_accounts(2)
        empty = ("--data", str(tmp_path / "empty"))
        other = second_process(node, tmp_path, "other.log", *empty)
        await eventually(lambda: not other.is_alive(), "the other is refused", 30.0)
        assert other._popen.returncode == EXIT_REFUSED
        assert "holds no log" in other.log.read_text()
        assert (await node.status()).epoch == 1
        await node.open_accounts(3)
