"""From files to a running engine: open, verify, replay, and only then serve.

The state names the block it is true up to. That block must stand in the log with the same hash, and
every block after it must follow the one before; then those blocks are replayed. Anything else and
the node refuses to start, naming the block. `verify_all` checks the whole history (see `verify`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import structlog

from cluster.clock import HybridClock
from shard_node.checkpointer import ChildStateWriter, LocalStateWriter
from shard_node.damage import DamagedStateError
from shard_node.engine import Engine
from shard_node.ledger import Ledger
from shard_node.log import LmdbLog, first_sequence_since
from shard_node.records import DamagedLogError, check_follows
from shard_node.state import Checkpoint, LmdbState, StateFile
from shard_node.store import Store
from shard_node.transactions import ENDED_WINDOW_US

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cluster.clock import Clock
    from shard_node.checkpointer import StateWriter
    from shard_node.limits import Limits
    from shard_node.log import Log
    from shard_node.records import Block, LogIdentity
    from shard_node.state import StateReader

LOCK_WAIT_S: Final = 10.0
"""How long to wait for the lock on the data folder: a killed node's checkpointing child may still
be finishing a commit, which takes a second or two."""

_LOCK_POLL_S: Final = 0.05

_DOES_NOT_FIT: Final = (ArithmeticError, AssertionError, LookupError, ValueError, struct.error)
"""What comes of a state that is another one than the log's: the log alone is hashed by then."""

DAMAGED_NAME: Final = "DAMAGED"
"""The file that says which damage a running node came upon."""

_LOG = structlog.stdlib.get_logger("startup")


class FolderInUseError(Exception):
    """Another shard node has the data folder."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What was done to bring memory up to the log's end.

    Attributes:
        checkpoint_block: the block that the state was true up to; 0 = there was no state.
        replayed_records: records after it.
        seconds: how long that took.
    """

    checkpoint_block: int
    replayed_records: int
    seconds: float


def lock_folder(data: Path, wait_s: float = LOCK_WAIT_S) -> int:
    """Takes the lock on a data folder; returns the open file that holds it.

    Raises:
        FolderInUseError: another process holds it, for longer than `wait_s`.
    """
    data.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno != errno.EWOULDBLOCK:
                raise
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise FolderInUseError(f"another shard node has {data}") from error
            time.sleep(_LOCK_POLL_S)
        else:
            return descriptor


def mark_damaged(data: Path, reason: str) -> None:
    """Notes that damage was met, so that no start serves the folder until all of it is verified."""
    (data / DAMAGED_NAME).write_text(reason, encoding="utf-8")


def known_damage(data: Path) -> str:
    """The damage that was met in a folder; empty = none, or all was verified since."""
    mark = data / DAMAGED_NAME
    return mark.read_text(encoding="utf-8") if mark.exists() else ""


def forget_damage(data: Path) -> None:
    """All of the folder was verified, and is as it was written."""
    (data / DAMAGED_NAME).unlink(missing_ok=True)


async def start_writer(
    data: Path, identity: LogIdentity, limits: Limits, lock_fd: int
) -> ChildStateWriter:
    """Starts the process that writes checkpoints; to be done before gRPC starts its threads."""
    return await ChildStateWriter.start(data, identity, limits.state_map_bytes, lock_fd)


def is_empty(data: Path, identity: LogIdentity, limits: Limits) -> bool:
    """Whether a folder has no log; what it has is opened, and log and state must fit.

    Raises:
        DamagedLogError, DamagedStateError: they do not.
    """
    log = LmdbLog(data / "log", identity, 2**64 - 1, limits.log_map_bytes)
    try:
        state = LmdbState(StateFile(data / "state", limits.state_map_bytes))
        try:
            verify_checkpoint(identity, state, log)
        finally:
            state.close()
        return log.last is None
    finally:
        log.close()


def no_log(shard_id: int, epochs: int) -> str:
    """Why a folder without a log is not served."""
    return (
        f"shard {shard_id} had {epochs} epochs before, but the folder holds no log: "
        "is it the right one? (--accept-empty starts the shard's ledger anew)"
    )


def open_engine(
    data: Path,
    identity: LogIdentity,
    epoch: int,
    limits: Limits,
    wall: Clock,
    writer: StateWriter,
    on_fatal: Callable[[BaseException], None],
    *,
    accept_empty: bool = False,
) -> Engine:
    """Opens a data folder and recovers it; the engine still has to be started.

    Raises:
        DamagedLogError, DamagedStateError: what is there must not be served; the message says why.
    """
    log = LmdbLog(data / "log", identity, epoch, limits.log_map_bytes)
    if log.last is None and epoch > 1 and not accept_empty:
        log.close()
        raise DamagedLogError(no_log(identity.shard_id, epoch - 1))
    file = StateFile(data / "state", limits.state_map_bytes)
    store = Store(LmdbState(file), log)
    ledger, clock = recovered(identity, store, limits, LocalStateWriter(file, log), wall)
    return Engine(identity, ledger, store, writer, wall, clock, limits, data, on_fatal)


