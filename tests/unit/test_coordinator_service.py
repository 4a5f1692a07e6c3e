"""The coordinator's handlers: deadlines, topologies, bounds and the status."""

import asyncio
from dataclasses import dataclass

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import GROUP_RESULT
from cluster.rpc import TOPOLOGY_VERSION_KEY
from cluster.topology import Topology
from coordinator.actions import FaultKind, Status
from coordinator.service import CoordinatorServicer, Deadlines
from doubloon.v1 import coordinator_service_pb2 as pb
from tests.support.rounds import (
    A1,
    A2,
    ALWAYS,
    TOPOLOGY,
    Coordinator,
    Trouble,
    group,
    running,
    transfer,
)
from tests.support.virtual_time import virtual_time

PLAIN = transfer(1, A1[0], A2[0], 30)
VERSION = str(TOPOLOGY.version)


@dataclass(frozen=True)
class Call:
    """The context of a call."""

    version: str | bytes | None = VERSION
    timeout_s: float | None = 10.0

    def time_remaining(self) -> float | None:
        return self.timeout_s

    def invocation_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return () if self.version is None else ((TOPOLOGY_VERSION_KEY, self.version),)


class Topologies:
    """A topology that is replaced as soon as somebody waits for it."""

    def __init__(self, coming: Topology | None = None) -> None:
        self.topology = TOPOLOGY
        self._coming = coming

    async def refresh(self, fault: Fault, deadline_s: float) -> None:
        assert fault.topology_version > self.topology.version
        assert deadline_s > asyncio.get_running_loop().time()
        self.topology = self._coming or self.topology


def servicer(it: Coordinator, topologies: Topologies | None = None) -> CoordinatorServicer:
    return CoordinatorServicer(
        "c1", topologies or Topologies(), it.rounds, it.sweeper, Deadlines(default_s=5, max_s=20)
    )


def request(members: bytes = PLAIN, metadata: bytes = b"") -> pb.ExecuteTransactionsRequest:
    return pb.ExecuteTransactionsRequest(members=members, metadata=metadata)


@virtual_time
async def test_a_batch_is_answered_in_its_order() -> None:
    async with running() as it:
        members = PLAIN + group(2, (A1[1], A2[1], 1), (A1[2], A2[2], 10_000))
        response = await servicer(it).ExecuteTransactions(request(members), Call())
        rows = list(GROUP_RESULT.iter_unpack(response.results))
        assert [row[0] for row in rows] == [Status.COMPLETED, Status.REFUSED]


@pytest.mark.parametrize(
    ("call", "asked", "code", "field"),
    [
        (Call(version=None), request(), grpc.StatusCode.INVALID_ARGUMENT, TOPOLOGY_VERSION_KEY),
        (Call(version="one"), request(), grpc.StatusCode.INVALID_ARGUMENT, TOPOLOGY_VERSION_KEY),
        (Call(version=b"\xff"), request(), grpc.StatusCode.INVALID_ARGUMENT, TOPOLOGY_VERSION_KEY),
        (Call(version=""), request(), grpc.StatusCode.INVALID_ARGUMENT, TOPOLOGY_VERSION_KEY),
        # More digits than Python turns into a number.
        (Call("9" * 5_000), request(), grpc.StatusCode.INVALID_ARGUMENT, TOPOLOGY_VERSION_KEY),
        (Call("1\n"), request(), grpc.StatusCode.INVALID_ARGUMENT, TOPOLOGY_VERSION_KEY),
        (Call(version="0"), request(), grpc.StatusCode.FAILED_PRECONDITION, ""),
        (Call(version="7"), request(), grpc.StatusCode.FAILED_PRECONDITION, ""),
        (Call(timeout_s=0), request(), grpc.StatusCode.DEADLINE_EXCEEDED, ""),
        (Call(), request(b""), grpc.StatusCode.INVALID_ARGUMENT, "members"),
        (Call(), request(PLAIN, b"x"), grpc.StatusCode.INVALID_ARGUMENT, "metadata"),
    ],
)
@virtual_time
async def test_what_cannot_be_run_is_refused_and_nothing_happens(
    call: Call, asked: pb.ExecuteTransactionsRequest, code: grpc.StatusCode, field: str
) -> None:
    async with running() as it:
        with pytest.raises(Fault) as caught:
            await servicer(it).ExecuteTransactions(asked, call)
        fault = caught.value
        assert (fault.code, fault.field, fault.indefinite) == (code, field, False)
        assert len(fault.message) < 200, "it is no echo of any length"
        if code is grpc.StatusCode.FAILED_PRECONDITION:
            assert fault.topology_version == TOPOLOGY.version
        assert it.rounds.counters.transactions == 0


@virtual_time
async def test_a_newer_topology_is_waited_for() -> None:
    async with running() as it:
        newer = Topology(2, TOPOLOGY.shard_of_slot)
        it.shards.topology = newer
        response = await servicer(it, Topologies(newer)).ExecuteTransactions(request(), Call("2"))
        assert GROUP_RESULT.unpack(response.results)[0] == Status.COMPLETED


@pytest.mark.parametrize(
    ("timeout_s", "answered_s"), [(None, 5), (1.0, 0.95), (0.1, 0.09), (100.0, 20)]
)
@virtual_time
async def test_the_answer_comes_within_the_deadline(
    timeout_s: float | None, answered_s: float
) -> None:
    async with running() as it:
        it.shards.before = Trouble(shard_id=2, times=ALWAYS)
        response = await servicer(it).ExecuteTransactions(request(), Call(timeout_s=timeout_s))
        row = GROUP_RESULT.unpack(response.results)
        assert (row[0], row[1], row[5]) == (Status.FAULT, FaultKind.UNAVAILABLE, 0)
        assert asyncio.get_running_loop().time() == pytest.approx(answered_s, abs=0.02)


@virtual_time
async def test_a_full_coordinator_says_so_at_once() -> None:
    async with running(in_progress_max=1) as it:
        serving = servicer(it)
        first = asyncio.ensure_future(serving.ExecuteTransactions(request(), Call()))
        await asyncio.sleep(0)
        with pytest.raises(Fault) as caught:
            await serving.ExecuteTransactions(request(), Call())
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        await first


@virtual_time
async def test_the_status_counts() -> None:
    async with running() as it:
        serving = servicer(it)
        await serving.ExecuteTransactions(
            request(PLAIN + transfer(2, A1[0], A2[0], 10_000)), Call()
        )
        status = await serving.GetCoordinatorStatus(pb.GetCoordinatorStatusRequest(), Call())
        assert (status.id, status.transactions, status.committed, status.refused) == ("c1", 2, 1, 1)
        assert (status.rounds, status.shard_calls, status.in_progress) == (1, 4, 0)
