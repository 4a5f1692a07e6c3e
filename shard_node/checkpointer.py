"""Writing checkpoints without stalling the event loop: a child process does it.

An LMDB write transaction of a hundred thousand rows makes as many short calls, each of which gives
up the interpreter and has to win it back from a busy event loop; done on a thread that takes
minutes under load, done on the loop it stalls it. A child process has an interpreter of its own.
The node sends it the rows of a draft in slices, then the checkpoint's name; it sorts them, adds the
keys that it reads from the log's durable blocks itself, commits, and says so.

The seam is `StateWriter`; `LocalStateWriter` does the same in the calling process, for recovery at
start-up, for tools and for tests. The child dies with its node (its standard input ends), and holds
the node's lock on the data folder for as long as it lives, so a new node never opens a state that
an old child is still writing.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from shard_node.log import LmdbLog
from shard_node.memory import Rows
from shard_node.records import LogIdentity
from shard_node.state import StateFile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shard_node.log import Log
    from shard_node.memory import Draft
    from shard_node.state import Change, Checkpoint, Row

CHILD_NICENESS: Final = 10
"""Where processors are scarce the node, whose callers wait, goes first (decision 0047): with a
checkpoint beside it the slowest of a hundred questions took twice as long. If the child falls
behind, the applier waits for it (`engine.CHECKPOINT_BACKLOG`)."""

SESSION_NICENESS: Final = Path("/proc/self/autogroup")
SESSION_NICENESS_ATTEMPTS: Final = 20
SESSION_NICENESS_PAUSE_S: Final = 0.1
"""Without privileges one process on a machine may set it in each tenth of a second."""

_FRAME: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What a committed checkpoint was.

    Attributes:
        rows: rows of accounts, balances and periods written.
        seconds: from the commit's being asked for to its being durable.
        state_bytes: the state's size after it.
    """

    rows: int
    seconds: float
    state_bytes: int


TAKE_ROWS: Final = 1_000
"""Rows taken off a draft at once, where nobody waits meanwhile."""


class StateWriter(Protocol):
    """Takes a checkpoint's rows, then commits them all at once."""

    async def put(self, rows: Rows) -> None:
        """Some rows of the checkpoint that is being taken; waits while the writer is behind."""
        ...

    async def put_crossing(self, transactions: list[Change], clearing: list[Row]) -> None:
        """Some of the checkpoint's rows of transactions and clearing."""
        ...

    async def commit(self, checkpoint: Checkpoint) -> CheckpointReport:
        """Commits all rows put since the last commit; durable when it returns.

        When it raises, nobody knows whether it is: the process must end and recover from the log.
        """
        ...

    async def close(self) -> None:
        """Ends; what was put and not committed is dropped."""
        ...


class WritesCheckpoints(Protocol):
    """What `LocalStateWriter` commits to: `StateFile` or `MemoryState`."""

    def write_checkpoint(
        self,
        log: Log,
        rows: Rows,
        checkpoint: Checkpoint,
        transactions: Iterable[Change] = (),
        clearing: Iterable[Row] = (),
    ) -> None:
        """See `StateFile`."""
        ...

    def used_bytes(self) -> int:
        """See `StateFile`."""
        ...


class CheckpointFailedError(Exception):
    """The child ended before it said that the checkpoint is durable."""


class LocalStateWriter:
    """Writes checkpoints in the calling process, holding it up for as long as that takes."""

    def __init__(self, file: WritesCheckpoints, log: Log) -> None:
        self._file = file
        self._log = log
        self._rows = Rows([], [], [])
        self._transactions: list[Change] = []
        self._clearing: list[Row] = []

    async def put(self, rows: Rows) -> None:
        """See `StateWriter`."""
        self.add(rows)

    async def put_crossing(self, transactions: list[Change], clearing: list[Row]) -> None:
        """See `StateWriter`."""
        self.add_crossing(transactions, clearing)

    async def commit(self, checkpoint: Checkpoint) -> CheckpointReport:
        """See `StateWriter`."""
        return self.write(checkpoint)

    async def close(self) -> None:
        """See `StateWriter`."""

    def add(self, rows: Rows) -> None:
        """As `put`."""
        for mine, more in zip(self._rows, rows, strict=True):
            mine.extend(more)

    def add_crossing(self, transactions: list[Change], clearing: list[Row]) -> None:
        """As `put_crossing`."""
        self._transactions += transactions
        self._clearing += clearing

    def add_rest(self, draft: Draft) -> None:
        """Puts all rows of a draft that were not taken yet."""
        while (rows := draft.take(TAKE_ROWS)) is not None:
            self.add(rows)
        while changes := draft.take_transactions(TAKE_ROWS):
            self.add_crossing(changes, [])
        self.add_crossing([], draft.clearing)

    def write(self, checkpoint: Checkpoint) -> CheckpointReport:
        """As `commit`."""
        started = time.monotonic()
        rows, self._rows = self._rows, Rows([], [], [])
        self._log.refresh()
        self._file.write_checkpoint(self._log, rows, checkpoint, self._transactions, self._clearing)
        self._transactions, self._clearing = [], []
        count = sum(map(len, rows))
        return CheckpointReport(count, time.monotonic() - started, self._file.used_bytes())


