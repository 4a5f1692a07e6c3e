"""A shard's ledger on a log and a state in memory, driven by hand: nothing runs by itself.

The rig does what the engine does, one step at a time, so that a test can stop between any two:
commands, sealing, syncing, a checkpoint's beginning, slices, commit and release, and a crash. What
the ledger and the queries read on their way is counted.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.clock import HybridClock, ManualClock
from shard_node.batch import Batch
from shard_node.books import Account, Period
from shard_node.checkpointer import LocalStateWriter
from shard_node.hours import HourEnd
from shard_node.ledger import OpenStatus, StatusChange
from shard_node.limits import Limits
from shard_node.log import Log, MemoryLog
from shard_node.memory import Rows
from shard_node.memory_state import MemoryState
from shard_node.queries import AccountHistory
from shard_node.records import LogIdentity, cluster_id_of
from shard_node.startup import checkpoint_now, recover
from shard_node.state import TABLES, Checkpoint, StateReader
from shard_node.store import Store
from tests.support.naive_ledger import PLAYER, SYSTEM, Ask, Result

if TYPE_CHECKING:
    from shard_node.memory import Draft

IDENTITY = LogIdentity(cluster_id_of("test"), 7)
EPOCH = 1
BANK = 1
"""The account that money comes from; see `Rig.open_bank`."""

# 2023-11-14 22:00 UTC: the beginning of an hour, far from any edge of the number's range.
START_US = 1_699_999_200_000_000

# A plain transfer and its result as `cluster.packed` describes them, spelled here once more.
BODY = struct.Struct("<16s2Qq2Q2HB3x")
RESULT = struct.Struct("<4B4x2q")

Tables = dict[str, dict[bytes, object]]
"""Rows by table, as a state keeps them."""


@dataclass
class Reads:
    """How much was read: look-ups in the state, its period rows, and entries."""

    seeks: int = 0
    rows: int = 0
    entries: int = 0

    def forget(self) -> None:
        """Begins to count anew."""
        self.seeks = self.rows = self.entries = 0


class CountingState(MemoryState):
    """A state that counts the look-ups of periods and the rows that they give."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def period_before(
        self, account_id: int, currency: int, time_us: int, sequence: int
    ) -> Period | None:
        self._reads.seeks += 1
        self._reads.rows += 1
        return super().period_before(account_id, currency, time_us, sequence)

    def periods(
        self, account_id: int, currency: int, time_us: int, sequence: int, count: int
    ) -> list[Period]:
        found = super().periods(account_id, currency, time_us, sequence, count)
        self._reads.seeks += 1
        self._reads.rows += len(found)
        return found

    def hour_ends(self, account_id: int, currency: int, from_us: int, to_us: int) -> list[HourEnd]:
        found = super().hour_ends(account_id, currency, from_us, to_us)
        self._reads.seeks += 1 + len(found)
        self._reads.rows += len(found)
        return found


class CountingStore(Store):
    """A `Store` that counts the entries read from it."""

    def __init__(self, state: StateReader, log: Log, reads: Reads) -> None:
        super().__init__(state, log)
        self._reads = reads

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        self._reads.entries += 1
        return super().read_transfer(sequence)


