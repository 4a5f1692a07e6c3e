"""Takes checkpoints beside the traffic: one at a time, in slices, never ahead of the log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from shard_node.state import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from shard_node.checkpointer import StateWriter
    from shard_node.committer import Committer
    from shard_node.ledger import Ledger
    from shard_node.memory import Draft
    from shard_node.records import LogIdentity
    from shard_node.store import Store

SLICE_ROWS: Final = 160
"""Rows that a checkpoint takes in one turn, at most so many of each kind: 1 ms."""

SLICE_RELEASED: Final = 1_000
"""Items that memory lets go of in one turn after a checkpoint: 1 ms."""

_LOG = structlog.stdlib.get_logger("checkpoints")


class Checkpoints:
    """Drives the ledger's drafts through a writer.

    Args:
        identity: whose log it is.
        ledger, store: what is checkpointed, and from where it is read afterwards.
        writer: commits rows.
        committer: tells what is durable.
        seal: ends the open block: a checkpoint stands between blocks.
        on_committed: called after each, before and after memory lets go of what it holds.
        on_fatal: must end the process: after an error of the writer nobody knows what is durable.
        give_way: awaited between slices; see `Pace`.

    Attributes:
        due: set when one shall be taken.
        draft_rows: how many rows the one being written has, about.
    """

    def __init__(
        self,
        identity: LogIdentity,
        ledger: Ledger,
        store: Store,
        writer: StateWriter,
        committer: Committer,
        seal: Callable[[], None],
        on_committed: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
        give_way: Callable[[], Awaitable[None]],
    ) -> None:
        self.due = asyncio.Event()
        self.draft_rows = 0
        self._identity = identity
        self._ledger = ledger
        self._store = store
        self._writer = writer
        self._committer = committer
        self._seal = seal
        self._on_committed = on_committed
        self._on_fatal = on_fatal
        self._give_way = give_way
        self._one_at_a_time = asyncio.Lock()
        self._under_way: set[asyncio.Task[None]] = set()  # so that none is collected half done

    async def run(self) -> None:
        """Takes one whenever it is due."""
        while True:
            await self.due.wait()
            self.due.clear()  # before: it may come due again while one is taken
            await self.take()

    async def take(self) -> None:
        """Commits a checkpoint that covers every record so far.

        It goes on when its caller is cancelled: half a checkpoint cannot be left lying.
        """
        task = asyncio.get_running_loop().create_task(self._take())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        await asyncio.shield(task)

    async def _take(self) -> None:
        memory = self._ledger.memory
        async with self._one_at_a_time:
            self._seal()
            self.draft_rows = memory.rows_not_checkpointed
            draft = self._ledger.begin_checkpoint()
            try:
                await self._write(draft)
            except Exception as error:
                self._on_fatal(error)
                raise
            self._store.state.refresh()
            self.draft_rows = 0
            memory.end_checkpoint()
            self._on_committed()
            while not memory.release(SLICE_RELEASED):
                await self._give_way()
            self._on_committed()

    async def _write(self, draft: Draft) -> None:
        while (rows := draft.take(SLICE_ROWS)) is not None:
            await self._writer.put(rows)
            await self._give_way()
        while some := draft.take_transactions(SLICE_ROWS):
            await self._writer.put_crossing(some, [])
            await self._give_way()
        await self._writer.put_crossing([], draft.clearing)
        # Never ahead of the log: the state must not know what a crash could take back.
        await self._committer.durable(draft.sequence)
        log, first, last = self._store.log, draft.first_sequence, draft.sequence
        checkpoint = Checkpoint.of(self._identity, log, first, last)
        report = await self._writer.commit(checkpoint)
        _LOG.info(
            "checkpoint",
            block=checkpoint.block,
            records=last + 1 - first,
            rows=report.rows,
            seconds=round(report.seconds, 3),
            state_bytes=report.state_bytes,
        )
