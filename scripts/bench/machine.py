"""The machine that figures belong to."""

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.compiled import INTERPRETED, is_current
from scripts.latency import Latencies

PAGE_BYTES = 4_096
CORES = 2
"""The bars are for two cores in all: on a larger machine the suite keeps itself and all it starts
on two, so that figures can be compared."""

_LIBRARIES = ("grpcio", "protobuf", "lmdb", "uvloop", "numpy")


def facts() -> dict[str, Any]:
    """Return what a reader of figures asks first."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_used": len(cores()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        # Whether servers run the compiled cores: three times the speed of the sources.
        "compiled": is_current() and not os.environ.get(INTERPRETED),
        "libraries": {name: version(name) for name in _LIBRARIES},
    }


def keep_to_cores(count: int = CORES) -> None:
    """Keep this process, and all that it starts from here on, on the first `count` cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def cores() -> list[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def sync_floor(folder: Path, syncs: int, pause_s: float = 0.0) -> Latencies:
    """Append 4 KiB and sync, again and again: what the disk itself takes for a lone transfer.

    A disk that has been left alone for some milliseconds may take three times as long as one that
    is asked again at once, so `pause_s` leaves it alone before each.
    """
    latencies = Latencies()
    page = os.urandom(PAGE_BYTES)
    path = folder / "sync-floor"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)
    try:
        for _ in range(syncs):
            time.sleep(pause_s)
            begun_s = time.perf_counter()
            os.write(handle, page)
            sync(handle)
            latencies.durations_s.append(time.perf_counter() - begun_s)
    finally:
        os.close(handle)
        path.unlink()
    return latencies


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
