"""Who serves a shard now, and when to ask again: what routers and coordinators call shards through.

The pool takes a shard's address from the membership view and keeps one client per shard. Whenever
the view names another address or epoch for it, the client is replaced and the calls in progress on
the old one are cut short, so a restarted shard node is found again without anybody's help, also
when the old process merely hangs.

Everything that is asked of a shard is safe to ask again: transfers and transactions carry their
ids, opening an account and changing its status are idempotent, the rest are questions. So one rule
covers all: what failed as UNAVAILABLE is tried again with the same bytes until the caller's
deadline, and between two tries the pool waits for the view to change rather than polls. Once any
try may have reached the node, only an answer makes the call definite again.
"""

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import grpc
import structlog

from cluster.faults import Fault
from cluster.membership import ClusterView, Membership, MembershipUnavailable
from cluster.shard_client import Method, Q, R, ShardClient
from cluster.topology import Topology

# A node that restarts in place answers again within some tens of milliseconds; half a second
# between tries costs the node nothing while it is away for longer.
BACKOFF_FIRST_S: Final = 0.02
BACKOFF_MAX_S: Final = 0.5
# How long to wait for the watch to bring a topology that a shard node has seen already. Watches
# deliver in milliseconds; one that is reconnecting needs a second or so.
REFRESH_WAIT_S: Final = 2.0
# How long to give a shard node whose own watch is behind ours.
NODE_BEHIND_WAIT_S: Final = 0.1
# How long calls in progress on a replaced client may still end by themselves.
REPLACED_GRACE_S: Final = 0.5

_LOG = structlog.stdlib.get_logger("shards")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a shard is served. Another epoch at the same address is another target."""

    address: str
    epoch: int


def target_of(view: ClusterView, shard_id: int) -> Target | None:
    """Return where the view says the shard is served; None = by nobody that is alive."""
    address = view.address_of_shard(shard_id)
    return None if address is None else Target(address, view.shards[shard_id].epoch)


def remaining_s(deadline_s: float) -> float:
    """Return the seconds until a deadline given in the running loop's time; may be negative."""
    return deadline_s - asyncio.get_running_loop().time()


def too_late() -> Fault:
    """Return the fault of a call that its deadline overtook before the first try."""
    return Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "no time left to ask", indefinite=False)


