"""The process that scrubs: a child of the node that reads its data folder again, slowly.

A child has an interpreter of its own, so the event loop never waits for it, and a damaged page that
ends whoever reads it ends the child, not the node in the middle of a sync. It runs at the lowest
priority, rests after every step (`scrubbing.pause_s`), and tells after each, in a line of JSON, how
far it is or what it found. It ends with its node (its standard input does), and holds the node's
lock on the data folder, like the checkpointing child, so nobody replaces files that are being read.

What it reads it reads through the operating system's cache, as the node does: a page that went bad
on the disk shows once the cache has let go of it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import select
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb
import structlog

from shard_node.damage import DamagedStateError
from shard_node.records import HEADER, HEADER_BYTES, RECORD_BYTES, DamagedLogError, LogIdentity
from shard_node.scrubbing import LOG, TABLES, Covered, Scrub, damaged, pause_s
from shard_node.state import CHECKPOINT_KEY, Checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster.clock import Clock
    from shard_node.limits import Limits

_NICENESS: Final = 19
_DIES_OF_DAMAGE: Final = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
"""What LMDB does on a page that cannot be; an operator, or a lack of memory, sends others."""

_LOG: Final = structlog.stdlib.get_logger("scrub")


class LmdbView:
    """A `View` of two read transactions."""

    def __init__(self, log: Any, state: Any, tables: dict[str, Any]) -> None:
        self._txns = {**dict.fromkeys(tables, state), LOG: log}
        self._tables = tables

    def covered(self) -> Covered | None:
        """See `View`."""
        value = self._get("meta", CHECKPOINT_KEY)
        if value is None:
            return None
        checkpoint = Checkpoint.unpack(value)
        return Covered(checkpoint.block, checkpoint.block_hash, checkpoint.sequence)

    def after(self, part: str, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See `View`."""
        with _told(part):
            cursor = self._cursor(part)
            more = cursor.set_range(key) if key else cursor.first()
            if more and cursor.key() == key:
                more = cursor.next()
            while more:
                yield cursor.item()
                more = cursor.next()

    def find(self, part: str, key: bytes) -> bytes | None:
        """See `View`."""
        return self._get(part, key)

    def up_to(self, part: str, key: bytes) -> tuple[bytes, bytes] | None:
        """See `View`."""
        with _told(part):
            cursor = self._cursor(part)
            if not cursor.set_range(key):
                more = cursor.last()
            else:
                more = cursor.key() == key or cursor.prev()
            return cursor.item() if more else None

    def count(self, part: str) -> int:
        """See `View`."""
        with _told(part):
            entries: int = self._txns[part].stat(self._tables[part])["entries"]
            return entries

    def record(self, sequence: int) -> bytes:
        """See `View`."""
        found = self.up_to(LOG, sequence.to_bytes(8, "big"))
        if found is None or len(found[1]) < HEADER_BYTES:
            raise DamagedLogError(f"no block has the record {sequence}")
        first, count = HEADER.unpack_from(found[1])[6:8]
        if not first <= sequence < first + count:
            raise DamagedLogError(f"no block has the record {sequence}")
        at = HEADER_BYTES + (sequence - first) * RECORD_BYTES
        return found[1][at : at + RECORD_BYTES]

    def _get(self, part: str, key: bytes) -> bytes | None:
        with _told(part):
            value: bytes | None = self._txns[part].get(key, db=self._tables[part])
            return value

    def _cursor(self, part: str) -> Any:
        return self._txns[part].cursor(db=self._tables[part])


class LmdbFolder:
    """A node's data folder, opened beside it to be read. Log and state must be there."""

    def __init__(self, data: Path, log_map_bytes: int, state_map_bytes: int) -> None:
        self._log = lmdb.open(str(data / LOG), map_size=log_map_bytes, readonly=True)
        self._state = lmdb.open(
            str(data / "state"), map_size=state_map_bytes, max_dbs=len(TABLES) + 1, readonly=True
        )
        with _told("state"):
            self._tables: dict[str, Any] = {
                each: self._state.open_db(each.encode(), create=False) for each in (*TABLES, "meta")
            }
        self._tables[LOG] = self._log.open_db()

    @contextmanager
    def look(self) -> Iterator[LmdbView]:
        """A view; to be kept short."""
        with self._state.begin() as state, self._log.begin() as log:  # in this order: see `View`
            yield LmdbView(log, state, self._tables)

    def close(self) -> None:
        """Gives back files and memory."""
        self._state.close()
        self._log.close()


@contextmanager
def _told(part: str) -> Iterator[None]:
    """What LMDB cannot read is damage of this part."""
    try:
        yield
    except lmdb.Error as error:
        what = "the log" if part == LOG else f"the table {part}"
        raise damaged(part, f"{what} cannot be read: {error}") from error


