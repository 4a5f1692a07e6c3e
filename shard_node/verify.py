"""Promise 7 and 8 over the whole history: the log is what was written, the state is fold(log).

Every block is read and its place in the chain checked, from the first; on the way the log is
replayed into a fresh state beside the real one, up to the real one's checkpoint; then the two are
compared row by row, byte for byte.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from shard_node.checkpointer import LocalStateWriter
from shard_node.damage import DamagedStateError
from shard_node.ledger import Ledger
from shard_node.log import LmdbLog
from shard_node.records import DamagedLogError, check_follows
from shard_node.startup import checkpoint_now, verify_checkpoint
from shard_node.state import TABLES, LmdbState, StateFile
from shard_node.store import Store
from shard_node.structure import structural_damage

if TYPE_CHECKING:
    from shard_node.limits import Limits
    from shard_node.records import Block, LogIdentity

PROGRESS_S: Final = 10.0
"""How often a long verification says how far it is."""

_LOG = structlog.stdlib.get_logger("verify")


@dataclass(frozen=True, slots=True)
class Verified:
    """What was verified.

    Attributes:
        blocks, records: of the log, all of them.
        rows: of the state, all of them.
    """

    blocks: int
    records: int
    rows: int


def verify_history(data: Path, identity: LogIdentity, limits: Limits) -> Verified:
    """Verifies a data folder that no process is using.

    Raises:
        DamagedLogError, DamagedStateError: the message names the block or the row.
    """
    started = time.monotonic()
    # First of all: what follows reads through LMDB, which believes its pages.
    if damage := structural_damage(data / "log"):
        raise DamagedLogError(f"the log's file is damaged: {damage}")
    if damage := structural_damage(data / "state"):
        raise DamagedStateError(f"the state's file is damaged: {damage}")
    log = LmdbLog(data / "log", identity, 2**64 - 1, limits.log_map_bytes)
    file = StateFile(data / "state", limits.state_map_bytes)
    try:
        with tempfile.TemporaryDirectory(prefix="verify-", dir=data) as folder:
            rebuilt = StateFile(Path(folder), limits.state_map_bytes)
            try:
                verified = _verify(identity, log, file, rebuilt, limits)
            finally:
                rebuilt.close()
    finally:
        file.close()
        log.close()
    _LOG.info(
        "verified",
        blocks=verified.blocks,
        records=verified.records,
        rows=verified.rows,
        seconds=round(time.monotonic() - started, 3),
    )
    return verified


def _verify(
    identity: LogIdentity, log: LmdbLog, file: StateFile, rebuilt: StateFile, limits: Limits
) -> Verified:
    state = LmdbState(file)
    checkpoint, _ = verify_checkpoint(identity, state, log)
    store = Store(LmdbState(rebuilt), log)
    ledger = Ledger(identity.shard_id, store, 0, limits.accounts_max)
    writer = LocalStateWriter(rebuilt, log)
    before: Block | None = None
    last_told = time.monotonic()
    for block in log.blocks(1):
        check_follows(before, block)
        before = block
        if checkpoint is None or block.draft.first_sequence > checkpoint.sequence:
            continue
        ledger.replay(block.draft)
        at_end = ledger.sequence == checkpoint.sequence
        if at_end or ledger.memory.rows_not_checkpointed >= limits.checkpoint_rows:
            checkpoint_now(identity, ledger, store, writer)
        if time.monotonic() - last_told > PROGRESS_S:
            last_told = time.monotonic()
            _LOG.info("verifying", block=block.number, of=log.last.number if log.last else 0)
    rows = _compare(state, LmdbState(rebuilt)) if checkpoint else 0
    records = before.draft.last_sequence if before else 0
    return Verified(before.number if before else 0, records, rows)


def _compare(state: LmdbState, rebuilt: LmdbState) -> int:
    count = 0
    for table in TABLES:
        for mine, folded in zip_longest(state.rows(table), rebuilt.rows(table)):
            if mine != folded:
                key = min(row[0] for row in (mine, folded) if row)  # the other may have gone on
                raise DamagedStateError(
                    f"the row of {table} with key {key.hex()} is not what the log says"
                )
            count += 1
    state.refresh()
    rebuilt.refresh()
    return count
