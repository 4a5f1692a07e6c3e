"""Executes batches of transfers, and bounds how many are in progress."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

import grpc

from cluster.membership import ClusterView, Membership
from cluster.packed import BATCH_TRANSFERS_MAX
from cluster.rpc import Fault
from doubloon.v1 import types_pb2
from router.lanes import Lanes
from router.routing import Outcome, Rules, ShardBatch, crossing_fault, split, unpack
from router.scatter import Part, Parts, scatter
from router.shards import ShardPool

# The largest well-formed transfer is some 350 bytes on the wire. Whoever sends larger ones is
# charged for what they take.
TRANSFER_WIRE_BYTES: Final = 512
# Sixteen full batches: at most 64 MiB of messages, and more than all shards' queues turn over in a
# second.
IN_FLIGHT_MAX: Final = 16 * BATCH_TRANSFERS_MAX


class Admission:
    """Bounds what is in progress in this router, in transfers.

    Args:
        in_flight_max: beyond it callers hear RESOURCE_EXHAUSTED.
    """

    def __init__(self, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self._in_flight_max = in_flight_max
        self._in_flight = 0

    @contextmanager
    def admit(self, count: int, wire_bytes: int) -> Iterator[None]:
        """Count a batch in for as long as the context lasts.

        Raises:
            Fault: RESOURCE_EXHAUSTED, definite.
        """
        weight = max(count, wire_bytes // TRANSFER_WIRE_BYTES)
        if self._in_flight + weight > self._in_flight_max:
            raise Fault(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._in_flight} transfers are in progress in this router",
            )
        self._in_flight += weight
        try:
            yield
        finally:
            self._in_flight -= weight


class Transfers(Protocol):
    """A repeated field of transfers."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> types_pb2.Transfer: ...
    def __iter__(self) -> Iterator[types_pb2.Transfer]: ...


class TransferExecutor:
    """Executes batches of transfers.

    Args:
        membership: whose view gives topology and currencies.
        pool: refreshes the topology.
        lanes: take the packed transfers to the shards.
        allow_imports: whether transfers may bring their own time.
    """

    def __init__(
        self, membership: Membership, pool: ShardPool, lanes: Lanes, *, allow_imports: bool
    ) -> None:
        self._membership = membership
        self._pool = pool
        self._lanes = lanes
        self._allow_imports = allow_imports
        self._rules: tuple[ClusterView, Rules] | None = None

    async def execute(self, transfers: Transfers, path: str, deadline_s: float) -> list[Outcome]:
        """Execute 1 … 8,192 transfers; return one outcome for each, in their order.

        Args:
            transfers: in request order.
            path: the request's field that holds them, for the paths in faults.
            deadline_s: in the running loop's time.

        Raises:
            Fault: definite: no shard attempted any of them.
        """
        batch = _Execution(self, transfers, path)
        await scatter(batch, len(transfers), self._pool, deadline_s)
        return batch.complete()

    async def send(
        self, shard_id: int, batch: ShardBatch, topology_version: int, deadline_s: float
    ) -> bytes:
        """Have one shard execute its transfers; return their packed results."""
        return await self._lanes.execute(
            shard_id, batch.bodies, batch.metadata, topology_version, deadline_s
        )

    @property
    def rules(self) -> Rules:
        """The rules of the current view, made once for each view.

        Raises:
            Fault: UNAVAILABLE, definite: no topology is known yet.
        """
        view = self._membership.view
        if self._rules is None or self._rules[0] is not view:
            numbers: Mapping[str, int] = {
                code: currency.number for code, currency in view.currencies.items()
            }
            self._rules = view, Rules(self._pool.topology, numbers, self._allow_imports)
        return self._rules[1]


class _Execution:
    """A `Batch` of transfers."""

    def __init__(self, executor: TransferExecutor, transfers: Transfers, path: str) -> None:
        self._executor = executor
        self._transfers = transfers
        self._path = path
        self._outcomes: list[Outcome | None] = [None] * len(transfers)

    def take_apart(self, positions: Sequence[int], *, maybe_done: bool) -> Parts[ShardBatch]:
        rules = self._executor.rules
        transfers, outcomes = self._transfers, self._outcomes
        items = (
            enumerate(transfers)
            if len(positions) == len(transfers)
            else ((position, transfers[position]) for position in positions)
        )
        parts = split(items, rules, self._path)
        for position, outcome in parts.answered.items():
            outcomes[position] = outcome
        for position in parts.crossing:
            outcomes[position] = crossing_fault(position, self._path, indefinite=maybe_done)
        return Parts(
            rules.topology.version,
            {shard_id: Part(own.positions, own) for shard_id, own in parts.batches.items()},
        )

    async def ask(
        self, shard_id: int, part: Part[ShardBatch], topology_version: int, deadline_s: float
    ) -> bytes:
        return await self._executor.send(shard_id, part.payload, topology_version, deadline_s)

    def write(self, part: Part[ShardBatch], answer: bytes) -> None:
        outcomes = self._outcomes
        rows = unpack(answer, len(part.positions))
        for position, row in zip(part.positions, rows, strict=True):
            outcomes[position] = row

    def write_fault(self, position: int, fault: types_pb2.Fault) -> None:
        self._outcomes[position] = fault

    def complete(self) -> list[Outcome]:
        """Return the outcomes, in request order."""
        complete = [outcome for outcome in self._outcomes if outcome is not None]
        assert len(complete) == len(self._outcomes), "every transfer has an outcome"
        return complete
