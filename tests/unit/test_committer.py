"""Group commit: what is appended with what, and who is let go when."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from shard_node.committer import APPEND_BLOCKS_MAX, Committer
from shard_node.records import RECORD_BYTES, BlockDraft
from tests.support import eventually
from tests.support.engines import START_US, HeldLog, settle

RECORD = bytes(RECORD_BYTES)


@dataclass
class Site:
    """A committer, and the sealed blocks it takes from."""

    log: HeldLog
    sealed: deque[BlockDraft] = field(default_factory=deque)
    durable_calls: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    fatal: list[BaseException] = field(default_factory=list)
    committer: Committer = field(init=False)
    sequence: int = 0

    def __post_init__(self) -> None:
        self.committer = Committer(self.log, self._take, self._on_durable, self.fatal.append)

    def _take(self, blocks_max: int, last_wanted: int) -> list[BlockDraft]:
        self.wanted.append(last_wanted)
        return list(self.sealed)[:blocks_max]

    def _on_durable(self) -> None:
        while self.sealed and self.sealed[0].last_sequence <= self.committer.durable_sequence:
            self.sealed.popleft()
        self.durable_calls.append(self.committer.durable_sequence)

    def seal(self, count: int = 1) -> int:
        """Seal a block of so many records; returns its last sequence."""
        first = self.sequence + 1
        self.sequence += count
        self.sealed.append(BlockDraft(first, count, START_US + first, RECORD * count, b""))
        return self.sequence

    def wait_for(self, sequence: int) -> "asyncio.Task[None]":
        return asyncio.get_running_loop().create_task(self.committer.durable(sequence))

    @property
    def sizes(self) -> list[int]:
        """Blocks in each append."""
        return [len(drafts) for drafts in self.log.appends]


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    it = Site(HeldLog())
    running = asyncio.get_running_loop().create_task(it.committer.run())
    try:
        yield it
    finally:
        it.log.let_go()
        it.committer.stop()
        await running
        it.committer.close()


async def test_a_lone_block_gets_one_append_and_no_timer() -> None:
    async with site() as it:
        await it.wait_for(it.seal())
        assert it.sizes == [1]
        assert it.committer.appends == 1
        assert it.committer.durable_sequence == 1


async def test_nobody_is_let_go_before_the_append_returns() -> None:
    async with site() as it:
        it.log.hold()
        waiting = it.wait_for(it.seal(3))
        await it.log.begun(1)
        await settle()
        assert not waiting.done()
        assert it.committer.durable_sequence == 0
        it.log.let_go()
        await waiting
        assert it.durable_calls == [3]


async def test_blocks_sealed_during_an_append_share_the_next() -> None:
    async with site() as it:
        it.log.hold()
        first = it.wait_for(it.seal())
        await it.log.begun(1)
        later = [it.wait_for(it.seal()) for _ in range(10)]
        await settle()
        it.log.let_one_go()
        await first
        await it.log.begun(2)
        assert not any(each.done() for each in later)
        it.log.let_go()
        await asyncio.gather(*later)
        assert it.sizes == [1, 10]


async def test_an_append_is_bounded() -> None:
    async with site() as it:
        it.log.hold()
        it.wait_for(it.seal())
        await it.log.begun(1)
        last = [it.seal() for _ in range(APPEND_BLOCKS_MAX + 1)][-1]
        waiting = it.wait_for(last)
        it.log.let_go()
        await waiting
        assert it.sizes == [1, APPEND_BLOCKS_MAX, 1]


async def test_waiting_is_let_go_in_order_of_sequence_whatever_the_order_of_asking() -> None:
    async with site() as it:
        it.log.hold()
        one = it.seal()
        await asyncio.sleep(0)
        it.committer.kick()
        await it.log.begun(1)
        two, three = it.seal(), it.seal()
        order: list[int] = []
        tasks = []
        for sequence in (three, one, two, one, three):
            task = it.wait_for(sequence)
            task.add_done_callback(_note(order, sequence))
            tasks.append(task)
        await settle()
        it.log.let_one_go()
        await it.log.begun(2)
        await settle()
        assert order == [one, one]
        it.log.let_go()
        await asyncio.gather(*tasks)
        assert sorted(order) == [one, one, two, three, three]


def _note(order: list[int], sequence: int) -> "Callable[[asyncio.Task[None]], None]":
    return lambda _task: order.append(sequence)


async def test_what_is_durable_already_is_not_waited_for() -> None:
    async with site() as it:
        await it.wait_for(it.seal(5))
        for sequence in (0, 1, 5):
            await it.committer.durable(sequence)
        assert it.committer.appends == 1


async def test_it_takes_up_to_the_last_record_that_somebody_waits_for() -> None:
    async with site() as it:
        await settle()
        assert set(it.wanted) == {0}
        it.log.hold()
        waiting = [it.wait_for(each) for each in (it.seal(), it.seal(3), it.seal())]
        await it.log.begun(1)
        it.committer.kick()
        it.log.let_go()
        await asyncio.gather(*waiting)
        await settle()
        assert max(it.wanted) == it.sequence
        assert it.wanted[-1] == 0


async def test_who_went_away_holds_nobody_up() -> None:
    async with site() as it:
        it.log.hold()
        gone, waiting = it.wait_for(it.seal()), it.wait_for(it.seal())
        await it.log.begun(1)
        gone.cancel()
        await settle()
        it.log.let_go()
        await waiting
        assert gone.cancelled()


async def test_a_failed_append_is_fatal_and_lets_nobody_go() -> None:
    async with site() as it:
        it.log.hold()
        waiting = it.wait_for(it.seal())
        await it.log.begun(1)
        it.log.error = OSError("the disk is gone")
        it.log.let_go()
        await eventually(lambda: bool(it.fatal), "the error is fatal", 5)
        it.log.error = None  # the next would succeed, over a hole: it must not be tried
        it.seal()
        it.committer.kick()
        await settle()
        assert [str(error) for error in it.fatal] == ["the disk is gone"]
        assert len(it.log.appends) == 1
        assert not waiting.done()
        assert it.committer.durable_sequence == 0
        waiting.cancel()


@pytest.mark.parametrize("blocks", [0, 1, 3])
async def test_stop_makes_durable_what_had_gathered(blocks: int) -> None:
    async with site() as it:
        it.log.hold()
        it.wait_for(it.seal())
        await it.log.begun(1)
        last = [it.seal() for _ in range(blocks)]
        it.committer.stop()
        it.log.let_go()
        await it.committer.durable(last[-1] if last else 1)
    assert it.committer.durable_sequence == blocks + 1
