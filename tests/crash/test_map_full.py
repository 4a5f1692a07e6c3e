"""A map runs full while transactions are prepared: what was begun is finished, and is there.

`tests/integration/test_space.py` fills maps with every shape of traffic; here both sides of
two-phase commit stand in the middle when there is no room left.
"""

import random
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cluster.packed import VOTE, Fate, Vote
from shard_node.engine import Engine
from shard_node.errors import SpaceExhaustedError
from shard_node.limits import Limits
from shard_node.verify import verify_history
from tests.crash.knowledge import Knowledge
from tests.crash.verdict import check_accounts, end_prepared
from tests.crash.workload import (
    EPOCH_US,
    FOREIGN,
    PLAYERS,
    Command,
    CommitHome,
    End,
    Open,
    Prepare,
    Resolve,
    Transfers,
    execute,
)
from tests.support.crossing import HERE, LIFE_US, RESOLUTION, Attempt, Move
from tests.support.engines import START_US
from tests.support.folders import LIMITS, MEBIBYTE, open_here
from tests.support.ledgers import BANK, IDENTITY

PREPARED = 60
CALL_TRANSFERS = 100
CALLS_MAX = 5_000  # a map of this size is full after a tenth of them

FULL = {
    "log": replace(LIMITS, log_map_bytes=2 * MEBIBYTE, checkpoint_rows=20_000),
    "state": replace(LIMITS, state_map_bytes=2 * MEBIBYTE, checkpoint_rows=500),
}


class Shard:
    """An engine that runs full, and what is known of it."""

    def __init__(self, engine: Engine, known: Knowledge, rng: random.Random, keys: int) -> None:
        self.engine = engine
        self.known = known
        self._rng = rng
        self._keys = keys

    async def ask(self, command: Command) -> bytes:
        answer = await execute(self.engine, command, set(self.known.prepared))
        self.known.hear(command, answer)
        return answer

    def key(self) -> int:
        self._keys += 1
        return self._keys

    def move(self, source: int = BANK, destination: int = 0) -> Move:
        return Move(source, destination or self._rng.choice(PLAYERS), self._rng.randrange(1, 9))

    def attempt(self, move: Move, deadline_us: int) -> Attempt:
        key = self.key()
        return Attempt(key, deadline_us, (move,), key)

    async def fill(self) -> None:
        """Transfers, until even a small call is refused for lack of space."""
        for call in range(CALLS_MAX):
            try:
                count = CALL_TRANSFERS if not self.engine.space.exhausted else 1
                await self.ask(Transfers(tuple((self.key(), self.move()) for _ in range(count))))
            except SpaceExhaustedError:
                if self.engine.space.exhausted:
                    assert call > 10, "but not before there was much to it"
                    return
                await self.engine.checkpoint()  # it may show that there is more room than it seems
        pytest.fail("it never ran full")


@pytest.mark.parametrize("which", FULL)
async def test_what_was_begun_is_finished_when_a_map_is_full(
    which: str, tmp_path: Path, rng: random.Random
) -> None:
    limits, known = FULL[which], Knowledge()
    shard, fatal = await started(tmp_path, limits, 1, known, rng)
    deadline_us = START_US + EPOCH_US + LIFE_US
    await shard.ask(Open())
    attempts = [
        shard.attempt(shard.move(source=rng.choice(FOREIGN)), deadline_us) for _ in range(PREPARED)
    ]
    for attempt in attempts:
        await shard.ask(Prepare(attempt))
    assert len(known.prepared) == PREPARED
    await shard.fill()
    await refuses_what_is_new(shard, deadline_us)
    for number, attempt in enumerate(attempts[: PREPARED // 2]):
        await shard.ask(End(attempt, commit=bool(number % 3)))
    late = shard.attempt(shard.move(destination=FOREIGN[0]), START_US)
    assert RESOLUTION.unpack(await shard.ask(Resolve(late)))[0] == Fate.ABORTED
    await check_reserved(shard.engine, known)
    await shard.engine.stop()
    assert not fatal, "LMDB never failed"

    # It starts again in the same maps, has everything, and the others are finished then.
    shard, fatal = await started(tmp_path, limits, 2, known, rng)
    assert set(shard.engine.ledger.transactions.prepared) == set(known.prepared)
    await end_prepared(shard.engine, known)
    await check_accounts(shard.engine, known)
    await shard.engine.stop()
    assert not fatal
    verify_history(tmp_path, IDENTITY, limits)


async def started(
    folder: Path, limits: Limits, epoch: int, known: Knowledge, rng: random.Random
) -> tuple[Shard, list[BaseException]]:
    engine, fatal = open_here(folder, limits, epoch, IDENTITY)
    await engine.start(epoch)
    return Shard(engine, known, rng, epoch << 32), fatal


async def refuses_what_is_new(shard: Shard, deadline_us: int) -> None:
    """A transfer, a vote, a decision, an account; each definitely, and without a record."""
    engine, sequence = shard.engine, shard.engine.ledger.sequence
    with pytest.raises(SpaceExhaustedError):
        await shard.ask(Transfers(((shard.key(), shard.move()),)))
    with pytest.raises(SpaceExhaustedError):
        await engine.open_accounts([(1_000, 1, 0, 0)])
    assert not engine.has_room(1)
    assert not engine.has_space(1)
    attempt = shard.attempt(shard.move(source=FOREIGN[0]), deadline_us)
    prepare = partial(engine.ledger.participant.prepare, attempt.request(HERE), room=False)
    (vote,) = await engine.finish_begun([prepare], [2])
    assert VOTE.unpack(vote)[0] == Vote.BUSY
    assert engine.ledger.sequence == sequence
    home = CommitHome(shard.attempt(shard.move(destination=FOREIGN[0]), deadline_us))
    commit = partial(
        engine.ledger.participant.commit_home, home.attempt.request(), (Vote.YES, 0, 0), room=False
    )
    (answer,) = await engine.finish_begun([commit], [4])
    assert answer[0] == Fate.ABORTED
    shard.known.hear(home, answer)


async def check_reserved(engine: Engine, known: Knowledge) -> None:
    """Questions are answered: every balance is there, and what is prepared is reserved."""
    expected = known.balances()
    for account_id in {account_id for account_id, _ in expected}:
        account = await engine.settle_account(account_id)
        for currency, balance in account.balances.items():
            assert balance.minor == expected.get((account_id, currency), 0)
    assert set(engine.ledger.transactions.prepared) == set(known.prepared)
