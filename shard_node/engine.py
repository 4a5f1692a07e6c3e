"""The engine: drives the ledger, in bounded turns, and keeps the promise of durability.

Theory of operation. One task, the *applier*, takes commands in the order of their arrival and gives
them to the ledger, at most `TURN_TRANSFERS_MAX` transfers in a turn of the event loop, all with the
open block's stamp. The committer seals and syncs blocks beside it. A command's answer waits until
its last record is durable. A question about an instant first moves the clock past that instant and
seals the block that is open, so nothing can be posted at or before it any more; then it waits until
what the account shows is durable; then it is answered from memory, state and log in one turn.

Another task takes checkpoints, one at a time, whenever enough has gathered. If the next would
gather `CHECKPOINT_BACKLOG` times as much before the one under way is committed, the applier waits:
memory stays bounded, callers feel it, and admission refuses new ones when the queue is full.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from cluster.packed import KEY_SOURCE
from shard_node.committer import Committer
from shard_node.errors import (
    AccountNotFoundError,
    BadRequestError,
    OverloadedError,
    SpaceExhaustedError,
    StateConflictError,
    StoppingError,
    TransferNotFoundError,
)
from shard_node.ledger import Batch, StatusChange
from shard_node.records import BLOCK_BYTES_MAX, unpack_transfer
from shard_node.state import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster.clock import Clock, HybridClock
    from shard_node.books import Account
    from shard_node.checkpointer import StateWriter
    from shard_node.ledger import Ledger, OpenStatus
    from shard_node.memory import Draft
    from shard_node.records import BlockDraft, LogIdentity, TransferRecord
    from shard_node.store import Store

TURN_TRANSFERS_MAX: Final = 1_024
"""Transfers decided in one turn of the event loop: 3 to 5 ms."""

CALL_RECORDS_MAX: Final = 256
"""Records of one short call (accounts to open): it must fit the room that a block has left."""

SLICE_ACCOUNTS: Final = 200
"""Accounts whose rows a checkpoint takes in one turn: about 2 ms."""

SLICE_RELEASED: Final = 4_000
"""Items that memory lets go of in one turn after a checkpoint: about 1 ms."""

CHECKPOINT_BACKLOG: Final = 2
"""The applier waits when so many checkpoints' worth has gathered: one being written, one more."""

SEALED_BYTES_MAX: Final = 32 * 1024 * 1024
"""The applier waits when so many sealed bytes are not durable: a second of a slow disk."""

SPACE_WARN: Final = 0.80
SPACE_REFUSE: Final = 0.95
"""Parts of a map in use at which the node warns, and refuses what would add to it. What is refused
last is still far from full: `SEALED_BYTES_MAX` and a checkpoint must always fit."""

_LOG = structlog.stdlib.get_logger("engine")


@dataclass(frozen=True)
class Limits:
    """Bounds that operators set.

    Attributes:
        accounts_max: accounts cached besides those changed since the latest checkpoint.
        checkpoint_rows: changed accounts plus new keys after which a checkpoint is taken; each is
            200 to 700 bytes of memory, and a restart replays at most twice as many records.
        queue_transfers_max: transfers admitted and not answered yet; more are refused.
        log_map_bytes, state_map_bytes: the most that the two files may hold.
        disk_free_min_bytes: the disk's free space below which nothing is added.
    """

    accounts_max: int = 200_000
    checkpoint_rows: int = 250_000
    queue_transfers_max: int = 65_536
    log_map_bytes: int = 256 * 1024**3
    state_map_bytes: int = 64 * 1024**3
    disk_free_min_bytes: int = 512 * 1024**2


@dataclass(slots=True)
class Books:
    """The sums of one currency on this shard, minor units.

    Attributes:
        accounts: how many hold or held it.
        positive_minor, negative_minor: the sums of balances above and below 0.
    """

    accounts: int = 0
    positive_minor: int = 0
    negative_minor: int = 0

    @property
    def balanced(self) -> bool:
        """Promise 1, conservation."""
        return self.positive_minor + self.negative_minor == 0


@dataclass(slots=True)
class _Work:
    """A command in the applier's queue: a batch, or a call that records at most `CALL_RECORDS_MAX`.

    `durable` resolves when all that it recorded, and all that its answer shows, is durable.
    """

    command: Batch | Callable[[], None]
    count: int
    durable: asyncio.Future[None]


