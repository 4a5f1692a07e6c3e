"""Runs mutants: a copy of the source tree for each, the rig in it as a process, a verdict.

A rig has its copy for itself, runs with its own interpreter in a session of its own, and is ended
with all that it started when its time is over or the run is given up. Compiled modules are left out
of the copies: in them it is the source that runs.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.mutants.mutant import Rig
from tests.support import DATA_VARIABLE, ROOT, SEED_VARIABLE, SHRINK_VARIABLE, shared_data

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Sequence

    from tests.mutants.mutant import Mutant

# What no rig needs, or (compiled modules) must not have.
LEFT_OUT: Final = (
    *(".git", ".venv", "var", "build", "dist", "node_modules", "*.so", "*.egg-info"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
)
GREEN, RED = 0, 1
"""What a rig's exit status says; any other says that it did not run."""

# The first failure is all that is asked for, told in a line; a rig that hangs is no verdict.
_PYTEST: Final = ("-x", "-q", "--tb=line", "-p", "no:cacheprovider", "--timeout=60")
_OUTPUT_SHOWN_MAX: Final = 2_000  # characters of a rig's output, where it has to be looked at


class Verdict(StrEnum):
    """How a mutant fared. Only the first is good."""

    FOUND = "found"
    SURVIVED = "SURVIVED"
    """The rig is green with the mistake in it: a hole in the tests."""
    UNSOUND = "UNSOUND"
    """The rig is red without the mistake, so that its red says nothing."""
    BROKEN = "BROKEN"
    """The rig could not run: with the mistake, or without."""
    LATE = "LATE"
    """The rig did not end in time."""


@dataclass(frozen=True, slots=True)
class Run:
    """A rig that has run.

    Attributes:
        status: its exit status; None = its time was over.
        seconds: how long it took.
        output: what it printed.
    """

    status: int | None
    seconds: float
    output: str

    @property
    def said(self) -> str:
        """The line that tells what failed."""
        lines = [each.strip() for each in self.output.splitlines() if each.strip()]
        named = [each for each in lines if each.startswith(("FAILED ", "ERROR "))]
        return (named or lines or [""])[-1]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a mutant.

    Attributes:
        mutant: which.
        verdict: see there.
        seconds: how long its rig took with the mistake, 0 when it was not run.
        said: what the rig said, in a line or (when it has to be looked at) more.
    """

    mutant: Mutant
    verdict: Verdict
    seconds: float
    said: str


@dataclass(slots=True)
class Bench:
    """Runs rigs, so many at a time.

    Args:
        jobs: at the most at once.
        seed: of the rigs' random tests.
    """

    jobs: int
    seed: int
    _slots: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        self._slots = asyncio.Semaphore(self.jobs)

    async def results(self, mutants: Sequence[Mutant]) -> AsyncGenerator[Result, None]:
        """Each mutant's result, as they come in. Every rig also runs once without a mistake.

        Raises:
            StaleMutantError: what one of them replaces is not in the source any more; nothing ran.
        """
        for each in mutants:
            each.check(ROOT)
        with copy_of(ROOT) as source:  # whatever is written meanwhile is no part of this run
            clean = self._begin_unharmed(source, {each.unharmed for each in mutants})
            tasks = [asyncio.create_task(self._result(source, each, clean)) for each in mutants]
            try:
                for result in asyncio.as_completed(tasks):
                    yield await result
            finally:
                begun = {*tasks, *clean.values()}
                for task in begun:
                    task.cancel()
                await asyncio.gather(*begun, return_exceptions=True)

    def _begin_unharmed(
        self, source: Path, rigs: set[Rig]
    ) -> dict[Rig, asyncio.Task[dict[Rig, Run]]]:
        """Begins to run rigs without a mistake: tests together, for a start takes the longest."""
        tests = sorted((each for each in rigs if each.is_pytest), key=str)
        some = [tests[at :: self.jobs] for at in range(self.jobs)]
        some += [[each] for each in sorted(rigs, key=str) if not each.is_pytest]
        begun: dict[Rig, asyncio.Task[dict[Rig, Run]]] = {}
        for each in some:
            task = asyncio.create_task(self._unharmed(source, each))
            begun |= dict.fromkeys(each, task)
        return begun

    async def _unharmed(self, source: Path, rigs: list[Rig]) -> dict[Rig, Run]:
        """Runs rigs without a mistake: all at once, and when that is not green each by itself."""
        if len(rigs) > 1:
            together = await self._run(source, _joined(rigs))
            if together.status == GREEN:
                return dict.fromkeys(rigs, together)
        return {each: await self._run(source, each) for each in rigs}

    async def _result(
        self, source: Path, mutant: Mutant, clean: dict[Rig, asyncio.Task[dict[Rig, Run]]]
    ) -> Result:
        run = await self._run(source, mutant.rig, mutant)
        verdict = _verdict(run.status, red=GREEN if not mutant.edits else RED)
        said = run.said if verdict is Verdict.FOUND else run.output[-_OUTPUT_SHOWN_MAX:]
        unharmed = (await clean[mutant.unharmed])[mutant.unharmed]
        if unharmed.status != GREEN:
            verdict = _UNHARMED.get(unharmed.status, Verdict.BROKEN)
            said = unharmed.output[-_OUTPUT_SHOWN_MAX:]
        return Result(mutant, verdict, run.seconds, said)

    async def _run(self, source: Path, rig: Rig, mutant: Mutant | None = None) -> Run:
        async with self._slots:
            with copy_of(source) as root:
                if mutant is not None:
                    mutant.plant(root)
                return await _run_in(root, rig, self.seed)


def _joined(rigs: list[Rig]) -> Rig:
    """All tests of some rigs, each once."""
    nodes = dict.fromkeys(node for rig in rigs for node in rig.arguments[2:])
    return Rig(("-m", "pytest", *nodes), seconds_max=sum(rig.seconds_max for rig in rigs))


_UNHARMED: Final = {RED: Verdict.UNSOUND, None: Verdict.LATE}
"""What it says of a rig that it ended so without a mistake."""


def _verdict(status: int | None, *, red: int) -> Verdict:
    if status is None:
        return Verdict.LATE
    if status not in (GREEN, RED):
        return Verdict.BROKEN
    return Verdict.FOUND if status == red else Verdict.SURVIVED


@contextmanager
def copy_of(source: Path) -> Iterator[Path]:
    """A folder with the source tree as it is now, for as long as the context lasts."""
    with tempfile.TemporaryDirectory(prefix="doubloon-mutant-") as folder:
        root = Path(folder) / "doubloon"
        shutil.copytree(source, root, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
        (root / ".venv").symlink_to(ROOT / ".venv")
        yield root


async def _run_in(root: Path, rig: Rig, seed: int) -> Run:
    """Runs a rig in a copy, which stands before everything that is installed."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(root), str(root / "client"))),
        SEED_VARIABLE: str(seed),
        SHRINK_VARIABLE: "0",  # any failure will do, the smallest takes long
    }
    if data := shared_data():
        environment[DATA_VARIABLE] = str(data)
    options = _PYTEST if rig.is_pytest else ()
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *rig.arguments,
        *options,
        cwd=root,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(rig.seconds_max):
            output, _ = await process.communicate()
        status = process.returncode
    except TimeoutError:
        output, status = b"its time was over", None
    finally:
        _end_session(process.pid)
        await process.wait()
    return Run(status, time.monotonic() - started, output.decode(errors="replace"))


def _end_session(leader: int) -> None:
    """Ends what is left of a rig's process group, which it alone is in."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # as it should be: everything had ended
