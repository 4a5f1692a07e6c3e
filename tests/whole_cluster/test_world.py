"""What the simulation is made of: lives that end without a word, and disks that forget."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shard_node.records import DamagedLogError
from tests.simulation.world import Violation
from tests.support.blocks import random_drafts
from tests.support.engines import IDENTITY
from tests.whole_cluster.disk import Disk, DiskAppender, DiskFaults, DiskLog
from tests.whole_cluster.world import Process, World

DRAFTS = 6


def run(act: Callable[[World], Coroutine[Any, Any, None]], seed: int = 1) -> World:
    """Play something in a world of its own."""
    world = World(random.Random(seed))
    world.run(act(world))
    return world


def test_time_passes_when_nothing_else_is_left_to_do() -> None:
    async def act(world: World) -> None:
        await asyncio.sleep(hour_s)
        assert world.loop.time() == hour_s

    hour_s = 3_600.0
    assert run(act).loop.steps < 10


def test_who_is_killed_says_no_more() -> None:
    said: list[str] = []

    async def program(process: Process) -> None:
        try:
            await asyncio.sleep(process.world.loop.time() + 60.0)
        finally:
            said.append("goodbye")

    async def act(world: World) -> None:
        process = Process(world, "one", program)
        process.start()
        world.after(1.0, world.kill, process, "kill")
        await asyncio.sleep(world.loop.time() + 120.0)
        assert not process.is_up
        assert not said

    run(act)


def test_a_fuse_ends_a_life_at_any_step() -> None:
    steps_by_fuse = []

    async def act(world: World) -> None:
        for fuse in range(1, 6):
            steps = [0]

            async def program(process: Process, steps: list[int] = steps) -> None:
                while process.is_up:
                    steps[0] += 1
                    await asyncio.sleep(0)

            process = Process(world, f"with {fuse}", program)
            process.start()
            process.life.fuse = fuse
            await asyncio.sleep(world.loop.time() + 1.0)
            steps_by_fuse.append(steps[0])

    run(act)
    assert steps_by_fuse == [0, 1, 2, 3, 4]


def test_who_hangs_goes_on_later() -> None:
    times: list[float] = []

    async def program(process: Process) -> None:
        while True:
            times.append(process.world.loop.time())
            await asyncio.sleep(process.world.rng.choice((1.0,)))

    async def act(world: World) -> None:
        process = Process(world, "one", program)
        process.start()
        world.after(2.5, process.hang, 10.0)
        await asyncio.sleep(world.loop.time() + 14.0)

    run(act)
    assert times == [0.0, 1.0, 2.0, 12.5, 13.5]


def test_what_nobody_catches_is_found() -> None:
    async def program(process: Process) -> None:
        raise KeyError(process.name)

    async def act(world: World) -> None:
        Process(world, "one", program).start()
        await asyncio.sleep(world.loop.time() + 1.0)

    with pytest.raises(Violation, match="one failed"):
        run(act)


def test_who_waits_for_nothing_is_told() -> None:
    async def act(world: World) -> None:
        await world.loop.create_future()

    with pytest.raises(RuntimeError, match="nothing that will ever happen"):
        run(act)


# --- disks ----------------------------------------------------------------------------------------


def test_a_crash_leaves_all_of_an_append_or_nothing(seed: int) -> None:
    found = set()
    for each in range(seed, seed + 20):

        async def act(world: World) -> None:
            disk = Disk(world, IDENTITY, lambda: None)

            async def program(_: Process) -> None:
                disk.lock()
                await DiskAppender(DiskLog(disk, 1)).append(random_drafts(world.rng, DRAFTS))

            process = Process(world, "node", program)
            process.start()
            world.after(1e-6, world.kill, process, "kill")
            await asyncio.sleep(world.loop.time() + 1.0)
            assert not disk.is_locked
            found.add(len(list(DiskLog(disk, 2).blocks(1))))

        run(act, each)
    assert found == {0, DRAFTS}


def test_a_failed_sync_leaves_a_hole_under_what_follows(seed: int) -> None:
    """What is appended after it is durable, and it is not: whoever goes on has lost."""
    holes = 0
    for each in range(seed, seed + 20):
        disks: list[Disk] = []

        async def act(world: World, disks: list[Disk] = disks) -> None:
            disk = Disk(world, IDENTITY, lambda: None)
            disks.append(disk)
            log = DiskLog(disk, 1)
            drafts = random_drafts(world.rng, DRAFTS)
            disk.faults = DiskFaults(sync_error=1.0)
            values, log.last = log.chain(drafts[:2])
            with pytest.raises(OSError, match="Input/output"):
                await disk.append(values)
            disk.faults = DiskFaults()
            await DiskAppender(log).append(drafts[2:])

        run(act, each)
        (disk,) = disks
        assert disk.durable_blocks in {0, DRAFTS}
        disk.drop_cache()
        holes += len(disk.values) < DRAFTS
    assert 0 < holes < 20


def test_a_flipped_bit_is_found(rng: random.Random) -> None:
    disk = Disk(World(rng), IDENTITY, lambda: None)
    DiskLog(disk, 1).append(random_drafts(rng, DRAFTS))
    restore = disk.flip(rng.randrange(DRAFTS - 1))
    with pytest.raises(DamagedLogError):
        list(DiskLog(disk, 2).blocks(1))
    restore()
    assert len(list(DiskLog(disk, 2).blocks(1))) == DRAFTS


def test_a_later_epoch_fences_an_earlier_one(rng: random.Random) -> None:
    disk = Disk(World(rng), IDENTITY, lambda: None)
    drafts = random_drafts(rng, DRAFTS)
    DiskLog(disk, 3).append(drafts)
    with pytest.raises(DamagedLogError, match="epoch 2 is over"):
        DiskLog(disk, 2)
