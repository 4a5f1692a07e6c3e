"""A shard that runs out of room says so in time, goes on reading, and goes on with more room."""

import asyncio
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from shard_node.engine import Engine
from shard_node.errors import OverloadedError, SpaceExhaustedError
from shard_node.ledger import KIND_SYSTEM
from shard_node.limits import Limits
from shard_node.space import Owed, Space
from shard_node.verify import verify_history
from tests.support.engines import FLOOR_MINOR, IDENTITY, body, running, settle
from tests.support.folders import MEBIBYTE, open_here

ACCOUNTS = 3_000
ROOMY = 64 * MEBIBYTE


@dataclass
class Shape:
    """A way to fill a map."""

    log_mib: int = 64
    state_mib: int = 64
    metadata_bytes: int = 0
    batch: int = 500
    callers: int = 4
    checkpoint_rows: int = 250_000
    ordered_ids: bool = True

    def limits(self) -> Limits:
        return Limits(
            checkpoint_rows=self.checkpoint_rows,
            log_map_bytes=self.log_mib * MEBIBYTE,
            state_map_bytes=self.state_mib * MEBIBYTE,
            disk_free_min_bytes=MEBIBYTE,
            accounts_max=500,
        )


SHAPES = {
    "a log of large batches": Shape(log_mib=8, batch=2_000),
    "a log of metadata": Shape(log_mib=8, metadata_bytes=256, batch=700),
    "a log of small calls": Shape(log_mib=2, batch=1, callers=50),
    "a state of keys in order": Shape(state_mib=3, batch=200),
    "a state of keys in no order": Shape(state_mib=6, ordered_ids=False, batch=100),
    "a state with frequent checkpoints": Shape(state_mib=4, checkpoint_rows=300, batch=50),
    "a state of small calls": Shape(state_mib=4, batch=1, callers=50, ordered_ids=False),
}


@dataclass
class Traffic:
    """Callers that go on until they are told that there is no room."""

    shape: Shape
    rng: random.Random
    balances: dict[int, int] = field(default_factory=dict)
    number: int = 0

    async def fill(self, engine: Engine) -> None:
        """Call until every caller has been refused for lack of space, small calls too."""
        await asyncio.gather(*(self._caller(engine) for _ in range(self.shape.callers)))

    async def _caller(self, engine: Engine) -> None:
        refused = 0
        while not engine.space.exhausted and refused < 100:
            count = self.shape.batch if refused < 10 else 1
            try:
                await self.call(engine, count)
            except SpaceExhaustedError:
                refused += 1
                await settle()  # a checkpoint may show that there is more room than it seemed
            except OverloadedError:
                await settle()

    async def call(self, engine: Engine, count: int) -> None:
        bodies, moves, length = [], [], self.shape.metadata_bytes
        for _ in range(count):
            self.number += 1
            source, destination = self.rng.sample(range(1, ACCOUNTS + 1), 2)
            amount = self.rng.randrange(1, 100)
            key = b"" if self.shape.ordered_ids else self.rng.randbytes(16)
            moves.append((source, destination, amount))
            bodies.append(
                body(
                    self.number,
                    source,
                    destination,
                    amount,
                    metadata_bytes=length,
                    transfer_id=key,
                )
            )
        await engine.execute(b"".join(bodies), bytes(length * count))
        for source, destination, amount in moves:
            self.balances[source] = self.balances.get(source, 0) - amount
            self.balances[destination] = self.balances.get(destination, 0) + amount


async def opened(folder: Path, limits: Limits, epoch: int) -> tuple[Engine, list[BaseException]]:
    engine, fatal = open_here(folder, limits, epoch)
    await engine.start(epoch)
    return engine, fatal


async def check(engine: Engine, traffic: Traffic) -> None:
    """All that was answered is there, and nothing else."""
    for account_id in range(1, ACCOUNTS + 1, 7):
        account = await engine.settle_account(account_id)
        minor = account.balances[1].minor if account.balances else 0
        assert minor == traffic.balances.get(account_id, 0)
    assert all(books.balanced for books in (await engine.add_up()).values())


