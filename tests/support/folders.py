"""A shard node's data folder, written by a real engine, then looked at or damaged from outside."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from cluster.clock import HybridClock, ManualClock
from shard_node import startup
from shard_node.books import HOUR_US
from shard_node.checkpointer import LocalStateWriter
from shard_node.engine import Engine
from shard_node.ledger import KIND_SYSTEM
from shard_node.limits import Limits
from shard_node.log import LmdbLog
from shard_node.records import Block, LogIdentity
from shard_node.state import TABLES, LmdbState, StateFile
from shard_node.store import Store
from tests.support.engines import FLOOR_MINOR, IDENTITY, START_US, abandon, body

MEBIBYTE = 1024 * 1024
LIMITS = Limits(
    log_map_bytes=64 * MEBIBYTE, state_map_bytes=64 * MEBIBYTE, disk_free_min_bytes=MEBIBYTE
)


def open_here(
    folder: Path,
    limits: Limits = LIMITS,
    epoch: int = 1,
    identity: LogIdentity = IDENTITY,
    on_fatal: Callable[[BaseException], None] | None = None,
    wall: ManualClock | None = None,
) -> tuple[Engine, list[BaseException]]:
    """Recover a folder into an engine of this process, not started; and what is fatal to it."""
    log = LmdbLog(folder / "log", identity, epoch, limits.log_map_bytes)
    try:
        file = StateFile(folder / "state", limits.state_map_bytes)
    except BaseException:
        log.close()
        raise
    store = Store(LmdbState(file), log)
    writer = LocalStateWriter(file, log)
    try:
        ledger, _ = startup.recover(identity, store, limits, writer)
        floor_us = startup.floor_us(ledger, log)
    except BaseException:
        store.state.close()
        log.close()
        raise
    fatal: list[BaseException] = []
    wall = wall or ManualClock(opened_us(epoch))
    clock = HybridClock(wall, floor_us)
    on_fatal = on_fatal or fatal.append
    engine = Engine(identity, ledger, store, writer, wall, clock, limits, folder, on_fatal)
    return engine, fatal


def recovers(
    folder: Path,
    limits: Limits = LIMITS,
    epoch: int = 10**6,
    identity: LogIdentity = IDENTITY,
) -> None:
    """Do what a node does before it serves; raise what makes it refuse."""
    engine, _ = open_here(folder, limits, epoch, identity)
    engine.store.state.close()
    engine.store.log.close()


def opened_us(epoch: int) -> int:
    """What the wall clock says when an epoch's engine is opened."""
    return START_US + epoch * 10**9


@dataclass
class Folder:
    """What `write_history` wrote.

    Attributes:
        path: the data folder.
        blocks: the log, oldest first.
        checkpoint_block: the number of the block that the state is true up to.
    """

    path: Path
    blocks: list[Block]
    checkpoint_block: int

    def value(self, block: Block) -> bytes:
        """A block's bytes, as they are stored."""
        with self.edit_log() as txn:
            return bytes(txn.get(_key(block)))

    def put(self, block: Block, value: bytes) -> None:
        with self.edit_log() as txn:
            assert txn.put(_key(block), value)

    def drop(self, block: Block) -> None:
        with self.edit_log() as txn:
            assert txn.delete(_key(block))

    @contextmanager
    def edit_log(self) -> Iterator[Any]:
        with edit(self.path / "log") as (env, _), env.begin(write=True) as txn:
            yield txn


def _key(block: Block) -> bytes:
    return block.draft.first_sequence.to_bytes(8, "big")


@contextmanager
def edit(environment: Path) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    """Open an LMDB environment from outside; the second opens one of its tables."""
    env = lmdb.open(str(environment), map_size=64 * MEBIBYTE, max_dbs=len(TABLES) + 1)
    try:
        yield env, lambda table: env.open_db(table.encode(), create=False)
    finally:
        env.close()


def flip_in_file(path: Path, value: bytes, at: int, mask: int) -> int:
    """Flip bits of one byte of a value, wherever the file has it; return how often that is."""
    data = bytearray(path.read_bytes())
    found = 0
    start = data.find(value)
    while start >= 0:
        data[start + at] ^= mask
        found += 1
        start = data.find(value, start + 1)
    path.write_bytes(data)
    return found


async def write_history(
    folder: Path, rng: random.Random, *, accounts: int = 20, calls: int = 30, tail: int = 8
) -> Folder:
    """Open accounts and play transfers, checkpoint, play a tail that only the log has.

    An hour passes halfway to the checkpoint, so there are periods that ended.
    """
    wall = ManualClock(opened_us(1) - HOUR_US)
    engine, fatal = open_here(folder, wall=wall)
    await engine.start(1)
    await engine.open_accounts(
        [(each, KIND_SYSTEM, FLOOR_MINOR, 0) for each in range(1, accounts + 1)]
    )
    number = 0
    for call in range(calls + tail):
        if call == calls // 2:
            wall.advance(HOUR_US)
        bodies, metadata = [], b""
        for _ in range(rng.choice((1, 2, 30))):
            number += 1
            source, destination = rng.sample(range(1, accounts + 1), 2)
            length = rng.choice((0, 0, 0, 100))
            currency = rng.choice((1, 2))
            amount = rng.randrange(1, 100)
            bodies.append(
                body(number, source, destination, amount, currency=currency, metadata_bytes=length)
            )
            metadata += rng.randbytes(length)
        await engine.execute(b"".join(bodies), metadata)
        if call == calls - 1:
            await engine.checkpoint()
    assert not fatal
    checkpoint = engine.store.state.checkpoint
    assert checkpoint is not None
    blocks = list(engine.store.log.blocks(1))
    await abandon(engine)  # as a kill would; only what is on disk counts from here
    engine.store.state.close()
    engine.store.log.close()
    return Folder(folder, blocks, checkpoint.block)
