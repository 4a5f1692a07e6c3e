"""Power cuts at random moments under load, on a real file system."""

import asyncio
import random
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

from cluster.runtime import EXIT_OK
from tests.crash.disks import Disk, disk
from tests.crash.driver import Plan
from tests.crash.faults import EIO, ENOSPC, Fault
from tests.crash.trial import (
    DRIVER_TIMEOUT_S,
    check_end,
    driver_command,
    driver_environment,
    run_driver,
)
from tests.crash.verdict import History, verdict
from tests.support import eventually

ENDLESS = 1_000_000  # commands of each stream: the cut comes first
ACKNOWLEDGED_MAX = 400  # commands before a cut: about a second of load, some ten checkpoints
COMMANDS = 12  # of each stream, where a sync fails
SYNCS_MAX = 25  # of the log's, the one that fails
CUTS_PER_FOLDER = 4  # everything is asked again after each, and a folder's history grows


@dataclass
class PowerCount:
    """What cuts came to.

    Attributes:
        cuts: under load, by file system.
        failed_syncs: with a cut after each, by file system.
        commands: acknowledged before a cut, and found after it.
        answers: transfers and groups answered, asked again ones as well.
    """

    cuts: Counter[str] = field(default_factory=Counter)
    failed_syncs: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    answers: int = 0

    def rows(self) -> dict[str, int]:
        """For people and programs."""
        cuts = {f"power cuts on {name}": count for name, count in self.cuts.items()}
        sums = {"commands acknowledged": self.commands}
        syncs = {f"syncs failed on {name}": count for name, count in self.failed_syncs.items()}
        return {**cuts, **syncs, **sums, "transfers and groups answered": self.answers}


def cuts(
    file_system: str,
    seed: int,
    number: int,
    count: PowerCount,
    acknowledged_max: int = ACKNOWLEDGED_MAX,
) -> Generator[int]:
    """So many cuts, each under load, with a verdict after each; yields after each."""
    rng = random.Random(f"{seed}-{file_system}")
    with disk(file_system) as it:
        history, folder = History(seed), it.folder / "0"
        for each in range(number):
            if each % CUTS_PER_FOLDER == 0:
                history, folder = History(seed + each), it.folder / str(each)
            try:
                _cut(it, folder, history, rng.randint(1, acknowledged_max), count)
            except Exception as error:
                error.add_note(f"cut {each} on {file_system}, seed {seed}")
                raise
            count.cuts[file_system] += 1
            yield each


def failed_syncs(file_system: str, seed: int, number: int, count: PowerCount) -> Generator[int]:
    """So many syncs that fail, and then a power cut: what counts is what the disk has by then.

    The page cache still has what was not synced; neither a restart nor a caller may have seen it.
    """
    rng = random.Random(f"{seed}-{file_system}-syncs")
    with disk(file_system) as it:
        for each in range(number):
            history, folder = History(seed + each), it.folder / f"sync-{each}"
            fault = Fault(rng.choice((EIO, ENOSPC)), "log", "fdatasync", rng.randint(3, SYNCS_MAX))
            plan = Plan(str(folder), history.seed, history.next_epoch(), COMMANDS)
            ended = run_driver(plan, fault.prefix(folder))
            try:
                struck = check_end(ended, fault)
                it.cut_power()
                it.power_up()
                count.commands += history.hear(ended.report, COMMANDS)
                asyncio.run(verdict(history, folder))
            except Exception as error:
                error.add_note(f"{fault} on {file_system}, seed {seed}, {each}")
                raise
            count.failed_syncs[file_system] += struck
            count.answers += history.knowledge.answers
            yield each


def _cut(it: Disk, folder: Path, history: History, after: int, count: PowerCount) -> None:
    """Load, cut once so many commands were acknowledged, and look at what the disk has."""
    plan = Plan(str(folder), history.seed, history.next_epoch(), ENDLESS)
    with tempfile.TemporaryDirectory(prefix="doubloon-report-") as outside:
        report = Path(outside, "report")
        with report.open("wb") as stdout:
            driver = subprocess.Popen(
                driver_command(plan),
                env=driver_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            asyncio.run(_acknowledged(report, after, driver))
            it.cut_power()
            # Its standard error ends when the last process has that has it: the child as well.
            _, errors = driver.communicate(timeout=DRIVER_TIMEOUT_S)
            assert _lines_of(report) >= after, f"it ended by itself: {errors}"
            assert driver.returncode != EXIT_OK, "it did not notice"
        finally:
            driver.kill()
            driver.communicate()
        it.power_up()
        before = history.knowledge.answers
        count.commands += history.hear(report.read_text(), ENDLESS)
        asyncio.run(verdict(history, folder))
        count.answers += history.knowledge.answers - before


async def _acknowledged(report: Path, count: int, driver: subprocess.Popen[str]) -> None:
    """Returns once so many commands were, or the driver has ended."""
    await eventually(
        lambda: _lines_of(report) >= count or driver.poll() is not None, "acknowledgements"
    )


def _lines_of(report: Path) -> int:
    return report.read_bytes().count(b"\n")