@dataclass
class ScrubProgress:
    """How far the scrub is.

    Attributes:
        wanted: whether there is to be one.
        running: whether the process is there, or has not begun yet.
        ended_us: when the last full pass since the start of the node ended; 0 = none has.
        checked, total: blocks and rows read in the present pass; those there when it began.
    """

    wanted: bool = False
    running: bool = False
    ended_us: int = 0
    checked: int = 0
    total: int = 0


class ScrubChild:
    """The child as its node sees it. Make it with `start`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        clock: Clock,
        on_damage: Callable[[DamagedLogError | DamagedStateError], None],
    ) -> None:
        self.progress = ScrubProgress(wanted=True, running=True)
        self._process = process
        self._clock = clock
        self._on_damage = on_damage
        self._passes = 0
        self._part = LOG
        self._closing = False
        self._listening: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        data: Path,
        identity: LogIdentity,
        limits: Limits,
        lock_fd: int,
        clock: Clock,
        on_damage: Callable[[DamagedLogError | DamagedStateError], None],
    ) -> ScrubChild:
        """Starts the child, before gRPC; it reads nothing until `begin`."""
        numbers = (
            limits.log_map_bytes,
            limits.state_map_bytes,
            limits.scrub_bytes_per_s,
            limits.scrub_period_s,
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shard_node.scrubber",
            str(data),
            identity.cluster_id.hex(),
            str(identity.shard_id),
            *map(str, numbers),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(lock_fd,),
        )
        return cls(process, clock, on_damage)

    def begin(self) -> None:
        """Log and state are there: it may read."""
        assert self._process.stdin, "the child is started with pipes"
        self._process.stdin.write(b"\n")
        self._listening = asyncio.create_task(self._listen())

    async def close(self) -> None:
        """Ends the child."""
        assert self._process.stdin, "the child is started with pipes"
        self._closing = True
        self._process.stdin.close()
        if self._listening is not None:
            await self._listening
        await self._process.wait()

    async def _listen(self) -> None:
        assert self._process.stdout, "the child is started with pipes"
        while line := await self._process.stdout.readline():
            self._hear(json.loads(line))
        self.progress.running = False
        code = await self._process.wait()
        if -code in _DIES_OF_DAMAGE:
            what = f"{signal.Signals(-code).name} ended the scrub while it read {self._part}"
            self._on_damage(damaged(self._part, what))
        elif not self._closing:
            _LOG.error("scrub_ended", code=code)

    def _hear(self, told: dict[str, Any]) -> None:
        if "damage" in told:
            self._on_damage(damaged(told["part"], told["damage"]))
            return
        self._part = told["part"]
        self.progress.checked, self.progress.total = told["checked"], told["total"]
        if told["passes"] > self._passes:
            self._passes = told["passes"]
            self.progress.ended_us = self._clock.now_us()
            _LOG.info("scrubbed", checked=told["checked"], seconds=told["seconds"])


def scrub_once(data: Path, identity: LogIdentity, limits: Limits) -> int:
    """One pass at once, without a rest; returns how many blocks and rows it read.

    Raises:
        DamagedLogError, DamagedStateError: as `Scrub.step`.
    """
    folder = LmdbFolder(data, limits.log_map_bytes, limits.state_map_bytes)
    try:
        scrub = Scrub(identity)
        while not scrub.passes:
            with folder.look() as view:
                scrub.step(view)
        return scrub.checked
    finally:
        folder.close()


def main(arguments: list[str]) -> None:
    """The child: reads until its standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group, these are the node's
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    os.nice(_NICENESS)
    data, cluster_id, *numbers = arguments
    shard_id, log_map_bytes, state_map_bytes, bytes_per_s, period_s = map(int, numbers)
    if not sys.stdin.buffer.readline():
        return
    try:
        folder = LmdbFolder(Path(data), log_map_bytes, state_map_bytes)
        _scrub_for_ever(
            folder, Scrub(LogIdentity(bytes.fromhex(cluster_id), shard_id)), bytes_per_s, period_s
        )
    except (DamagedLogError, DamagedStateError) as error:
        part = LOG if isinstance(error, DamagedLogError) else TABLES[0]
        _tell({"damage": str(error), "part": part})


def _scrub_for_ever(folder: LmdbFolder, scrub: Scrub, bytes_per_s: int, period_s: int) -> None:
    began = time.monotonic()
    while True:
        passes, started = scrub.passes, time.monotonic()
        with folder.look() as view:
            read_bytes = scrub.step(view)
        now = time.monotonic()
        rest_s = pause_s(read_bytes, now - started, bytes_per_s)
        seconds = round(now - began, 3)
        _tell(
            {
                "part": scrub.part,
                "passes": scrub.passes,
                "checked": scrub.checked,
                "total": scrub.total,
                "seconds": seconds,
            }
        )
        if scrub.passes > passes:
            rest_s = max(rest_s, period_s - seconds)
        if _node_ends_within(rest_s):
            return
        if scrub.passes > passes:
            began = time.monotonic()


def _node_ends_within(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _tell(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
