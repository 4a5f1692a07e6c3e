"""`CoordinatorService`: messages in, messages out."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from cluster.faults import Fault
from cluster.packed import MEMBER
from cluster.rpc import TOPOLOGY_VERSION_KEY
from cluster.topology import Topology
from coordinator.recovery import Sweeper
from coordinator.rounds import Rounds
from coordinator.transactions import MalformedRequest, take_apart
from doubloon.v1 import coordinator_service_pb2 as coordinator_pb2
from doubloon.v1 import coordinator_service_pb2_grpc

# Routers always set a deadline; this is for people who try things by hand.
DEADLINE_DEFAULT_S: Final = 10.0
# What a call may hold on to at most, as in the router.
DEADLINE_MAX_S: Final = 60.0
# The answer needs some time to travel: a twentieth of a second, or of a short deadline a tenth.
ANSWER_MARGIN_S: Final = 0.05
ANSWER_MARGIN_SHARE: Final = 0.1

_VERSION: Final = re.compile(r"[0-9]{1,18}")


class Context(Protocol):
    """What the handlers need to know of a call."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the caller's deadline; None = it set none."""
        ...

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]] | None:
        """Return the call's metadata."""
        ...


class Topologies(Protocol):
    """Who knows the topology; `cluster.shard_pool.ShardPool` is the real one."""

    @property
    def topology(self) -> Topology:
        """The last known topology. Raises Fault when there is none."""
        ...

    async def refresh(self, fault: Fault, deadline_s: float) -> None:
        """Wait, bounded, until this process has seen the topology that a fault tells of."""
        ...


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long calls may take.

    Attributes:
        default_s: for a caller that set no deadline.
        max_s: for all.
    """

    default_s: float = DEADLINE_DEFAULT_S
    max_s: float = DEADLINE_MAX_S

    def of(self, context: Context) -> float:
        """Return when to answer at the latest, in the running loop's time.

        Raises:
            Fault: DEADLINE_EXCEEDED, definite: no time is left.
        """
        wanted_s = context.time_remaining()
        if wanted_s is None:
            allowed_s = self.default_s
        elif wanted_s <= 0:
            raise Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "no time is left", indefinite=False)
        else:
            allowed_s = wanted_s - min(ANSWER_MARGIN_S, wanted_s * ANSWER_MARGIN_SHARE)
        return asyncio.get_running_loop().time() + min(allowed_s, self.max_s)


class CoordinatorServicer(coordinator_service_pb2_grpc.CoordinatorServiceServicer):
    """The handlers of `CoordinatorService`.

    Args:
        coordinator_id: unique among coordinators.
        topologies: by which members name their shards.
        rounds: run transactions.
        sweeper: for the status.
        deadlines: of every call.
    """

    def __init__(
        self,
        coordinator_id: str,
        topologies: Topologies,
        rounds: Rounds,
        sweeper: Sweeper,
        deadlines: Deadlines,
    ) -> None:
        self._id = coordinator_id
        self._topologies = topologies
        self._rounds = rounds
        self._sweeper = sweeper
        self._deadlines = deadlines

    async def ExecuteTransactions(  # noqa: N802 - the contract's name
        self, request: coordinator_pb2.ExecuteTransactionsRequest, context: Context
    ) -> coordinator_pb2.ExecuteTransactionsResponse:
        """Run a batch of transactions."""
        deadline_s = self._deadlines.of(context)
        self._rounds.check_room(len(request.members) // MEMBER.size)
        version = await self._check_topology(context, deadline_s)
        try:
            items = take_apart(request.members, request.metadata)
        except MalformedRequest as error:
            raise Fault(
                grpc.StatusCode.INVALID_ARGUMENT, error.message, error.field, error.index
            ) from error
        results = await self._rounds.execute(items, version, deadline_s)
        return coordinator_pb2.ExecuteTransactionsResponse(results=results)

    async def GetCoordinatorStatus(  # noqa: N802 - the contract's name
        self, request: coordinator_pb2.GetCoordinatorStatusRequest, context: Context
    ) -> coordinator_pb2.GetCoordinatorStatusResponse:
        """Tell how this coordinator is doing."""
        del request, context
        counters = self._rounds.counters
        return coordinator_pb2.GetCoordinatorStatusResponse(
            id=self._id,
            transactions=counters.transactions,
            committed=counters.committed,
            refused=counters.refused,
            busy=counters.busy,
            rounds=counters.rounds,
            shard_calls=counters.shard_calls,
            swept=self._sweeper.swept,
            in_progress=self._rounds.in_progress,
        )

    async def _check_topology(self, context: Context, deadline_s: float) -> int:
        """Return the caller's topology version, which has to be this process's as well."""
        told = _topology_version(context)
        refusal = Fault(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"the call is for topology {told}",
            topology_version=told,
        )
        if told > self._topologies.topology.version:
            await self._topologies.refresh(refusal, deadline_s)
        own = self._topologies.topology.version
        if told != own:
            raise Fault(
                refusal.code,
                f"this coordinator knows topology {own}; {refusal.message}",
                topology_version=own,
            )
        return own


def _topology_version(context: Context) -> int:
    told = dict(context.invocation_metadata() or ()).get(TOPOLOGY_VERSION_KEY, "")
    text = told.decode("ascii", "replace") if isinstance(told, bytes) else told
    if _VERSION.fullmatch(text) is None:
        raise Fault(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"the metadata must have the topology version, has {text[:40]!r}",
            TOPOLOGY_VERSION_KEY,
        )
    return int(text)