class Engine:
    """One shard's ledger, running. Make it with `startup.open_engine`; `start` begins its tasks.

    Args:
        identity: whose log it is.
        ledger, store: recovered up to the log's end.
        writer: writes checkpoints.
        wall: tells what "now" is.
        clock: stamps blocks; later than every stamp in the log.
        limits: bounds.
        data: the folder whose disk is watched; None = no disk (tests, simulation).
        on_fatal: must end the process; called when durability is in doubt.
    """

    def __init__(
        self,
        identity: LogIdentity,
        ledger: Ledger,
        store: Store,
        writer: StateWriter,
        wall: Clock,
        clock: HybridClock,
        limits: Limits,
        data: Path | None,
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self.identity = identity
        self.ledger = ledger
        self.store = store
        self.limits = limits
        self.committer = Committer(store.log, self._take, self._after_append, on_fatal)
        self.space_exhausted = False
        self._writer = writer
        self._wall = wall
        self._clock = clock
        self._data = data
        self._on_fatal = on_fatal
        self._queue: deque[_Work] = deque()
        self._queued_transfers = 0
        self._work = asyncio.Event()
        self._relief = asyncio.Event()
        self._checkpoint_due = asyncio.Event()
        self._checkpointing = asyncio.Lock()
        self._space_warned = False
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._checkpoints: set[asyncio.Task[None]] = set()  # so that none is collected half done

    # --- life -----------------------------------------------------------------------------------

    async def start(self, epoch: int) -> None:
        """Begins its tasks, and the epoch in the log; returns when that is durable."""
        self.ledger.block.begin(self._clock.tick())
        self.ledger.begin_epoch(epoch)
        for each in (self.committer.run(), self._apply(), self._checkpoint_when_due()):
            task = asyncio.get_running_loop().create_task(each)
            task.add_done_callback(self._check_task)
            self._tasks.append(task)
        await self.committer.durable(self.ledger.sequence)

    async def stop(self) -> None:
        """Finishes what was admitted, takes a last checkpoint, closes log and state."""
        self._stopping = True
        committing, applying, checkpointing = self._tasks
        self._work.set()
        await applying
        await self.checkpoint()
        async with self._checkpointing:  # so that it is not in the middle of one
            checkpointing.cancel()
        self.committer.stop()
        await committing
        self.committer.close()
        self.store.state.close()
        self.store.log.close()

    def _check_task(self, task: asyncio.Task[None]) -> None:
        """A task of the engine that fails leaves it half alive, which is worse than dead."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_fatal(error)

    # --- commands -------------------------------------------------------------------------------

    async def execute(self, bodies: bytes, metadata: bytes) -> bytes:
        """Executes a packed batch; returns its packed results, all of them durable.

        Raises:
            OverloadedError, SpaceExhaustedError, StoppingError: nothing was executed.
        """
        batch = Batch(bodies, metadata)
        self._admit(batch.count)
        await self._submit(batch, batch.count)
        return b"".join(batch.results)

    async def open_accounts(
        self, specs: list[tuple[int, int, int, int]]
    ) -> list[tuple[OpenStatus, str]]:
        """Opens accounts, given as (id, kind, floor, cap); see `Ledger.open_account`."""
        self._admit(len(specs))
        results: list[tuple[OpenStatus, str]] = []
        some = [specs[at : at + CALL_RECORDS_MAX] for at in range(0, len(specs), CALL_RECORDS_MAX)]
        calls = [self._submit(partial(self._open_some, each, results), len(each)) for each in some]
        for call in calls:
            await call
        return results

    def _open_some(
        self, specs: list[tuple[int, int, int, int]], results: list[tuple[OpenStatus, str]]
    ) -> None:
        results.extend(self.ledger.open_account(*spec) for spec in specs)

    async def change_status(
        self, account_id: int, status: int, reason: str
    ) -> tuple[Account, bool]:
        """Changes an account's status; returns the account and whether it had it already.

        Raises:
            AccountNotFoundError: it is not open.
            StateConflictError: it is closed, or is to be closed and holds money.
        """
        outcome: list[tuple[Account | None, StatusChange | None]] = []

        def change_it() -> None:
            account = self.ledger.memory.account(account_id)
            change = self.ledger.change_status(account, status, reason) if account else None
            outcome.append((account, change))

        self._admit(1)
        await self._submit(change_it, 1)
        account, change = outcome[0]
        if account is None:
            raise AccountNotFoundError(f"account {account_id} is not open")
        if change is StatusChange.CLOSED_FOR_EVER:
            raise StateConflictError(f"account {account_id} is closed for ever")
        if change is StatusChange.HOLDS_MONEY:
            raise StateConflictError(f"account {account_id} holds money and cannot be closed")
        return account, change is StatusChange.REPEAT

    # --- questions ------------------------------------------------------------------------------

    def settle_instant(self, instant_us: int, field: str) -> int:
        """Fixes an instant (0 = now) for a question: nothing will be posted at or before it.

        Raises:
            BadRequestError: it lies in the future, naming `field`.
        """
        if not instant_us:
            instant_us = max(self._wall.now_us(), self._clock.last_us)
        if not self._clock.advance_past(instant_us):
            raise BadRequestError(field, f"{instant_us} lies in the future")
        if self.ledger.block.stamp_us <= instant_us:
            self._seal()
        return instant_us

    async def settle_account(self, account_id: int) -> Account:
        """Waits until all that an account shows now is durable; returns the account.

        What is posted while it waits bears a later time than any instant settled before, so it is
        no part of an answer for that instant. The account is good for this turn of the event loop
        only (later it may have left memory and come back as another object): see `account`.

        Raises:
            AccountNotFoundError: it is not open.
        """
        account = self.account(account_id)
        await self.committer.durable(account.latest_sequence())
        account = self.account(account_id)
        while account.changed_sequence > self.committer.durable_sequence:
            await self.committer.durable(account.changed_sequence)
            account = self.account(account_id)
        return account

    def account(self, account_id: int) -> Account:
        """The account as it is now, durable or not, for this turn of the event loop.

        Raises:
            AccountNotFoundError: it is not open.
        """
        account = self.ledger.memory.account(account_id)
        if account is None:
            raise AccountNotFoundError(f"account {account_id} is not open")
        return account

    async def find_transfer(
        self, source: int, transfer_id: bytes
    ) -> tuple[int, TransferRecord, bytes]:
        """A transfer by its name: sequence, record and metadata, all durable.

        Raises:
            TransferNotFoundError: nothing is recorded under this key.
        """
        sequence = self.ledger.memory.find_key(transfer_id + KEY_SOURCE.pack(source))
        if sequence is None:
            raise TransferNotFoundError("nothing is recorded under this key")
        await self.committer.durable(sequence)
        record, metadata = self.ledger.read_transfer(sequence)
        return sequence, unpack_transfer(record), metadata

    async def add_up(self) -> dict[int, Books]:
        """Adds up every balance of a fresh checkpoint, by currency, in slices."""
        await self.checkpoint()
        books: dict[int, Books] = {}
        with self.store.state.snapshot() as snapshot:
            account_id = 0
            while ids := snapshot.account_ids(account_id, SLICE_ACCOUNTS):
                for account_id in ids:
                    account = snapshot.load_account(account_id)
                    for currency, balance in account.balances.items() if account else ():
                        each = books.setdefault(currency, Books())
                        each.accounts += 1
                        each.positive_minor += max(balance.minor, 0)
                        each.negative_minor += min(balance.minor, 0)
                await asyncio.sleep(0)
        return books

    @property
    def clock_us(self) -> int:
        """The latest stamp given out or moved past."""
        return self._clock.last_us

    # --- checkpoints ----------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Commits a checkpoint that covers every record so far.

        It goes on when its caller is cancelled: half a checkpoint cannot be left lying.
        """
        task = asyncio.get_running_loop().create_task(self._take_checkpoint())
        self._checkpoints.add(task)
        task.add_done_callback(self._checkpoints.discard)
        await asyncio.shield(task)

    async def _take_checkpoint(self) -> None:
        async with self._checkpointing:
            self._seal()
            draft = self.ledger.begin_checkpoint()
            try:
                await self._write(draft)
            except Exception as error:
                self._on_fatal(error)
                raise
            self.store.state.refresh()
            self.ledger.memory.end_checkpoint()
            while not self.ledger.memory.release(SLICE_RELEASED):  # noqa: ASYNC110 - work, not a wait
                await asyncio.sleep(0)
            self._relief.set()

    async def _write(self, draft: Draft) -> None:
        while any(rows := draft.take(SLICE_ACCOUNTS)):
            await self._writer.put(*rows)
            await asyncio.sleep(0)
        # Never ahead of the log: the state must not know what a crash could take back.
        await self.committer.durable(draft.sequence)
        checkpoint = Checkpoint.of(
            self.identity, self.store.log, draft.first_sequence, draft.sequence
        )
        report = await self._writer.commit(checkpoint)
        _LOG.info(
            "checkpoint",
            block=checkpoint.block,
            records=draft.sequence + 1 - draft.first_sequence,
            rows=report.rows,
            seconds=round(report.seconds, 3),
            state_bytes=report.state_bytes,
        )

    async def _checkpoint_when_due(self) -> None:
        while True:
            await self._checkpoint_due.wait()
            self._checkpoint_due.clear()  # before: it may come due again while one is taken
            await self.checkpoint()

    # --- the applier ----------------------------------------------------------------------------

    def _admit(self, count: int) -> None:
        if self._stopping:
            raise StoppingError("the shard node is stopping")
        if self.space_exhausted:
            raise SpaceExhaustedError("the shard node is nearly out of space")
        if self._queued_transfers + count > self.limits.queue_transfers_max:
            raise OverloadedError(f"{self._queued_transfers} transfers are queued already")

    def _submit(self, command: Batch | Callable[[], None], count: int) -> asyncio.Future[None]:
        """Queues a command that was admitted; resolves when its outcome is durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Work(command, count, future))
        self._queued_transfers += count
        self._work.set()
        return future

    async def _apply(self) -> None:
        while True:
            while not self._queue:
                if self._stopping:
                    return
                self._work.clear()
                await self._work.wait()
            while self._must_wait():
                self._relief.clear()
                await self._relief.wait()
            self._turn()
            if self.ledger.memory.rows_not_checkpointed >= self.limits.checkpoint_rows:
                self._checkpoint_due.set()
            await asyncio.sleep(0)

    def _must_wait(self) -> bool:
        rows_max = CHECKPOINT_BACKLOG * self.limits.checkpoint_rows
        return (
            self.ledger.memory.rows_not_checkpointed >= rows_max
            or len(self.store.sealed) * BLOCK_BYTES_MAX > SEALED_BYTES_MAX
        )

    def _turn(self) -> None:
        """Applies queued commands, as many as one turn of the event loop may."""
        left = TURN_TRANSFERS_MAX
        ledger, queue = self.ledger, self._queue
        while queue and left > 0:
            work = queue[0]
            if ledger.block.room() < CALL_RECORDS_MAX:
                self._seal()
            if not ledger.block.stamp_us:
                ledger.block.begin(self._clock.tick())
            if isinstance(work.command, Batch):
                batch = work.command
                wanted = min(left, ledger.block.room())
                decided = ledger.execute(batch, wanted)
                left -= decided if decided == wanted else left  # loads used up the turn
                if batch.done < batch.count:
                    continue
            else:
                work.command()
                left -= CALL_RECORDS_MAX
            queue.popleft()
            self._queued_transfers -= work.count
            self.committer.when_durable(ledger.sequence, work.durable)

    def _seal(self) -> None:
        draft = self.ledger.block.seal()
        if draft is not None:
            self.store.sealed.append(draft)
            self.committer.kick()

    def _take(self, blocks_max: int) -> list[BlockDraft]:
        self._seal()
        return list(islice(self.store.sealed, blocks_max))

    def _after_append(self) -> None:
        self.store.forget_durable(self.committer.durable_sequence)
        self._watch_space()
        self._relief.set()

    # --- space ----------------------------------------------------------------------------------

    def _watch_space(self) -> None:
        used = max(
            self.store.log.used_bytes() / self.limits.log_map_bytes,
            self.store.state.used_bytes() / self.limits.state_map_bytes,
        )
        disk = os.statvfs(self._data) if self._data else None
        free_bytes = disk.f_bavail * disk.f_frsize if disk else self.limits.disk_free_min_bytes
        exhausted = used >= SPACE_REFUSE or free_bytes < self.limits.disk_free_min_bytes
        if exhausted != self.space_exhausted:
            self.space_exhausted = exhausted
            _LOG.error("space", exhausted=exhausted, map_used=round(used, 3), disk_free=free_bytes)
        if used >= SPACE_WARN and not self._space_warned:
            self._space_warned = True
            _LOG.warning("space_low", map_used=round(used, 3), disk_free=free_bytes)
