"""A small real admin service, beside the fake wallet service and in its manner."""
# ruff: noqa: N802 - the contract names the methods

from collections import Counter, deque
from dataclasses import dataclass, field

import grpc

from doubloon.v1 import admin_service_pb2 as pb
from doubloon.v1 import types_pb2 as types
from doubloon.v1.admin_service_pb2_grpc import AdminServiceServicer
from doubloon.v1.coordinator_service_pb2 import TRANSACTION_STATE_PREPARED, TransactionInfo
from tests.support.wallet import START_US, Context, Trouble, fail


@dataclass
class FakeAdmin(AdminServiceServicer):
    """The service; statuses and currencies are kept, the rest are fixed answers."""

    troubles: deque[Trouble] = field(default_factory=deque)
    calls: Counter[str] = field(default_factory=Counter)
    currencies: dict[str, pb.Currency] = field(default_factory=dict)
    statuses: dict[int, types.AccountStatus.ValueType] = field(default_factory=dict)

    async def RegisterCurrency(
        self, request: pb.RegisterCurrencyRequest, context: Context
    ) -> pb.RegisterCurrencyResponse:
        trouble = self._begin("RegisterCurrency")
        if trouble.status is not None and not trouble.executes:
            await fail(context, trouble.status, trouble.fault)
        number = len(self.currencies) + 1
        wanted = pb.Currency(
            code=request.code, number=number, scale=request.scale, name=request.name
        )
        known = self.currencies.setdefault(request.code, wanted)
        if (known.scale, known.name) != (request.scale, request.name):
            fault = types.Fault(code=types.FAULT_CODE_FAILED_PRECONDITION, field="scale", index=-1)
            await fail(context, grpc.StatusCode.ALREADY_EXISTS, fault)
        if trouble.status is not None:
            await fail(context, trouble.status, trouble.fault)
        return pb.RegisterCurrencyResponse(currency=known)

    async def ListCurrencies(
        self, request: pb.ListCurrenciesRequest, context: Context
    ) -> pb.ListCurrenciesResponse:
        return pb.ListCurrenciesResponse(currencies=self.currencies.values())

    async def ChangeAccountStatus(
        self, request: pb.ChangeAccountStatusRequest, context: Context
    ) -> pb.ChangeAccountStatusResponse:
        repeat = self.statuses.get(request.account_id) == request.status
        self.statuses[request.account_id] = request.status
        account = types.Account(
            account_id=request.account_id,
            kind=types.ACCOUNT_KIND_PLAYER,
            status=request.status,
            status_time_us=START_US,
            status_reason=request.reason,
        )
        return pb.ChangeAccountStatusResponse(account=account, repeat=repeat)

    async def GetClusterStatus(
        self, request: pb.GetClusterStatusRequest, context: Context
    ) -> pb.GetClusterStatusResponse:
        return pb.GetClusterStatusResponse(
            topology_version=3,
            shards=[pb.ShardStatus(shard_id=1, epoch=2, reachable=True, log_syncs=9)],
            members=[pb.MemberStatus(role="router", id="r1", started_us=START_US)],
            etcd_connected=True,
        )

    async def GetProcessHealth(
        self, request: pb.GetProcessHealthRequest, context: Context
    ) -> pb.GetProcessHealthResponse:
        checks = [
            pb.HealthCheck(name="etcd", healthy=True),
            pb.HealthCheck(name="topology", healthy=False, detail="none yet"),
        ]
        return pb.GetProcessHealthResponse(role="router", id="r1", checks=checks)

    async def CheckConservation(
        self, request: pb.CheckConservationRequest, context: Context
    ) -> pb.CheckConservationResponse:
        books = pb.ShardBooks(
            shard_id=1,
            currency="GOLD",
            accounts=2,
            positive_minor=str(2**70),
            negative_minor=str(-(2**70)),
            balanced=True,
            clearing_minor="-3",
        )
        return pb.CheckConservationResponse(books=[books], balanced=True)

    async def Audit(self, request: pb.AuditRequest, context: Context) -> pb.AuditResponse:
        pair = pb.ShardPairAudit(
            shard_id=1,
            peer_shard_id=2,
            currency="GOLD",
            position_minor=str(2**70),
            peer_position_minor=str(5 - 2**70),
            unposted_minor="7",
            differing_transaction_ids=[bytes(16)],
        )
        return pb.AuditResponse(as_of_us=request.as_of_us or START_US, pairs=[pair], in_doubt=4)

    async def ListInDoubt(
        self, request: pb.ListInDoubtRequest, context: Context
    ) -> pb.ListInDoubtResponse:
        info = TransactionInfo(
            transaction_id=request.transaction_id or bytes(16),
            state=TRANSACTION_STATE_PREPARED,
            shard_id=2,
            home_shard_id=1,
            participant_shard_ids=[2, 3],
            since_us=START_US - request.older_than_us,
        )
        return pb.ListInDoubtResponse(transactions=[info], unreachable_shard_ids=[4])

    async def ResolveTransaction(
        self, request: pb.ResolveTransactionRequest, context: Context
    ) -> pb.ResolveTransactionResponse:
        trouble = self._begin("ResolveTransaction")
        if trouble.status is not None:
            await fail(context, trouble.status, trouble.fault)
        return pb.ResolveTransactionResponse(fate=pb.TRANSACTION_FATE_ABORTED)

    def _begin(self, name: str) -> Trouble:
        self.calls[name] += 1
        return self.troubles.popleft() if self.troubles else Trouble()
