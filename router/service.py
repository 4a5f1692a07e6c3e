"""`WalletService`: messages in, messages out; what is behind them is decided elsewhere.

Every call gets a deadline: the client's, less a margin in which the answer travels, or a default
when the client set none, and never more than a maximum.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import grpc

from cluster import shard_client
from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX, GROUPS_MAX, TRANSFER_ID_BYTES
from cluster.shard_client import Method, Q, R
from cluster.shard_pool import ShardPool
from doubloon.v1 import wallet_service_pb2 as wallet
from doubloon.v1 import wallet_service_pb2_grpc
from router.accounts import open_accounts
from router.results import Outcome, write_group_results, write_results
from router.routing import is_account_id
from router.scatter import item_fault
from router.transfers import (
    TURN_GROUPS_MAX,
    TURN_TRANSFERS_MAX,
    Admission,
    TransferExecutor,
)

# Long enough to outlast a shard node's restart, short enough to tell a person that it is away.
DEADLINE_DEFAULT_S: Final = 10.0
# What a call may hold on to at most, whatever its client is willing to wait.
DEADLINE_MAX_S: Final = 60.0
# The answer needs some time to travel: a twentieth of a second, or of a short deadline a tenth.
ANSWER_MARGIN_S: Final = 0.05
ANSWER_MARGIN_SHARE: Final = 0.1
# Batches of one stream in progress: enough to keep a shard busy while results travel back.
STREAM_WINDOW: Final = 4

OutcomeT = TypeVar("OutcomeT")
ResultT = TypeVar("ResultT")

_Begun = asyncio.Queue[asyncio.Task[wallet.StreamTransfersResponse] | None]
"""A stream's batches under way, in order; None = there will be no more."""


class Context(Protocol):
    """What the handlers need to know of a call."""

    def time_remaining(self) -> float | None:
        """Return the seconds until the client's deadline; None = it set none."""
        ...


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long calls may take.

    Attributes:
        default_s: for a client that set no deadline.
        max_s: for all.
    """

    default_s: float = DEADLINE_DEFAULT_S
    max_s: float = DEADLINE_MAX_S

    def of(self, context: Context) -> float:
        """Return a call's deadline in the running loop's time."""
        wanted_s = context.time_remaining()
        if wanted_s is None:
            allowed_s = self.default_s
        else:
            allowed_s = wanted_s - min(ANSWER_MARGIN_S, wanted_s * ANSWER_MARGIN_SHARE)
        return asyncio.get_running_loop().time() + min(allowed_s, self.max_s)

    def of_next_batch(self, context: Context) -> float:
        """Return the deadline of a stream's next batch, which has the default for itself."""
        by_default_s = asyncio.get_running_loop().time() + min(self.default_s, self.max_s)
        return min(by_default_s, self.of(context))