class ChildStateWriter:
    """Writes checkpoints in a child process. Make it with `start`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin, "the child is started with pipes"
        assert process.stdout, "the child is started with pipes"
        self._process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    @classmethod
    async def start(
        cls, data: Path, identity: LogIdentity, map_bytes: int, lock_fd: int
    ) -> ChildStateWriter:
        """Starts the child; before gRPC, whose threads do not survive a fork.

        Args:
            data: the node's data folder, with `log` and `state` in it.
            identity: whose log it is.
            map_bytes: the state's map size.
            lock_fd: the open file that holds the lock on the data folder; inherited.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "shard_node.checkpointer",
            str(data),
            identity.cluster_id.hex(),
            str(identity.shard_id),
            str(map_bytes),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=(lock_fd,),
            start_new_session=True,
        )
        return cls(process)

    async def put(self, rows: Rows) -> None:
        """See `StateWriter`."""
        await self._send(rows)

    async def put_crossing(self, transactions: list[Change], clearing: list[Row]) -> None:
        """See `StateWriter`."""
        await self._send((transactions, clearing))

    async def commit(self, checkpoint: Checkpoint) -> CheckpointReport:
        """See `StateWriter`."""
        await self._send(checkpoint)
        try:
            (length,) = _FRAME.unpack(await self._stdout.readexactly(_FRAME.size))
            report = await self._stdout.readexactly(length)
        except asyncio.IncompleteReadError as error:
            raise CheckpointFailedError("the checkpointing process ended") from error
        return CheckpointReport(*pickle.loads(report))  # noqa: S301 - from our own child

    async def close(self) -> None:
        """See `StateWriter`. May be called again."""
        self._stdin.close()
        await self._process.wait()

    async def _send(self, message: object) -> None:
        if self._stdin.is_closing():
            raise CheckpointFailedError("the checkpointing process ended")
        frame = pickle.dumps(message)
        self._stdin.write(_FRAME.pack(len(frame)) + frame)
        try:
            await self._stdin.drain()
        except ConnectionError as error:
            raise CheckpointFailedError("the checkpointing process ended") from error


def main(arguments: list[str]) -> None:
    """The child: reads frames until its standard input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a service, they are the node's
        signal.signal(number, signal.SIG_IGN)
    _go_after_others()
    data, cluster_id, shard_id, map_bytes = arguments
    identity = LogIdentity(bytes.fromhex(cluster_id), int(shard_id))
    file: StateFile | None = None
    writer: LocalStateWriter | None = None
    while (message := _receive()) is not None:
        if file is None or writer is None:
            # Only now: until a first checkpoint is taken the log may not exist yet.
            file = StateFile(Path(data) / "state", int(map_bytes))
            log = LmdbLog(Path(data) / "log", identity, 0, 0, read_only=True)
            writer = LocalStateWriter(file, log)
        if isinstance(message, Rows):
            writer.add(message)
        elif isinstance(message, tuple):
            writer.add_crossing(*message)
        else:
            report = writer.write(message)
            frame = pickle.dumps((report.rows, report.seconds, report.state_bytes))
            sys.stdout.buffer.write(_FRAME.pack(len(frame)) + frame)
            sys.stdout.buffer.flush()


def _go_after_others() -> None:
    """Be nice, also where the kernel shares its cores among sessions (sched(7), autogroup).

    There a process's niceness says nothing outside its session, which is why the child has one of
    its own, and that session gets the same niceness. Elsewhere there is no such file.
    """
    os.nice(CHILD_NICENESS)
    problem: OSError | None = None
    for _ in range(SESSION_NICENESS_ATTEMPTS):
        try:
            SESSION_NICENESS.write_text(str(CHILD_NICENESS), encoding="ascii")
        except FileNotFoundError:  # no autogroups: the niceness above says it all
            return
        except OSError as error:
            problem = error
            time.sleep(SESSION_NICENESS_PAUSE_S)
        else:
            return
    sys.stderr.write(f"checkpoints do not go after others' work: {problem}\n")


def _receive() -> Any:
    head = sys.stdin.buffer.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    (length,) = _FRAME.unpack(head)
    frame = sys.stdin.buffer.read(length)
    return pickle.loads(frame) if len(frame) == length else None  # noqa: S301 - from our own parent


if __name__ == "__main__":
    main(sys.argv[1:])
