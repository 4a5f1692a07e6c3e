"""The asyncio client of operators. Routers serve it, beside the wallet service."""

from collections.abc import Sequence

from doubloon import wire
from doubloon.calls import Caller, Closing
from doubloon.channels import Routers, Tls
from doubloon.enums import AccountStatus
from doubloon.operations import (
    AccountChange,
    ClusterStatus,
    ConservationReport,
    Currency,
    ProcessHealth,
)
from doubloon.retry import TIMEOUT_S, Retrier, RetryPolicy, Timing
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
