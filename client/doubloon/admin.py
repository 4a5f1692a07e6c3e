"""The asyncio client of operators. Routers serve it, beside the wallet service."""

from collections.abc import Sequence

from doubloon import wire
from doubloon.calls import Caller, Closing
from doubloon.channels import Routers, Tls
from doubloon.enums import AccountStatus, TransactionFate, member
from doubloon.operations import (
    AccountChange,
    AuditReport,
    ClusterStatus,
    ConservationReport,
    Currency,
    InDoubt,
    ProcessHealth,
)
from doubloon.retry import TIMEOUT_S, Retrier, RetryPolicy, Timing
from doubloon.times import Duration, Instant, duration_us, instant_us
from doubloon.v1 import admin_service_pb2 as pb


class AsyncAdminClient(Closing):
    """Registers currencies, changes accounts' status, and asks how the cluster is doing.

    Arguments and errors as for `AsyncClient`. Everything is idempotent and is asked again.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        tls: Tls | None = None,
        retry: RetryPolicy | None = None,
        timing: Timing | None = None,
    ) -> None:
        timing = timing or Timing()
        retrier = Retrier(retry or RetryPolicy(), timing)
        self._caller = Caller(Routers(addresses, tls, timing.random), retrier, timeout_s)

    async def close(self) -> None:
        """Take no more calls, wait for those in progress (each has its deadline), disconnect."""
        await self._caller.close()

    async def register_currency(self, code: str, *, scale: int = 0, name: str = "") -> Currency:
        """Register a currency; idempotent by code.

        Args:
            code: 1 … 16 characters: A-Z, 0-9 and _, a letter first.
            scale: how many decimals a major unit has, 0 … 18.
            name: for people, at most 64 bytes of UTF-8.

        Raises:
            AlreadyExists: the code has another scale or name.
        """
        request = wire.filled(pb.RegisterCurrencyRequest(), code=code, scale=scale, name=name)
        response = await self._caller.unary(
            lambda router: router.admin.RegisterCurrency, request, has_effect=True
        )
        return wire.currency(response.currency)

    async def currencies(self) -> tuple[Currency, ...]:
        """Return all registered currencies, in order of number."""
        request = pb.ListCurrenciesRequest()
        response = await self._caller.unary(lambda router: router.admin.ListCurrencies, request)
        return tuple(map(wire.currency, response.currencies))

    async def change_account_status(
        self, account_id: int, status: AccountStatus, reason: str
    ) -> AccountChange:
        """Freeze (FROZEN), unfreeze (ACTIVE) or close (CLOSED) an account; idempotent by status.

        `reason` is for the record, 1 … 256 bytes of UTF-8.

        Raises:
            FailedPrecondition: the account is closed, or is to be closed and holds money.
            NotFound: it was never opened.
        """
        request = wire.filled(
            pb.ChangeAccountStatusRequest(), account_id=account_id, status=status, reason=reason
        )
        response = await self._caller.unary(
            lambda router: router.admin.ChangeAccountStatus, request, has_effect=True
        )
        return AccountChange(wire.account(response.account), response.repeat)

    async def cluster_status(self) -> ClusterStatus:
        """Return who serves what, and how each shard node is doing."""
        request = pb.GetClusterStatusRequest()
        response = await self._caller.unary(lambda router: router.admin.GetClusterStatus, request)
        return wire.cluster_status(response)

    async def process_health(self) -> ProcessHealth:
        """Return how the answering router itself is doing."""
        request = pb.GetProcessHealthRequest()
        response = await self._caller.unary(lambda router: router.admin.GetProcessHealth, request)
        return wire.process_health(response)

    async def check_conservation(self) -> ConservationReport:
        """Add up every balance on every shard."""
        request = pb.CheckConservationRequest()
        response = await self._caller.unary(lambda router: router.admin.CheckConservation, request)
        return wire.conservation(response)

    async def audit(self, as_of: Instant | None = None) -> AuditReport:
        """Compare what every two shards owe each other at a logical time, while traffic runs.

        `as_of` is at most 60 seconds ago and counts in whole seconds; None = two seconds ago.
        """
        request = wire.filled(pb.AuditRequest(), as_of_us=instant_us(as_of, "as_of_us"))
        response = await self._caller.unary(lambda router: router.admin.Audit, request)
        return wire.audit(response)

    async def in_doubt(
        self, *, older_than: Duration | None = None, transaction_id: bytes = b""
    ) -> InDoubt:
        """Return the transactions between shards that are in doubt, or decided and not finished.

        Args:
            older_than: only those at least this old; None = all.
            transaction_id: only this one, 16 bytes; b"" = no such restriction.
        """
        request = wire.filled(
            pb.ListInDoubtRequest(),
            older_than_us=duration_us(older_than, "older_than_us"),
            transaction_id=transaction_id,
        )
        response = await self._caller.unary(lambda router: router.admin.ListInDoubt, request)
        return InDoubt(
            tuple(map(wire.transaction, response.transactions)),
            tuple(response.unreachable_shard_ids),
        )

    async def resolve_transaction(self, transaction_id: bytes) -> TransactionFate:
        """Resolve a transaction now: finish it if it was decided, abort it past its deadline.

        Raises:
            FailedPrecondition: it is undecided, and its deadline is not over.
            NotFound: no shard has it in doubt (any more).
        """
        request = wire.filled(pb.ResolveTransactionRequest(), transaction_id=transaction_id)
        response = await self._caller.unary(
            lambda router: router.admin.ResolveTransaction, request, has_effect=True
        )
        return member(TransactionFate, response.fate)
