"""Doubloon: the SDK for game servers.

    async with doubloon.AsyncClient("router:7400") as client:
        await client.open_account(7)
        result = await client.transfer(1, 7, "GOLD", 250, type=doubloon.TransferType.REWARD)
        if result.refused: ...

`Client` is the same without asyncio. A refusal (a business "no") is a value in the result; a fault
raises, and `doubloon.faults` draws the tree of errors. `doubloon.times` has the rule for times.
"""

from doubloon.accounts import (
    Account,
    AccountRefused,
    AccountSpec,
    Balance,
    Balances,
    OpenAccountResult,
)
from doubloon.admin import AsyncAdminClient
from doubloon.blocking import AdminClient, Client
from doubloon.channels import Tls
from doubloon.client import AsyncClient
from doubloon.enums import (
    AccountKind,
    AccountStatus,
    EntryDirection,
    EntryOrder,
    FaultCode,
    OpenAccountStatus,
    RefusalReason,
    RetryClass,
    TransactionFate,
    TransactionState,
    TransferStatus,
    TransferType,
)
from doubloon.faults import (
    AlreadyExists,
    ClientClosed,
    DeadlineExceeded,
    DefiniteFault,
    DoubloonError,
    FailedPrecondition,
    Fault,
    FaultError,
    IndefiniteFault,
    InternalFault,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    Refused,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from doubloon.groups import Group, GroupRefused, GroupResult
from doubloon.history import BalanceSeries, Entry, EntryPage, Flows, FlowsWindow, HourPoint
from doubloon.ids import TransferIdMaker, as_uuid, new_transfer_id
from doubloon.operations import (
    AccountChange,
    AuditReport,
    ClusterStatus,
    ConservationReport,
    Currency,
    HealthCheck,
    InDoubt,
    MemberStatus,
    ProcessHealth,
    ShardBooks,
    ShardPairAudit,
    ShardStatus,
    TransactionInfo,
)
from doubloon.retry import RetryPolicy, Timing
from doubloon.stream import TransferStream
from doubloon.transfers import (
    RecordedTransfer,
    RecordName,
    Refusal,
    Transfer,
    TransferRefused,
    TransferResult,
)

__all__ = [
    "Account",
    "AccountChange",
    "AccountKind",
    "AccountRefused",
    "AccountSpec",
    "AccountStatus",
    "AdminClient",
    "AlreadyExists",
    "AsyncAdminClient",
    "AsyncClient",
    "AuditReport",
    "Balance",
    "BalanceSeries",
    "Balances",
    "Client",
    "ClientClosed",
    "ClusterStatus",
    "ConservationReport",
    "Currency",
    "DeadlineExceeded",
    "DefiniteFault",
    "DoubloonError",
    "Entry",
    "EntryDirection",
    "EntryOrder",
    "EntryPage",
    "FailedPrecondition",
    "Fault",
    "FaultCode",
    "FaultError",
    "Flows",
    "FlowsWindow",
    "Group",
    "GroupRefused",
    "GroupResult",
    "HealthCheck",
    "HourPoint",
    "InDoubt",
    "IndefiniteFault",
    "InternalFault",
    "InvalidArgument",
    "MemberStatus",
    "NotFound",
    "OpenAccountResult",
    "OpenAccountStatus",
    "OutOfRange",
    "PermissionDenied",
    "ProcessHealth",
    "RecordName",
    "RecordedTransfer",
    "Refusal",
    "RefusalReason",
    "Refused",
    "ResourceExhausted",
    "RetryClass",
    "RetryPolicy",
    "ShardBooks",
    "ShardPairAudit",
    "ShardStatus",
    "Timing",
    "Tls",
    "TransactionFate",
    "TransactionInfo",
    "TransactionState",
    "Transfer",
    "TransferIdMaker",
    "TransferRefused",
    "TransferResult",
    "TransferStatus",
    "TransferStream",
    "TransferType",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "as_uuid",
    "new_transfer_id",
]
