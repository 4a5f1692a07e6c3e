"""The engine: drives the ledger, in bounded turns, and keeps the promise of durability.

Theory of operation. One task, the *applier*, takes commands in the order of their arrival and gives
them to the ledger, at most `TURN_TRANSFERS_MAX` transfers in a turn of the event loop, all with the
open block's stamp. The committer seals and syncs blocks beside it. A command's answer waits until
its last record is durable. A question about an instant first moves the clock past that instant and
seals the block that is open, so nothing can be posted at or before it any more; then it waits until
what the account shows is durable; then it is answered from memory, state and log in one turn.

`checkpoints` takes checkpoints, one at a time, whenever enough has gathered. If the next would
gather `CHECKPOINT_BACKLOG` times as much before the one under way is committed, the applier waits:
memory stays bounded, callers feel it, and admission refuses new ones when the queue is full.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import structlog

from cluster.packed import KEY_SOURCE
from shard_node.audit import add_up
from shard_node.batch import Batch
from shard_node.checkpoints import Checkpoints
from shard_node.committer import Committer
from shard_node.damage import DamagedStateError
from shard_node.errors import (
    AccountNotFoundError,
    OverloadedError,
    ShardNodeError,
    SpaceExhaustedError,
    StateConflictError,
    StoppingError,
    TransferNotFoundError,
)
from shard_node.instants import Instants
from shard_node.ledger import StatusChange
from shard_node.pace import Pace
from shard_node.recorded import read_outcome, read_recorded
from shard_node.records import BLOCK_BYTES_MAX
from shard_node.space import ROWS_PER_RECORD, Owed, Space
from shard_node.work import CALL_RECORDS_MAX, RECORDS_PER_MEMBER, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cluster.clock import Clock, HybridClock
    from shard_node.audit import Books
    from shard_node.books import Account
    from shard_node.checkpointer import StateWriter
    from shard_node.committer import Appender
    from shard_node.ledger import Ledger, OpenStatus
    from shard_node.legs import Member
    from shard_node.limits import Limits
    from shard_node.records import BlockDraft, LogIdentity, TransferRecord
    from shard_node.store import Store

TURN_TRANSFERS_MAX: Final = 100
"""Transfers decided in one turn of the event loop: half a millisecond, and up to 3 right after a
checkpoint was begun, when nearly every transfer is the first to touch its accounts. Turns half as
long would cost a tenth of the node's rate."""

LOAD_COST: Final = 5
"""To load an account takes as long as to decide so many transfers: 30 µs beside a busy process."""

CHECKPOINT_BACKLOG: Final = 2
"""The applier waits when so many checkpoints' worth has gathered: one being written, one more."""

SEALED_BYTES_MAX: Final = 32 * 1024 * 1024
"""The applier waits when so many sealed bytes are not durable: a second of a slow disk."""