class ShardPool:
    """Calls shards, wherever they are.

    Deadlines are in the running loop's time.

    Args:
        membership: whose view names the shards' addresses.
        connect: makes a client for (shard id, address); no I/O yet.
        rng: for the jitter of retries.
    """

    def __init__(
        self,
        membership: Membership,
        connect: Callable[[int, str], ShardClient],
        rng: random.Random,
    ) -> None:
        self._membership = membership
        self._connect = connect
        self._rng = rng
        self._clients: dict[int, tuple[Target, ShardClient]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def topology(self) -> Topology:
        """The last known topology.

        Raises:
            Fault: UNAVAILABLE, definite: none is known yet.
        """
        topology = self._membership.view.topology
        if topology is None:
            raise Fault(grpc.StatusCode.UNAVAILABLE, "no topology is known yet", indefinite=False)
        return topology

    async def follow(self) -> None:
        """Replace clients as the view changes; runs until the membership is closed."""
        version = 0
        async for view in self._membership.watch():
            if view.topology is not None and view.topology.version != version:
                version = view.topology.version
                _LOG.info("topology", version=version, shards=len(view.topology.shards))
            for shard_id, (target, _) in list(self._clients.items()):
                # A member that is gone may only have lost its lease: it is called until replaced.
                if target_of(view, shard_id) not in {target, None}:
                    self._drop(shard_id)

    async def call(
        self,
        shard_id: int,
        method: Method[Q, R],
        request: Q,
        topology_version: int,
        deadline_s: float,
        with_doubt: Callable[[R], R] | None = None,
    ) -> R:
        """Ask a shard, again while it is unavailable, until the deadline.

        Args:
            shard_id: whom.
            method: what to call.
            request: with what.
            topology_version: by which it was made.
            deadline_s: when to stop.
            with_doubt: makes of an answer what it is worth when an earlier try's was lost, and may
                yet take effect: for answers that say of single items that nothing happened.

        Raises:
            Fault: the last try's; indefinite when any try may have reached the node.
        """
        backoff_s = BACKOFF_FIRST_S
        reached = False
        last: Fault | None = None
        # Read once a try: a clock that is read again may have come to the deadline meanwhile.
        while (left_s := remaining_s(deadline_s)) > 0:
            target = target_of(self._membership.view, shard_id)
            try:
                client = self._client(shard_id, target)
                answer = await client.call(method, request, topology_version, left_s)
            except Fault as fault:
                reached = reached or fault.indefinite
                last = fault
            else:
                return with_doubt(answer) if with_doubt and reached else answer
            if self._closed or not _is_worth_retrying(last, topology_version):
                break
            # Without a target there is nothing to try until the view changes.
            pause_s = backoff_s * self._rng.uniform(0.5, 1.0) if target else math.inf
            await self._wait_for_another(shard_id, target, pause_s, deadline_s)
            backoff_s = min(2 * backoff_s, BACKOFF_MAX_S)
        last = last or too_late()
        raise as_indefinite(last) if reached else last

    async def call_for_account(
        self, account_id: int, method: Method[Q, R], request: Q, deadline_s: float
    ) -> R:
        """Ask the shard of an account; once more when the topology turns out to be another.

        Raises:
            Fault: as `call`.
        """
        return await self.call_located(
            lambda topology: topology.shard_of(account_id), method, request, deadline_s
        )

    async def call_located(
        self,
        locate: Callable[[Topology], int],
        method: Method[Q, R],
        request: Q,
        deadline_s: float,
    ) -> R:
        """Ask the shard that a topology names; once more when the topology turns out to be another.

        Raises:
            Fault: as `call`.
        """
        topology = self.topology
        try:
            return await self.call(locate(topology), method, request, topology.version, deadline_s)
        except Fault as fault:
            if not is_stale(fault, topology.version):
                raise
            earlier = fault
        await self.refresh(earlier, deadline_s)
        topology = self.topology
        try:
            return await self.call(locate(topology), method, request, topology.version, deadline_s)
        except Fault as fault:
            raise as_indefinite(fault) if earlier.indefinite else fault from None

    async def refresh(self, fault: Fault, deadline_s: float) -> None:
        """Wait, bounded, until this process has seen the topology that a shard node told of."""
        told = fault.topology_version
        left_s = max(0.0, remaining_s(deadline_s))
        if told < self.topology.version:
            await asyncio.sleep(min(NODE_BEHIND_WAIT_S, left_s))
            return
        await self._wait_for(
            lambda view: view.topology is not None and view.topology.version >= told,
            min(REFRESH_WAIT_S, left_s),
        )

    async def close(self, grace_s: float) -> None:
        """Close every client; calls in progress then fail, and nothing is tried again."""
        self._closed = True
        for shard_id in list(self._clients):
            self._drop(shard_id, grace_s)
        await asyncio.gather(*self._closing)

    def _client(self, shard_id: int, target: Target | None) -> ShardClient:
        if target is None:
            raise Fault(
                grpc.StatusCode.UNAVAILABLE, f"nobody serves shard {shard_id}", indefinite=False
            )
        known = self._clients.get(shard_id)
        if known is not None and known[0] == target:
            return known[1]
        if known is not None:
            self._drop(shard_id)
        client = self._connect(shard_id, target.address)
        self._clients[shard_id] = (target, client)
        return client

    def _drop(self, shard_id: int, grace_s: float = REPLACED_GRACE_S) -> None:
        target, client = self._clients.pop(shard_id)
        _LOG.info("shard_left", shard=shard_id, address=target.address, epoch=target.epoch)
        task = asyncio.get_running_loop().create_task(client.close(grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _wait_for_another(
        self, shard_id: int, target: Target | None, pause_s: float, deadline_s: float
    ) -> None:
        """Wait until the shard is served elsewhere, the pause is over, or the deadline has come."""
        await self._wait_for(
            lambda view: target_of(view, shard_id) not in {target, None},
            max(0.0, min(pause_s, remaining_s(deadline_s))),
        )

    async def _wait_for(self, predicate: Callable[[ClusterView], bool], timeout_s: float) -> None:
        """Wait for a view; who waited looks at the view again, so the time-out is no news."""
        try:
            await self._membership.wait_for(predicate, timeout_s)
        except (TimeoutError, MembershipUnavailable):
            return


def is_stale(fault: Fault, topology_version: int) -> bool:
    """Return whether a shard node refused a call because it has another topology."""
    return fault.code is grpc.StatusCode.FAILED_PRECONDITION and fault.topology_version not in {
        0,
        topology_version,
    }


def as_indefinite(fault: Fault) -> Fault:
    """Return the fault, said to be indefinite."""
    return Fault(
        fault.code,
        fault.message,
        fault.field,
        fault.index,
        fault.topology_version,
        indefinite=True,
    )


def _is_worth_retrying(fault: Fault, topology_version: int) -> bool:
    """Whether another try may help.

    It may when nobody was there, or another shard's node was (at an address that it took over): a
    node that refuses a call although its topology is the caller's has another shard.
    """
    return fault.code is grpc.StatusCode.UNAVAILABLE or (
        fault.code is grpc.StatusCode.FAILED_PRECONDITION
        and fault.topology_version == topology_version != 0
    )
