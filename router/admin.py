"""`AdminService`: currencies, account status, audits, and how cluster and process are doing."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import grpc

from cluster.clock import Clock
from cluster.faults import Fault
from cluster.membership import (
    COORDINATOR_ROLE,
    ClusterView,
    Currency,
    CurrencyConflict,
    Member,
    Membership,
    MembershipUnavailable,
)
from cluster.packed import TRANSACTION_ID_BYTES
from cluster.shard_client import CHANGE_ACCOUNT_STATUS, CHECK_CONSERVATION, GET_SHARD_STATUS
from cluster.shard_pool import ShardPool, target_of
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import admin_service_pb2_grpc, shard_service_pb2, types_pb2
from router.asking import Shards
from router.audit import whole_second
from router.auditor import Auditor
from router.in_doubt import InDoubt
from router.routing import CURRENCY_CODE
from router.service import Context, Deadlines, check_account_id, malformed

ROLE: Final = "router"
# The contract's bounds, checked here so that the fault names the request's field.
SCALE_MAX: Final = 18
CURRENCY_NAME_BYTES_MAX: Final = 64
REASON_BYTES_MAX: Final = 256
# A shard node that does not tell its status in two seconds has told it.
STATUS_DEADLINE_S: Final = 2.0
# Adding up all balances reads every account of a shard.
CONSERVATION_DEADLINE_S: Final = 60.0
# Three looks at every shard, each a moment; an explanation, when one is needed, may read much.
AUDIT_DEADLINE_S: Final = 60.0
# An audit's time when none is asked for: far enough back that hardly anything is unposted, and near
# enough that every shard remembers it.
AUDIT_AGE_US: Final = 2_000_000
# How long the registrar of a currency waits for this router to know it too.
CURRENCY_SEEN_WAIT_S: Final = 2.0
# A turn this long delays every call in the process by as much.
LONG_TURN_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What a process can tell of itself, measured elsewhere.

    Attributes:
        id: unique among routers.
        version: of Doubloon.
        started_us: when the process started.
        longest_turn_us: reads the longest turn of the event loop.
        longest_turn_cpu_us: reads the most processor time of any turn.
    """

    id: str
    version: str
    started_us: int
    longest_turn_us: Callable[[], int]
    longest_turn_cpu_us: Callable[[], int]


