"""Shard nodes in memory, for tests of what talks to them.

A `MemoryShardNode` answers `ShardService` naively and remembers what it was asked. It is reached
through a `MemoryShardClient`, or put behind a real gRPC server: both speak the same contract.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from cluster.faults import Fault
from cluster.membership import SHARD_NODE_ROLE, Member, MemoryMembership, MemoryStore
from cluster.packed import (
    BODY,
    BODY_BYTES,
    DECISION,
    GROUP_RESULT,
    KEY_BYTES,
    MEMBER_BODY,
    RESOLUTION,
    RESULT,
    DifferingField,
    Fate,
)
from cluster.refusals import RefusalReason
from cluster.rpc import SHARD_KEY, TOPOLOGY_VERSION_KEY
from cluster.shard_client import Method, Q, R
from cluster.topology import Topology
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import coordinator_service_pb2 as coordinator
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import shard_service_pb2_grpc, types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet

COMPLETED = types_pb2.TRANSFER_STATUS_COMPLETED
REFUSED = types_pb2.TRANSFER_STATUS_REFUSED
BUSY = GROUP_RESULT.pack(
    types_pb2.TRANSFER_STATUS_FAULT, types_pb2.FAULT_CODE_UNAVAILABLE, 0, 0, 0, 0, 0, 0
)


class Context(Protocol):
    """What a shard node reads of a call."""

    def invocation_metadata(self) -> Any: ...


@dataclass(frozen=True)
class MemoryContext:
    """The context of a call that never saw a wire."""

    metadata: tuple[tuple[str, str], ...]

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata


def result_of(body: bytes) -> tuple[int, int, int, int, int, int]:
    """What a naive shard decides, from the body alone: its reference as time, amount as balance."""
    _, source, destination, amount_minor, reference, _, currency, *_ = MEMBER_BODY.unpack(body)
    for reason, applies in (
        (RefusalReason.BAD_AMOUNT, amount_minor <= 0),
        (RefusalReason.SAME_ACCOUNT, source == destination),
        (RefusalReason.UNKNOWN_CURRENCY, currency == 0),
    ):
        if applies:
            return REFUSED, reason, 0, 0, 0, 0
    return COMPLETED, 0, 0, 0, reference, amount_minor


def group_result(row: tuple[int, ...], index: int = 0) -> bytes:
    """A single transfer's result as that of a group."""
    status, reason, differing, repeat, time_us, balance_minor = row
    return GROUP_RESULT.pack(status, reason, differing, repeat, index, 0, time_us, balance_minor)


def cut_groups(records: bytes, stride: int) -> Iterator[list[bytes]]:
    """The records of each group, or of each transaction."""
    at = 0
    while at < len(records):
        size = records[at + 62] or 1
        group = [records[at + n * stride : at + (n + 1) * stride] for n in range(size)]
        assert all(each[61] == n for n, each in enumerate(group)), "members are numbered"
        yield group
        at += size * stride


