"""Disks whose power can be cut: file systems in image files, behind loop devices.

The kernel's shutdown call stops a mounted file system dead: nothing that it had not written by then
is written any more, its journal included. Unmounted and mounted again it is what a disk is after a
power cut. Needs root, loop devices and the file system's `mkfs`.
"""

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

FILE_SYSTEMS = ("ext4", "xfs")
IMAGE_BYTES = 400 * 1024 * 1024  # XFS makes none smaller than 300 MB; sparse, so it costs little
UNMOUNTS_MAX = 200  # each is a process of a millisecond or two

_SHUTDOWN = 0x8004587D
_WITHOUT_LOG_FLUSH = struct.pack("<I", 2)
_MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}


class Disk:
    """A mounted file system. Make it with `disk`."""

    def __init__(self, image: Path, folder: Path) -> None:
        self.image = image
        self.folder = folder

    def cut_power(self) -> None:
        """Nothing that is not on the disk by now ever will be."""
        descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, _WITHOUT_LOG_FLUSH)
        finally:
            os.close(descriptor)

    def power_up(self) -> None:
        """Mount what the disk has; nobody may use it any more."""
        self.unmount()
        self.mount()

    def mount(self) -> None:
        _run(["mount", "-o", "loop", str(self.image), str(self.folder)])

    def unmount(self) -> None:
        """Unmount; a process that has just ended may hold the disk for a moment."""
        for left in reversed(range(UNMOUNTS_MAX)):
            try:
                _run(["umount", str(self.folder)])
            except DiskError as error:
                if not left or "busy" not in str(error):
                    raise
            else:
                return


@contextmanager
def disk(file_system: str) -> Iterator[Disk]:
    """A fresh disk, in a temporary folder; gone afterwards.

    Raises:
        DiskError: it cannot be made here.
    """
    with tempfile.TemporaryDirectory(prefix="doubloon-disk-") as folder:
        image, mounted = Path(folder, "image"), Path(folder, "disk")
        mounted.mkdir()
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        _run([*_MAKE[file_system], str(image)])
        made = Disk(image, mounted)
        made.mount()
        try:
            yield made
        finally:
            made.unmount()


class DiskError(Exception):
    """A command about disks failed; the message says which, and why."""


@cache
def why_not(file_system: str) -> str:
    """Why the power of such a disk cannot be cut here; empty = it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which(_MAKE[file_system][0]) is None:
        return f"{_MAKE[file_system][0]} is not installed"
    try:
        with disk(file_system) as probe:
            probe.cut_power()
    except (DiskError, OSError) as error:
        return f"no {file_system} whose power can be cut: {error}"
    return ""


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DiskError(f"{' '.join(command[:3])}: {done.stderr.strip()}")
