"""A client that has none of our code: `buf curl`, which learns the services by reflection."""

import base64
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from scripts.local_cluster import SHARD
from tests.support.clusters import GOLD, LiveCluster, Town, live_cluster, settle_town

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUF = Path(sys.executable).parent / "buf"
CALL_TIMEOUT_S = 30.0
# buf ends a failed call with eight times the gRPC status.
INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION = 3 * 8, 5 * 8, 9 * 8
HEALTH = "grpc.health.v1.Health"
WALLET, ADMIN, SHARD_SERVICE = (
    f"doubloon.v1.{name}" for name in ("WalletService", "AdminService", "ShardService")
)


@dataclass(frozen=True)
class Place:
    """A cluster of one shard, a town on it, and the addresses of its two processes."""

    live: LiveCluster
    town: Town
    router: str
    shard_node: str


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with live_cluster(tmp_path_factory.mktemp("foreign")) as live:
        town = await settle_town(live, 1)
        processes = live.processes
        yield Place(live, town, processes.routers[0], processes.address(SHARD, 1))


def buf_curl(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    grpc = ("--protocol", "grpc", "--http2-prior-knowledge")
    return subprocess.run(
        [BUF, "curl", *grpc, *options, f"http://{url}"],
        capture_output=True,
        text=True,
        timeout=CALL_TIMEOUT_S,
        check=False,
    )


def call(address: str, method: str, request: dict[str, Any], *options: str) -> Any:
    answer = buf_curl(f"{address}/{method}", "--data", json.dumps(request), *options)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def failure(address: str, method: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Make a call that fails; the exit code and what buf says of the error."""
    answer = buf_curl(f"{address}/{method}", "--data", json.dumps(request))
    assert not answer.stdout
    return answer.returncode, json.loads(answer.stderr)


async def test_reflection_lists_every_method(place: Place) -> None:
    on_router = buf_curl(place.router, "--list-methods").stdout.split()
    assert {f"{WALLET}/Transfer", f"{WALLET}/GetFlows", f"{ADMIN}/CheckConservation"} <= {
        *on_router
    }
    assert not any(SHARD_SERVICE in method for method in on_router)
    on_node = buf_curl(place.shard_node, "--list-methods").stdout.split()
    assert f"{SHARD_SERVICE}/ExecuteTransfers" in on_node
    assert f"{HEALTH}/Check" in on_node
    assert f"{HEALTH}/Watch" in on_router


@pytest.mark.parametrize("service", ["", WALLET, ADMIN])
async def test_the_router_says_that_it_serves(place: Place, service: str) -> None:
    assert call(place.router, f"{HEALTH}/Check", {"service": service}) == {"status": "SERVING"}


@pytest.mark.parametrize("service", ["", SHARD_SERVICE])
async def test_the_shard_node_says_that_it_serves(place: Place, service: str) -> None:
    assert call(place.shard_node, f"{HEALTH}/Check", {"service": service}) == {"status": "SERVING"}


async def test_a_service_that_is_not_there_is_not_found(place: Place) -> None:
    code, said = failure(place.router, f"{HEALTH}/Check", {"service": SHARD_SERVICE})
    assert (code, said["code"]) == (NOT_FOUND, "not_found")


async def test_a_transfer_and_both_queries(place: Place) -> None:
    treasury, player = place.town.treasuries[1], place.town.players[1][0]
    transfer = {
        "transferId": base64.b64encode(bytes(range(16))).decode(),
        "sourceAccountId": treasury,
        "destinationAccountId": player,
        "currency": GOLD,
        "amountMinor": 1250,
        "type": "TRANSFER_TYPE_REWARD",
    }
    first = call(place.router, f"{WALLET}/Transfer", {"transfer": transfer})["result"]
    assert first["status"] == "TRANSFER_STATUS_COMPLETED"
    assert first["sourceBalanceAfterMinor"] == "-1250"
    again = call(place.router, f"{WALLET}/Transfer", {"transfer": transfer})["result"]
    assert again == first | {"repeat": True}
    flows = call(place.router, f"{WALLET}/GetFlows", {"accountId": player})
    assert flows["flows"] == [{"currency": GOLD, "incomingMinor": "1250", "incomingCount": "1"}]
    asked = {"accountId": player, "currency": GOLD}
    series = call(place.router, f"{WALLET}/GetBalanceSeries", asked)
    assert len(series["hours"]) == 720
    assert series["hours"][-1]["balanceMinor"] == "1250"


async def test_faults_are_grpc_statuses(place: Place) -> None:
    code, said = failure(place.router, f"{WALLET}/GetAccount", {"accountId": 0})
    assert (code, said["code"]) == (INVALID_ARGUMENT, "invalid_argument")
    code, said = failure(place.router, f"{WALLET}/GetAccount", {"accountId": 2**62})
    assert (code, said["code"]) == (NOT_FOUND, "not_found")


async def test_a_shard_node_answers_only_who_names_its_shard_and_topology(place: Place) -> None:
    method, asked = f"{SHARD_SERVICE}/GetShardStatus", dict[str, Any]()
    code, said = failure(place.shard_node, method, asked)
    assert (code, said["code"]) == (FAILED_PRECONDITION, "failed_precondition")
    named = ("-H", "doubloon-shard: 1", "-H", "doubloon-topology-version: 1")
    status = call(place.shard_node, method, asked, *named)["status"]
    assert (status["shardId"], status["reachable"], status["slots"]) == (1, True, 4096)
