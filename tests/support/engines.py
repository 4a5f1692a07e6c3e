"""A shard's engine in memory, with a log and a writer whose progress a test decides."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cluster.clock import HybridClock, ManualClock
from cluster.packed import BODY_BYTES, RESULT_BYTES
from shard_node.checkpointer import CheckpointReport, LocalStateWriter
from shard_node.engine import Engine
from shard_node.ledger import KIND_SYSTEM, Ledger
from shard_node.limits import Limits
from shard_node.log import MemoryLog
from shard_node.memory_state import MemoryState
from shard_node.records import BlockDraft, LogIdentity, cluster_id_of
from shard_node.state import Checkpoint
from shard_node.store import Store

SHARD = 1
IDENTITY = LogIdentity(cluster_id_of("test"), SHARD)
GOLD = 1
START_US = 1_790_000_000_000_000
FLOOR_MINOR = -(10**15)  # no transfer of these tests comes near it

# The packed forms as `cluster.packed` documents them, of transfers that are of no group.
_BODY = struct.Struct("<16s2Qq2QHHB3x")
_RESULT = struct.Struct("<4B4x2q")


def body(
    number: int,
    source: int,
    destination: int,
    amount_minor: int = 1,
    *,
    currency: int = GOLD,
    metadata_bytes: int = 0,
    import_us: int = 0,
    transfer_id: bytes = b"",
) -> bytes:
    """A packed transfer; its number is its id, unless one is given, and its reference."""
    return _BODY.pack(
        transfer_id or number.to_bytes(16, "big"),
        source,
        destination,
        amount_minor,
        number,
        import_us,
        currency,
        metadata_bytes,
        1,
    )


@dataclass(frozen=True)
class Result:
    """A packed result, unpacked."""

    status: int
    reason: int
    differing: int
    repeat: int
    time_us: int
    balance_minor: int


def results_of(packed: bytes) -> list[Result]:
    return [Result(*_RESULT.unpack_from(packed, at)) for at in range(0, len(packed), RESULT_BYTES)]


def bodies_of(draft: BlockDraft) -> list[bytes]:
    """The bodies of a block's records."""
    stride = 2 * BODY_BYTES
    return [draft.records[at : at + BODY_BYTES] for at in range(0, len(draft.records), stride)]


class HeldLog(MemoryLog):
    """A log whose appends a test can hold up, let go one by one, and make fail.

    Make it on the event loop; `append` is called on the committer's thread.

    Attributes:
        appends: the drafts of each append that was begun.
        error: raised by appends, instead of appending.
    """

    def __init__(self, identity: LogIdentity = IDENTITY, epoch: int = 1) -> None:
        super().__init__(identity, epoch)
        self.appends: list[list[BlockDraft]] = []
        self.error: Exception | None = None
        self._held = False
        self._let_go = threading.Semaphore(0)
        self._loop = asyncio.get_running_loop()
        self._begun = asyncio.Event()

    def append(self, drafts: Sequence[BlockDraft]) -> None:
        self.appends.append(list(drafts))
        self._loop.call_soon_threadsafe(self._begun.set)
        if self._held:
            self._let_go.acquire()
        if self.error is not None:
            raise self.error
        super().append(drafts)

    def hold(self) -> None:
        """Every append from the next on waits for `let_one_go` or `let_go`."""
        self._held = True

    def let_one_go(self) -> None:
        self._let_go.release()

    def let_go(self) -> None:
        self._held = False
        self._let_go.release()

    async def begun(self, count: int) -> None:
        """Return once so many appends were begun."""
        while len(self.appends) < count:
            self._begun.clear()
            await self._begun.wait()


class HeldWriter(LocalStateWriter):
    """A writer of checkpoints whose commits a test can hold up and make fail."""

    def __init__(self, state: MemoryState, log: MemoryLog) -> None:
        super().__init__(state, log)
        self.commits: list[Checkpoint] = []
        self.error: Exception | None = None
        self._go = asyncio.Event()
        self._go.set()
        self._begun = asyncio.Event()

    async def commit(self, checkpoint: Checkpoint) -> CheckpointReport:
        self.commits.append(checkpoint)
        self._begun.set()
        await self._go.wait()
        if self.error is not None:
            raise self.error
        return await super().commit(checkpoint)

    def hold(self) -> None:
        self._go.clear()

    def let_go(self) -> None:
        self._go.set()

    async def begun(self, count: int) -> None:
        """Return once so many commits were begun."""
        while len(self.commits) < count:
            self._begun.clear()
            await self._begun.wait()


@dataclass
class Running:
    """An engine in memory and what it stands on.

    Attributes:
        fatal: what `on_fatal` was called with; then nothing may be answered any more.
    """

    engine: Engine
    log: HeldLog
    state: MemoryState
    writer: HeldWriter
    wall: ManualClock
    fatal: list[BaseException] = field(default_factory=list)

    async def execute(self, *bodies: bytes, metadata: bytes = b"") -> list[Result]:
        return results_of(await self.engine.execute(b"".join(bodies), metadata))

    def begin(self, *bodies: bytes) -> "asyncio.Task[list[Result]]":
        """Start a call; its answer is the task's result."""
        return asyncio.get_running_loop().create_task(self.execute(*bodies))

    async def open(self, *account_ids: int, floor_minor: int = FLOOR_MINOR) -> None:
        await self.engine.open_accounts([(one, KIND_SYSTEM, floor_minor, 0) for one in account_ids])

    async def hold_log(self) -> int:
        """Hold appends up, one of them in progress; return how many were begun."""
        self.log.hold()
        begun = len(self.log.appends) + 1
        self.begin(body(10**9 + begun, 1, 2))
        await self.log.begun(begun)
        return begun


@asynccontextmanager
async def running(limits: Limits | None = None, accounts: int = 10) -> AsyncIterator[Running]:
    """Run an engine with the accounts 1 … `accounts`, that may all go negative."""
    limits = limits or Limits()
    log, state, wall = HeldLog(), MemoryState(), ManualClock(START_US)
    store, writer = Store(state, log), HeldWriter(state, log)
    ledger = Ledger(SHARD, store, 0, limits.accounts_max)
    fatal: list[BaseException] = []
    clock = HybridClock(wall)
    engine = Engine(IDENTITY, ledger, store, writer, wall, clock, limits, None, fatal.append)
    await engine.start(1)
    it = Running(engine, log, state, writer, wall, fatal)
    await it.open(*range(1, accounts + 1))
    try:
        yield it
    finally:
        log.let_go()
        writer.let_go()
        if fatal:
            await abandon(engine)
        else:
            await engine.stop()


async def abandon(engine: Engine) -> None:
    """What the end of the process does to an engine that must not go on."""
    for task in engine._tasks:
        task.cancel()
    await asyncio.gather(*engine._tasks, return_exceptions=True)
    engine.committer.close()


async def settle() -> None:
    """Let everything on the loop run that is ready to."""
    for _ in range(50):
        await asyncio.sleep(0)
