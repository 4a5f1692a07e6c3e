"""The processes' wall clocks, moved from outside by libfaketime (Debian's package `faketime`).

Each process reads how far it is off from a file of its own, again and again, so that its clock can
jump while it runs. Monotonic clocks stay true: what is lied about is the time of day.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Final

LIBRARY: Final = "libfaketimeMT.so.1"
FOLDERS: Final = ("/usr/lib", "/usr/local/lib", "/lib")
CACHED_S: Final = 1
"""A process reads its file anew this often, whole seconds: a jump takes as long to be felt."""

Process = tuple[str, int]


def find_library() -> Path | None:
    """Return where libfaketime is; None = it is not installed."""
    for folder in FOLDERS:
        for place in (f"faketime/{LIBRARY}", f"*/faketime/{LIBRARY}"):
            if found := sorted(Path(folder).glob(place)):
                return found[0]
    return None


def missing() -> str:
    """Say why clocks cannot be moved here; "" = they can."""
    if find_library() is None:
        return "no libfaketime (Debian's package faketime)"
    return "" if shutil.which("env") else "no env"


class Clocks:
    """The clocks of one cluster's processes.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        library = find_library()
        assert library, missing()
        self._library = library
        self._folder = folder
        self._own_us: defaultdict[Process, int] = defaultdict(int)
        self._common_us = 0
        folder.mkdir(parents=True, exist_ok=True)

    def offset_us(self, process: Process) -> int:
        """How far ahead of the true time a process is."""
        return self._common_us + self._own_us[process]

    def set(self, process: Process, offset_us: int) -> None:
        """Moves one process's clock, beside what all have in common."""
        self._own_us[process] = offset_us
        self._write(process)

    def advance_all(self, by_us: int) -> None:
        """Moves everybody's clock ahead, at about the same moment."""
        self._common_us += by_us
        for process in list(self._own_us):
            self._write(process)

    def prefix(self, process: Process) -> tuple[str, ...]:
        """Return what to put before a process's command."""
        self._own_us[process] += 0  # from now on it is one of all
        self._write(process)
        return (
            "env",
            f"LD_PRELOAD={self._library}",
            f"FAKETIME_TIMESTAMP_FILE={self._file(process)}",
            f"FAKETIME_CACHE_DURATION={CACHED_S}",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
        )

    def _file(self, process: Process) -> Path:
        return self._folder / f"{process[0]}-{process[1]}"

    def _write(self, process: Process) -> None:
        file = self._file(process)
        staged = file.with_suffix(".new")
        staged.write_text(f"{self.offset_us(process) / 1e6:+.6f}\n", encoding="ascii")
        os.replace(staged, file)  # noqa: PTH105 - in one step: a reader finds one or the other
