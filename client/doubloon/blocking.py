"""The plain clients: the asyncio ones, run on a private thread, each method waited for.

There is one implementation. `Client.transfer` *is* `AsyncClient.transfer`, with its signature and
docstring, handed to the thread's event loop. So calls of many threads meet on one loop, where
single transfers gather into batches. The thread is a daemon, and idle unless calls are in progress;
`close` ends it.
"""

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from doubloon.admin import AsyncAdminClient
from doubloon.calls import Closing
from doubloon.channels import Tls
from doubloon.client import ENTRIES_PER_PAGE, AsyncClient
from doubloon.enums import EntryOrder
from doubloon.faults import ClientClosed
from doubloon.gather import BATCH_MAX, CALLS_MAX
from doubloon.history import Entry
from doubloon.retry import TIMEOUT_S, RetryPolicy, Timing
from doubloon.stream import WINDOW_DEFAULT, TransferStream
from doubloon.times import Instant
from doubloon.transfers import Transfer, TransferResult

T = TypeVar("T")
P = ParamSpec("P")
AsyncT = TypeVar("AsyncT", bound=Closing)


class LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def start(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Begin to run a coroutine on the loop, from any other thread, after those begun before."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop)

    def stop(self) -> None:
        """End the loop and the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()


class Blocking(Generic[AsyncT]):
    """A client whose methods block. Safe to use from many threads; not after a fork."""

    def __init__(self, client: AsyncT) -> None:
        self._client = client
        self._starting = threading.Lock()
        self._thread: LoopThread | None = LoopThread(f"doubloon-{type(self).__name__}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take no more calls, wait for those in progress (each has its deadline), disconnect."""
        with self._starting:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.start(self._client.close).result()
            thread.stop()

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        with self._starting:  # so that a loop that is about to stop is given nothing more
            if self._thread is None:
                raise ClientClosed("the client is closed")
            answer = self._thread.start(work)
        try:
            return answer.result()
        except BaseException:
            answer.cancel()  # an interrupt ends the call as well; a call that failed has ended
            raise


def _blocking(
    method: Callable[Concatenate[AsyncT, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[Blocking[AsyncT], P], T]:
    """Return an asyncio client's method as one that blocks, same signature, same docstring."""

    @functools.wraps(method)
    def call(self: Blocking[AsyncT], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(lambda: method(self._client, *args, **kwargs))

    return call


class Client(Blocking[AsyncClient]):
    """Calls a Doubloon cluster's routers from plain code; everything as in `AsyncClient`."""

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
        client = AsyncClient(
            addresses,
            timeout_s=timeout_s,
            linger_s=linger_s,
            batch_max=batch_max,
            calls_max=calls_max,
            tls=tls,
            retry=retry,
            timing=timing,
        )
        super().__init__(client)

    open_account = _blocking(AsyncClient.open_account)
    open_accounts = _blocking(AsyncClient.open_accounts)
    account = _blocking(AsyncClient.account)
    balances = _blocking(AsyncClient.balances)
    balance = _blocking(AsyncClient.balance)
    transfer = _blocking(AsyncClient.transfer)
    transfer_batch = _blocking(AsyncClient.transfer_batch)
    transfer_group = _blocking(AsyncClient.transfer_group)
    transfer_group_batch = _blocking(AsyncClient.transfer_group_batch)
    get_transfer = _blocking(AsyncClient.get_transfer)
    entries_page = _blocking(AsyncClient.entries_page)
    flows = _blocking(AsyncClient.flows)
    balance_series = _blocking(AsyncClient.balance_series)

    def entries(
        self,
        account_id: int,
        *,
        currency: str = "",
        from_time: Instant | None = None,
        to_time: Instant | None = None,
        order: EntryOrder = EntryOrder.NEWEST_FIRST,
        page_size: int = ENTRIES_PER_PAGE,
    ) -> Iterator[Entry]:
        """Iterate over an account's statement, page by page; see `AsyncClient.entries`."""
        page_token = b""
        while True:
            page = self.entries_page(
                account_id,
                currency=currency,
                from_time=from_time,
                to_time=to_time,
                order=order,
                page_size=page_size,
                page_token=page_token,
            )
            yield from page.entries
            page_token = page.next_page_token
            if not page_token:
                return

    def stream_transfers(
        self, batches: Iterable[Sequence[Transfer]], *, window: int = WINDOW_DEFAULT
    ) -> Iterator[list[TransferResult]]:
        """Make batches of transfers, `window` of them in flight; see `AsyncClient`.

        `batches` is iterated in the caller's own thread. So results come out when the window is
        full or `batches` has ended, not earlier.
        """
        stream = self._run(functools.partial(self._open_stream, window))
        try:
            for batch in batches:
                if stream.full:
                    yield self._run(stream.get_next)
                self._run(functools.partial(stream.put, batch))
            while stream.unanswered:
                yield self._run(stream.get_next)
        finally:
            with suppress(ClientClosed):  # then the stream has ended already
                self._run(stream.close)

    async def _open_stream(self, window: int) -> TransferStream:
        return self._client.open_stream(window)


class AdminClient(Blocking[AsyncAdminClient]):
    """What operators ask of a cluster, from plain code; everything as in `AsyncAdminClient`."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        timeout_s: float = TIMEOUT_S,
        tls: Tls | None = None,
        retry: RetryPolicy | None = None,
        timing: Timing | None = None,
    ) -> None:
        super().__init__(
            AsyncAdminClient(addresses, timeout_s=timeout_s, tls=tls, retry=retry, timing=timing)
        )

    register_currency = _blocking(AsyncAdminClient.register_currency)
    currencies = _blocking(AsyncAdminClient.currencies)
    change_account_status = _blocking(AsyncAdminClient.change_account_status)
    cluster_status = _blocking(AsyncAdminClient.cluster_status)
    process_health = _blocking(AsyncAdminClient.process_health)
    check_conservation = _blocking(AsyncAdminClient.check_conservation)
    audit = _blocking(AsyncAdminClient.audit)
    in_doubt = _blocking(AsyncAdminClient.in_doubt)
    resolve_transaction = _blocking(AsyncAdminClient.resolve_transaction)
