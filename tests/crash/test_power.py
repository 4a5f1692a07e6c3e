"""A seeded sample of `python -m tests.crash power`, and what a disk says against its own cache."""

import mmap
import random
from pathlib import Path

import pytest

from shard_node.log import LmdbLog
from shard_node.records import Block, block_value
from tests.crash import faults
from tests.crash.damage import write_folder
from tests.crash.disks import FILE_SYSTEMS, disk, why_not
from tests.crash.mutants import KEEPS_PAGE_CACHE
from tests.crash.opener import FINE, REFUSED, VERIFY, Opener
from tests.crash.power import PowerCount, cuts, failed_syncs
from tests.support.folders import LIMITS
from tests.support.ledgers import IDENTITY

CUTS = 1
ACKNOWLEDGED_MAX = 80  # commands before the cut


def needs_disk(file_system: str) -> None:
    if reason := why_not(file_system):
        pytest.skip(reason)


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_what_was_acknowledged_survives_a_power_cut(file_system: str, seed: int) -> None:
    needs_disk(file_system)
    count = PowerCount()
    assert len([*cuts(file_system, seed, CUTS, count, ACKNOWLEDGED_MAX)]) == CUTS
    assert count.commands > 0


@pytest.mark.parametrize("file_system", FILE_SYSTEMS)
def test_after_a_failed_sync_the_disk_has_what_was_acknowledged(
    file_system: str, seed: int
) -> None:
    needs_disk(file_system)
    if reason := faults.why_not():
        pytest.skip(reason)
    count = PowerCount()
    assert len([*failed_syncs(file_system, seed, 1, count)]) == 1
    assert count.commands > 0


def last_block(folder: Path) -> Block:
    log = LmdbLog(folder / "log", IDENTITY, 2**64 - 1, LIMITS.log_map_bytes, read_only=True)
    block = log.last
    log.close()
    assert block is not None
    return block


def change_on_the_device(image: Path, value: bytes, at: int) -> None:
    """Change a byte of a value on the disk, while the file's page in the cache stays as it is."""
    with image.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        start = content.find(value)
        assert start >= 0, "it is not on the disk, though it was synced"
        while start >= 0:
            content[start + at] ^= 1
            start = content.find(value, start + 1)


async def test_a_start_reads_the_device_and_not_the_cache(seed: int) -> None:
    """As after a failed sync: the cache still shows a write that the disk has lost."""
    needs_disk("ext4")
    with disk("ext4") as it:
        written = await write_folder(it.folder, seed, commands=4)
        value = block_value(IDENTITY, last_block(written.data))
        change_on_the_device(it.image, value, random.Random(seed).randrange(len(value)))
        with Opener(written.history, KEEPS_PAGE_CACHE) as wrong, Opener(written.history) as right:
            assert wrong.look(VERIFY, written.data).verdict == FINE, "the planted bug shows"
            assert right.look(VERIFY, written.data).verdict == REFUSED
