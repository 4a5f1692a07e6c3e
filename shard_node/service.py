"""`ShardService`: messages in, messages out. Each handler checks, asks the engine, translates."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc

from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX
from cluster.rpc import SHARD_KEY, TOPOLOGY_VERSION_KEY
from doubloon.v1 import (
    admin_service_pb2,
    shard_service_pb2,
    types_pb2,
    wallet_service_pb2,
)
from shard_node import answers, errors
from shard_node.books import BALANCE_MAX_MINOR, HOUR_US
from shard_node.crossing import CrossingServicer
from shard_node.faults import as_fault, bad_request
from shard_node.queries import AccountHistory, StatementRequest, statement
from shard_node.unpacking import check_transfers

if TYPE_CHECKING:
    from collections.abc import Callable

    from shard_node.books import Account
    from shard_node.currencies import Currencies
    from shard_node.engine import Engine
    from shard_node.hours import Hour
    from shard_node.status import StatusReporter

DAY_US: Final = 24 * HOUR_US
SERIES_HOURS_DEFAULT: Final = 720
"""30 days."""
SERIES_HOURS_MAX: Final = 8_784
"""A leap year of hours: 0.3 MB of answer."""

SERIES_SLICE_HOURS: Final = 720
"""Hours read in one turn of the event loop: 0.5 ms when every one of them is a busy one."""

PAGE_DEFAULT: Final = 100
"""A screen or two."""
PAGE_MAX: Final = 1_000
"""Entries in a page of a statement: each costs one look-up, 10 ms for them all."""

TURN_SPECS_MAX: Final = 1_024
"""Accounts to open that are read, or answered, in one turn of the event loop: 3 ms."""

REASON_BYTES_MAX: Final = 256
"""An operator's sentence and a ticket; it is kept in the account's row."""
WINDOW_MAX_US: Final = 2**62

_KINDS: Final = {types_pb2.ACCOUNT_KIND_PLAYER, types_pb2.ACCOUNT_KIND_SYSTEM}
_STATUSES: Final = {
    types_pb2.ACCOUNT_STATUS_ACTIVE,
    types_pb2.ACCOUNT_STATUS_FROZEN,
    types_pb2.ACCOUNT_STATUS_CLOSED,
}

Context = Any  # grpc.aio.ServicerContext, generic in what handlers do not use


class ShardServicer(CrossingServicer):
    """The handlers of `ShardService`.

    Args:
        engine: the shard, running.
        currencies: codes and numbers.
        status: what GetShardStatus and GetProcessHealth tell.
        topology_version: tells the version that this node knows, now.
    """

    def __init__(
        self,
        engine: Engine,
        currencies: Currencies,
        status: StatusReporter,
        topology_version: Callable[[], int],
    ) -> None:
        super().__init__(engine, currencies)
        self._status = status
        self._topology_version = topology_version

    # --- commands -------------------------------------------------------------------------------

    async def ExecuteTransfers(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.ExecuteTransfersRequest, context: Context
    ) -> shard_service_pb2.ExecuteTransfersResponse:
        """Executes a packed batch."""
        self._check_target(context)
        bodies, metadata = request.bodies, request.metadata
        check_transfers(bodies, metadata)
        try:
            results = await self._engine.execute(bodies, metadata)
        except errors.ShardNodeError as error:
            raise as_fault(error) from error
        return shard_service_pb2.ExecuteTransfersResponse(results=results)

    async def OpenAccounts(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.OpenAccountsRequest, context: Context
    ) -> wallet_service_pb2.OpenAccountsResponse:
        """Opens accounts."""
        self._check_target(context)
        if not 1 <= len(request.accounts) <= BATCH_TRANSFERS_MAX:
            raise bad_request("accounts", f"must be 1 … {BATCH_TRANSFERS_MAX}")
        specs: list[tuple[int, int, int, int]] = []
        for index, spec in enumerate(request.accounts):
            specs.append(_account_spec(index, spec))
            if index % TURN_SPECS_MAX == 0:
                await asyncio.sleep(0)
        try:
            results = await self._engine.open_accounts(specs)
        except errors.ShardNodeError as error:
            raise as_fault(error) from error
        response = wallet_service_pb2.OpenAccountsResponse()
        for start in range(0, len(results), TURN_SPECS_MAX):
            some = results[start : start + TURN_SPECS_MAX]
            response.results.extend(answers.open_result(status, field) for status, field in some)
            await asyncio.sleep(0)
        return response

    async def ChangeAccountStatus(  # noqa: N802 - the contract's name
        self, request: admin_service_pb2.ChangeAccountStatusRequest, context: Context
    ) -> admin_service_pb2.ChangeAccountStatusResponse:
        """Freezes, unfreezes or closes an account."""
        self._check_target(context)
        if request.status not in _STATUSES:
            raise bad_request("status", "must be ACTIVE, FROZEN or CLOSED")
        if not 1 <= len(request.reason.encode()) <= REASON_BYTES_MAX:
            raise bad_request("reason", f"must be 1 … {REASON_BYTES_MAX} bytes")
        try:
            account, repeat = await self._engine.change_status(
                request.account_id, request.status, request.reason
            )
        except errors.ShardNodeError as error:
            raise as_fault(error) from error
        return admin_service_pb2.ChangeAccountStatusResponse(
            account=answers.account(account), repeat=repeat
        )

    # --- questions about one account ------------------------------------------------------------

    async def GetAccount(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.GetAccountRequest, context: Context
    ) -> wallet_service_pb2.GetAccountResponse:
        """Tells an account's attributes."""
        self._check_target(context)
        account = await self._settle(request.account_id)
        return wallet_service_pb2.GetAccountResponse(account=answers.account(account))

    async def GetBalances(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.GetBalancesRequest, context: Context
    ) -> wallet_service_pb2.GetBalancesResponse:
        """Tells an account's balances at an instant."""
        self._check_target(context)
        as_of_us = self._instant(request.as_of_us, "as_of_us")
        # Before anything else changes: what is reserved goes with what is posted now.
        reserved = {} if request.as_of_us else self._reserved(request.account_id)
        account = await self._settle(request.account_id)
        numbers = sorted(account.balances)
        codes = await self._currencies.codes(numbers)
        balances = []
        for history in self._histories(request.account_id, numbers):
            totals = history.totals_at(as_of_us)
            if totals.last_time_us:
                code = codes[history.currency]
                own = reserved.get(history.currency, 0)
                balances.append(answers.balance(code, totals, account.floor_minor, own))
        return wallet_service_pb2.GetBalancesResponse(as_of_us=as_of_us, balances=balances)

    async def GetFlows(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.GetFlowsRequest, context: Context
    ) -> wallet_service_pb2.GetFlowsResponse:
        """Query 1."""
        self._check_target(context)
        if not 0 <= request.window_us <= WINDOW_MAX_US:
            raise bad_request("window_us", f"must be 1 … {WINDOW_MAX_US}, or 0 for 24 hours")
        only = self._currencies.number(request.currency, "currency") if request.currency else 0
        to_us = self._instant(request.as_of_us, "as_of_us")
        from_us = to_us - (request.window_us or DAY_US)
        account = await self._settle(request.account_id)
        numbers = [only] if only else sorted(account.balances)
        codes = await self._currencies.codes(numbers)
        flows = []
        for history in self._histories(request.account_id, numbers):
            start, end = history.totals_at(max(0, from_us)), history.totals_at(to_us)
            if only or end.last_time_us:
                flows.append(answers.flows(codes[history.currency], start, end))
        return wallet_service_pb2.GetFlowsResponse(from_us=from_us, to_us=to_us, flows=flows)

    async def GetBalanceSeries(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.GetBalanceSeriesRequest, context: Context
    ) -> wallet_service_pb2.GetBalanceSeriesResponse:
        """Query 2."""
        self._check_target(context)
        number = self._currencies.number(request.currency, "currency")
        if request.from_us < 0:
            raise bad_request("from_us", "must not be negative")
        to_us = self._instant(request.to_us, "to_us")
        last_us = to_us - to_us % HOUR_US
        default_us = max(0, last_us - (SERIES_HOURS_DEFAULT - 1) * HOUR_US)
        first_us = request.from_us - request.from_us % HOUR_US if request.from_us else default_us
        if first_us > to_us:
            raise bad_request("from_us", "lies after to_us")
        if (last_us - first_us) // HOUR_US >= SERIES_HOURS_MAX:
            raise bad_request("from_us", f"more than {SERIES_HOURS_MAX} hours before to_us")
        await self._settle(request.account_id)
        opening, hours = await self._series(request.account_id, number, first_us, to_us)
        return answers.series(to_us, opening, hours)

    async def _series(
        self, account_id: int, currency: int, first_us: int, to_us: int
    ) -> tuple[int, list[Hour]]:
        """A series in slices, so that a long one of a busy account does not stall the loop.

        Nothing up to `to_us` changes in between, but by an import.
        """
        opening: int | None = None
        hours: list[Hour] = []
        while True:
            next_us = first_us + SERIES_SLICE_HOURS * HOUR_US
            (history,) = self._histories(account_id, [currency])
            before, some = history.series(first_us, min(to_us, next_us - 1))
            opening = before if opening is None else opening
            hours += some
            if next_us > to_us:
                return opening, hours
            first_us = next_us
            await asyncio.sleep(0)

    async def ListEntries(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.ListEntriesRequest, context: Context
    ) -> wallet_service_pb2.ListEntriesResponse:
        """Lists a page of an account's statement."""
        self._check_target(context)
        if request.page_size > PAGE_MAX:
            raise bad_request("page_size", f"must be 1 … {PAGE_MAX}, or 0 for {PAGE_DEFAULT}")
        if request.order not in wallet_service_pb2.EntryOrder.values():
            raise bad_request("order", "is not an order")
        if request.from_us < 0:
            raise bad_request("from_us", "must not be negative")
        only = self._currencies.number(request.currency, "currency") if request.currency else 0
        if request.to_us and request.to_us < request.from_us:
            raise bad_request("to_us", "lies before from_us")
        # What comes later is durable later, so no statement reaches past now.
        end_us = self._instant(0, "to_us") + 1
        to_us = min(request.to_us or end_us, end_us)
        account = await self._settle(request.account_id)
        numbers = [only] if only else sorted(account.balances)
        codes = await self._currencies.codes(numbers)
        wanted = StatementRequest(
            account.account_id,
            only,
            request.from_us,
            to_us,
            request.order == wallet_service_pb2.ENTRY_ORDER_OLDEST_FIRST,
            request.page_size or PAGE_DEFAULT,
            request.page_token,
        )
        try:
            legs, token = statement(self._histories(account.account_id, numbers), wanted)
        except errors.BadRequestError as error:
            raise as_fault(error) from error
        store, log_id = self._engine.store, self._engine.identity.shard_id
        return wallet_service_pb2.ListEntriesResponse(
            entries=[
                answers.entry(leg, codes, log_id, store.stamp_of(leg.sequence)) for leg in legs
            ],
            next_page_token=token,
        )

    async def GetTransfer(  # noqa: N802 - the contract's name
        self, request: wallet_service_pb2.GetTransferRequest, context: Context
    ) -> wallet_service_pb2.GetTransferResponse:
        """Tells a transfer's body and outcome."""
        self._check_target(context)
        if len(request.transfer_id) != 16:
            raise bad_request("transfer_id", f"must be 16 bytes, has {len(request.transfer_id)}")
        try:
            sequence, record, metadata = await self._engine.find_transfer(
                request.source_account_id, request.transfer_id
            )
        except errors.ShardNodeError as error:
            raise as_fault(error) from error
        codes = await self._currencies.codes([record.currency])
        return answers.transfer(
            record,
            metadata,
            codes,
            self._engine.identity.shard_id,
            sequence,
            posted=self._engine.is_posted(sequence),
        )

    # --- questions about the shard --------------------------------------------------------------

    async def CheckConservation(  # noqa: N802 - the contract's name
        self, request: admin_service_pb2.CheckConservationRequest, context: Context
    ) -> admin_service_pb2.CheckConservationResponse:
        """Adds up all balances of a fresh checkpoint."""
        del request
        self._check_target(context)
        books = await self._engine.add_up()
        codes = await self._currencies.codes(books)
        return answers.conservation(self._engine.identity.shard_id, books, codes)

    async def GetShardStatus(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.GetShardStatusRequest, context: Context
    ) -> shard_service_pb2.GetShardStatusResponse:
        """Tells how the shard is doing."""
        del request
        self._check_target(context)
        return shard_service_pb2.GetShardStatusResponse(status=self._status.shard())

    async def GetProcessHealth(  # noqa: N802 - the contract's name
        self, request: admin_service_pb2.GetProcessHealthRequest, context: Context
    ) -> admin_service_pb2.GetProcessHealthResponse:
        """Tells how the process is doing."""
        del request, context
        return self._status.process()

    # --- small parts ----------------------------------------------------------------------------

    def _check_target(self, context: Context) -> None:
        """A call for another shard, or by another topology, must not be answered."""
        target = dict(context.invocation_metadata() or ())
        own = self._topology_version()
        shard_id = str(self._engine.identity.shard_id)
        if target.get(SHARD_KEY) != shard_id or target.get(TOPOLOGY_VERSION_KEY) != str(own):
            # What comes from outside is cut short: the answer must fit into the metadata's bound.
            raise Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"this is shard {shard_id} of topology {own}; the call is for shard "
                f"{target.get(SHARD_KEY)!s:.20} of topology "
                f"{target.get(TOPOLOGY_VERSION_KEY)!s:.20}",
                topology_version=own,
            )

    def _instant(self, instant_us: int, field: str) -> int:
        if instant_us < 0:
            raise bad_request(field, "must not be negative")
        try:
            return self._engine.settle_instant(instant_us, field)
        except errors.BadRequestError as error:
            raise as_fault(error) from error

    async def _settle(self, account_id: int) -> Account:
        try:
            return await self._engine.settle_account(account_id)
        except errors.ShardNodeError as error:
            raise as_fault(error) from error

    def _reserved(self, account_id: int) -> dict[int, int]:
        try:
            balances = self._engine.account(account_id).balances
        except errors.ShardNodeError as error:
            raise as_fault(error) from error
        return {currency: each.reserved_outgoing for currency, each in balances.items()}

    def _histories(self, account_id: int, currencies: list[int]) -> list[AccountHistory]:
        """The account's histories, to be read before anything is awaited."""
        engine = self._engine
        account = engine.account(account_id)
        return [AccountHistory(engine.ledger, engine.store, account, each) for each in currencies]


def _account_spec(index: int, spec: wallet_service_pb2.AccountSpec) -> tuple[int, int, int, int]:
    place = f"accounts[{index}]"
    if not 1 <= spec.account_id <= 2**63 - 1:
        raise bad_request(f"{place}.account_id", "must be 1 … 2^63 − 1")
    if spec.kind not in _KINDS:
        raise bad_request(f"{place}.kind", "must be PLAYER or SYSTEM")
    if not -BALANCE_MAX_MINOR <= spec.floor_minor <= 0:
        raise bad_request(f"{place}.floor_minor", "must be −(2^63 − 1) … 0")
    if spec.floor_minor and spec.kind == types_pb2.ACCOUNT_KIND_PLAYER:
        raise bad_request(f"{place}.floor_minor", "must be 0 for a PLAYER")
    if spec.cap_minor < 0:
        raise bad_request(f"{place}.cap_minor", "must not be negative")
    return spec.account_id, spec.kind, spec.floor_minor, spec.cap_minor