def recovered(
    identity: LogIdentity, store: Store, limits: Limits, writer: LocalStateWriter, wall: Clock
) -> tuple[Ledger, HybridClock]:
    """The ledger as of the log's end, and a clock that goes on from there.

    Raises:
        DamagedLogError, DamagedStateError: as `recover`.
    """
    ledger, recovery = recover(identity, store, limits, writer)
    last = store.log.last
    _LOG.info(
        "recovered",
        checkpoint_block=recovery.checkpoint_block,
        block=last.number if last else 0,
        replayed_records=recovery.replayed_records,
        seconds=round(recovery.seconds, 3),
    )
    return ledger, HybridClock(wall, floor_us(ledger, store.log))


def floor_us(ledger: Ledger, log: Log) -> int:
    """What the clock of a node that takes over must be past: the last stamp, and what was promised.

    The wall clock may have been set back since.
    """
    return max(log.last.draft.time_us if log.last else 0, ledger.promised_us)


def recover(
    identity: LogIdentity, store: Store, limits: Limits, writer: LocalStateWriter
) -> tuple[Ledger, Recovery]:
    """Verifies state and log against each other and replays what the state does not have.

    Raises:
        DamagedLogError, DamagedStateError: they do not fit; the message names the block.
    """
    started = time.monotonic()
    checkpoint, before = verify_checkpoint(identity, store.state, store.log)
    sequence = checkpoint.sequence if checkpoint else 0
    ledger = Ledger(identity.shard_id, store, sequence, limits.accounts_max)
    if checkpoint is not None:
        try:
            ledger.restore(store.state, checkpoint.time_us)
        except _DOES_NOT_FIT as error:
            name = f"what the state has of block {checkpoint.block} does not fit together"
            raise DamagedStateError(f"{name}: {error}") from error
        recall_ended(ledger, store.log, checkpoint)
    for block in store.log.blocks(sequence + 1):
        check_follows(before, block)
        try:
            ledger.replay(block.draft)
        except (DamagedLogError, *_DOES_NOT_FIT) as error:
            if checkpoint is None and isinstance(error, DamagedLogError):
                raise  # without a state there is nothing else to be wrong
            # The block is as it was written, and says what must come of what was there before it.
            name = f"block {block.number} does not follow from what the state has"
            raise DamagedStateError(f"{name}: {error}") from error
        before = block
        if ledger.memory.rows_not_checkpointed >= limits.checkpoint_rows:
            checkpoint_now(identity, ledger, store, writer)
    last = store.log.last
    if last is not None and (before is None or before.hash != last.hash):
        raise DamagedLogError(f"the log breaks off before its last block, {last.number}")
    replayed = ledger.sequence - sequence
    block_number = checkpoint.block if checkpoint else 0
    return ledger, Recovery(block_number, replayed, time.monotonic() - started)


def recall_ended(ledger: Ledger, log: Log, checkpoint: Checkpoint) -> None:
    """Reads again which transactions ended in the last seconds that a checkpoint covers."""
    since_us = checkpoint.time_us - ENDED_WINDOW_US
    for block in log.blocks(first_sequence_since(log, since_us, checkpoint.sequence)):
        if block.draft.first_sequence > checkpoint.sequence:
            return
        ledger.recall_ended(block.draft)


def checkpoint_now(
    identity: LogIdentity, ledger: Ledger, store: Store, writer: LocalStateWriter
) -> None:
    """Takes a whole checkpoint in the calling process; everything must be durable."""
    draft = ledger.begin_checkpoint()
    writer.add_rest(draft)
    writer.write(Checkpoint.of(identity, store.log, draft.first_sequence, draft.sequence))
    store.state.refresh()
    ledger.memory.end_checkpoint()
    while not ledger.memory.release(1_000_000):
        pass


def verify_checkpoint(
    identity: LogIdentity, state: StateReader, log: Log
) -> tuple[Checkpoint | None, Block | None]:
    """The state's checkpoint, and the log's block of that name.

    Raises:
        DamagedStateError: the state belongs to another log, or the log does not have its block.
    """
    checkpoint = state.checkpoint
    if checkpoint is None:
        return None, None
    if (checkpoint.cluster_id, checkpoint.shard_id) != (identity.cluster_id, identity.shard_id):
        raise DamagedStateError(f"the state belongs to another shard ({checkpoint.shard_id})")
    name = f"the state is true up to block {checkpoint.block}"
    if log.last is None or log.last.draft.last_sequence < checkpoint.sequence:
        raise DamagedStateError(f"{name}, which the log does not have")
    block = next(log.blocks(log.locate(checkpoint.sequence).first_sequence))
    if (block.number, block.hash) != (checkpoint.block, checkpoint.block_hash):
        raise DamagedStateError(f"{name}, but the log has another block in its place")
    return checkpoint, block
