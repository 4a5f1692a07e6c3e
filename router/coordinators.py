"""How the router reaches coordinators: the seam, and the pool that spreads calls over them.

Coordinators are all alike and keep nothing that matters. The pool takes those that the membership
view names, in turn, and turns to the next when one cannot be reached or is lost, with the same
bytes: every transaction carries its key, so asking again is always safe. Once any try may have
reached a coordinator, only an answer makes the call definite again.

A coordinator that is not in the view any more has died or lost its lease: while others are there,
the calls in progress on it are cut short and asked of them, also when it merely hangs.
"""

import asyncio
import random
from collections.abc import Callable, Collection
from typing import Protocol

import grpc
import structlog

from cluster.faults import Fault
from cluster.membership import (
    COORDINATOR_ROLE,
    ClusterView,
    Member,
    Membership,
    MembershipUnavailable,
)
from cluster.peers import PeerChannel
from cluster.rpc import TOPOLOGY_VERSION_KEY
from cluster.shard_pool import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    REPLACED_GRACE_S,
    as_indefinite,
    remaining_s,
    too_late,
)
from doubloon.v1 import coordinator_service_pb2 as coordinator
from doubloon.v1 import coordinator_service_pb2_grpc
from router.results import with_doubt

_LOG = structlog.stdlib.get_logger("coordinators")


class CoordinatorClient(Protocol):
    """A way to one coordinator. Calls may run concurrently."""

    async def execute(
        self,
        request: coordinator.ExecuteTransactionsRequest,
        topology_version: int,
        timeout_s: float,
    ) -> coordinator.ExecuteTransactionsResponse:
        """Ask the coordinator once.

        Raises:
            Fault: what it answered; or UNAVAILABLE when it cannot be reached, definite while
                nothing was sent; or DEADLINE_EXCEEDED past `timeout_s` seconds, indefinite.
        """
        ...

    async def close(self, grace_s: float) -> None:
        """Let calls in progress end by themselves for so long; then fail them, indefinite."""
        ...


class GrpcCoordinatorClient:
    """A `CoordinatorClient` for the coordinator at an address (`host:port`)."""

    def __init__(self, address: str) -> None:
        self._peer = PeerChannel("coordinator", address)
        self._stub = coordinator_service_pb2_grpc.CoordinatorServiceStub(self._peer.channel)

    async def execute(
        self,
        request: coordinator.ExecuteTransactionsRequest,
        topology_version: int,
        timeout_s: float,
    ) -> coordinator.ExecuteTransactionsResponse:
        """Ask the coordinator once; see `CoordinatorClient`."""
        metadata = ((TOPOLOGY_VERSION_KEY, str(topology_version)),)
        response: coordinator.ExecuteTransactionsResponse = await self._peer.call(
            self._stub.ExecuteTransactions, request, metadata, timeout_s
        )
        return response

    async def close(self, grace_s: float) -> None:
        """Close the channel; see `CoordinatorClient`."""
        await self._peer.close(grace_s)


class CoordinatorPool:
    """Has transactions executed, by whichever coordinator is there.

    Deadlines are in the running loop's time.

    Args:
        membership: whose view names the coordinators.
        connect: makes a client for an address; no I/O yet.
        rng: for the jitter of retries.
    """

    def __init__(
        self,
        membership: Membership,
        connect: Callable[[str], CoordinatorClient],
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._connect = connect
        self._rng = rng
        self._clients: dict[str, CoordinatorClient] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False
        self._turn = 0

    async def follow(self) -> None:
        """Let go of coordinators as they leave the view; runs until the membership is closed."""
        async for view in self._membership.watch():
            addresses = {member.address for member in view.members_of(COORDINATOR_ROLE)}
            if addresses:  # else nobody could do better than who may only have lost its lease
                for address in self._clients.keys() - addresses:
                    self._drop(address)

    async def execute(
        self,
        shards: tuple[int, ...],
        members: bytes,
        metadata: bytes,
        topology_version: int,
        deadline_s: float,
    ) -> bytes:
        """Have packed transactions executed; return their packed results.

        Args:
            shards: those that the members name; whichever they are, any coordinator will do.
            members: 1 … 8,192 of them, a transaction's one after the other.
            metadata: theirs.
            topology_version: by which they name their shards.
            deadline_s: when to stop.

        Raises:
            Fault: the last try's; indefinite when any try may have reached a coordinator.
        """
        del shards
        request = coordinator.ExecuteTransactionsRequest(members=members, metadata=metadata)
        backoff_s = BACKOFF_FIRST_S
        tried: set[str] = set()
        reached = False
        last: Fault | None = None
        while (left_s := remaining_s(deadline_s)) > 0:  # read once a try
            address = self._next(tried)
            try:
                response = await self._ask(address, request, topology_version, left_s)
            except Fault as fault:
                reached = reached or fault.indefinite
                last = fault
            else:
                # That nothing happened in this try says nothing of one whose answer was lost: who
                # hangs with the same transactions may still go on with them.
                return with_doubt(response.results) if reached else response.results
            if last.code is not grpc.StatusCode.UNAVAILABLE or self._closed:
                break
            if address is not None:
                tried.add(address)
            if not self._untried(tried):
                await self._wait_for_another(tried, backoff_s, deadline_s)
                backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
                if not self._untried(tried):
                    tried.clear()
        last = last or too_late()
        raise as_indefinite(last) if reached else last

    async def close(self, grace_s: float) -> None:
        """Close every client; calls in progress then fail, and nothing is tried again."""
        self._closed = True
        for address in list(self._clients):
            self._drop(address, grace_s)
        await asyncio.gather(*self._closing)

    async def _ask(
        self,
        address: str | None,
        request: coordinator.ExecuteTransactionsRequest,
        topology_version: int,
        timeout_s: float,
    ) -> coordinator.ExecuteTransactionsResponse:
        if address is None:
            raise Fault(grpc.StatusCode.UNAVAILABLE, "no coordinator serves", indefinite=False)
        client = self._clients.get(address)
        if client is None:
            client = self._clients[address] = self._connect(address)
        return await client.execute(request, topology_version, timeout_s)

    def _next(self, tried: Collection[str]) -> str | None:
        """Return the address whose turn it is, of those not tried yet; None = there is none."""
        there = self._untried(tried)
        if not there:
            return None
        self._turn += 1
        return there[self._turn % len(there)]

    def _untried(self, tried: Collection[str]) -> list[str]:
        return _addresses(self._membership.view, tried)

    def _drop(self, address: str, grace_s: float = REPLACED_GRACE_S) -> None:
        client = self._clients.pop(address)
        _LOG.info("coordinator_left", address=address)
        task = asyncio.get_running_loop().create_task(client.close(grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _wait_for_another(
        self, tried: Collection[str], backoff_s: float, deadline_s: float
    ) -> None:
        """Wait until there is a coordinator not tried yet, or it is time to try the same again."""
        left_s = max(0.0, remaining_s(deadline_s))
        # With nobody there, there is nothing to try until the view changes.
        pause_s = backoff_s * self._rng.uniform(0.5, 1.0) if tried else left_s
        try:
            await self._membership.wait_for(
                lambda view: bool(_addresses(view, tried)), min(pause_s, left_s)
            )
        except (TimeoutError, MembershipUnavailable):
            return  # who waited looks again


def _addresses(view: ClusterView, tried: Collection[str]) -> list[str]:
    members: tuple[Member, ...] = view.members_of(COORDINATOR_ROLE)
    return [member.address for member in members if member.address not in tried]