_LOG = structlog.stdlib.get_logger("engine")


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
        appender: see `Committer`.
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
        appender: Appender | None = None,
    ) -> None:
        self.identity = identity
        self.ledger = ledger
        self.store = store
        self.limits = limits
        self.committer = Committer(store.log, self._take, self._after_append, on_fatal, appender)
        self.space = Space(
            store.log,
            store.state,
            limits.log_map_bytes,
            limits.state_map_bytes,
            limits.disk_free_min_bytes,
            data,
        )
        self._pace = Pace()
        self._checkpoints = Checkpoints(
            identity,
            ledger,
            store,
            writer,
            self.committer,
            self._seal,
            self._after_checkpoint,
            on_fatal,
            self._pace.give_way,
        )
        self._instants = Instants(ledger, store, wall, clock, self._seal)
        self._clock = clock
        self._on_fatal = on_fatal
        self._queue: deque[Work] = deque()
        self._queued_transfers = self._queued_records = 0
        self._work = asyncio.Event()
        self._relief = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    # --- life -----------------------------------------------------------------------------------

    async def start(self, epoch: int) -> None:
        """Begins its tasks, and the epoch in the log; returns when that is durable."""
        self.space.look()
        self.ledger.block.begin(self._clock.tick())
        self.ledger.begin_epoch(epoch)
        for each in (self.committer.run(), self._apply(), self._checkpoints.run()):
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
        checkpointing.cancel()  # one that is under way goes on, and ours comes after it
        await self._checkpoints.take()  # which makes all that was recorded durable
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
        await self._submit(batch, batch.count, batch.count)
        return batch.results.getvalue()

    async def open_accounts(
        self, specs: list[tuple[int, int, int, int]]
    ) -> list[tuple[OpenStatus, str]]:
        """Opens accounts, given as (id, kind, floor, cap); see `Ledger.open_account`."""
        self._admit(len(specs))
        results: list[tuple[OpenStatus, str]] = []
        some = [specs[at : at + CALL_RECORDS_MAX] for at in range(0, len(specs), CALL_RECORDS_MAX)]
        calls = [
            self._submit(partial(self._open_some, each, results), len(each), len(each))
            for each in some
        ]
        for call in calls:
            await call
        return results

    def _open_some(
        self, specs: list[tuple[int, int, int, int]], results: list[tuple[OpenStatus, str]]
    ) -> None:
        results.extend(self.ledger.open_account(*spec) for spec in specs)

    async def execute_groups(self, groups: list[list[Member]]) -> bytes:
        """Executes groups on this shard; returns their packed results, all of them durable.

        Raises:
            OverloadedError, SpaceExhaustedError, StoppingError: nothing was executed.
        """
        self._admit(RECORDS_PER_MEMBER * sum(len(each) for each in groups))
        calls = [partial(self.ledger.groups.execute, each) for each in groups]
        records = [1 + RECORDS_PER_MEMBER * len(each) for each in groups]
        return b"".join(await self.finish_begun(calls, records))

    async def finish_begun(
        self, calls: Iterable[Callable[[], bytes]], records: Iterable[int]
    ) -> list[bytes]:
        """Makes calls that admission must not stand in the way of; returns their durable answers.

        Commit, abort and resolve come here: they end what was admitted when it was prepared.

        Args:
            calls: in their order, each within one turn.
            records: how many records each makes at the most, metadata included.

        Raises:
            StoppingError: none of them was made.
        """
        if self._stopping:
            raise StoppingError("the shard node is stopping")
        answers: list[bytes] = []
        durable: list[asyncio.Future[None]] = []
        some: list[Callable[[], bytes]] = []
        total = 0
        for call, count in zip(calls, records, strict=True):
            if some and total + count > CALL_RECORDS_MAX:
                durable.append(self._submit(partial(_make, some, answers), 0, total))
                some, total = [], 0
            some.append(call)
            total += count
        durable.append(self._submit(partial(_make, some, answers), 0, total))
        for each in durable:
            await each
        return answers

    def has_room(self, count: int) -> bool:
        """Whether so many records would be admitted now."""
        try:
            self._admit(count)
        except ShardNodeError:
            return False
        return True

    def has_space(self, count: int) -> bool:
        """Whether so many records would fit, however long the queue is."""
        return not self.space.exhausted and self.space.admits(self._owed(count))

    def observe(self, clock_us: int) -> None:
        """Moves the clock past another process's, within bounds (see `HybridClock`)."""
        if clock_us:
            self._clock.observe(clock_us)

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
        await self._submit(change_it, 1, 1)
        account, change = outcome[0]
        if account is None:
            raise AccountNotFoundError(f"account {account_id} is not open")
        if change is StatusChange.CLOSED_FOR_EVER:
            raise StateConflictError(f"account {account_id} is closed for ever")
        if change is StatusChange.HOLDS_MONEY:
            raise StateConflictError(f"account {account_id} holds money and cannot be closed")
        if change is StatusChange.IN_DOUBT:
            raise StateConflictError(f"account {account_id} has transfers in doubt; try again")
        return account, change is StatusChange.REPEAT

    # --- questions ------------------------------------------------------------------------------

    def settle_instant(self, instant_us: int, field: str) -> int:
        """Fixes an instant (0 = now) for a question: nothing will be posted at or before it.

        Raises:
            BadRequestError: it lies in the future, naming `field`.
        """
        self._pace.asked()
        return self._instants.settle(instant_us, field)

    async def settle_account(self, account_id: int) -> Account:
        """Waits until all that an account shows now is durable; returns the account.

        What is posted while it waits bears a later time than any instant settled before, so it is
        no part of an answer for that instant; but an import may bear an earlier one, and is waited
        for as well. The account is good for this turn of the event loop only (later it may have
        left memory and come back as another object): see `account`.

        Raises:
            AccountNotFoundError: it is not open.
        """
        self.account(account_id)
        now_us = self._clock.last_us
        await self.committer.durable(self._instants.promise_sequence)
        account, sequence = self.account(account_id), 0
        while account.latest_sequence() > sequence:
            # An account's entries are in order of time: behind one that is later, all are.
            is_last_wait = account.latest_time_us() > now_us
            sequence = account.latest_sequence()
            await self.committer.durable(sequence)
            account = self.account(account_id)
            if is_last_wait:
                break
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
            DamagedStateError: the key's row points to another record.
        """
        sequence = self.ledger.memory.find_key(transfer_id + KEY_SOURCE.pack(source))
        if sequence is None:
            raise TransferNotFoundError("nothing is recorded under this key")
        await self.committer.durable(sequence)
        record, metadata = read_outcome(self.ledger, sequence)
        if (record.transfer_id, record.source) != (transfer_id, source):
            key = transfer_id + KEY_SOURCE.pack(source)
            raise DamagedStateError(f"the row of keys with key {key.hex()} points elsewhere")
        return sequence, record, metadata

    def is_posted(self, sequence: int) -> bool:
        """Whether what a keyed record committed is posted on every shard, as far as is known."""
        known = read_recorded(self.ledger, sequence)
        return known.transaction_id not in self.ledger.transactions.decided

    async def add_up(self) -> dict[int, Books]:
        """Adds up every balance of a fresh checkpoint, by currency, in slices."""
        await self.checkpoint()
        with self.store.state.snapshot() as snapshot:
            return await add_up(snapshot)

    @property
    def clock_us(self) -> int:
        """The latest stamp given out or moved past."""
        return self._clock.last_us

    async def checkpoint(self) -> None:
        """Commits a checkpoint that covers every record so far."""
        await self._checkpoints.take()

    def _after_checkpoint(self) -> None:
        self.space.look()
        self._relief.set()

    # --- the applier ----------------------------------------------------------------------------

    def _admit(self, count: int) -> None:
        if self._stopping:
            raise StoppingError("the shard node is stopping")
        if self.space.exhausted:
            raise SpaceExhaustedError("the shard node is nearly out of space")
        if not self.space.admits(self._owed(count)):
            if self.ledger.memory.rows_not_checkpointed:
                self._checkpoints.due.set()  # which may show that there is more room than it seems
            raise SpaceExhaustedError("with what is on its way, it might not fit")
        if self._queued_transfers + count > self.limits.queue_transfers_max:
            raise OverloadedError(f"{self._queued_transfers} transfers are queued already")

    def _owed(self, count: int) -> Owed:
        """What is admitted, or promised, and not written, and so many transfers."""
        waiting = self._queued_records + self.ledger.transactions.records_promised + count
        undurable = self.ledger.sequence - self.committer.durable_sequence
        rows = self.ledger.memory.rows_not_checkpointed + ROWS_PER_RECORD * waiting
        return Owed(undurable + waiting, self._checkpoints.draft_rows, rows)

    def _submit(
        self, command: Batch | Callable[[], None], count: int, records: int
    ) -> asyncio.Future[None]:
        """Queues a command that was admitted; resolves when its outcome is durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(Work(command, count, records, future))
        self._queued_transfers += count
        self._queued_records += records
        self._work.set()
        return future

    async def _apply(self) -> None:
        while True:
            while not self._queue:
                self._pace.rest()
                if self._stopping:
                    return
                self._work.clear()
                await self._work.wait()
            while self._must_wait():
                self._relief.clear()
                self._pace.rest()
                await self._relief.wait()
            self._turn()
            rows = self.ledger.memory.rows_not_checkpointed
            if rows >= self.limits.checkpoint_rows or self.space.is_tight(self._owed(0)):
                self._checkpoints.due.set()
            await self._pace.after_turn()

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
            if not ledger.block.count:
                # A command that recorded nothing leaves the block open: with its time, a deadline
                # would never be over while nothing else happens.
                ledger.block.seal()
                ledger.block.begin(self._clock.tick())
            if isinstance(work.command, Batch):
                batch, loads = work.command, ledger.memory.loads
                wanted = min(left, ledger.block.room(), batch.count - batch.done)
                left -= ledger.execute(batch, wanted)
                left -= LOAD_COST * (ledger.memory.loads - loads)
                if batch.done < batch.count:
                    continue
            else:
                work.command()
                left -= work.records
            queue.popleft()
            self._queued_transfers -= work.count
            self._queued_records -= work.records
            self.committer.when_durable(ledger.sequence, work.durable)

    def _seal(self) -> None:
        draft = self.ledger.block.seal()
        if draft is not None:
            self.store.sealed.append(draft)
            self.committer.kick()

    def _take(self, blocks_max: int, last_wanted: int) -> list[BlockDraft]:
        if last_wanted >= self.ledger.block.first_sequence:
            self._seal()
        return list(islice(self.store.sealed, blocks_max))

    def _after_append(self) -> None:
        self.store.forget_durable(self.committer.durable_sequence)
        self.space.after_append()
        self._relief.set()


def _make(calls: list[Callable[[], bytes]], answers: list[bytes]) -> None:
    answers.extend(call() for call in calls)
