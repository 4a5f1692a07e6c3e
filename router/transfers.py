"""Executes batches of transfers and of groups, and bounds how many are in progress."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar, cast, overload

import grpc

from cluster.faults import Fault
from cluster.membership import ClusterView, Membership
from cluster.packed import BATCH_TRANSFERS_MAX
from cluster.shard_pool import ShardPool, is_stale
from doubloon.v1 import types_pb2, wallet_service_pb2
from router.groups import split_groups
from router.results import GroupOutcome, Outcome, unpack, unpack_groups
from router.routes import COORDINATORS, Routes
from router.routing import Packed, Rules, Split, joined, split
from router.scatter import Part, Parts, item_fault, scatter

ItemT = TypeVar("ItemT")
ItemT_co = TypeVar("ItemT_co", covariant=True)
OutcomeT = TypeVar("OutcomeT")

# The largest well-formed transfer is some 350 bytes on the wire. Whoever sends larger ones is
# charged for what they take.
TRANSFER_WIRE_BYTES: Final = 512
# Sixteen full batches: at most 64 MiB of messages, and more than all shards' queues turn over in a
# second.
IN_FLIGHT_MAX: Final = 16 * BATCH_TRANSFERS_MAX
TURN_TRANSFERS_MAX: Final = 1_024
"""Transfers that are taken apart, or whose results are written, in one turn of the event loop: some
2 ms. A full batch would keep all others waiting for twenty."""
TURN_GROUPS_MAX: Final = 128
"""The same of groups, of up to 16 transfers."""


class Admission:
    """Bounds what is in progress in this router, in transfers.

    Args:
        in_flight_max: beyond it callers hear RESOURCE_EXHAUSTED.
    """

    def __init__(self, in_flight_max: int = IN_FLIGHT_MAX) -> None:
        self._in_flight_max = in_flight_max
        self._in_flight = 0

    def admit(self, count: int, wire_bytes: int) -> "Admitted":
        """Count a batch in, for as long as the context returned lasts.

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
        return Admitted(self, weight)

    def leave(self, weight: int) -> None:
        """Count a batch out."""
        self._in_flight -= weight


class Admitted:
    """Counts a batch out as a context ends. One made by `contextlib` is six times as dear."""

    __slots__ = ("_admission", "_weight")

    def __init__(self, admission: Admission, weight: int) -> None:
        self._admission = admission
        self._weight = weight

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._admission.leave(self._weight)