@dataclass
class MemoryShardNode(shard_service_pb2_grpc.ShardServiceServicer):
    """A shard node that keeps outcomes by key and nothing else.

    Attributes:
        shard_id: which shard it serves.
        topology: its own; calls under another version are refused.
        asked: (method, request), in order.
        recorded: key → (body, result).
        before: awaited before a call is looked at; may wait, or raise a Fault.
        after: awaited after a call has taken effect and before it is answered; may raise a Fault.
        balanced: what it says of its books.
        busy: reference of a transfer → how many times more something in doubt stands in its way.
        transactions: what it has in doubt, or decided and not finished.
        fates: transaction → (fate, decided), for `Resolve`; UNDECIDED when not there.
        clearing: what it answers to `GetClearing`, one after the other, the last for ever.
        crossings: what it lists, whatever it is asked for.
        gone: set when the process dies; calls in progress on it are lost.
    """

    shard_id: int
    topology: Topology
    asked: list[tuple[str, Any]] = field(default_factory=list)
    recorded: dict[bytes, tuple[bytes, tuple[int, ...]]] = field(default_factory=dict)
    before: Callable[[str], Awaitable[None]] | None = None
    after: Callable[[str], Awaitable[None]] | None = None
    balanced: bool = True
    busy: Counter[int] = field(default_factory=Counter)
    transactions: list[coordinator.TransactionInfo] = field(default_factory=list)
    fates: dict[bytes, tuple[Fate, int]] = field(default_factory=dict)
    clearing: list[shard.GetClearingResponse] = field(
        default_factory=lambda: [shard.GetClearingResponse()]
    )
    crossings: list[shard.Crossing] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def ExecuteTransfers(  # noqa: N802 - the contract's name
        self, request: shard.ExecuteTransfersRequest, context: Context
    ) -> shard.ExecuteTransfersResponse:
        await self._begin("ExecuteTransfers", request, context)
        results = []
        metadata_bytes = 0
        for start in range(0, len(request.bodies), BODY_BYTES):
            body = request.bodies[start : start + BODY_BYTES]
            metadata_bytes += BODY.unpack(body)[7]
            results.append(BUSY if self._is_busy(body) else RESULT.pack(*self._execute(body)))
        assert metadata_bytes == len(request.metadata), "metadata belongs to these bodies"
        if self.after is not None:
            await self.after("ExecuteTransfers")
        return shard.ExecuteTransfersResponse(results=b"".join(results))

    async def ExecuteGroups(  # noqa: N802 - the contract's name
        self, request: shard.ExecuteGroupsRequest, context: Context
    ) -> shard.ExecuteGroupsResponse:
        await self._begin("ExecuteGroups", request, context)
        results = []
        for group in cut_groups(request.bodies, BODY_BYTES):
            for body in group:
                self._check_owner(body)
            busy = self._is_busy(group[0])
            results.append(BUSY if busy else group_result(self._execute(group[0])))
        if self.after is not None:
            await self.after("ExecuteGroups")
        return shard.ExecuteGroupsResponse(results=b"".join(results))

    def _is_busy(self, body: bytes) -> bool:
        reference = BODY.unpack(body)[4]
        self.busy[reference] -= self.busy[reference] > 0
        return self.busy[reference] > 0

    def _check_owner(self, body: bytes) -> None:
        _, source, destination, *_ = BODY.unpack(body)
        owners = {self.topology.shard_of(source), self.topology.shard_of(destination)}
        assert owners == {self.shard_id}, "a batch has only accounts of its shard"

    async def GetClearing(  # noqa: N802 - the contract's name
        self, request: shard.GetClearingRequest, context: Context
    ) -> shard.GetClearingResponse:
        await self._begin("GetClearing", request, context)
        return self.clearing.pop(0) if len(self.clearing) > 1 else self.clearing[0]

    async def ListCrossings(  # noqa: N802 - the contract's name
        self, request: shard.ListCrossingsRequest, context: Context
    ) -> shard.ListCrossingsResponse:
        await self._begin("ListCrossings", request, context)
        return shard.ListCrossingsResponse(
            crossings=[
                each
                for each in self.crossings
                if request.after_us < each.decided_us <= request.to_us
            ]
        )

    async def ListTransactions(  # noqa: N802 - the contract's name
        self, request: shard.ListTransactionsRequest, context: Context
    ) -> shard.ListTransactionsResponse:
        await self._begin("ListTransactions", request, context)
        return shard.ListTransactionsResponse(
            transactions=[
                each
                for each in self.transactions
                if (not request.since_us or each.since_us <= request.since_us)
                and request.transaction_id in {b"", each.transaction_id}
            ]
        )

    async def Prepare(  # noqa: N802 - the contract's name
        self, request: shard.PrepareRequest, context: Context
    ) -> shard.PrepareResponse:
        raise AssertionError("only coordinators prepare")

    async def CommitHome(  # noqa: N802 - the contract's name
        self, request: shard.CommitHomeRequest, context: Context
    ) -> shard.CommitHomeResponse:
        raise AssertionError("only coordinators commit")

    async def Resolve(  # noqa: N802 - the contract's name
        self, request: shard.ResolveRequest, context: Context
    ) -> shard.ResolveResponse:
        await self._begin("Resolve", request, context)
        ids = [each for each, _ in DECISION.iter_unpack(request.transactions)]
        found = [self.fates.get(each, (Fate.UNDECIDED, 0)) for each in ids]
        return shard.ResolveResponse(resolutions=b"".join(RESOLUTION.pack(*one) for one in found))

    async def CommitPrepared(  # noqa: N802 - the contract's name
        self, request: shard.CommitPreparedRequest, context: Context
    ) -> shard.CommitPreparedResponse:
        await self._begin("CommitPrepared", request, context)
        self._end(each for each, _ in DECISION.iter_unpack(request.decisions))
        return shard.CommitPreparedResponse()

    async def AbortPrepared(  # noqa: N802 - the contract's name
        self, request: shard.AbortPreparedRequest, context: Context
    ) -> shard.AbortPreparedResponse:
        await self._begin("AbortPrepared", request, context)
        self._end(each for each, _ in DECISION.iter_unpack(request.transactions))
        return shard.AbortPreparedResponse()

    async def Finish(  # noqa: N802 - the contract's name
        self, request: shard.FinishRequest, context: Context
    ) -> shard.FinishResponse:
        await self._begin("Finish", request, context)
        self._end([request.transaction_ids])
        return shard.FinishResponse()

    def _end(self, transaction_ids: Iterable[bytes]) -> None:
        ended = set(transaction_ids)
        self.transactions = [one for one in self.transactions if one.transaction_id not in ended]

    def _execute(self, body: bytes) -> tuple[int, ...]:
        self._check_owner(body)
        known = self.recorded.get(body[:KEY_BYTES])
        if known is not None:
            if known[0] != body:
                differing = DifferingField.AMOUNT_MINOR
                return REFUSED, RefusalReason.KEY_REUSED, differing, 0, 0, 0
            status, reason, differing_field, _, time_us, balance = known[1]
            return status, reason, differing_field, 1, time_us, balance
        result = result_of(body)
        if result[0] == COMPLETED:
            self.recorded[body[:KEY_BYTES]] = body, result
        return result

    async def OpenAccounts(  # noqa: N802 - the contract's name
        self, request: wallet.OpenAccountsRequest, context: Context
    ) -> wallet.OpenAccountsResponse:
        await self._begin("OpenAccounts", request, context)
        return wallet.OpenAccountsResponse(
            results=[
                # The cap comes back as the field's name, which shows whose result this is.
                wallet.OpenAccountResult(
                    status=wallet.OPEN_ACCOUNT_STATUS_REFUSED, differing_field=f"{spec.cap_minor}"
                )
                for spec in request.accounts
            ]
        )

    async def GetAccount(  # noqa: N802 - the contract's name
        self, request: wallet.GetAccountRequest, context: Context
    ) -> wallet.GetAccountResponse:
        await self._begin("GetAccount", request, context)
        account = types_pb2.Account(account_id=request.account_id)
        return wallet.GetAccountResponse(account=account)

    async def GetFlows(  # noqa: N802 - the contract's name
        self, request: wallet.GetFlowsRequest, context: Context
    ) -> wallet.GetFlowsResponse:
        await self._begin("GetFlows", request, context)
        return wallet.GetFlowsResponse(to_us=request.as_of_us)

    async def GetBalances(  # noqa: N802 - the contract's name
        self, request: wallet.GetBalancesRequest, context: Context
    ) -> wallet.GetBalancesResponse:
        await self._begin("GetBalances", request, context)
        return wallet.GetBalancesResponse(as_of_us=request.as_of_us)

    async def ListEntries(  # noqa: N802 - the contract's name
        self, request: wallet.ListEntriesRequest, context: Context
    ) -> wallet.ListEntriesResponse:
        await self._begin("ListEntries", request, context)
        return wallet.ListEntriesResponse(next_page_token=request.page_token)

    async def GetBalanceSeries(  # noqa: N802 - the contract's name
        self, request: wallet.GetBalanceSeriesRequest, context: Context
    ) -> wallet.GetBalanceSeriesResponse:
        await self._begin("GetBalanceSeries", request, context)
        return wallet.GetBalanceSeriesResponse(to_us=request.to_us)

    async def GetProcessHealth(  # noqa: N802 - the contract's name
        self, request: admin.GetProcessHealthRequest, context: Context
    ) -> admin.GetProcessHealthResponse:
        await self._begin("GetProcessHealth", request, context)
        return admin.GetProcessHealthResponse(role="shard")

    async def GetTransfer(  # noqa: N802 - the contract's name
        self, request: wallet.GetTransferRequest, context: Context
    ) -> wallet.GetTransferResponse:
        await self._begin("GetTransfer", request, context)
        raise Fault(grpc.StatusCode.NOT_FOUND, "not recorded", "transfer_id")

    async def ChangeAccountStatus(  # noqa: N802 - the contract's name
        self, request: admin.ChangeAccountStatusRequest, context: Context
    ) -> admin.ChangeAccountStatusResponse:
        await self._begin("ChangeAccountStatus", request, context)
        account = types_pb2.Account(account_id=request.account_id, status=request.status)
        return admin.ChangeAccountStatusResponse(account=account)

    async def GetShardStatus(  # noqa: N802 - the contract's name
        self, request: shard.GetShardStatusRequest, context: Context
    ) -> shard.GetShardStatusResponse:
        await self._begin("GetShardStatus", request, context)
        status = admin.ShardStatus(shard_id=self.shard_id, epoch=1, durable_block=7)
        return shard.GetShardStatusResponse(status=status)

    async def CheckConservation(  # noqa: N802 - the contract's name
        self, request: admin.CheckConservationRequest, context: Context
    ) -> admin.CheckConservationResponse:
        await self._begin("CheckConservation", request, context)
        balanced = self.balanced
        book = admin.ShardBooks(shard_id=self.shard_id, currency="GOLD", balanced=balanced)
        return admin.CheckConservationResponse(books=[book], balanced=balanced)

    async def _begin(self, method: str, request: Any, context: Context) -> None:
        if self.before is not None:
            await self.before(method)
        sent = dict(context.invocation_metadata())
        target = sent[SHARD_KEY], sent[TOPOLOGY_VERSION_KEY]
        if target != (str(self.shard_id), str(self.topology.version)):
            raise Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                "another shard or topology",
                topology_version=self.topology.version,
            )
        self.asked.append((method, request))

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of each ExecuteTransfers that was looked at."""
        return [request.bodies for method, request in self.asked if method == "ExecuteTransfers"]


class MemoryShardClient:
    """A `ShardClient` to whatever node is at an address; see there for the contract."""

    def __init__(self, nodes: dict[str, MemoryShardNode], shard_id: int, address: str) -> None:
        self._nodes = nodes
        self._shard_id = shard_id
        self._address = address
        self._given_up = asyncio.Event()

    async def call(
        self, method: Method[Q, R], request: Q, topology_version: int, timeout_s: float
    ) -> R:
        node = self._nodes.get(self._address)
        if node is None or node.gone.is_set() or self._given_up.is_set():
            raise Fault(grpc.StatusCode.UNAVAILABLE, "no connection", indefinite=False)
        metadata = (
            (SHARD_KEY, str(self._shard_id)),
            (TOPOLOGY_VERSION_KEY, str(topology_version)),
        )
        own = type(request).FromString(request.SerializeToString())
        loop = asyncio.get_running_loop()
        answer: asyncio.Task[R] = loop.create_task(
            getattr(node, method.name)(own, MemoryContext(metadata))
        )
        losses = [loop.create_task(event.wait()) for event in (node.gone, self._given_up)]
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


def member_id(address: str) -> str:
    """The id of the member at an address."""
    return address.replace(":", "-")


class MemoryCluster:
    """Shard nodes and the membership that names them.

    Attributes:
        store: what etcd would hold.
        membership: the handle of whoever is under test.
        nodes: by address; whoever is missing there cannot be reached.
    """

    def __init__(self, topology: Topology | None) -> None:
        self.store = MemoryStore()
        self.membership = MemoryMembership(self.store)
        self.operator = MemoryMembership(self.store)
        self.nodes: dict[str, MemoryShardNode] = {}
        self.topology = topology
        self._handles: dict[str, MemoryMembership] = {}

    async def start(self) -> None:
        """Put the topology and GOLD in place, and start a node for every shard."""
        await self.operator.register_currency("GOLD", 2, "gold")
        if self.topology is None:
            return
        assert await self.operator.propose_topology(self.topology)
        for shard_id in self.topology.shards:
            await self.start_node(shard_id, f"shard{shard_id}:1")

    async def start_node(
        self, shard_id: int, address: str, topology: Topology | None = None
    ) -> MemoryShardNode:
        """Start a node, which claims the shard under the next epoch."""
        topology = topology or self.topology
        assert topology is not None
        node = self.nodes[address] = MemoryShardNode(shard_id, topology)
        member = Member(SHARD_NODE_ROLE, member_id(address), address, "test", 0)
        self._handles[address] = MemoryMembership(self.store)
        await self._handles[address].join(member)
        await self.operator.claim_shard(shard_id, member.id)
        return node

    def end_lease(self, address: str) -> None:
        """Let the member at an address be forgotten."""
        self._handles[address].cut()
        self.store.expire(SHARD_NODE_ROLE, member_id(address))

    def node(self, shard_id: int) -> MemoryShardNode:
        """The node that serves a shard."""
        address = self.store.view.address_of_shard(shard_id)
        assert address is not None
        return self.nodes[address]

    def connect(self, shard_id: int, address: str) -> MemoryShardClient:
        return MemoryShardClient(self.nodes, shard_id, address)
