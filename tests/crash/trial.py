"""One driver run into a fault, and what is left of it."""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cluster.runtime import EXIT_FATAL, EXIT_OK, EXIT_REFUSED
from scripts import compiled
from tests.crash.driver import Plan
from tests.crash.faults import FILES, KILL, SYSCALLS, Fault, strace
from tests.crash.verdict import History, verdict
from tests.support import ROOT

KILLED = -9
DRIVER_TIMEOUT_S = 90.0  # it takes less than one; a driver that hangs is a finding
SAYS_WHY = ("fatal", "start_refused")


@dataclass
class Ended:
    """How a driver ended.

    Attributes:
        code: its exit code, as `subprocess` tells it.
        report: its answers.
        errors: its standard error.
    """

    code: int
    report: str
    errors: str


@dataclass
class Count:
    """What trials came to.

    Attributes:
        trials: folders, each with several faults one after the other.
        faults: that struck, by what they were.
        commands: acknowledged by drivers.
        answers: transfers and groups answered, asked again ones as well.
    """

    trials: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    commands: int = 0
    answers: int = 0

    def rows(self) -> dict[str, int]:
        """For people and programs."""
        sums = {"trials": self.trials, "commands acknowledged": self.commands}
        return {**sums, "transfers and groups answered": self.answers, **self.faults}


def driver_command(plan: Plan) -> list[str]:
    """Starts a driver."""
    return [sys.executable, "-m", "tests.crash.driver", plan.pack()]


def driver_environment() -> dict[str, str]:
    """A driver runs what a node runs: the compiled cores, where there are any."""
    environment = dict(compiled.environment())
    rooms = environment.get("PYTHONPATH", "").split(os.pathsep)
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, rooms), str(ROOT)])
    return environment


def run_driver(plan: Plan, prefix: list[str]) -> Ended:
    """Run a driver to its end."""
    with tempfile.TemporaryFile("w+") as report, tempfile.TemporaryFile("w+") as errors:
        code = subprocess.run(
            [*prefix, *driver_command(plan)],
            env=driver_environment(),
            stdin=subprocess.DEVNULL,
            stdout=report,
            stderr=errors,
            timeout=DRIVER_TIMEOUT_S,
            check=False,
        ).returncode
        report.seek(0)
        errors.seek(0)
        return Ended(code, report.read(), errors.read())


async def trial(
    folder: Path, seed: int, faults: list[Fault], commands: int, count: Count, mutant: str = ""
) -> list[bool]:
    """Run a folder through one driver for each fault, with a verdict after each.

    Returns:
        Which of the faults struck; the others lay behind the driver's end.

    Raises:
        AssertionError: a promise is broken, or the driver did not end as it must.
    """
    history, struck = History(seed), []
    for fault in faults:
        plan = Plan(str(folder), seed, history.next_epoch(), commands, mutant)
        ended = run_driver(plan, fault.prefix(folder))
        try:
            struck.append(check_end(ended, fault))
            count.commands += history.hear(ended.report, commands)
            await verdict(history, folder)
        except Exception as error:
            error.add_note(f"{fault}, seed {seed}, epoch {plan.epoch}\n{ended.errors[-2_000:]}")
            raise
        count.faults[fault.action] += struck[-1]
    count.trials += 1
    count.answers += history.knowledge.answers
    return struck


def check_end(ended: Ended, fault: Fault) -> bool:
    """Whether the fault struck; then the driver must have ended at once, and have said why."""
    if ended.code == EXIT_OK:
        assert not ended.errors.count("fatal"), "it went on after a fatal error"
        return False
    if fault.action == KILL and ended.code == KILLED:
        return True
    assert ended.code in (EXIT_FATAL, EXIT_REFUSED), f"it ended with {ended.code}"
    assert any(each in ended.errors for each in SAYS_WHY), "it did not say why it ended"
    return True


def calls_of(folder: Path, plan: Plan) -> dict[tuple[str, str], int]:
    """How many calls of each kind one thread of an undisturbed driver makes at the most."""
    found = {}
    for file in FILES:
        trace = folder / f"{file}.trace"
        part = folder / f"calls-{file}"
        undisturbed = Plan(str(part), plan.seed, plan.epoch, plan.commands)
        ended = run_driver(undisturbed, strace(",".join(SYSCALLS), part / file, trace))
        assert ended.code == EXIT_OK, ended.errors
        by_thread = Counter(
            (fields[0], fields[1].partition("(")[0])
            for line in trace.read_text().splitlines()
            if len(fields := line.split()) > 1
        )
        for syscall in SYSCALLS:
            counts = [each for (_, name), each in by_thread.items() if name == syscall]
            found[file, syscall] = max(counts, default=0)
    return found
