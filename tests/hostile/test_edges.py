"""Extreme messages to a real cluster, then a short siege of one; `siege` is the long run."""

import asyncio
import itertools
from collections import Counter
from pathlib import Path

import grpc
import pytest

from cluster.rpc import FAULT_KEY, SHARD_KEY, TOPOLOGY_VERSION_KEY, channel
from doubloon.call_stream import StreamedChannel
from doubloon.v1 import types_pb2
from scripts.local_cluster import COORDINATOR, ROUTER, SHARD
from tests.hostile.edges import STUMBLED, requests
from tests.hostile.siege import besiege
from tests.support.clusters import GOLD, LiveCluster, live_cluster, settle_town

CALL_TIMEOUT_S = 10.0
SERVED_BY = {"wallet": ROUTER, "admin": ROUTER, "shard": SHARD, "coordinator": COORDINATOR}
TARGET = ((SHARD_KEY, "1"), (TOPOLOGY_VERSION_KEY, "1"))
REQUESTS_MIN = 15  # of each service; the fewest fields have the coordinators
MEMORY_GROWTH_MIB = 400.0
"""Far more than any attack took when this was written; without the bounds it is gigabytes."""


async def send_all(
    live: LiveCluster, service: str, *, streamed: bool
) -> tuple[Counter[str], list[str]]:
    """Send every request of a service, each as a call of its own or all on one stream; return how
    often which status came, and what stumbled."""
    statuses: Counter[str] = Counter()
    wrong: list[str] = []
    room = asyncio.Semaphore(32)

    async def one(call: object, method: str, path: str, request: bytes) -> None:
        async with room:
            try:
                await call(request, timeout=CALL_TIMEOUT_S, metadata=TARGET)  # type: ignore[operator] # untyped
                statuses["OK"] += 1
            except grpc.aio.AioRpcError as error:
                statuses[error.code().name] += 1
                detail = dict(error.trailing_metadata() or ()).get(FAULT_KEY, b"")
                assert isinstance(detail, bytes)
                fault = types_pb2.Fault.FromString(detail)
                if error.code() in STUMBLED:
                    wrong.append(f"{method} with {path}: {error.code().name} {error.details()}")
                elif error.code() is grpc.StatusCode.INVALID_ARGUMENT and not fault.field:
                    wrong.append(f"{method} with {path}: no field is named")

    address = live.processes.address(SERVED_BY[service], 1)
    own = channel(address)
    async with (
        StreamedChannel(own) if streamed else own as connection,
        asyncio.TaskGroup() as group,
    ):
        for method, path, request in requests(service):
            group.create_task(one(connection.unary_unary(method), method, path, request))
    return statuses, wrong


async def test_no_message_makes_a_server_stumble(tmp_path: Path) -> None:
    async with live_cluster(tmp_path, shards=2, coordinators=1) as live:
        town = await settle_town(live, 1, first=1_000)
        shards = sorted(town.treasuries)
        payer, player = town.treasuries[shards[0]], town.players[shards[1]][0]
        assert (await live.wallet.transfer(payer, player, GOLD, 100)).completed
        for service, streamed in itertools.product(SERVED_BY, (False, True)):
            statuses, wrong = await send_all(live, service, streamed=streamed)
            assert sum(statuses.values()) > REQUESTS_MIN, service
            assert not wrong, "\n".join([f"{service}: {dict(statuses)}", *wrong[:20]])
        balance = (await live.wallet.balances(player)).of(GOLD)
        assert balance
        assert balance.posted_minor == 100
        assert (await live.wallet.transfer(payer, player, GOLD, 1)).completed
        assert (await live.admin.check_conservation()).balanced
        assert (await live.admin.audit()).balanced


@pytest.mark.slow
async def test_a_cluster_stands_a_short_siege(tmp_path: Path) -> None:
    names = ["rapid_reset", "garbage", "half_messages", "wrong_calls"]
    for blow in (await besiege(tmp_path, names, 0.7, roles=(ROUTER,)))[1:]:
        assert blow.times, blow
        assert blow.memory_peak - blow.memory_before < MEMORY_GROWTH_MIB, blow
