"""The contract of `StateWriter`, for the one in the calling process and the one in a child."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from shard_node.books import Account, account_row
from shard_node.checkpointer import (
    CHILD_NICENESS,
    CheckpointFailedError,
    ChildStateWriter,
    LocalStateWriter,
    StateWriter,
)
from shard_node.log import LmdbLog
from shard_node.memory import Rows
from shard_node.startup import FolderInUseError, lock_folder
from shard_node.state import Checkpoint, LmdbState, StateFile
from tests.support.blocks import draft_of
from tests.support.engines import IDENTITY, START_US

MAP_BYTES = 64 * 1024 * 1024


@dataclass
class Site:
    """A writer, and the log and the state it writes between, as a node has them open."""

    folder: Path
    log: LmdbLog
    state: LmdbState
    writer: StateWriter

    def append(self, transfers: int = 1) -> None:
        first = self.log.last.draft.last_sequence + 1 if self.log.last else 1
        self.log.append([draft_of(first, [b""] * transfers)])
        self.log.refresh()

    def checkpoint(self) -> Checkpoint:
        """One that covers everything since the last that is committed."""
        self.state.refresh()
        before = self.state.checkpoint
        assert self.log.last is not None
        first = before.sequence + 1 if before else 1
        return Checkpoint.of(IDENTITY, self.log, first, self.log.last.draft.last_sequence)


def rows(*account_ids: int) -> Rows:
    accounts = [account_row(Account(each, 1, 1, 0, 100, START_US)) for each in account_ids]
    return Rows(accounts, [], [])


def session_niceness(pid: int) -> int | None:
    """As sched(7) tells of autogroups; None where the kernel has none."""
    told = Path(f"/proc/{pid}/autogroup")
    return int(told.read_text(encoding="ascii").split()[-1]) if told.exists() else None


@asynccontextmanager
async def site(kind: str, folder: Path) -> AsyncIterator[Site]:
    lock = lock_folder(folder)
    log = LmdbLog(folder / "log", IDENTITY, 1, MAP_BYTES)
    file = StateFile(folder / "state", MAP_BYTES)
    writer: StateWriter
    if kind == "local":
        writer = LocalStateWriter(file, log)
    else:
        writer = await ChildStateWriter.start(folder, IDENTITY, MAP_BYTES, lock)
    it = Site(folder, log, LmdbState(file), writer)
    try:
        yield it
    finally:
        await writer.close()
        it.state.close()
        log.close()
        os.close(lock)


@pytest.mark.parametrize("kind", ["local", "child"])
async def test_what_was_put_is_committed_at_once(kind: str, tmp_path: Path) -> None:
    async with site(kind, tmp_path) as it:
        it.append(transfers=3)
        await it.writer.put(rows(2, 1))
        await it.writer.put(rows())
        await it.writer.put(rows(3))
        checkpoint = it.checkpoint()
        it.state.refresh()
        assert it.state.account_ids(0, 9) == [], "nothing before the commit"
        report = await it.writer.commit(checkpoint)
        it.state.refresh()
        assert it.state.checkpoint == checkpoint
        assert it.state.account_ids(0, 9) == [1, 2, 3]
        assert [value for _, value in it.state.rows("keys")] == [
            sequence.to_bytes(8, "little") for sequence in (1, 2, 3)
        ]
        assert report.rows == 3
        assert report.state_bytes == it.state.used_bytes()


@pytest.mark.parametrize("kind", ["local", "child"])
async def test_commits_follow_one_another(kind: str, tmp_path: Path) -> None:
    async with site(kind, tmp_path) as it:
        for count in range(1, 8):
            it.append(transfers=count)
            await it.writer.put(rows(*range(count * 100, count * 100 + count)))
            checkpoint = it.checkpoint()
            report = await it.writer.commit(checkpoint)
            it.state.refresh()
            assert report.rows == count
            assert it.state.checkpoint == checkpoint
        assert len(list(it.state.rows("keys"))) == sum(range(1, 8))
        assert len(it.state.account_ids(0, 99)) == sum(range(1, 8))


@pytest.mark.parametrize("kind", ["local", "child"])
async def test_a_checkpoint_may_have_no_rows(kind: str, tmp_path: Path) -> None:
    async with site(kind, tmp_path) as it:
        it.append()
        assert (await it.writer.commit(it.checkpoint())).rows == 0
        it.state.refresh()
        assert it.state.checkpoint is not None


@pytest.mark.parametrize("kind", ["local", "child"])
async def test_what_was_put_and_not_committed_is_dropped(kind: str, tmp_path: Path) -> None:
    async with site(kind, tmp_path) as it:
        it.append()
        await it.writer.put(rows(1))
        await it.writer.commit(it.checkpoint())
        await it.writer.put(rows(2))
    async with site("local", tmp_path) as it:
        assert it.state.account_ids(0, 9) == [1]


async def test_the_child_works_off_the_loop(tmp_path: Path) -> None:
    async with site("child", tmp_path) as it:
        it.append(transfers=2_000)
        await it.writer.put(rows(*range(1, 20_000)))
        commit = asyncio.ensure_future(it.writer.commit(it.checkpoint()))
        turns = 0
        while not commit.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await commit).rows == 19_999
        assert turns > 10


@pytest.mark.parametrize("when", ["before rows", "after rows", "after a commit"])
async def test_a_child_that_died_is_never_taken_for_a_commit(when: str, tmp_path: Path) -> None:
    async with site("child", tmp_path) as it:
        it.append()
        assert isinstance(it.writer, ChildStateWriter)
        if when == "after a commit":
            await it.writer.put(rows(7))
            await it.writer.commit(it.checkpoint())
            it.append()
        checkpoint = it.checkpoint()
        if when == "after rows":
            await it.writer.put(rows(*range(1, 300)))
        process = it.writer._process
        process.kill()
        await process.wait()

        async def go_on() -> None:
            for _ in range(50):
                await it.writer.put(rows(*range(1, 300)))
            await it.writer.commit(checkpoint)

        with pytest.raises(CheckpointFailedError):
            await go_on()
    async with site("local", tmp_path) as it:
        assert it.state.account_ids(0, 9) == ([7] if when == "after a commit" else [])


async def test_the_child_outlives_signals_meant_for_the_node(tmp_path: Path) -> None:
    async with site("child", tmp_path) as it:
        it.append()
        await it.writer.commit(it.checkpoint())  # it has set up its signals by now
        assert isinstance(it.writer, ChildStateWriter)
        for number in (signal.SIGINT, signal.SIGTERM):
            it.writer._process.send_signal(number)
        it.append()
        checkpoint = it.checkpoint()
        await it.writer.commit(checkpoint)
        it.state.refresh()
        assert it.state.checkpoint == checkpoint


async def test_the_child_goes_after_others(tmp_path: Path) -> None:
    async with site("child", tmp_path) as it:
        it.append()
        await it.writer.commit(it.checkpoint())  # it has begun to work by now
        assert isinstance(it.writer, ChildStateWriter)
        child = it.writer._process.pid
        assert os.getpriority(os.PRIO_PROCESS, child) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + CHILD_NICENESS
        )
        assert os.getsid(child) == child, "the kernel shares its cores among sessions"
        assert session_niceness(child) in {CHILD_NICENESS, None}


async def test_the_child_holds_the_folder_for_as_long_as_it_lives(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path)
    writer = await ChildStateWriter.start(tmp_path, IDENTITY, MAP_BYTES, lock)
    os.close(lock)  # as when the node was killed
    with pytest.raises(FolderInUseError, match=str(tmp_path)):
        lock_folder(tmp_path, wait_s=0)
    await writer.close()
    os.close(lock_folder(tmp_path, wait_s=0))
