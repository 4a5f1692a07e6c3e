"""The asyncio client of the wallet service."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from dataclasses import replace
from typing import Final

from doubloon import wire
from doubloon.accounts import Account, AccountSpec, Balance, Balances, OpenAccountResult
from doubloon.batches import Batches
from doubloon.calls import Caller, Closing
from doubloon.channels import Routers, Tls
from doubloon.enums import AccountKind, EntryOrder, RetryClass, TransferType
from doubloon.faults import FaultError, fault_error, invalid_argument
from doubloon.gather import BATCH_MAX, CALLS_MAX, Gatherer, GatherLimits
from doubloon.groups import Group, GroupResult
from doubloon.history import BalanceSeries, Entry, EntryPage, FlowsWindow
from doubloon.ids import new_transfer_id
from doubloon.retry import TIMEOUT_S, Retrier, RetryPolicy, Timing
from doubloon.stream import WINDOW_DEFAULT, TransferStream
from doubloon.times import Duration, Instant, duration_us, instant_us
from doubloon.transfers import RecordedTransfer, Transfer, TransferResult
from doubloon.v1 import wallet_service_pb2 as pb
from doubloon.wire_groups import (
    GROUPS_MAX,
    add_groups,
    faulted_group,
    group_results_from_messages,
)
from doubloon.wire_transfers import (
    BATCH_ITEMS_MAX,
    add_specs,
    add_transfers,
    faulted_account,
    faulted_transfer,
    open_results_from_messages,
    recorded_from_message,
    results_from_messages,
)

ENTRIES_PER_PAGE: Final = 500
"""Entries asked for at once: few round trips, and a page is read in about 2 ms."""

# These leave no doubt about earlier attempts with the same id; any other refusal left no record.
_SPEAKS_FOR_KEY: Final = frozenset({RetryClass.NEW_KEY, RetryClass.NEVER})


class AsyncClient(Closing):
    """Calls a Doubloon cluster's routers from one event loop.

    Every method raises `FaultError` (see `doubloon.faults`) when there is no answer, after asking
    again with the same ids until `timeout_s`, and `ClientClosed` after `close`. Account ids are
    1 … 2^63 - 1, amounts are minor units; `doubloon.times` has the one rule for times.

    Args:
        addresses: one router's host:port, or several to fail over between.
        timeout_s: how long any one call may take, all attempts together.
        linger_s, batch_max, calls_max: how single transfers are gathered; see `GatherLimits`.
        tls: how to talk TLS; None = plain text.
        retry: how often to ask again.
        timing: clock, sleep and randomness; for tests.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        linger_s: float = 0.0,
        batch_max: int = BATCH_MAX,
        calls_max: int = CALLS_MAX,
        tls: Tls | None = None,
        retry: RetryPolicy | None = None,
        timing: Timing | None = None,
    ) -> None:
        if not 1 <= batch_max <= BATCH_ITEMS_MAX:
            raise invalid_argument("batch_max", f"must be 1 … {BATCH_ITEMS_MAX}")
        timing = timing or Timing()
        self._policy = retry or RetryPolicy()
        retrier = Retrier(self._policy, timing)
        self._caller = Caller(Routers(addresses, tls, timing.random), retrier, timeout_s)
        self._transfers: Batches[Transfer, TransferResult] = Batches(
            retrier, self._ask_transfers, faulted_transfer, _speaks_for_key
        )
        self._specs: Batches[AccountSpec, OpenAccountResult] = Batches(
            # Opened or refused, an account's attributes are on record either way.
            retrier, self._ask_specs, faulted_account, lambda _: True
        )  # fmt: skip
        self._groups: Batches[Group, GroupResult] = Batches(
            retrier, self._ask_groups, faulted_group, _speaks_for_key
        )
        limits = GatherLimits(batch_max=batch_max, linger_s=linger_s, calls_max=calls_max)
        self._gatherer = Gatherer(self._transfers.settle, timing.monotonic_s, timeout_s, limits)

    async def close(self) -> None:
        """Take no more calls, wait for those in progress (each has its deadline), disconnect."""
        await self._gatherer.close()
        await self._caller.close()

    async def open_account(
        self,
        account_id: int,
        kind: AccountKind = AccountKind.PLAYER,
        *,
        floor_minor: int = 0,
        cap_minor: int = 0,
    ) -> OpenAccountResult:
        """Open one account: opened (perhaps earlier, with the same attributes) or refused."""
        spec = AccountSpec(account_id, kind, floor_minor, cap_minor)
        (result,) = await self.open_accounts([spec])
        if result.fault is not None:
            raise fault_error(result.fault)
        return result

    async def open_accounts(self, specs: Sequence[AccountSpec]) -> list[OpenAccountResult]:
        """Open 0 … 8,192 accounts; idempotent by account id.

        Returns:
            One result each, in order; what went wrong with one item is a fault in its result.

        Raises:
            DefiniteFault: nothing of it happened.
        """
        _check_length("accounts", specs)
        with self._caller.in_progress():
            return await self._specs.settle(specs, self._deadline_s())

    async def account(self, account_id: int) -> Account:
        """Return an account's attributes and status.

        Raises:
            NotFound: it was never opened.
        """
        request = wire.filled(pb.GetAccountRequest(), account_id=account_id)
        response = await self._caller.unary(lambda router: router.wallet.GetAccount, request)
        return wire.account(response.account)

    async def balances(self, account_id: int, *, as_of: Instant | None = None) -> Balances:
        """Return an account's balances in every currency it ever held, now or at a past instant."""
        request = wire.filled(
            pb.GetBalancesRequest(),
            account_id=account_id,
            as_of_us=instant_us(as_of, "as_of_us"),
        )
        response = await self._caller.unary(lambda router: router.wallet.GetBalances, request)
        return wire.balances(response)

    async def balance(
        self, account_id: int, currency: str, *, as_of: Instant | None = None
    ) -> Balance:
        """Return an account's balance in one currency, also when it never held any of it."""
        held = (await self.balances(account_id, as_of=as_of)).of(currency)
        if held is not None:
            return held
        floor_minor = (await self.account(account_id)).floor_minor
        return Balance(currency, 0, 0, -floor_minor, 0)

    async def transfer(
        self,
        source: int,
        destination: int,
        currency: str,
        amount_minor: int,
        *,
        type: TransferType = TransferType.TRANSFER,  # noqa: A002 - the contract's word
        reference: int = 0,
        metadata: bytes = b"",
        transfer_id: bytes | None = None,
        import_time: Instant | None = None,
    ) -> TransferResult:
        """Make one transfer, gathered with those that other tasks make meanwhile.

        Args:
            source: the account that pays.
            destination: the account that is paid.
            currency: a registered currency's code.
            amount_minor: minor units.
            type: what it is for.
            reference: the application's own number, 0 … 2^64 - 1.
            metadata: the application's own bytes, at most 256.
            transfer_id: 16 bytes; None = a new one. To ask again later, pass the id of the
                result, or of the error.
            import_time: for operators' imports: when it happened.

        Returns:
            Completed, or refused. Look, or call `raise_for_refusal()`.

        Raises:
            IndefiniteFault: it may or may not have happened: ask again with `error.transfer_id`.
            DefiniteFault: it did not happen.
        """
        return await self._gatherer.submit(
            Transfer(
                source,
                destination,
                currency,
                amount_minor,
                type,
                reference,
                metadata,
                instant_us(import_time, "import_time_us"),
                new_transfer_id() if transfer_id is None else transfer_id,
            )
        )

    async def transfer_batch(self, transfers: Sequence[Transfer]) -> list[TransferResult]:
        """Make 0 … 8,192 independent transfers, in one call and at once (not gathered).

        Returns:
            One result each, in order. What went wrong with one item, retries included, is a fault
            in its result: `result.fault.indefinite` says whether to ask again.

        Raises:
            DefiniteFault: nothing of it happened.
        """
        _check_length("transfers", transfers)
        with self._caller.in_progress():
            return await self._transfers.settle(transfers, self._deadline_s())

    async def transfer_group(
        self, transfers: Sequence[Transfer], *, group_id: bytes | None = None
    ) -> GroupResult:
        """Make 1 … 16 transfers that all happen or none do; see `Group`.

        Args:
            transfers: in the order in which their legs apply to each account.
            group_id: 16 bytes; None = a new one. To ask again later, pass the id of the result, or
                the error's `transfer_id`.

        Returns:
            Completed, or refused. Look, or call `raise_for_refusal()`.

        Raises:
            IndefiniteFault: it may or may not have happened: ask again with `error.transfer_id`.
            DefiniteFault: none of it happened.
        """
        group = Group(transfers) if group_id is None else Group(transfers, group_id)
        try:
            (result,) = await self.transfer_group_batch([group])
        except FaultError as error:
            raise type(error)(error.fault, group.group_id) from error
        if result.fault is not None:
            raise fault_error(replace(result.fault, index=-1), group.group_id)
        return result

    async def transfer_group_batch(self, groups: Sequence[Group]) -> list[GroupResult]:
        """Make 0 … 1,024 independent groups, of 8,192 transfers in all, in one call.

        Returns:
            One result each, in order. What went wrong with one group, retries included, is a fault
            in its result: `result.fault.indefinite` says whether to ask again.

        Raises:
            DefiniteFault: nothing of it happened.
        """
        _check_length("groups", groups, GROUPS_MAX)
        transfers = sum(len(group.transfers) for group in groups)
        if transfers > BATCH_ITEMS_MAX:
            message = f"{transfers} transfers; a call has at most {BATCH_ITEMS_MAX}"
            raise invalid_argument("groups", message)
        with self._caller.in_progress():
            return await self._groups.settle(groups, self._deadline_s())

    async def stream_transfers(
        self, batches: AsyncIterable[Sequence[Transfer]], *, window: int = WINDOW_DEFAULT
    ) -> AsyncGenerator[list[TransferResult], None]:
        """Make batches of 1 … 8,192 transfers, `window` of them in flight, until `batches` ends.

        Batches in flight together are unordered among each other, as transfers are.

        Yields:
            The results of each batch, in order, as `transfer_batch` returns them.

        Raises:
            InvalidArgument: a batch is empty or too long; earlier ones are answered first.
        """
        stream = self.open_stream(window)
        feeding = asyncio.create_task(stream.feed(batches))
        try:
            while (results := await stream.get()) is not None:
                yield results
            await feeding  # raises what ended `batches`
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
            await stream.close()

    def open_stream(self, window: int = WINDOW_DEFAULT) -> TransferStream:
        """Open a stream for who prefers putting and getting to iterating; close it afterwards."""
        return TransferStream(
            self._caller, self._transfers.settle, window, self._policy.attempt_timeout_s
        )

    async def get_transfer(self, source: int, transfer_id: bytes) -> RecordedTransfer:
        """Return a transfer and its outcome, by its name.

        Raises:
            NotFound: there is none on record.
        """
        request = wire.filled(
            pb.GetTransferRequest(), source_account_id=source, transfer_id=transfer_id
        )
        response = await self._caller.unary(lambda router: router.wallet.GetTransfer, request)
        return recorded_from_message(response)

    async def entries_page(
        self,
        account_id: int,
        *,
        currency: str = "",
        from_time: Instant | None = None,
        to_time: Instant | None = None,
        order: EntryOrder = EntryOrder.NEWEST_FIRST,
        page_size: int = ENTRIES_PER_PAGE,
        page_token: bytes = b"",
    ) -> EntryPage:
        """Return one page of an account's statement, for who shows pages; see `entries`.

        `page_token` is the previous page's `next_page_token`, all else being as it was.
        """
        request = wire.filled(
            pb.ListEntriesRequest(),
            account_id=account_id,
            currency=currency,
            from_us=instant_us(from_time, "from_us"),
            to_us=instant_us(to_time, "to_us"),
            order=order,
            page_size=page_size,
            page_token=page_token,
        )
        response = await self._caller.unary(lambda router: router.wallet.ListEntries, request)
        return wire.entry_page(response)

    async def entries(
        self,
        account_id: int,
        *,
        currency: str = "",
        from_time: Instant | None = None,
        to_time: Instant | None = None,
        order: EntryOrder = EntryOrder.NEWEST_FIRST,
        page_size: int = ENTRIES_PER_PAGE,
    ) -> AsyncGenerator[Entry, None]:
        """Iterate over an account's statement, page by page as it is read.

        Args:
            account_id: whose.
            currency: only this one; "" = all.
            from_time: only entries at this time or later; None = from the beginning.
            to_time: only entries before this time; None = up to now.
            order: newest or oldest first.
            page_size: entries asked for at once, 1 … 1,000.
        """
        page_token = b""
        while True:
            page = await self.entries_page(
                account_id,
                currency=currency,
                from_time=from_time,
                to_time=to_time,
                order=order,
                page_size=page_size,
                page_token=page_token,
            )
            for entry in page.entries:
                yield entry
            page_token = page.next_page_token
            if not page_token:
                return

    async def flows(
        self,
        account_id: int,
        *,
        currency: str = "",
        as_of: Instant | None = None,
        window: Duration | None = None,
    ) -> FlowsWindow:
        """Return what came in and went out in (as_of - window, as_of], exact at any instant.

        Args:
            account_id: whose.
            currency: only this one; "" = every currency it ever held.
            as_of: the end of the window; None = now.
            window: its length; None = 24 hours.
        """
        request = wire.filled(
            pb.GetFlowsRequest(),
            account_id=account_id,
            currency=currency,
            as_of_us=instant_us(as_of, "as_of_us"),
            window_us=duration_us(window, "window_us"),
        )
        response = await self._caller.unary(lambda router: router.wallet.GetFlows, request)
        return wire.flows(response)

    async def balance_series(
        self,
        account_id: int,
        currency: str,
        *,
        from_time: Instant | None = None,
        to_time: Instant | None = None,
    ) -> BalanceSeries:
        """Return the balance at the end of each UTC hour, with the hour's incoming and outgoing.

        Args:
            account_id: whose.
            currency: in which currency.
            from_time: lies in the first hour; None = 30 days back. At most 8,784 hours.
            to_time: lies in the last hour, which is counted up to and including it; None = now.
        """
        request = wire.filled(
            pb.GetBalanceSeriesRequest(),
            account_id=account_id,
            currency=currency,
            from_us=instant_us(from_time, "from_us"),
            to_us=instant_us(to_time, "to_us"),
        )
        response = await self._caller.unary(lambda router: router.wallet.GetBalanceSeries, request)
        return wire.balance_series(response)

    def _deadline_s(self) -> float:
        return self._caller.retrier.deadline_s(self._caller.timeout_s)

    async def _ask_transfers(
        self, transfers: Sequence[Transfer], timeout_s: float
    ) -> list[TransferResult]:
        request = pb.TransferBatchRequest()
        left_out = add_transfers(request.transfers, transfers)
        if not request.transfers:
            return results_from_messages(transfers, [], left_out)
        response = await self._caller.attempt(
            lambda router: router.wallet.TransferBatch, request, timeout_s
        )
        return results_from_messages(transfers, response.results, left_out)

    async def _ask_groups(self, groups: Sequence[Group], timeout_s: float) -> list[GroupResult]:
        request = pb.TransferGroupBatchRequest()
        left_out = add_groups(request.groups, groups)
        if not request.groups:
            return group_results_from_messages(groups, [], left_out)
        response = await self._caller.attempt(
            lambda router: router.wallet.TransferGroupBatch, request, timeout_s
        )
        return group_results_from_messages(groups, response.results, left_out)

    async def _ask_specs(
        self, specs: Sequence[AccountSpec], timeout_s: float
    ) -> list[OpenAccountResult]:
        request = pb.OpenAccountsRequest()
        left_out = add_specs(request.accounts, specs)
        if not request.accounts:
            return open_results_from_messages(specs, [], left_out)
        response = await self._caller.attempt(
            lambda router: router.wallet.OpenAccounts, request, timeout_s
        )
        return open_results_from_messages(specs, response.results, left_out)


def _speaks_for_key(result: TransferResult | GroupResult) -> bool:
    return result.refusal is None or result.refusal.retry_class in _SPEAKS_FOR_KEY


def _check_length(field: str, items: Sequence[object], most: int = BATCH_ITEMS_MAX) -> None:
    if len(items) > most:
        raise invalid_argument(field, f"{len(items)} items; a call has at most {most}")
