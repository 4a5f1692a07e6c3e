"""How the applier, questions and a checkpoint's slices share the event loop.

All three run on one loop, a turn at a time. Left to themselves they take turns one by one, which
serves none of them well. A question is read, handed over and answered in three turns of the loop,
and would wait for the applier in each. A checkpoint has some hundred slices to take, and for as
long as that lasts the applier would get every other turn, too little for what comes in.

So for a while after a question the loop gets round thrice between two turns of the applier; and
while the applier is busy, some turns of it pass between two slices.
"""

from __future__ import annotations

import asyncio
from typing import Final

ATTENTIVE_TURNS: Final = 256
"""Turns of the applier for which the loop stays attentive after a question: a tenth of a second of
its work. Questions come in company; and where none come, bulk does not pay for them."""

ATTENTIVE_PASSES: Final = 3
"""How often the loop gets round between two turns of the applier while it is attentive: a question
needs as many. With batches of 1,000, and without a break, it costs a tenth of the node's rate."""

TURNS_PER_SLICE: Final = 2
"""Turns of the applier between two slices of a checkpoint: a third of the loop is left to it."""


class Pace:
    """Counts turns, and says when the next may come. All methods are for the event loop."""

    def __init__(self) -> None:
        self._turns = 0
        self._attentive_turns = 0
        self._is_busy = False

    def asked(self) -> None:
        """A question has come."""
        self._attentive_turns = ATTENTIVE_TURNS

    async def after_turn(self) -> None:
        """To be awaited by the applier after each of its turns."""
        self._turns += 1
        self._is_busy = True
        passes = 1
        if self._attentive_turns:
            self._attentive_turns -= 1
            passes = ATTENTIVE_PASSES
        for _ in range(passes):
            await asyncio.sleep(0)

    def rest(self) -> None:
        """The applier makes no turns for now: it has no work, or waits for a checkpoint."""
        self._is_busy = False

    async def give_way(self) -> None:
        """To be awaited by a checkpoint after each of its slices."""
        until = self._turns + TURNS_PER_SLICE
        await asyncio.sleep(0)
        while self._is_busy and self._turns < until:  # noqa: ASYNC110 - the loop goes round anyway
            await asyncio.sleep(0)
