"""What tests of every kind share: seeds, free ports, waiting without guessing, leftovers.

Nothing here knows a shard node from a router; helpers for one room live in a module of that
room's name beside this one.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
SEED_VARIABLE = "DOUBLOON_SEED"
DATA_VARIABLE = "DOUBLOON_SHARED_DATA"
SHRINK_VARIABLE = "DOUBLOON_SHRINK"  # 0: a failing example is told as it was found
RUN_VARIABLE = "DOUBLOON_TEST_RUN"  # marks every process that a test run starts
POLL_S = 0.01  # small beside what is waited for, and a hundred polls a second cost nothing


def seed_of_run() -> int:
    """The seed of this run's random tests: from the environment to replay, or a fresh one."""
    given = os.environ.get(SEED_VARIABLE)
    return int(given) if given else secrets.randbits(32)


def shared_data() -> Path | None:
    """The folder with the shared test data, or None where there is none."""
    given = os.environ.get(DATA_VARIABLE)
    folder = Path(given) if given else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now.

    For programs that cannot be told to take port 0. Another process may take the port first:
    whoever starts such a program must notice that it did not start, and try another.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def assert_none(found: Sequence[str]) -> None:
    """Fail with one line for each thing found."""
    assert not found, "\n" + "\n".join(found)


async def eventually(holds: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    """Return as soon as `holds()`; fail naming `what` when it does not within `timeout_s`.

    For what only another process can bring about and nothing can be awaited for.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while not holds():  # noqa: ASYNC110 - no event reaches us from another process
                await asyncio.sleep(POLL_S)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s:g} s: {what}") from None


def processes_of_run(run: str) -> dict[int, str]:
    """The living processes that carry this run's mark: pid to command line.

    The mark travels by environment, so a process whose parent is gone is found as well.
    """
    mark = f"{RUN_VARIABLE}={run}".encode()
    return {
        pid: command for pid, command in _processes_with(mark) if pid != os.getpid() and command
    }


def _processes_with(mark: bytes) -> Iterator[tuple[int, str]]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(folder.name), command.decode(errors="replace").strip()
        except OSError:
            continue  # it ended while we looked, or it is another user's and so not ours
