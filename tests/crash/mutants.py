"""Parts that are wrong on purpose: each must turn this rig red.

They are planted by name, in the process that is to be wrong: a driver or an opener.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import lmdb

from shard_node import checkpoints, committer, log, records, startup, state, verify
from shard_node.records import HASH_BYTES, DamagedLogError
from shard_node.state import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from shard_node.memory import Draft
    from shard_node.records import Block, BlockDraft, LogIdentity


def _ignore_failed_syncs() -> None:
    """An append that fails is taken for one that did not."""
    real = log.LmdbLog.append

    def append(self: log.LmdbLog, drafts: Sequence[BlockDraft]) -> None:
        try:
            real(self, drafts)
        except lmdb.Error:
            return

    log.LmdbLog.append = append  # type: ignore[method-assign]  # that is the mutation


def _acknowledge_before_sync() -> None:
    """Whoever waits for durability is let go at once; the append is made all the same."""
    real = committer.Committer.when_durable

    def when_durable(
        self: committer.Committer, sequence: int, future: asyncio.Future[None]
    ) -> None:
        real(self, sequence, asyncio.get_running_loop().create_future())
        if not future.done():
            future.set_result(None)

    committer.Committer.when_durable = when_durable  # type: ignore[method-assign]  # the mutation


def _trust_hashes() -> None:
    """A block's hash is read and not compared."""
    real = records.decode_block

    def decode_block(identity: LogIdentity, first_sequence: int, value: bytes) -> Block:
        try:
            return real(identity, first_sequence, value)
        except DamagedLogError:
            body, stored = value[:-HASH_BYTES], value[-HASH_BYTES:]
            right = records._hash(body, b"", b"")
            return replace(real(identity, first_sequence, body + right), hash=stored)

    log.decode_block = decode_block  # type: ignore[attr-defined]  # the mutation


def _keep_page_cache() -> None:
    """What a failed sync left in the cache is read at the next start."""

    def drop_from_page_cache(path: Path) -> None:
        pass

    log.drop_from_page_cache = drop_from_page_cache
    state.drop_from_page_cache = drop_from_page_cache  # type: ignore[attr-defined]  # the mutation


def _checkpoint_ahead() -> None:
    """A checkpoint does not wait for the log: it has rows of what a crash can take back."""

    async def write(self: checkpoints.Checkpoints, draft: Draft) -> None:
        while (rows := draft.take(checkpoints.SLICE_ROWS)) is not None:
            await self._writer.put(rows)
        await self._writer.put_crossing(draft.take_transactions(1_000_000), draft.clearing)
        last = min(draft.sequence, self._committer.durable_sequence)
        name = Checkpoint.of(self._identity, self._store.log, draft.first_sequence, last)
        await self._writer.commit(name)

    checkpoints.Checkpoints._write = write  # type: ignore[method-assign]  # that is the mutation


def _trust_rows() -> None:
    """A row's checksum is cut off and not compared."""

    def open_row(key: bytes, value: bytes) -> bytes:
        return value[:-4]

    vars(state)["open_row"] = open_row  # where it is imported to


def _skip_fold() -> None:
    """`--verify-all` verifies the log alone."""

    def compare(state: state.LmdbState, rebuilt: state.LmdbState) -> int:
        return 0

    verify._compare = compare


def _trust_positions() -> None:
    """A block's place in the chain is not checked."""

    def check_follows(before: Block | None, block: Block) -> None:
        pass

    startup.check_follows = check_follows  # type: ignore[attr-defined]  # the mutation
    verify.check_follows = check_follows  # type: ignore[attr-defined]  # the same


IGNORES_SYNC_ERRORS: Final = "ignore EIO of a sync and go on"
ACKNOWLEDGES_EARLY: Final = "acknowledge before the sync"
TRUSTS_HASHES: Final = "do not check a block's hash on open"
KEEPS_PAGE_CACHE: Final = "do not drop the page cache"
CHECKPOINTS_AHEAD: Final = "take a checkpoint ahead of the log"
TRUSTS_ROWS: Final = "do not check a state row's checksum"
SKIPS_FOLD: Final = "verify the log alone"
TRUSTS_POSITIONS: Final = "do not check that blocks follow each other"

MUTANTS: Final[dict[str, Callable[[], None]]] = {
    IGNORES_SYNC_ERRORS: _ignore_failed_syncs,
    ACKNOWLEDGES_EARLY: _acknowledge_before_sync,
    TRUSTS_HASHES: _trust_hashes,
    KEEPS_PAGE_CACHE: _keep_page_cache,
    CHECKPOINTS_AHEAD: _checkpoint_ahead,
    TRUSTS_ROWS: _trust_rows,
    SKIPS_FOLD: _skip_fold,
    TRUSTS_POSITIONS: _trust_positions,
}
"""Every planted bug, by what it does."""


def plant(name: str) -> None:
    """Make this process wrong; an empty name leaves it as it is."""
    if name:
        MUTANTS[name]()
