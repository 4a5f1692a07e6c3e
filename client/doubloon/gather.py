"""Concurrent single transfers, gathered into batches.

Theory of operation: a transfer that finds a call to spare leaves at once, together with all that
were asked for in the same turn of the event loop. While a few calls are in flight, transfers queue
up, and the next call takes what has gathered (which is more, the busier the client is) as soon as
one of them ends. Only when none ends for a while, because something that they ask for is slow or
away, further calls go out beside them, as many as allowed. A linger makes each call wait a little
for company first; it costs that much latency and pays only where calls, not latency, are dear.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from doubloon.enums import FaultCode
from doubloon.faults import (
    ClientClosed,
    DefiniteFault,
    Fault,
    FaultError,
    ResourceExhausted,
    fault_error,
)
from doubloon.transfers import Transfer, TransferResult

BATCH_MAX: Final = 1_024
"""Transfers in one call. Building and reading that many holds the event loop for 2 ms."""
CALLS_MAX: Final = 4
"""Calls in flight: one that waits for a slow shard leaves three for the others, and more would cut
what gathers into smaller calls."""
FEW_CALLS: Final = 2
"""Calls in flight while all goes well: one is on its way while the other is being decided. A call
costs about as much as a hundred transfers in it, so more calls mean fewer transfers a second."""
PATIENCE_S: Final = 0.01
"""How long what is queued waits for one of a few calls to end: several times what they take."""
QUEUE_MAX: Final = 65_536
"""Transfers waiting for a call, about 30 MB; beyond it transfers are faulted at once."""


@dataclass(frozen=True, slots=True)
class GatherLimits:
    """The bounds of gathering; see the module's docstring."""

    batch_max: int = BATCH_MAX
    """Transfers in one call, 1 … 8,192."""
    linger_s: float = 0.0
    """How long a call waits for company, seconds; 0 = not at all."""
    calls_max: int = CALLS_MAX
    """Calls in flight, ≥ 1."""
    few_calls: int = FEW_CALLS
    """Beside so many a call goes out only when it is full, or none of them has ended for a while,
    ≥ 1."""
    patience_s: float = PATIENCE_S
    """That while, seconds."""
    queue_max: int = QUEUE_MAX
    """Transfers waiting for a call, ≥ 1."""


@dataclass(slots=True)
class _Waiting:
    transfer: Transfer
    answer: asyncio.Future[TransferResult]
    deadline_s: float


class Gatherer:
    """Turns single transfers into batches. It lives on one event loop.

    Args:
        settle: asks for a batch until the deadline given; see `Batches.settle`.
        monotonic_s: settle's clock.
        timeout_s: how long a transfer may take, from being submitted to being answered.
        limits: see there.
    """

    def __init__(
        self,
        settle: Callable[[Sequence[Transfer], float], Awaitable[list[TransferResult]]],
        monotonic_s: Callable[[], float],
        timeout_s: float,
        limits: GatherLimits,
    ) -> None:
        self._settle = settle
        self._monotonic_s = monotonic_s
        self._timeout_s = timeout_s
        # A call has one deadline, its oldest transfer's. When transfers have queued for long, the
        # young ones go into another call rather than share what little time the oldest has left.
        self._age_spread_max_s = timeout_s / 4
        self._limits = limits
        self._queue: deque[_Waiting] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._flush_at: asyncio.Handle | None = None
        self._is_patient = False  # the flush waits for a call to end
        self._closing = False

    def submit(self, transfer: Transfer) -> asyncio.Future[TransferResult]:
        """Queue a transfer and return its answer to be awaited: a result, or the error to raise.

        Raises:
            ResourceExhausted: the queue is full.
            ClientClosed: the client is closed.
        """
        if self._closing:
            raise ClientClosed("the client is closed")
        if len(self._queue) >= self._limits.queue_max:
            fault = Fault(FaultCode.RESOURCE_EXHAUSTED, "this client's queue of transfers is full")
            raise ResourceExhausted(fault, transfer.transfer_id)
        answer: asyncio.Future[TransferResult] = asyncio.get_running_loop().create_future()
        deadline_s = self._monotonic_s() + self._timeout_s
        self._queue.append(_Waiting(transfer, answer, deadline_s))
        if self._flush_at is None or len(self._queue) == self._limits.batch_max:
            self._plan_flush()
        return answer

    async def close(self) -> None:
        """Take no more transfers, and return when all taken are answered; each has its deadline."""
        self._closing = True
        self._plan_flush()
        while self._queue or self._calls:
            self._flush()
            if self._calls:
                await asyncio.wait(self._calls)

    def _plan_flush(self) -> None:
        if not self._queue or len(self._calls) >= self._limits.calls_max:
            return  # a call that ends plans the next
        loop = asyncio.get_running_loop()
        limits = self._limits
        in_haste = len(self._queue) >= limits.batch_max or self._closing
        self._is_patient = len(self._calls) >= limits.few_calls and not in_haste
        delay_s = limits.linger_s
        if self._is_patient:
            delay_s = max(delay_s, limits.patience_s)
        if self._flush_at is not None:
            self._flush_at.cancel()
        if delay_s and not in_haste:
            self._flush_at = loop.call_later(delay_s, self._flush)
        else:
            self._flush_at = loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._flush_at is not None:
            self._flush_at.cancel()
            self._flush_at = None
        while self._queue and len(self._calls) < self._limits.calls_max:
            batch = self._take()
            if batch:
                call = asyncio.get_running_loop().create_task(self._send(batch))
                self._calls.add(call)
                call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._flush_at is None or self._is_patient:
            # Planned, not done now: whoever was just answered may ask again in this turn of the
            # loop, and then goes along.
            self._plan_flush()

    def _take(self) -> list[_Waiting]:
        """Take the next batch off the queue, without those that no longer need an answer."""
        now_s = self._monotonic_s()
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._limits.batch_max:
            if batch and self._queue[0].deadline_s > batch[0].deadline_s + self._age_spread_max_s:
                break
            waiting = self._queue.popleft()
            if waiting.answer.done():  # its caller was cancelled; it was never sent
                continue
            if waiting.deadline_s <= now_s:
                fault = Fault(FaultCode.DEADLINE_EXCEEDED, "never sent: it queued for too long")
                waiting.answer.set_exception(DefiniteFault(fault, waiting.transfer.transfer_id))
                continue
            batch.append(waiting)
        return batch

    async def _send(self, batch: list[_Waiting]) -> None:
        try:
            results = await self._settle([each.transfer for each in batch], batch[0].deadline_s)
        except FaultError as error:
            for waiting in batch:
                # One error each: an exception collects the traceback of whoever raises it.
                own = type(error)(error.fault, waiting.transfer.transfer_id)
                own.__cause__ = error.__cause__
                _answer_error(waiting, own)
        except BaseException as error:
            for waiting in batch:  # nobody may be left waiting, whatever went wrong
                _answer_error(waiting, error)
            raise
        else:
            for waiting, result in zip(batch, results, strict=True):
                if result.fault is not None:
                    fault = replace(result.fault, index=-1)
                    _answer_error(waiting, fault_error(fault, result.transfer_id))
                elif not waiting.answer.done():
                    waiting.answer.set_result(result)


def _answer_error(waiting: _Waiting, error: BaseException) -> None:
    if waiting.answer.done():
        return
    if isinstance(error, asyncio.CancelledError):
        waiting.answer.cancel()
    else:
        waiting.answer.set_exception(error)