class Rig:
    """One shard. See the module's docstring.

    Args:
        accounts_max: as in `Memory`.
        start_us: what the wall clock says.

    Attributes:
        log, state: survive a crash.
        store, ledger: do not.
        reads: what was read since the test last made it forget.
    """

    def __init__(self, accounts_max: int = 1_000, start_us: int = START_US) -> None:
        self.wall = ManualClock(start_us)
        self.clock = HybridClock(self.wall)
        self.log = MemoryLog(IDENTITY, EPOCH)
        self.reads = Reads()
        self.state = self.new_state()
        self._accounts_max = accounts_max
        self._writer = LocalStateWriter(self.state, self.log)
        self.draft: Draft | None = None
        self.committed = False
        self.recover()

    def new_state(self) -> CountingState:
        """What checkpoints are written to; empty."""
        return CountingState(self.reads)

    # --- commands -------------------------------------------------------------------------------

    @property
    def stamp_us(self) -> int:
        """The open block's stamp; one is opened when there is none."""
        self.begin_block()
        return self.ledger.block.stamp_us

    def begin_block(self) -> None:
        """Opens a block unless one is open."""
        if not self.ledger.block.stamp_us:
            self.ledger.block.begin(self.clock.tick())

    def transfer(self, *asks: Ask) -> list[Result]:
        """Runs a batch; seals only when a block is full."""
        return self.run(b"".join(map(body_of, asks)), b"".join(each.metadata for each in asks))

    def run(self, bodies: bytes, metadata: bytes = b"") -> list[Result]:
        """Runs a packed batch; as `transfer`."""
        batch = Batch(bodies, metadata)
        while batch.done < batch.count:
            if not self.ledger.block.room():
                self.seal()
            self.begin_block()
            self.ledger.execute(batch, self.ledger.block.room())
        return [Result(*each) for each in RESULT.iter_unpack(batch.results.getvalue())]

    def open(
        self, account_id: int, kind: int = PLAYER, floor_minor: int = 0, cap_minor: int = 0
    ) -> tuple[OpenStatus, str]:
        """Opens an account."""
        self.begin_block()
        return self.ledger.open_account(account_id, kind, floor_minor, cap_minor)

    def open_bank(self) -> None:
        """Opens `BANK`, which may go below zero as far as a balance can."""
        assert self.open(BANK, SYSTEM, floor_minor=1 - 2**63)[0] is OpenStatus.OPENED

    def change_status(self, account_id: int, status: int) -> StatusChange:
        """Changes an open account's status."""
        self.begin_block()
        return self.ledger.change_status(self.account(account_id), status, f"to {status}")

    def account(self, account_id: int) -> Account:
        """An open account."""
        account = self.ledger.memory.account(account_id)
        assert account is not None
        return account

    def balance(self, account_id: int, currency: int = 1) -> int:
        """An open account's balance now."""
        balance = self.account(account_id).balances.get(currency)
        return balance.minor if balance else 0

    def history(self, account_id: int, currency: int = 1) -> AccountHistory:
        """What queries read; good until the next command."""
        return AccountHistory(self.ledger, self.store, self.account(account_id), currency)

    # --- durability -----------------------------------------------------------------------------

    def seal(self) -> None:
        """Ends the open block."""
        draft = self.ledger.block.seal()
        if draft is not None:
            self.store.sealed.append(draft)

    def sync(self) -> None:
        """Makes durable what is sealed."""
        if self.store.sealed:
            self.log.append(list(self.store.sealed))
            self.store.forget_durable(self.store.sealed[-1].last_sequence)

    def crash(self) -> None:
        """Forgets everything but the durable log and the committed state, and recovers."""
        self.draft = None
        self._writer = LocalStateWriter(self.state, self.log)
        self.recover()

    def recover(self) -> None:
        """Builds memory from log and state, as a start does."""
        self.store = CountingStore(self.state, self.log, self.reads)
        limits = Limits(accounts_max=self._accounts_max)
        self.ledger, _ = recover(IDENTITY, self.store, limits, self._writer)

    # --- checkpoints ----------------------------------------------------------------------------

    def begin_checkpoint(self) -> None:
        """Begins a checkpoint of every record so far."""
        self.seal()
        self.draft, self.committed = self.ledger.begin_checkpoint(), False

    def take(self, rows_max: int) -> bool:
        """Takes a slice of the rows; False when there are no more."""
        assert self.draft is not None
        rows = self.draft.take(rows_max)
        if rows is not None:
            self.add_rows(rows)
        return rows is not None

    def add_rows(self, rows: Rows) -> None:
        """Gives rows that were taken to the writer."""
        self._writer.add(rows)

    def commit_checkpoint(self) -> None:
        """Takes what is left, and commits; nothing is released yet."""
        assert self.draft is not None
        self.sync()
        draft = self.draft
        self._writer.add_rest(draft)
        name = Checkpoint.of(IDENTITY, self.log, draft.first_sequence, draft.sequence)
        self._writer.write(name)
        self.ledger.memory.end_checkpoint()
        self.committed = True

    def release(self, items_max: int) -> bool:
        """Lets go of some of what was committed; True when the checkpoint is over."""
        if self.ledger.memory.release(items_max):
            self.draft = None
            return True
        return False

    def finish_checkpoint(self) -> None:
        """Brings the checkpoint that was begun, if one was, to its end."""
        if self.draft is None:
            return
        if not self.committed:
            self.commit_checkpoint()
        while not self.release(1_000):
            pass

    def checkpoint(self) -> None:
        """Takes a whole checkpoint."""
        self.finish_checkpoint()
        self.begin_checkpoint()
        self.finish_checkpoint()


def body_of(ask: Ask) -> bytes:
    """A transfer's packed body."""
    return BODY.pack(
        ask.transfer_id,
        ask.source,
        ask.destination,
        ask.amount_minor,
        ask.reference,
        ask.import_time_us,
        ask.currency,
        len(ask.metadata),
        ask.type,
    )


def transfer_id(number: int) -> bytes:
    """A transfer's id."""
    return number.to_bytes(16, "big")


def tables(state: MemoryState) -> Tables:
    """All that a state has of the ledger, byte for byte."""
    return {table: vars(state)[f"_{table}"] for table in TABLES}


def fold_of(log: MemoryLog, sequence: int = 0, checkpoints: Iterable[int] = ()) -> Tables:
    """The state that a log amounts to, taken anew by one checkpoint at its end.

    Args:
        log: its blocks are replayed.
        sequence: up to this record, the last of a block; 0 = all.
        checkpoints: the numbers of blocks behind which a checkpoint is taken as well.
    """
    state, part, stops = MemoryState(), MemoryLog(IDENTITY, EPOCH), set(checkpoints)
    store = Store(state, part)
    writer = LocalStateWriter(state, part)
    ledger, _ = recover(IDENTITY, store, Limits(), writer)
    blocks = [
        each for each in log.blocks(1) if not sequence or each.draft.last_sequence <= sequence
    ]
    for block in blocks:
        part.append([block.draft])
        ledger.replay(block.draft)
        if block.number in stops or block is blocks[-1]:
            checkpoint_now(IDENTITY, ledger, store, writer)
    return tables(state)