class WalletServicer(wallet_service_pb2_grpc.WalletServiceServicer):
    """The handlers of `WalletService`.

    Args:
        pool: forwards questions about one account.
        executor: executes transfers.
        admission: bounds what is in progress.
        deadlines: of every call.
        stream_window: batches of one stream in progress at most.
    """

    def __init__(
        self,
        pool: ShardPool,
        executor: TransferExecutor,
        admission: Admission,
        deadlines: Deadlines,
        stream_window: int = STREAM_WINDOW,
    ) -> None:
        self._pool = pool
        self._executor = executor
        self._admission = admission
        self._deadlines = deadlines
        self._stream_window = stream_window
        self._stream_readers: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def Transfer(  # noqa: N802 - the contract's name
        self, request: wallet.TransferRequest, context: Context
    ) -> wallet.TransferResponse:
        """Execute one transfer, together with others that are under way."""
        with self._admission.admit(1, request.ByteSize()):
            outcomes = await self._executor.execute(
                (request.transfer,), "transfer", self._deadlines.of(context)
            )
        response = wallet.TransferResponse()
        write_results(outcomes, lambda: response.result)
        return response

    async def TransferBatch(  # noqa: N802 - the contract's name
        self, request: wallet.TransferBatchRequest, context: Context
    ) -> wallet.TransferBatchResponse:
        """Execute a batch."""
        _check_length(request.transfers, "transfers")
        with self._admission.admit(len(request.transfers), request.ByteSize()):
            outcomes = await self._executor.execute(
                request.transfers, "transfers", self._deadlines.of(context)
            )
        response = wallet.TransferBatchResponse()
        await _write(outcomes, write_results, response.results.add, TURN_TRANSFERS_MAX)
        return response

    async def TransferGroup(  # noqa: N802 - the contract's name
        self, request: wallet.TransferGroupRequest, context: Context
    ) -> wallet.TransferGroupResponse:
        """Execute one group, together with others that are under way."""
        with self._admission.admit(len(request.group.transfers), request.ByteSize()):
            outcomes = await self._executor.execute_groups(
                (request.group,), "group", self._deadlines.of(context)
            )
        response = wallet.TransferGroupResponse()
        write_group_results(outcomes, lambda: response.result)
        return response

    async def TransferGroupBatch(  # noqa: N802 - the contract's name
        self, request: wallet.TransferGroupBatchRequest, context: Context
    ) -> wallet.TransferGroupBatchResponse:
        """Execute a batch of groups."""
        _check_length(request.groups, "groups", GROUPS_MAX)
        transfers = sum(len(group.transfers) for group in request.groups)
        if transfers > BATCH_TRANSFERS_MAX:
            message = f"must have at most {BATCH_TRANSFERS_MAX} transfers in all, have {transfers}"
            raise malformed("groups", message)
        with self._admission.admit(transfers, request.ByteSize()):
            outcomes = await self._executor.execute_groups(
                request.groups, "groups", self._deadlines.of(context)
            )
        response = wallet.TransferGroupBatchResponse()
        await _write(outcomes, write_group_results, response.results.add, TURN_GROUPS_MAX)
        return response

    async def StreamTransfers(  # noqa: N802 - the contract's name
        self,
        request_iterator: AsyncIterator[wallet.StreamTransfersRequest],
        context: Context,
    ) -> AsyncIterator[wallet.StreamTransfersResponse]:
        """Execute batches as they come, a few at a time; answer in their order."""
        if self._stopping:
            raise _stopped()
        window = asyncio.Semaphore(self._stream_window)
        begun: _Begun = asyncio.Queue()
        reader = asyncio.get_running_loop().create_task(
            self._read_stream(request_iterator, context, window, begun)
        )
        self._stream_readers.add(reader)
        reader.add_done_callback(self._stream_readers.discard)
        try:
            while (batch := await begun.get()) is not None:
                yield await batch
                window.release()  # the answer has been written: as fast as the client reads
            await asyncio.wait([reader])
            if reader.cancelled():
                raise _stopped()
            reader.result()  # for the fault that ended it, if one did
        finally:
            await _cancel(reader, begun)

    def stop_streams(self) -> None:
        """Read no more from any stream: each ends once what it has begun is answered."""
        self._stopping = True
        for reader in self._stream_readers:
            reader.cancel()

    async def _read_stream(
        self,
        requests: AsyncIterator[wallet.StreamTransfersRequest],
        context: Context,
        window: asyncio.Semaphore,
        begun: _Begun,
    ) -> None:
        """Begin batches while the window has room. None in `begun` says that no more will come."""
        in_order = asyncio.Lock()
        try:
            while True:
                await window.acquire()
                request = await anext(requests, None)
                if request is None:
                    return
                _check_length(request.transfers, "transfers")
                deadline_s = self._deadlines.of_next_batch(context)
                batch = self._stream_batch(request, deadline_s, in_order)
                begun.put_nowait(asyncio.get_running_loop().create_task(batch))
        finally:
            begun.put_nowait(None)

    async def _stream_batch(
        self, request: wallet.StreamTransfersRequest, deadline_s: float, in_order: asyncio.Lock
    ) -> wallet.StreamTransfersResponse:
        """Execute one batch of a stream, whose faults never end the stream."""
        outcomes: Sequence[Outcome]
        count = len(request.transfers)
        try:
            with self._admission.admit(count, request.ByteSize()):
                outcomes = await self._executor.execute(
                    request.transfers, "transfers", deadline_s, in_order
                )
        except Fault as fault:
            outcomes = [item_fault(fault, index) for index in range(count)]
        response = wallet.StreamTransfersResponse()
        await _write(outcomes, write_results, response.results.add, TURN_TRANSFERS_MAX)
        return response

    async def OpenAccounts(  # noqa: N802 - the contract's name
        self, request: wallet.OpenAccountsRequest, context: Context
    ) -> wallet.OpenAccountsResponse:
        """Open a batch of accounts."""
        _check_length(request.accounts, "accounts")
        with self._admission.admit(len(request.accounts), request.ByteSize()):
            return await open_accounts(self._pool, request.accounts, self._deadlines.of(context))

    async def GetAccount(  # noqa: N802 - the contract's name
        self, request: wallet.GetAccountRequest, context: Context
    ) -> wallet.GetAccountResponse:
        """Forward to the account's shard."""
        return await self._ask(request.account_id, shard_client.GET_ACCOUNT, request, context)

    async def GetBalances(  # noqa: N802 - the contract's name
        self, request: wallet.GetBalancesRequest, context: Context
    ) -> wallet.GetBalancesResponse:
        """Forward to the account's shard."""
        return await self._ask(request.account_id, shard_client.GET_BALANCES, request, context)

    async def GetTransfer(  # noqa: N802 - the contract's name
        self, request: wallet.GetTransferRequest, context: Context
    ) -> wallet.GetTransferResponse:
        """Forward to the source's shard, which holds the key."""
        if len(request.transfer_id) != TRANSFER_ID_BYTES:
            raise malformed("transfer_id", f"must be 16 bytes, is {len(request.transfer_id)}")
        account_id = request.source_account_id
        check_account_id(account_id, "source_account_id")
        return await self._ask(account_id, shard_client.GET_TRANSFER, request, context)

    async def ListEntries(  # noqa: N802 - the contract's name
        self, request: wallet.ListEntriesRequest, context: Context
    ) -> wallet.ListEntriesResponse:
        """Forward to the account's shard."""
        return await self._ask(request.account_id, shard_client.LIST_ENTRIES, request, context)

    async def GetFlows(  # noqa: N802 - the contract's name
        self, request: wallet.GetFlowsRequest, context: Context
    ) -> wallet.GetFlowsResponse:
        """Forward to the account's shard, whose clock is the one that says what now is."""
        return await self._ask(request.account_id, shard_client.GET_FLOWS, request, context)

    async def GetBalanceSeries(  # noqa: N802 - the contract's name
        self, request: wallet.GetBalanceSeriesRequest, context: Context
    ) -> wallet.GetBalanceSeriesResponse:
        """Forward to the account's shard."""
        return await self._ask(
            request.account_id, shard_client.GET_BALANCE_SERIES, request, context
        )

    async def _ask(self, account_id: int, method: Method[Q, R], request: Q, context: Context) -> R:
        check_account_id(account_id, "account_id")
        return await self._pool.call_for_account(
            account_id, method, request, self._deadlines.of(context)
        )


