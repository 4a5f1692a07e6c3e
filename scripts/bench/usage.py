"""What processes use, as the kernel counts it; where there is no /proc, nothing is told."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

CLIENT = "client"
CHECKPOINT = "checkpoint"
SCRUB = "scrub"
SAMPLE_S = 0.25
"""Between two looks at the memory: each look reads a file of every process."""

_PROC = Path("/proc")
_LOOPS, _LOOP_ROUNDS = 5, 100_000


def cpu_s(pid: int, *, reaped: bool = False) -> float:
    """Return the processor time of a process so far, all threads, user and system; 0 if unknown.

    The kernel counts in hundredths of a second, so only what ran for a second or more tells.

    Args:
        pid: of the process.
        reaped: whether to count the children that have ended, too.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if reaped else 13])) / os.sysconf("SC_CLK_TCK")


def machine_cpu_s() -> tuple[float, float]:
    """Return what all processors have worked, and what the host took from them, seconds; or 0s."""
    stat = _PROC / "stat"
    if not stat.exists():
        return 0.0, 0.0
    user, nice, system, _, _, hard, soft, stolen, *_ = map(
        int, stat.read_text(encoding="ascii").splitlines()[0].split()[1:]
    )
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + hard + soft) / tick, stolen / tick


class MachineWatch:
    """Tells who else used the machine since it was made."""

    def __init__(self) -> None:
        self._busy_s, self._stolen_s = machine_cpu_s()
        self._started_s = time.perf_counter()

    def seconds(self) -> float:
        """How long ago that was."""
        return time.perf_counter() - self._started_s

    def others_s(self, ours_s: float) -> float:
        """Return the processor seconds of all others, given those of ours."""
        return max(0.0, machine_cpu_s()[0] - self._busy_s - ours_s)

    def stolen_s(self) -> float:
        """Return what the host took."""
        return machine_cpu_s()[1] - self._stolen_s


def python_loop_ns() -> float:
    """Return what one round of a bare loop takes just now: how fast this processor is for Python.

    Processor time, the best of some; it tells a slow or shared processor from a slow program.
    """
    best_s = float("inf")
    for _ in range(_LOOPS):
        begun_s = time.thread_time()
        total = 0
        for each in range(_LOOP_ROUNDS):
            total += each
        best_s = min(best_s, time.thread_time() - begun_s)
    return best_s * 1e9 / _LOOP_ROUNDS


def rss_anon_bytes(pid: int) -> int:
    """Return the anonymous resident memory of a process; 0 if unknown."""
    try:
        status = (_PROC / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in status.splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def children(pid: int) -> list[int]:
    """Return the processes that a process's threads have started and not reaped."""
    found: list[int] = []
    for task in (_PROC / str(pid) / "task").glob("*"):
        try:
            found += map(int, (task / "children").read_text(encoding="ascii").split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has just ended
    return sorted(found)


def disk_bytes(*folders: Path) -> int:
    """Return what files occupy on the disk (not how long they say they are)."""
    return sum(
        path.stat().st_blocks * 512
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file()
    )


def cpu_of(pids: Mapping[str, int]) -> dict[str, float]:
    """Return the processor seconds of each so far; our own are exact."""
    return {name: cpu_s(pid) for name, pid in pids.items()} | {CLIENT: time.process_time()}


class MemoryWatch:
    """Looks at the memory of processes while the context lasts.

    Attributes:
        peak_bytes: the most that was seen, by process.
        series: (seconds since the start, by process) of every look.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._task: asyncio.Task[None] | None = None
        self.peak_bytes: dict[str, int] = {}
        self.series: list[tuple[float, dict[str, int]]] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch(time.perf_counter()))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None, "entered before it is left"
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _watch(self, started_s: float) -> None:
        while True:
            seen = {name: rss_anon_bytes(pid) for name, pid in self._pids().items()}
            seen[CLIENT] = rss_anon_bytes(os.getpid())
            self.series.append((time.perf_counter() - started_s, seen))
            for name, held in seen.items():
                self.peak_bytes[name] = max(held, self.peak_bytes.get(name, 0))
            await asyncio.sleep(SAMPLE_S)
