"""How the applier, questions and a checkpoint's slices share the event loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shard_node.pace import ATTENTIVE_PASSES, ATTENTIVE_TURNS, TURNS_PER_SLICE, Pace


class Passes:
    """Counts how often the loop got round."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        """Count until cancelled."""
        while True:
            await asyncio.sleep(0)
            self.count += 1


@asynccontextmanager
async def counted() -> AsyncIterator[Passes]:
    """Count passes for as long as the context lasts."""
    passes = Passes()
    counting = asyncio.create_task(passes.run())
    await asyncio.sleep(0)
    yield passes
    counting.cancel()


async def test_a_turn_gives_the_loop_one_pass() -> None:
    pace = Pace()
    async with counted() as passes:
        for turn in range(1, 10):
            await pace.after_turn()
            assert passes.count == turn


async def test_after_a_question_the_loop_gets_round_between_turns_for_a_while() -> None:
    pace = Pace()
    pace.asked()
    async with counted() as passes:
        for turn in range(1, ATTENTIVE_TURNS + 1):
            await pace.after_turn()
            assert passes.count == turn * ATTENTIVE_PASSES
        await pace.after_turn()
        assert passes.count == ATTENTIVE_TURNS * ATTENTIVE_PASSES + 1


async def test_a_slice_waits_for_turns_of_a_busy_applier() -> None:
    pace = Pace()
    await pace.after_turn()
    waiting = asyncio.create_task(pace.give_way())
    await asyncio.sleep(0)
    for _ in range(TURNS_PER_SLICE):
        for _ in range(50):
            await asyncio.sleep(0)
        assert not waiting.done()
        await pace.after_turn()
    await asyncio.sleep(0)
    assert waiting.done()


async def test_a_slice_waits_one_pass_where_the_applier_has_nothing_to_do() -> None:
    async with counted() as passes:
        await Pace().give_way()
        assert passes.count == 1


async def test_a_slice_waits_no_longer_for_an_applier_that_rests() -> None:
    pace = Pace()
    await pace.after_turn()
    waiting = asyncio.create_task(pace.give_way())
    for _ in range(50):
        await asyncio.sleep(0)
    assert not waiting.done()
    pace.rest()  # for the checkpoint that this is a slice of, perhaps
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert waiting.done()
