"""Starting, watching and ending processes: only what is ours, and nothing is left behind."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.processes import ManagedProcess, ProcessEnded, end_all, start_mark, tail
from tests.support import eventually

# Says that it is ready only once it handles signals, so that no test races its start.
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); {}"
OBEDIENT = "print('up', flush=True); {}"
FOREVER = "exec('import time\\nwhile True: time.sleep(3600)')"

Start = Callable[[str], ManagedProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[ManagedProcess] = []

    def start_(code: str) -> ManagedProcess:
        log = tmp_path / f"{len(started)}.log"
        command = (sys.executable, "-c", code)
        started.append(ManagedProcess("shard", str(len(started)), command, log, tmp_path))
        return started[-1]

    yield start_
    for process in started:
        process.kill()


async def up(process: ManagedProcess) -> None:
    await eventually(lambda: process.log.read_text().startswith("up"), f"{process} is up")


async def test_a_process_that_ends_early_is_reported_with_its_last_lines(start: Start) -> None:
    process = start("print('line one'); raise SystemExit('no disk')")
    await eventually(lambda: not process.is_alive(), "it has ended")
    with pytest.raises(ProcessEnded) as raised:
        process.check_alive()
    assert "shard 0 ended with exit code 1" in str(raised.value)
    assert "  no disk" in str(raised.value)


async def test_a_killed_process_is_reported_by_signal(start: Start) -> None:
    process = start(OBEDIENT.format(FOREVER))
    process.check_alive()
    process.kill()
    with pytest.raises(ProcessEnded, match="by SIGKILL"):
        process.check_alive()
    assert not process.signal(signal.SIGTERM), "nobody is signalled after the end"


async def test_end_all_kills_only_what_does_not_stop(start: Start) -> None:
    obedient = start(OBEDIENT.format(FOREVER))
    stubborn = start(STUBBORN.format(FOREVER))
    stopped = start(OBEDIENT.format(FOREVER))
    for process in (obedient, stubborn, stopped):
        await up(process)
    stopped.signal(signal.SIGSTOP)
    killed = await end_all([obedient, stubborn, stopped], grace_s=0.5)
    assert killed == [f"shard 1 (pid {stubborn.pid})"]
    assert not any(process.is_alive() for process in (obedient, stubborn, stopped))
    assert await end_all([obedient]) == []


async def test_a_record_finds_the_process_again(start: Start) -> None:
    process = start(OBEDIENT.format(FOREVER))
    record = process.record()
    await up(process)
    assert record.is_alive()
    assert await end_all([record]) == []
    assert not record.is_alive()


async def test_a_record_never_signals_another_process_of_the_same_id(start: Start) -> None:
    process = start(OBEDIENT.format(FOREVER))
    earlier = replace(process.record(), start_mark="1")
    assert not earlier.is_alive()
    assert not earlier.signal(signal.SIGKILL)
    assert await end_all([earlier]) == []
    assert process.is_alive()


def test_a_start_mark_is_a_process_s_own() -> None:
    assert start_mark(os.getpid()) == start_mark(os.getpid())
    # Not the parent, which may have started us within one tick of the clock.
    assert start_mark(os.getpid()) != start_mark(1)
    assert start_mark(2**22 + 1) is None, "above the highest process id there can be"


async def test_an_ended_process_that_nobody_reaped_has_no_mark(start: Start) -> None:
    process = start(OBEDIENT.format("0"))
    await eventually(lambda: start_mark(process.pid) is None, "it has ended")
    assert process.record().is_alive() is False


def test_tail_shows_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == "  (there is no log)"
    log.write_text("")
    assert tail(log) == "  (nothing)"
    log.write_text("".join(f"line {n}\n" for n in range(20)))
    assert tail(log, 2) == "  line 18\n  line 19"
