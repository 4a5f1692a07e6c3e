"""One shard node as routers and coordinators reach it: the seam, and what is real behind it."""

from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from cluster.peers import PeerChannel
from cluster.rpc import SHARD_KEY, TOPOLOGY_VERSION_KEY
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import shard_service_pb2_grpc
from doubloon.v1 import wallet_service_pb2 as wallet

Q = TypeVar("Q", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, R]):
    """One method of ShardService, with the types of its request and response."""

    name: str


EXECUTE_TRANSFERS: Final[Method[shard.ExecuteTransfersRequest, shard.ExecuteTransfersResponse]] = (
    Method("ExecuteTransfers")
)
EXECUTE_GROUPS: Final[Method[shard.ExecuteGroupsRequest, shard.ExecuteGroupsResponse]] = Method(
    "ExecuteGroups"
)
PREPARE: Final[Method[shard.PrepareRequest, shard.PrepareResponse]] = Method("Prepare")
COMMIT_HOME: Final[Method[shard.CommitHomeRequest, shard.CommitHomeResponse]] = Method("CommitHome")
COMMIT_PREPARED: Final[Method[shard.CommitPreparedRequest, shard.CommitPreparedResponse]] = Method(
    "CommitPrepared"
)
ABORT_PREPARED: Final[Method[shard.AbortPreparedRequest, shard.AbortPreparedResponse]] = Method(
    "AbortPrepared"
)
RESOLVE: Final[Method[shard.ResolveRequest, shard.ResolveResponse]] = Method("Resolve")
FINISH: Final[Method[shard.FinishRequest, shard.FinishResponse]] = Method("Finish")
LIST_TRANSACTIONS: Final[Method[shard.ListTransactionsRequest, shard.ListTransactionsResponse]] = (
    Method("ListTransactions")
)
GET_CLEARING: Final[Method[shard.GetClearingRequest, shard.GetClearingResponse]] = Method(
    "GetClearing"
)
LIST_CROSSINGS: Final[Method[shard.ListCrossingsRequest, shard.ListCrossingsResponse]] = Method(
    "ListCrossings"
)
OPEN_ACCOUNTS: Final[Method[wallet.OpenAccountsRequest, wallet.OpenAccountsResponse]] = Method(
    "OpenAccounts"
)
GET_ACCOUNT: Final[Method[wallet.GetAccountRequest, wallet.GetAccountResponse]] = Method(
    "GetAccount"
)
GET_BALANCES: Final[Method[wallet.GetBalancesRequest, wallet.GetBalancesResponse]] = Method(
    "GetBalances"
)
GET_TRANSFER: Final[Method[wallet.GetTransferRequest, wallet.GetTransferResponse]] = Method(
    "GetTransfer"
)
LIST_ENTRIES: Final[Method[wallet.ListEntriesRequest, wallet.ListEntriesResponse]] = Method(
    "ListEntries"
)
GET_FLOWS: Final[Method[wallet.GetFlowsRequest, wallet.GetFlowsResponse]] = Method("GetFlows")
GET_BALANCE_SERIES: Final[
    Method[wallet.GetBalanceSeriesRequest, wallet.GetBalanceSeriesResponse]
] = Method("GetBalanceSeries")
CHANGE_ACCOUNT_STATUS: Final[
    Method[admin.ChangeAccountStatusRequest, admin.ChangeAccountStatusResponse]
] = Method("ChangeAccountStatus")
CHECK_CONSERVATION: Final[
    Method[admin.CheckConservationRequest, admin.CheckConservationResponse]
] = Method("CheckConservation")
GET_SHARD_STATUS: Final[Method[shard.GetShardStatusRequest, shard.GetShardStatusResponse]] = Method(
    "GetShardStatus"
)


# Answers of megabytes, or after seconds of work.
_APART: Final = tuple(
    f"/doubloon.v1.ShardService/{method.name}"
    for method in (LIST_TRANSACTIONS, GET_CLEARING, LIST_CROSSINGS, CHECK_CONSERVATION)
)


class ShardClient(Protocol):
    """A way to one shard node. Calls may run concurrently."""

    async def call(
        self, method: Method[Q, R], request: Q, topology_version: int, timeout_s: float
    ) -> R:
        """Ask the shard node once.

        Raises:
            Fault: what the node answered; or UNAVAILABLE when it cannot be reached, definite while
                nothing was sent; or DEADLINE_EXCEEDED past `timeout_s` seconds, indefinite.
        """
        ...

    async def close(self, grace_s: float) -> None:
        """Let calls in progress end by themselves for so long; then fail them, indefinite."""
        ...


class GrpcShardClient:
    """A `ShardClient` for the shard node at an address (`host:port`)."""

    def __init__(self, shard_id: int, address: str) -> None:
        self._shard = str(shard_id)
        self._peer = PeerChannel(f"shard {shard_id}", address, _APART)
        self._stub = shard_service_pb2_grpc.ShardServiceStub(self._peer.channel)

    async def call(
        self, method: Method[Q, R], request: Q, topology_version: int, timeout_s: float
    ) -> R:
        """Ask the shard node once; see `ShardClient`."""
        metadata = ((SHARD_KEY, self._shard), (TOPOLOGY_VERSION_KEY, str(topology_version)))
        response: R = await self._peer.call(
            getattr(self._stub, method.name), request, metadata, timeout_s
        )
        return response

    async def close(self, grace_s: float) -> None:
        """Close the channel; see `ShardClient`."""
        await self._peer.close(grace_s)
