"""Group commit: makes blocks durable off the event loop, then lets go of who waits for them.

While one append is being synced, the next block fills; when the sync returns, everything that
somebody waits for goes into the next append. So under load a sync is shared by all that came
meanwhile, and a lone command waits for one sync and for no timer. What nobody waits for yet, such
as the first half of a batch, waits until it fills a block. One append at a time: on a thread of its
own, or, where there are no threads, however the `Appender` does it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shard_node.log import Log
    from shard_node.records import BlockDraft

APPEND_BLOCKS_MAX: Final = 64
"""Blocks in one append. At half a mebibyte each this bounds what one sync writes to 32 MiB."""

SWITCH_INTERVAL_S: Final = 0.000_1
"""How long the appending thread asks for the interpreter before the event loop must hand it over:
less than a turn of the applier. Every time that the loop lets go of it for a moment, to look for
events or to read from LMDB, the thread begins to wait anew; by default it waits 5 ms, which under
load it then never does to the end, and an append that needs the interpreter five times takes tenths
of a second (decision 0039)."""


class Appender(Protocol):
    """Appends to a log while the event loop goes on. One append at a time."""

    async def append(self, blocks: Sequence[BlockDraft]) -> None:
        """As `Log.append`: all are durable when it returns, and nobody knows when it raises."""
        ...

    def close(self) -> None:
        """Ends; no append is under way."""
        ...


class ThreadAppender:
    """Appends on a thread of its own.

    An executor of the standard library would do the same with three futures and two locks for each
    call, which is once a sync, and so once a transfer when they come one by one.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._work: SimpleQueue[_Append | None] = SimpleQueue()
        self._worker = Thread(target=self._run, name="committer", daemon=True)
        self._worker.start()

    async def append(self, blocks: Sequence[BlockDraft]) -> None:
        """See `Appender`."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._work.put((blocks, loop, done))
        await done

    def close(self) -> None:
        """See `Appender`."""
        self._work.put(None)
        self._worker.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            blocks, loop, done = work
            try:
                self._log.append(blocks)
            except BaseException as error:  # noqa: BLE001 - raised where it is waited for
                loop.call_soon_threadsafe(_fail, done, error)
            else:
                loop.call_soon_threadsafe(_resolve, done)


_Append = tuple["Sequence[BlockDraft]", asyncio.AbstractEventLoop, "asyncio.Future[None]"]
"""What to append, and whom to tell where."""


class Committer:
    """Appends blocks to a log and tells what is durable. All methods are for the event loop.

    Args:
        log: where the blocks go.
        take: hands over sealed blocks, oldest first, at most so many, and seals before what has
            gathered if a record that somebody waits for is in it, given the last such; 0 = none.
        on_durable: called after each append, before anybody who waits is let go.
        on_fatal: called with the error of an append; must end the process.
        appender: appends to the log; None = on a thread.
    """

    def __init__(
        self,
        log: Log,
        take: Callable[[int, int], list[BlockDraft]],
        on_durable: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
        appender: Appender | None = None,
    ) -> None:
        self._log = log
        self._take = take
        self._on_durable = on_durable
        self._on_fatal = on_fatal
        self._appender = appender or ThreadAppender(log)
        self._work = asyncio.Event()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._stopping = False
        self.durable_sequence = log.last.draft.last_sequence if log.last else 0
        self.appends = 0

    def kick(self) -> None:
        """There is, or may be, something to append."""
        self._work.set()

    async def durable(self, sequence: int) -> None:
        """Returns once every record up to this one is durable."""
        if sequence > self.durable_sequence:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.when_durable(sequence, future)
            await future

    def when_durable(self, sequence: int, future: asyncio.Future[None]) -> None:
        """Resolves the future once every record up to this one is durable."""
        if sequence <= self.durable_sequence:
            _resolve(future)
            return
        waiting = self._waiting
        at = len(waiting)
        while at and waiting[at - 1][0] > sequence:  # nearly always the last place at once
            at -= 1
        waiting.insert(at, (sequence, future))
        self.kick()

    async def run(self) -> None:
        """Appends until `stop`; ends when everything taken is durable."""
        while True:
            last_wanted = self._waiting[-1][0] if self._waiting else 0
            blocks = self._take(APPEND_BLOCKS_MAX, last_wanted)
            if not blocks:
                if self._stopping:
                    return
                self._work.clear()
                await self._work.wait()
                continue
            try:
                await self._appender.append(blocks)
            except Exception as error:  # noqa: BLE001 - whatever it is, durability is unknown
                self._on_fatal(error)
                return
            self.appends += 1
            self.durable_sequence = blocks[-1].last_sequence
            self._log.refresh()
            self._on_durable()
            self._release()

    def stop(self) -> None:
        """Makes `run` end after all sealed blocks are durable."""
        self._stopping = True
        self._work.set()

    def close(self) -> None:
        """Ends the appender; after `run` has ended."""
        self._appender.close()

    def _release(self) -> None:
        waiting = self._waiting
        while waiting and waiting[0][0] <= self.durable_sequence:
            _resolve(waiting.popleft()[1])


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # who waited may have gone away
        future.set_result(None)


def _fail(future: asyncio.Future[None], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
