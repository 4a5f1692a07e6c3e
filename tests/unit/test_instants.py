"""What was answered for an instant holds after a crash: wall clock and log tell the time then."""

import asyncio

from cluster.clock import HybridClock
from tests.support.engines import Running, body, running, settle


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


async def test_an_instant_that_is_over_costs_no_record() -> None:
    async with running() as it:
        it.wall.advance(10)
        before = it.engine.ledger.sequence
        for instant_us in (0, it.wall.now_us(), it.wall.now_us() - 5):
            it.engine.settle_instant(instant_us, "as_of_us")
        assert it.engine.ledger.sequence == before


def first_stamp_after_a_crash(it: Running) -> int:
    """What a node that takes over gives its first record, by the wall clock as it stands."""
    durable = list(it.log.blocks(1))
    return HybridClock(it.wall, durable[-1].draft.time_us).tick()
