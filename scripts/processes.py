"""Starting, watching and ending the processes of a cluster on this machine.

Two ways to hold a process. A `ManagedProcess` is a child of ours: started here, reaped here. A
`ProcessRecord` names a process that an earlier command started and left running; a process id
alone may by now belong to somebody else, so the record also carries when the process started, and
nothing is signalled unless both fit.
"""

import asyncio
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_GRACE_S = 15.0
"""How long a process may take to stop cleanly: a shard node writes a last checkpoint."""

KILL_GRACE_S = 5.0
"""How long the system may take to end a killed process; longer means a stuck disk."""

POLL_S = 0.02  # an exit is noticed this late; there is no event for a process that is not ours
TAIL_LINES = 15  # enough for a traceback's end, few enough for a terminal
TAIL_COLUMNS = 600  # of each: a JSON line may hold a whole traceback


class ProcessEnded(Exception):  # noqa: N818 - it says what happened
    """A process ended while it was needed; the message holds its last log lines."""


@dataclass(frozen=True)
class ProcessRecord:
    """A process that was started on this machine, perhaps by somebody who has gone.

    Attributes:
        role: `etcd`, `shard`, `router`.
        id: unique within its role.
        pid: the process id.
        start_mark: what `start_mark(pid)` said when it was started.
        log: the file with what it printed.
    """

    role: str
    id: str
    pid: int
    start_mark: str
    log: str

    def is_alive(self) -> bool:
        """Whether that very process still runs."""
        return start_mark(self.pid) == self.start_mark

    def signal(self, number: int) -> bool:
        """Send a signal to that very process; False when it has ended."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def start_mark(pid: int) -> str | None:
    """Return a text that no other process of this id has had since the machine started.

    None when there is no such process, or when it has ended and only waits to be reaped.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _start_mark_by_ps(pid)
    # The second field is the program's name in parentheses, and may hold spaces and parentheses.
    state, *rest = stat.rpartition(")")[2].split()
    ticks_since_boot = rest[18]  # field 22 of proc(5), `starttime`
    return None if state in "ZX" else ticks_since_boot


def _start_mark_by_ps(pid: int) -> str | None:
    """As `start_mark`, where there is no /proc."""
    shown = subprocess.run(
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split(maxsplit=1)
    return None if not shown or shown[0].startswith("Z") else shown[1].strip()


class ManagedProcess:
    """A child process in its own session, so that a Ctrl-C at the terminal does not reach it.

    Args:
        role: `etcd`, `shard`, `router`.
        id: unique within its role.
        command: the program and its arguments.
        log: file that what it prints is appended to.
        cwd: the folder it runs in.
        environment: the whole environment; None = ours.
    """

    def __init__(
        self,
        role: str,
        id: str,  # noqa: A002 - the word that membership uses
        command: Sequence[str],
        log: Path,
        cwd: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.role = role
        self.id = id
        self.log = log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=cwd,
                env=None if environment is None else dict(environment),
            )
        self._start_mark = start_mark(self._popen.pid) or ""

    def __str__(self) -> str:
        return f"{self.role} {self.id}"

    @property
    def pid(self) -> int:
        """The process id; no other process gets it before this one has been reaped."""
        return self._popen.pid

    def record(self) -> ProcessRecord:
        """Return what another command needs to find this process again."""
        return ProcessRecord(self.role, self.id, self.pid, self._start_mark, str(self.log))

    def is_alive(self) -> bool:
        """Whether it runs; one that has ended is reaped by asking."""
        return self._popen.poll() is None

    def signal(self, number: int) -> bool:
        """Send a signal; False when it has ended."""
        alive = self.is_alive()
        if alive:
            self._popen.send_signal(number)
        return alive

    def kill(self) -> None:
        """End it at once, as a power cut would, and reap it.

        Raises:
            subprocess.TimeoutExpired: the system could not end it in time.
        """
        self.signal(signal.SIGKILL)
        self._popen.wait(KILL_GRACE_S)

    def check_alive(self) -> None:
        """Raise ProcessEnded, with its last log lines, when it has ended."""
        if not self.is_alive():
            code = self._popen.returncode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise ProcessEnded(f"{self} ended {how}; {self.log} ends with\n{tail(self.log)}")


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """Return the last lines of a log, indented."""
    try:
        with log.open(encoding="utf-8", errors="replace") as text:
            last = deque(text, lines)
    except FileNotFoundError:
        return "  (there is no log)"
    return (
        "".join(f"  {line.rstrip()[:TAIL_COLUMNS]}\n" for line in last).rstrip("\n")
        or "  (nothing)"
    )


async def end_all(
    processes: Sequence[ManagedProcess | ProcessRecord], grace_s: float = STOP_GRACE_S
) -> list[str]:
    """Ask all to stop, wait, and kill those that have not; return what had to be killed.

    Killing also happens when waiting is interrupted, so nothing outlives this call.

    Raises:
        TimeoutError: the system could not end a killed process.
    """
    resumed = [p for p in processes if p.signal(signal.SIGCONT)]  # a stopped one hears no SIGTERM
    asked = [p for p in resumed if p.signal(signal.SIGTERM)]
    killed: list[ManagedProcess | ProcessRecord] = []
    try:
        await _wait_for_end(asked, grace_s)
    finally:
        killed = [p for p in asked if p.signal(signal.SIGKILL)]
    if not await _wait_for_end(killed, KILL_GRACE_S):
        raise TimeoutError("the system does not end: " + ", ".join(_name(p) for p in killed))
    return [_name(p) for p in killed]


async def _wait_for_end(
    processes: Sequence[ManagedProcess | ProcessRecord], timeout_s: float
) -> bool:
    deadline_s = time.monotonic() + timeout_s
    while any(p.is_alive() for p in processes):
        if time.monotonic() > deadline_s:
            return False
        await asyncio.sleep(POLL_S)
    return True


def _name(process: ManagedProcess | ProcessRecord) -> str:
    return f"{process.role} {process.id} (pid {process.pid})"
