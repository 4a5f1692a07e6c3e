"""A stream of batches: many in flight, results in order, every batch settled whatever breaks.

Batches go out on one bidirectional call, at most `window` unanswered. The stream is the fast way
and not the only one: a batch that it did not answer, or answered with faults that may pass, is
settled by ordinary calls with the same ids, and the next batch opens a new stream.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import grpc
from msgspec import structs

from doubloon.calls import ROUTER_FAILED, Caller
from doubloon.channels import Router
from doubloon.enums import FaultCode
from doubloon.faults import ClientClosed, Fault, FaultError, error_from_rpc, invalid_argument
from doubloon.retry import can_be_asked_again
from doubloon.transfers import Transfer, TransferResult
from doubloon.v1.wallet_service_pb2 import StreamTransfersRequest, StreamTransfersResponse
from doubloon.wire_transfers import (
    BATCH_ITEMS_MAX,
    add_transfers,
    contract_broken,
    faulted_transfer,
    results_from_messages,
)

WINDOW_DEFAULT: Final = 4
"""Batches unanswered. Two keep a router busy while the third is built and the fourth is read."""


Settle = Callable[
    [Sequence[Transfer], float, Mapping[int, Fault] | None], Awaitable[list[TransferResult]]
]


class _Link:
    """One gRPC stream to one router, good until its first failure."""

    def __init__(self, router: Router) -> None:
        self.router = router
        self.call: grpc.aio.StreamStreamCall[StreamTransfersRequest, StreamTransfersResponse]
        self.call = router.wallet.StreamTransfers()
        self.broken: Fault | None = None


@dataclass(frozen=True, slots=True)
class _Sent:
    transfers: Sequence[Transfer]
    link: _Link | None
    """The stream that its answer comes on; None when there was nothing fit to be sent."""
    left_out: dict[int, Fault]


class TransferStream:
    """Batches in by `put`, results out by `get`, in order. One task puts and one gets.

    Args:
        caller: whose router to ask.
        settle: settles transfers by ordinary calls; see `Batches.settle`.
        window: batches that may be unanswered, ≥ 1; `put` waits for room.
        attempt_timeout_s: how long one write or one answer may take.
    """

    def __init__(
        self, caller: Caller, settle: Settle, window: int, attempt_timeout_s: float
    ) -> None:
        if window < 1:
            raise invalid_argument("window", "at least one batch has to be in flight")
        self._caller = caller
        self._settle = settle
        self._attempt_timeout_s = attempt_timeout_s
        self._window = window
        self._room = asyncio.Semaphore(window)
        self._sent: asyncio.Queue[_Sent | None] = asyncio.Queue()  # bounded by the semaphore
        self._link: _Link | None = None

    @property
    def unanswered(self) -> int:
        """Batches that were put and not yet got."""
        return self._sent.qsize()

    @property
    def full(self) -> bool:
        """Whether the next `put` would wait for a `get`."""
        return self._room.locked()

    async def feed(self, batches: AsyncIterable[Sequence[Transfer]]) -> None:
        """Put all batches, then end the stream, so that `get` returns None after the last one."""
        try:
            async for batch in batches:
                await self.put(batch)
        finally:
            self._sent.put_nowait(None)

    async def put(self, transfers: Sequence[Transfer]) -> None:
        """Send a batch.

        Raises:
            InvalidArgument: it is empty, or longer than a batch may be.
            ClientClosed: the client is closed.
        """
        if not 1 <= len(transfers) <= BATCH_ITEMS_MAX:
            raise invalid_argument("transfers", f"a batch has 1 … {BATCH_ITEMS_MAX} transfers")
        await self._room.acquire()
        request = StreamTransfersRequest()
        left_out = add_transfers(request.transfers, transfers)
        with self._caller.in_progress():
            link = await self._write(request) if request.transfers else None
        self._sent.put_nowait(_Sent(transfers, link, left_out))

    async def get(self) -> list[TransferResult] | None:
        """Return the results of the next batch, in its order; None when the stream has ended.

        What could not be settled is a fault in its result.

        Raises:
            ClientClosed: the client is closed; the batch stays in doubt.
        """
        sent = await self._sent.get()
        if sent is None:
            return None
        try:
            with self._caller.in_progress():
                results = await self._read(sent)
                return await self._settle_open(sent.transfers, results)
        finally:
            self._room.release()

    async def get_next(self) -> list[TransferResult]:
        """Return the results of the next batch when there is one: `unanswered` is not 0."""
        results = await self.get()
        assert results is not None, "only `feed` ends a stream"
        return results

    async def close(self) -> None:
        """End the stream; what is unanswered stays in doubt."""
        link = self._link
        if link is None:
            return
        if not self.unanswered and link.broken is None:
            # Nothing is owed, so let the router see an end and no failure.
            with (
                suppress(
                    grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError, ClientClosed
                ),
                self._caller.in_progress(),
            ):
                async with asyncio.timeout(self._attempt_timeout_s):
                    await link.call.done_writing()
                    await link.call.read()
        link.call.cancel()  # has no effect when it ended

    async def _write(self, request: StreamTransfersRequest) -> _Link:
        link = self._link
        if link is None or link.broken:
            link = self._link = _Link(self._caller.routers.current())
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                await link.call.write(request)
        except asyncio.CancelledError:
            if not _broken_by_us(link):
                raise
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError) as error:
            self._break(link, error)
        return link

    async def _read(self, sent: _Sent) -> list[TransferResult]:
        """Read a batch's results; when they are lost, every transfer of it is in doubt."""
        link = sent.link
        if link is not None and link.broken is None:
            try:
                async with asyncio.timeout(self._attempt_timeout_s):
                    response = await link.call.read()
                if isinstance(response, StreamTransfersResponse):
                    return results_from_messages(sent.transfers, response.results, sent.left_out)
                self._break(link, contract_broken("the stream ended early"))
            except asyncio.CancelledError:
                if not _broken_by_us(link):
                    raise
            except (grpc.aio.AioRpcError, FaultError, TimeoutError) as error:
                self._break(link, error)
        lost = link.broken if link is not None else None
        return [
            faulted_transfer(transfer, sent.left_out.get(place) or lost or _NEVER_SENT)
            for place, transfer in enumerate(sent.transfers)
        ]

    async def _settle_open(
        self, transfers: Sequence[Transfer], results: list[TransferResult]
    ) -> list[TransferResult]:
        """Ask again, by ordinary calls, for what ended in a fault that may pass."""
        faults = {
            place: result.fault for place, result in enumerate(results) if result.fault is not None
        }
        if not faults:
            return results
        again = [place for place, fault in faults.items() if can_be_asked_again(fault)]
        doubts = {
            order: faults[place] for order, place in enumerate(again) if faults[place].indefinite
        }
        try:
            deadline_s = self._caller.retrier.deadline_s(self._caller.timeout_s)
            settled = await self._settle([transfers[place] for place in again], deadline_s, doubts)
        except FaultError as error:
            settled = [faulted_transfer(transfers[place], error.fault) for place in again]
        for place, result in zip(again, settled, strict=True):
            results[place] = result
        return [_numbered(result, place) for place, result in enumerate(results)]

    def _break(self, link: _Link, error: Exception) -> None:
        if link.broken is not None:
            return
        if isinstance(error, grpc.aio.AioRpcError):
            fault = error_from_rpc(error).fault
        elif isinstance(error, FaultError):
            fault = error.fault
        elif isinstance(error, TimeoutError):
            fault = Fault(FaultCode.DEADLINE_EXCEEDED, "no answer on the stream in time")
        else:
            fault = Fault(FaultCode.UNAVAILABLE, "the stream had ended")
        # Whatever the stream says of its end, it does not say how far it got.
        link.broken = replace(fault, indefinite=True)
        if fault.code in ROUTER_FAILED:
            self._caller.routers.failed(link.router)
        link.call.cancel()


_NEVER_SENT: Final = Fault(FaultCode.INVALID_ARGUMENT, "nothing in the batch fits a message")


def _broken_by_us(link: _Link) -> bool:
    """Whether a CancelledError comes from our breaking the stream, and not from our own caller."""
    task = asyncio.current_task()
    return link.broken is not None and task is not None and not task.cancelling()


def _numbered(result: TransferResult, place: int) -> TransferResult:
    if result.fault is None:
        return result
    return structs.replace(result, fault=replace(result.fault, index=place))
