"""What was answered for an instant holds after a crash: wall clock and log tell the time then."""

import asyncio

import pytest

from cluster.clock import HybridClock
from shard_node import startup
from shard_node.checkpointer import LocalStateWriter
from shard_node.ledger import Ledger
from shard_node.limits import Limits
from shard_node.log import MemoryLog
from shard_node.memory_state import MemoryState
from shard_node.records import DamagedLogError
from shard_node.replaying import PROMISE_AHEAD_MAX_US
from shard_node.store import Store
from tests.support.engines import IDENTITY, Running, body, running, settle
from tests.support.ledgers import START_US, Rig


async def test_what_was_answered_for_an_instant_ahead_holds_after_a_crash() -> None:
    async with running() as it:
        instant_us = it.engine.settle_instant(it.wall.now_us() + 900_000, "as_of_us")
        await it.engine.settle_account(1)
        assert first_stamp_after_a_crash(it) > instant_us


async def test_what_was_answered_for_now_holds_after_a_crash() -> None:
    """Also when the clock had followed another shard's, or its own before it was set back."""
    async with running() as it:
        it.engine.observe(it.wall.now_us() + 900_000)
        await it.execute(body(1, 1, 2))
        it.wall.advance(-5_000_000)
        await it.hold_log()
        it.begin(body(2, 1, 2))
        await settle()
        now_us = it.engine.settle_instant(0, "as_of_us")
        asked = asyncio.ensure_future(it.engine.settle_account(9))  # which has no part in it
        await settle()
        assert not asked.done(), "nothing that bears such a stamp is durable"
        it.log.let_go()
        await asked
        assert first_stamp_after_a_crash(it) > now_us


@pytest.mark.parametrize("has_checkpoint", [False, True])
async def test_it_holds_when_the_clock_is_set_back_meanwhile(*, has_checkpoint: bool) -> None:
    async with running() as it:
        it.wall.advance(3_000_000)  # nothing has been recorded for so long
        for _ in range(20):
            it.wall.advance(170_000)
            now_us = it.engine.settle_instant(0, "as_of_us")
            await it.engine.settle_account(1)
            if has_checkpoint:
                await it.engine.checkpoint()
            it.wall.advance(-60_000_000)
            assert first_stamp_after_a_crash(it) > now_us
            it.wall.advance(60_000_000)


async def test_questions_share_a_promise_and_hardly_any_waits_for_one() -> None:
    async with running() as it:
        it.wall.advance(3_000_000)
        before, waited = it.engine.ledger.sequence, 0
        for _ in range(1_000):  # ten seconds
            it.wall.advance(10_000)
            it.engine.settle_instant(0, "as_of_us")
            asked = asyncio.ensure_future(it.engine.settle_account(1))
            await asyncio.sleep(0)
            waited += not asked.done()
            await asked
            await it.engine.committer.durable(it.engine.ledger.sequence)  # a renewal, if any
        assert waited == 1, "the first"
        assert 10 <= it.engine.ledger.sequence - before <= 16


async def test_an_instant_before_what_the_log_shows_costs_no_record() -> None:
    async with running() as it:
        before, last = it.engine.ledger.sequence, it.engine.store.log.last
        assert last is not None
        for instant_us in (last.draft.time_us, 5):
            it.engine.settle_instant(instant_us, "as_of_us")
        assert it.engine.ledger.sequence == before


@pytest.mark.parametrize("ahead_us", [-1, PROMISE_AHEAD_MAX_US + 1, 2**62])
async def test_a_promise_that_cannot_have_been_made_is_damage(ahead_us: int) -> None:
    rig = Rig()
    rig.ledger.block.begin(START_US)
    rig.ledger.promise(START_US + ahead_us if ahead_us > 0 else ahead_us)
    rig.seal()
    rig.sync()
    with pytest.raises(DamagedLogError, match="promises a time"):
        recovered(rig.state, rig.log)


def first_stamp_after_a_crash(it: Running) -> int:
    """What a node that takes over gives its first record, by the wall clock as it stands."""
    return HybridClock(it.wall, startup.floor_us(recovered(it.state, it.log), it.log)).tick()


def recovered(state: MemoryState, log: MemoryLog) -> Ledger:
    """The ledger of a node that takes over."""
    store, writer = Store(state, log), LocalStateWriter(state, log)
    return startup.recover(IDENTITY, store, Limits(), writer)[0]
