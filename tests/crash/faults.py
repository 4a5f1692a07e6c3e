"""Faults at a chosen system call of a driver or its child, by strace's injection."""

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# All that LMDB writes with: single pages and the meta page, runs of pages, and the sync.
SYSCALLS = ("fdatasync", "pwrite64", "writev")
FILES = ("log", "state")
KILL = "signal=KILL"
EIO = "error=EIO"
ENOSPC = "error=ENOSPC"
ACTIONS = (KILL, EIO, ENOSPC)


@dataclass(frozen=True)
class Fault:
    """What happens at a system call.

    Attributes:
        action: one of `ACTIONS`; it happens instead of the call.
        file: of which environment.
        syscall: one of `SYSCALLS`.
        at: the how-manieth of a thread's calls, from 1.
    """

    action: str
    file: str
    syscall: str
    at: int

    def __str__(self) -> str:
        return f"{self.action} at {self.syscall} {self.at} of {self.file}"

    def prefix(self, folder: Path) -> list[str]:
        """The command that runs a driver into it."""
        injection = f"inject={self.syscall}:{self.action}:when={self.at}"
        return [*strace(self.syscall, folder / self.file), "-e", injection]


def strace(syscalls: str, environment: Path, output: Path = Path("/dev/null")) -> list[str]:
    """Traces only these calls on an environment's file; the others run at full speed."""
    quiet = ["-f", "-qq", "-e", "signal=none", "-o", str(output)]
    return ["strace", *quiet, "-e", f"trace={syscalls}", "-P", str(environment / "data.mdb")]


@cache
def why_not() -> str:
    """Why faults cannot be injected here; empty = they can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    injection = ["-e", "trace=getppid", "-e", "inject=getppid:retval=1"]
    probe = ["strace", "-f", "-qq", "-o", "/dev/null", *injection, "true"]
    found = subprocess.run(probe, capture_output=True, text=True, check=False)
    return f"strace cannot trace here: {found.stderr.strip()}" if found.returncode else ""