class AdminServicer(admin_service_pb2_grpc.AdminServiceServicer):
    """The handlers of `AdminService`."""

    def __init__(
        self,
        membership: Membership,
        pool: ShardPool,
        deadlines: Deadlines,
        process: ProcessFacts,
        clock: Clock,
    ) -> None:
        self._membership = membership
        self._pool = pool
        self._deadlines = deadlines
        self._process = process
        self._clock = clock
        self._shards = Shards(pool)
        self._auditor = Auditor(self._shards)
        self._in_doubt = InDoubt(self._shards)

    async def RegisterCurrency(  # noqa: N802 - the contract's name
        self, request: admin.RegisterCurrencyRequest, context: Context
    ) -> admin.RegisterCurrencyResponse:
        """Register a currency, and wait (bounded) until this router takes transfers in it."""
        if CURRENCY_CODE.fullmatch(request.code) is None:
            raise malformed("code", "must be 1 … 16 of A-Z, 0-9 and _, a letter first")
        if request.scale > SCALE_MAX:
            raise malformed("scale", f"must be 0 … {SCALE_MAX}, is {request.scale}")
        if len(request.name.encode()) > CURRENCY_NAME_BYTES_MAX:
            raise malformed("name", f"must be at most {CURRENCY_NAME_BYTES_MAX} bytes")
        try:
            async with asyncio.timeout_at(self._deadlines.of(context)):
                currency = await self._membership.register_currency(
                    request.code, request.scale, request.name
                )
        except CurrencyConflict as conflict:
            raise Fault(grpc.StatusCode.ALREADY_EXISTS, str(conflict), "code") from conflict
        except (MembershipUnavailable, TimeoutError) as away:
            raise Fault(
                grpc.StatusCode.UNAVAILABLE, "etcd did not say whether it is registered; ask again"
            ) from away
        # It is registered in any case; until the watch brings it, transfers hear UNKNOWN_CURRENCY.
        with suppress(TimeoutError, MembershipUnavailable):
            await self._membership.wait_for(
                lambda view: currency.code in view.currencies, CURRENCY_SEEN_WAIT_S
            )
        return admin.RegisterCurrencyResponse(currency=_currency(currency))

    async def ListCurrencies(  # noqa: N802 - the contract's name
        self,
        request: admin.ListCurrenciesRequest,  # noqa: ARG002 - gRPC's signature
        context: Context,  # noqa: ARG002 - gRPC's signature
    ) -> admin.ListCurrenciesResponse:
        """List what the last known view has."""
        known = sorted(self._view.currencies.values(), key=lambda currency: currency.number)
        return admin.ListCurrenciesResponse(currencies=map(_currency, known))

    async def ChangeAccountStatus(  # noqa: N802 - the contract's name
        self, request: admin.ChangeAccountStatusRequest, context: Context
    ) -> admin.ChangeAccountStatusResponse:
        """Forward to the account's shard."""
        check_account_id(request.account_id, "account_id")
        if request.status not in _STATUSES:
            raise malformed("status", f"must be ACTIVE, FROZEN or CLOSED, is {request.status}")
        if not 1 <= len(request.reason.encode()) <= REASON_BYTES_MAX:
            raise malformed("reason", f"must be 1 … {REASON_BYTES_MAX} bytes")
        return await self._pool.call_for_account(
            request.account_id,
            CHANGE_ACCOUNT_STATUS,
            request,
            self._deadlines.of(context),
        )

    async def GetClusterStatus(  # noqa: N802 - the contract's name
        self,
        request: admin.GetClusterStatusRequest,  # noqa: ARG002 - gRPC's signature
        context: Context,
    ) -> admin.GetClusterStatusResponse:
        """Ask every shard for its status, and show those that do not answer as unreachable."""
        view = self._view
        deadline_s = self._within(STATUS_DEADLINE_S, context)
        topology = view.topology
        ids = () if topology is None else topology.shards
        statuses = await asyncio.gather(
            *(self._status_of(shard_id, view, deadline_s) for shard_id in ids)
        )
        return admin.GetClusterStatusResponse(
            topology_version=0 if topology is None else topology.version,
            shards=statuses,
            members=[_member(member) for _, member in sorted(view.members.items())],
            etcd_connected=self._membership.connected,
        )

    async def GetProcessHealth(  # noqa: N802 - the contract's name
        self,
        request: admin.GetProcessHealthRequest,  # noqa: ARG002 - gRPC's signature
        context: Context,  # noqa: ARG002 - gRPC's signature
    ) -> admin.GetProcessHealthResponse:
        """Tell how this router is doing."""
        process = self._process
        longest_turn_us = process.longest_turn_us()
        return admin.GetProcessHealthResponse(
            role=ROLE,
            id=process.id,
            version=process.version,
            started_us=process.started_us,
            longest_turn_us=longest_turn_us,
            longest_turn_cpu_us=process.longest_turn_cpu_us(),
            memory_bytes=anonymous_memory_bytes(),
            checks=self._checks(longest_turn_us),
        )

    async def CheckConservation(  # noqa: N802 - the contract's name
        self,
        request: admin.CheckConservationRequest,
        context: Context,
    ) -> admin.CheckConservationResponse:
        """Add up every shard; without every shard's answer there is none."""
        deadline_s = self._within(CONSERVATION_DEADLINE_S, context)
        by_shard = await self._shards.ask_all(CHECK_CONSERVATION, request, deadline_s)
        answers = by_shard.values()
        books = [book for answer in answers for book in answer.books]
        return admin.CheckConservationResponse(
            books=books, balanced=all(answer.balanced for answer in answers)
        )

    async def Audit(  # noqa: N802 - the contract's name
        self, request: admin.AuditRequest, context: Context
    ) -> admin.AuditResponse:
        """Compare what every two shards owe each other; without every shard's answer there is none.

        Whether a time is too far back is the shards' to say, whose clocks count.
        """
        if request.as_of_us < 0:
            raise malformed("as_of_us", "must not be negative")
        as_of_us = request.as_of_us or self._clock.now_us() - AUDIT_AGE_US
        deadline_s = self._within(AUDIT_DEADLINE_S, context)
        return await self._auditor.audit(whole_second(as_of_us), deadline_s)

    async def ListInDoubt(  # noqa: N802 - the contract's name
        self, request: admin.ListInDoubtRequest, context: Context
    ) -> admin.ListInDoubtResponse:
        """Ask every shard, and say which did not answer: with one away there is most to see."""
        if request.older_than_us < 0:
            raise malformed("older_than_us", "must not be negative")
        if request.transaction_id:
            _check_transaction_id(request.transaction_id)
        older_us = request.older_than_us
        # Nothing is older than the clock itself; 0 would mean all.
        since_us = max(1, self._clock.now_us() - older_us) if older_us else 0
        deadline_s = self._within(STATUS_DEADLINE_S, context)
        found = await self._in_doubt.find(since_us, request.transaction_id, deadline_s)
        return admin.ListInDoubtResponse(
            transactions=found.transactions, unreachable_shard_ids=found.away
        )

    async def ResolveTransaction(  # noqa: N802 - the contract's name
        self, request: admin.ResolveTransactionRequest, context: Context
    ) -> admin.ResolveTransactionResponse:
        """Take the steps that a coordinator would take."""
        _check_transaction_id(request.transaction_id)
        fate = await self._in_doubt.resolve(request.transaction_id, self._deadlines.of(context))
        return admin.ResolveTransactionResponse(fate=fate)

    @property
    def _view(self) -> ClusterView:
        view = self._membership.view
        if view.revision == 0:
            raise Fault(
                grpc.StatusCode.UNAVAILABLE, "nothing was read from etcd yet", indefinite=False
            )
        return view

    def _within(self, own_s: float, context: Context) -> float:
        """Return a deadline: our own, or the client's when that is sooner."""
        return replace(self._deadlines, default_s=own_s, max_s=own_s).of(context)

    async def _status_of(
        self, shard_id: int, view: ClusterView, deadline_s: float
    ) -> admin.ShardStatus:
        shard = view.shards.get(shard_id)
        unreachable = admin.ShardStatus(
            shard_id=shard_id,
            epoch=0 if shard is None else shard.epoch,
            primary="" if shard is None else shard.primary,
        )
        if target_of(view, shard_id) is None:
            return unreachable
        request = shard_service_pb2.GetShardStatusRequest()
        try:
            answer = await self._shards.ask(shard_id, GET_SHARD_STATUS, request, deadline_s)
        except Fault:
            return unreachable  # which is the answer to what was asked
        answer.status.reachable = True
        return answer.status

    def _checks(self, longest_turn_us: int) -> list[admin.HealthCheck]:
        view, connected = self._membership.view, self._membership.connected
        topology = view.topology
        unserved = (
            [shard for shard in topology.shards if view.address_of_shard(shard) is None]
            if topology
            else []
        )
        needed = topology is not None and len(topology.shards) > 1
        coordinators = view.members_of(COORDINATOR_ROLE)
        return [
            admin.HealthCheck(
                name="etcd",
                healthy=connected,
                detail="" if connected else "serving on the last known view",
            ),
            admin.HealthCheck(
                name="topology",
                healthy=topology is not None,
                detail=f"version {topology.version}" if topology else "waiting for one in etcd",
            ),
            admin.HealthCheck(
                name="shards",
                healthy=topology is not None and not unserved,
                detail=f"served by nobody: {unserved}" if unserved else "",
            ),
            admin.HealthCheck(
                name="coordinators",
                healthy=not needed or bool(coordinators),
                detail=f"{len(coordinators)} of them" if needed else "not needed by one shard",
            ),
            admin.HealthCheck(
                name="event_loop",
                healthy=longest_turn_us < LONG_TURN_US,
                detail=f"longest turn {longest_turn_us} µs",
            ),
        ]


def _check_transaction_id(transaction_id: bytes) -> None:
    if len(transaction_id) != TRANSACTION_ID_BYTES:
        length = len(transaction_id)
        raise malformed("transaction_id", f"must be {TRANSACTION_ID_BYTES} bytes, is {length}")


_STATUSES: Final = frozenset(
    {
        types_pb2.ACCOUNT_STATUS_ACTIVE,
        types_pb2.ACCOUNT_STATUS_FROZEN,
        types_pb2.ACCOUNT_STATUS_CLOSED,
    }
)


def anonymous_memory_bytes() -> int:
    """Return this process's anonymous resident memory; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _currency(currency: Currency) -> admin.Currency:
    return admin.Currency(
        code=currency.code, number=currency.number, scale=currency.scale, name=currency.name
    )


def _member(member: Member) -> admin.MemberStatus:
    return admin.MemberStatus(
        role=member.role,
        id=member.id,
        address=member.address,
        version=member.version,
        started_us=member.started_us,
    )