class Items(Protocol[ItemT_co]):
    """A repeated field."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> ItemT_co: ...
    @overload
    def __getitem__(self, index: slice, /) -> Sequence[ItemT_co]: ...
    def __iter__(self) -> Iterator[ItemT_co]: ...


class TransferExecutor:
    """Executes batches of transfers and of groups.

    Args:
        membership: whose view gives topology and currencies.
        pool: refreshes the topology.
        routes: take the packed transfers to shards and coordinators.
        allow_imports: whether transfers may bring their own time.
    """

    def __init__(
        self, membership: Membership, pool: ShardPool, routes: Routes, *, allow_imports: bool
    ) -> None:
        self._membership = membership
        self._pool = pool
        self._routes = routes
        self._allow_imports = allow_imports
        self._rules: tuple[ClusterView, Rules] | None = None

    async def execute(
        self,
        transfers: Items[types_pb2.Transfer],
        path: str,
        deadline_s: float,
        in_order: asyncio.Lock | None = None,
    ) -> list[Outcome]:
        """Execute 1 … 8,192 transfers; return one outcome for each, in their order.

        Args:
            transfers: in request order.
            path: the request's field that holds them, for the paths in faults.
            deadline_s: in the running loop's time.
            in_order: batches that share one are sent in the order in which they were given.

        Raises:
            Fault: definite: nobody attempted any of them.
        """
        if len(transfers) == 1 and in_order is None:
            outcome = await self._execute_alone(transfers[0], path, deadline_s)
            if outcome is not None:
                return [outcome]
        batch = _Execution(
            self, transfers, path, split, unpack, self._routes.transfers, TURN_TRANSFERS_MAX,
            in_order,
        )  # fmt: skip
        await scatter(batch, len(transfers), self._pool, deadline_s)
        return batch.complete()

    async def _execute_alone(
        self, transfer: types_pb2.Transfer, path: str, deadline_s: float
    ) -> Outcome | None:
        """Execute one transfer without what a batch needs: a tenth of what it costs a router.

        Returns:
            None: nothing happened, for its shard has another topology; `scatter` knows what to do.
        """
        rules = self.rules
        version = rules.topology.version
        parts = split(((0, transfer),), rules, path)
        if parts.answered:
            return parts.answered[0]
        if parts.crossing is not None:
            shard_id, packed = COORDINATORS, parts.crossing
        else:
            ((shard_id, packed),) = parts.batches.items()
        try:
            results = await self._routes.transfers(shard_id, packed, version, deadline_s)
        except Fault as fault:
            if fault.indefinite:
                return item_fault(fault, 0)
            if is_stale(fault, version):
                return None
            raise
        return unpack(results, packed.positions)[0]

    async def execute_groups(
        self, groups: Items[wallet_service_pb2.Group], path: str, deadline_s: float
    ) -> list[GroupOutcome]:
        """Execute 1 … 1,024 groups, of 8,192 transfers in all; as `execute`."""
        batch = _Execution(
            self, groups, path, split_groups, unpack_groups, self._routes.groups, TURN_GROUPS_MAX
        )
        await scatter(batch, len(groups), self._pool, deadline_s)
        return batch.complete()

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


@dataclass(slots=True)
class _Execution(Generic[ItemT, OutcomeT]):
    """A `Batch` of transfers or of groups: what of it is malformed, packed, sent and answered."""

    executor: TransferExecutor
    items: Items[ItemT]
    path: str
    split: Callable[[Iterable[tuple[int, ItemT]], Rules, str], Split[OutcomeT | types_pb2.Fault]]
    unpack: Callable[[bytes, Sequence[int]], list[OutcomeT | types_pb2.Fault]]
    send: Callable[[int, Packed, int, float], Awaitable[bytes]]
    turn_max: int
    in_order: asyncio.Lock | None = None
    # In request order; None = not yet.
    outcomes: list[OutcomeT | types_pb2.Fault | None] = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = [None] * len(self.items)

    async def take_apart(self, positions: Sequence[int]) -> Parts[Packed]:
        if self.in_order is None:
            return await self._take_apart(positions)
        async with self.in_order:
            return await self._take_apart(positions)

    async def _take_apart(self, positions: Sequence[int]) -> Parts[Packed]:
        rules, items = self.executor.rules, self.items
        slices = []
        for start in range(0, len(positions), self.turn_max):
            if start:
                await asyncio.sleep(0)
            some = positions[start : start + self.turn_max]
            numbered = zip(some, items[some[0] : some[-1] + 1], strict=True)
            if some[-1] + 1 - some[0] != len(some):  # a second try of some items
                numbered = zip(some, [items[position] for position in some], strict=True)
            slices.append(self.split(numbered, rules, self.path))
        parts = joined(slices)
        for position, outcome in parts.answered.items():
            self.outcomes[position] = outcome
        by_shard = {shard: Part(own.positions, own) for shard, own in parts.batches.items()}
        if parts.crossing is not None:
            by_shard[COORDINATORS] = Part(parts.crossing.positions, parts.crossing)
        return Parts(rules.topology.version, by_shard)

    async def ask(
        self, shard_id: int, part: Part[Packed], topology_version: int, deadline_s: float
    ) -> bytes:
        return await self.send(shard_id, part.payload, topology_version, deadline_s)

    def write(self, part: Part[Packed], answer: bytes) -> None:
        found = self.unpack(answer, part.positions)
        if len(found) == len(self.outcomes):  # one shard has answered for the whole batch
            self.outcomes[:] = found
            return
        outcomes = self.outcomes
        for position, outcome in zip(part.positions, found, strict=True):
            outcomes[position] = outcome

    def write_fault(self, position: int, fault: types_pb2.Fault) -> None:
        self.outcomes[position] = fault

    def complete(self) -> list[OutcomeT | types_pb2.Fault]:
        """Return the outcomes, in request order."""
        return cast("list[OutcomeT | types_pb2.Fault]", self.outcomes)