@pytest.mark.parametrize("name", sorted(SHAPES))
async def test_a_map_is_never_overrun(name: str, tmp_path: Path, rng: random.Random) -> None:
    shape = SHAPES[name]
    limits = shape.limits()
    engine, fatal = await opened(tmp_path, limits, 1)
    specs = [(each, KIND_SYSTEM, FLOOR_MINOR, 0) for each in range(1, ACCOUNTS + 1)]
    for at in range(0, ACCOUNTS, 300):
        await engine.open_accounts(specs[at : at + 300])
    traffic = Traffic(shape, rng)
    await traffic.fill(engine)
    assert not fatal, "refused before LMDB failed"
    assert traffic.number > 1_000, "but not before there was much to it"
    await check(engine, traffic)
    await engine.stop()
    # It starts again with the same maps, to be read; and again.
    for epoch in (2, 3):
        engine, fatal = await opened(tmp_path, limits, epoch)
        await check(engine, traffic)
        await engine.stop()
        assert not fatal
    # With larger maps it goes on.
    roomy = replace(limits, log_map_bytes=ROOMY, state_map_bytes=ROOMY)
    engine, fatal = await opened(tmp_path, roomy, 4)
    for _ in range(5):
        await traffic.call(engine, 200)
    await check(engine, traffic)
    await engine.stop()
    assert not fatal
    verify_history(tmp_path, IDENTITY, roomy)


def _space(log_bytes: int, state_bytes: int, log_map: int, state_map: int) -> Space:
    class Used:
        def __init__(self, used: int) -> None:
            self.used = used

        def used_bytes(self) -> int:
            return self.used

    return Space(Used(log_bytes), Used(state_bytes), log_map, state_map, 0, None)  # type: ignore[arg-type] # all that it asks of them


Case = tuple[str, int, int, bool]
G = 1024**3
CASES: list[Case] = [
    ("empty", 0, 0, False),
    ("the log at 94 %", int(0.94 * 256 * G), 0, False),
    ("the log at 95 %", int(0.95 * 256 * G) + 1, 0, True),
    ("the state at 94 %", 0, int(0.94 * 128 * G), False),
    ("the state at 95 %", 0, int(0.95 * 128 * G) + 1, True),
]


@pytest.mark.parametrize(("case", "log_bytes", "state_bytes", "exhausted"), CASES)
def test_maps_of_ordinary_size_are_used_up_to_the_part_named(
    case: str, log_bytes: int, state_bytes: int, *, exhausted: bool
) -> None:
    space = _space(log_bytes, state_bytes, 256 * G, 128 * G)
    space.look()
    assert space.exhausted is exhausted
    default = Limits()
    most = Owed(default.queue_transfers_max, default.checkpoint_rows, default.checkpoint_rows)
    assert space.admits(most) or exhausted, "a full queue and two checkpoints fit"


async def test_disk_space_is_watched(tmp_path: Path) -> None:
    limits = Limits(log_map_bytes=ROOMY, state_map_bytes=ROOMY, disk_free_min_bytes=2**62)
    engine, fatal = await opened(tmp_path, limits, 1)
    assert engine.space.exhausted
    with pytest.raises(SpaceExhaustedError):
        await engine.open_accounts([(1, KIND_SYSTEM, 0, 0)])
    await engine.stop()
    assert not fatal


async def test_space_that_is_there_again_is_used_again(tmp_path: Path) -> None:
    async with running() as it:
        space = it.engine.space
        space._disk_free_min_bytes, space._data = 2**62, tmp_path
        await it.execute(body(1, 1, 2))  # too little for another look
        assert not space.exhausted
        space._look_bytes = 1
        await it.execute(body(3, 1, 2))
        with pytest.raises(SpaceExhaustedError):
            await it.execute(body(2, 1, 2))
        space._disk_free_min_bytes = 0
        await it.engine.checkpoint()
        assert len(await it.execute(body(2, 1, 2))) == 1
