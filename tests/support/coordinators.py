"""Coordinators in memory, for tests of the router that talks to them.

A `MemoryCoordinator` decides from the first member alone and remembers what it was asked, as a
`MemoryShardNode` does. All of a cluster's share their records: whichever is asked again knows.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc

from cluster.faults import Fault
from cluster.membership import COORDINATOR_ROLE, Member, MemoryMembership
from cluster.packed import BODY, KEY_BYTES, MEMBER
from cluster.topology import Topology
from doubloon.v1 import coordinator_service_pb2 as pb
from tests.support.shard_nodes import (
    COMPLETED,
    MemoryCluster,
    cut_groups,
    group_result,
    result_of,
)


@dataclass
class MemoryCoordinator:
    """A coordinator that decides naively.

    Attributes:
        topology: its own; calls under another version are refused.
        recorded: key → (members, result), shared by all.
        asked: the members of each call that was looked at.
        before: awaited before a call is looked at; may wait, or raise a Fault.
        after: awaited after a call has taken effect and before it is answered; may raise a Fault.
        answers: reference of the first member → the packed result in place of its own.
        gone: set when the process dies; calls in progress on it are lost.
    """

    topology: Topology
    recorded: dict[bytes, tuple[list[bytes], tuple[int, ...]]]
    asked: list[bytes] = field(default_factory=list)
    before: Callable[[], Awaitable[None]] | None = None
    after: Callable[[], Awaitable[None]] | None = None
    answers: dict[int, bytes] = field(default_factory=dict)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def execute(
        self, request: pb.ExecuteTransactionsRequest, topology_version: int
    ) -> pb.ExecuteTransactionsResponse:
        if self.before is not None:
            await self.before()
        if topology_version != self.topology.version:
            raise Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                "another topology",
                topology_version=self.topology.version,
            )
        self.asked.append(request.members)
        results = [self._decide(each) for each in cut_groups(request.members, MEMBER.size)]
        if self.after is not None:
            await self.after()
        return pb.ExecuteTransactionsResponse(results=b"".join(results))

    def _decide(self, members: list[bytes]) -> bytes:
        touched = set()
        for member in members:
            body, source_shard, destination_shard = MEMBER.unpack(member)
            _, source, destination, *_ = BODY.unpack(body)
            owners = self.topology.shard_of(source), self.topology.shard_of(destination)
            assert owners == (source_shard, destination_shard), "members name their shards"
            touched |= set(owners)
        assert len(touched) > 1, "what is of one shard alone never comes here"
        body = members[0][: BODY.size]
        if (answer := self.answers.get(BODY.unpack(body)[4])) is not None:
            return answer
        known = self.recorded.get(body[:KEY_BYTES])
        if known is not None:
            assert known[0] == members, "asked again with the same bytes"
            status, reason, differing, _, time_us, balance_minor = known[1]
            return group_result((status, reason, differing, 1, time_us, balance_minor))
        result = result_of(body)
        assert result[0] == COMPLETED, "what needs no ledger is refused before"
        self.recorded[body[:KEY_BYTES]] = members, result
        return group_result(result)


class MemoryCoordinatorClient:
    """A `CoordinatorClient` to whatever coordinator is at an address."""

    def __init__(self, there: dict[str, MemoryCoordinator], address: str) -> None:
        self._there = there
        self._address = address
        self._given_up = asyncio.Event()

    async def execute(
        self, request: pb.ExecuteTransactionsRequest, topology_version: int, timeout_s: float
    ) -> pb.ExecuteTransactionsResponse:
        it = self._there.get(self._address)
        if it is None or it.gone.is_set() or self._given_up.is_set():
            raise Fault(grpc.StatusCode.UNAVAILABLE, "no connection", indefinite=False)
        loop = asyncio.get_running_loop()
        answer = loop.create_task(it.execute(request, topology_version))
        losses = [loop.create_task(event.wait()) for event in (it.gone, self._given_up)]
        try:
            await asyncio.wait(
                [answer, *losses], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            if answer.done():
                return answer.result()
            if any(loss.done() for loss in losses):
                raise Fault(grpc.StatusCode.UNAVAILABLE, "connection lost")
            raise Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "no answer in time")
        finally:
            for task in (answer, *losses):
                task.cancel()

    async def close(self, grace_s: float) -> None:
        del grace_s  # no call here ends by itself while somebody closes
        self._given_up.set()


class MemoryCoordinators:
    """The coordinators of a `MemoryCluster`: by id, each at an address of the same name."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self._handles: dict[str, MemoryMembership] = {}
        self.recorded: dict[bytes, tuple[list[bytes], tuple[int, ...]]] = {}
        self.there: dict[str, MemoryCoordinator] = {}

    async def start(self, coordinator_id: str) -> MemoryCoordinator:
        """Start one, and register it."""
        assert self._cluster.topology is not None
        made = MemoryCoordinator(self._cluster.topology, self.recorded)
        self.there[f"{coordinator_id}:1"] = made
        handle = self._handles[coordinator_id] = MemoryMembership(self._cluster.store)
        member = Member(COORDINATOR_ROLE, coordinator_id, f"{coordinator_id}:1", "test", 0)
        await handle.join(member)
        return made

    def end_lease(self, coordinator_id: str) -> None:
        """Let one be forgotten."""
        self._handles[coordinator_id].cut()
        self._cluster.store.expire(COORDINATOR_ROLE, coordinator_id)

    def __getitem__(self, coordinator_id: str) -> MemoryCoordinator:
        return self.there[f"{coordinator_id}:1"]

    def connect(self, address: str) -> MemoryCoordinatorClient:
        return MemoryCoordinatorClient(self.there, address)