def malformed(path: str, message: str) -> Fault:
    """Return the fault for a malformed field of a whole call."""
    return Fault(grpc.StatusCode.INVALID_ARGUMENT, message, path)


def check_account_id(account_id: int, path: str) -> None:
    """Raise a Fault unless the number can be an account's id."""
    if not is_account_id(account_id):
        raise malformed(path, "must be 1 … 2^63 - 1")


def _check_length(batch: Sized, path: str, most: int = BATCH_TRANSFERS_MAX) -> None:
    if not 1 <= len(batch) <= most:
        raise malformed(path, f"must be 1 … {most} of them, are {len(batch)}")


def _stopped() -> Fault:
    return Fault(
        grpc.StatusCode.UNAVAILABLE,
        "this router is stopping; batches that have no answer were not begun",
        indefinite=False,
    )


async def _write(
    outcomes: Sequence[OutcomeT],
    write: Callable[[Sequence[OutcomeT], Callable[[], ResultT]], None],
    add: Callable[[], ResultT],
    turn_max: int,
) -> None:
    """Write outcomes as messages, so many in one turn of the event loop."""
    for start in range(0, len(outcomes), turn_max):
        if start:
            await asyncio.sleep(0)
        write(outcomes[start : start + turn_max], add)


async def _cancel(reader: asyncio.Task[None], begun: _Begun) -> None:
    """End a stream's reader and whatever batches nobody will hear of any more."""
    tasks: list[asyncio.Task[object]] = [reader]
    while not begun.empty():
        batch = begun.get_nowait()
        if batch is not None:
            tasks.append(batch)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
