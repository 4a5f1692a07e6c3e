"""Views for the scrub: of rows in memory, of the same rows in LMDB, and of a running engine."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import contextmanager
from typing import TYPE_CHECKING

import lmdb

from shard_node.records import HEADER, HEADER_BYTES, RECORD_BYTES, DamagedLogError
from shard_node.scrubber import LmdbFolder, LmdbView
from shard_node.scrubbing import LOG, TABLES, Covered, Scrub
from shard_node.state import CHECKPOINT_KEY, Checkpoint
from tests.support.engines import IDENTITY
from tests.support.folders import LIMITS, MEBIBYTE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from shard_node.scrubbing import View

Parts = dict[str, dict[bytes, bytes]]
"""All rows of log and state, by part; in the order in which a tree would have them."""

STATE_TABLES = (*TABLES, "meta")


class MemoryView:
    """A `View` of rows in memory. Their order is theirs, as a damaged tree's would be."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def covered(self) -> Covered | None:
        value = self._parts["meta"].get(CHECKPOINT_KEY)
        if value is None:
            return None
        it = Checkpoint.unpack(value)
        return Covered(it.block, it.block_hash, it.sequence)

    def after(self, part: str, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        rows = list(self._parts[part].items())
        keys = [each for each, _ in rows]
        yield from rows[keys.index(key) + 1 if key in keys else bisect_right(keys, key) :]

    def find(self, part: str, key: bytes) -> bytes | None:
        return self._parts[part].get(key)

    def up_to(self, part: str, key: bytes) -> tuple[bytes, bytes] | None:
        keys = sorted(self._parts[part])
        at = bisect_right(keys, key) - 1
        return (keys[at], self._parts[part][keys[at]]) if at >= 0 else None

    def count(self, part: str) -> int:
        return len(self._parts[part])

    def record(self, sequence: int) -> bytes:
        found = self.up_to(LOG, sequence.to_bytes(8, "big"))
        first, count = HEADER.unpack_from(found[1])[6:8] if found else (0, 0)
        if found is None or sequence >= first + count:
            raise DamagedLogError(f"no block has the record {sequence}")
        at = HEADER_BYTES + (sequence - first) * RECORD_BYTES
        return found[1][at : at + RECORD_BYTES]


def read_parts(data: Path) -> Parts:
    """All that a folder has."""
    parts: Parts = {}
    for file, tables in (("log", (LOG,)), ("state", STATE_TABLES)):
        env = lmdb.open(str(data / file), map_size=64 * MEBIBYTE, max_dbs=len(STATE_TABLES))
        for each in tables:
            table = env.open_db(None if each == LOG else each.encode(), create=False)
            with env.begin(db=table) as txn:
                parts[each] = dict(txn.cursor())
        env.close()
    return parts


def write_parts(parts: Parts, data: Path) -> None:
    """Make a folder of them."""
    for file, tables in (("log", (LOG,)), ("state", STATE_TABLES)):
        (data / file).mkdir(parents=True)
        env = lmdb.open(str(data / file), map_size=64 * MEBIBYTE, max_dbs=len(STATE_TABLES))
        for each in tables:
            table = env.open_db(None if each == LOG else each.encode())
            with env.begin(db=table, write=True) as txn:
                for key, value in parts[each].items():
                    txn.put(key, value)
        env.close()


def scrub_parts(parts: Parts, rows_max: int) -> Scrub:
    """One pass over rows in memory."""
    scrub = Scrub(IDENTITY, rows_max)
    while not scrub.passes:
        scrub.step(MemoryView(parts))
    return scrub


def scrub_lmdb(parts: Parts, rows_max: int, data: Path) -> Scrub:
    """One pass over the same rows in LMDB."""
    write_parts(parts, data)
    folder = LmdbFolder(data, LIMITS.log_map_bytes, LIMITS.state_map_bytes)
    scrub = Scrub(IDENTITY, rows_max)
    try:
        while not scrub.passes:
            with folder.look() as view:
                scrub.step(view)
    finally:
        folder.close()
    return scrub


def looks_of(engine: Any) -> Callable[[], AbstractContextManager[View]]:
    """Looks at the files of an engine of this process, which may open them only once."""
    file, log = engine.store.state._file, engine.store.log
    tables = {each: getattr(file, each) for each in STATE_TABLES}
    tables[LOG] = log._env.open_db()

    @contextmanager
    def look() -> Iterator[View]:
        with file.env.begin() as state, log._env.begin() as blocks:
            yield LmdbView(blocks, state, tables)

    return look
