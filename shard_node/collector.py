"""Garbage collection in small, regular pieces.

Python collects when enough more objects were made than freed. Here that never comes, or much too
late: a cache that is full frees an account for every one that it loads, so the young generation
grows to the size of the cache before anybody looks at it, and looking at it then stalls the event
loop for as long as it takes to visit them all (0.4 µs an object, four objects an account). So the
automatic collection is turned off, and a timer collects what is young, before there is much of it.

What survives two looks is never looked at again: accounts and balances are freed without a
collector's help, and garbage in cycles comes from calls and dies young.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Final

PERIOD_S: Final = 0.02
"""In so long a node loads about 1,000 accounts; to look at them takes 2 ms. Nothing to look at
takes some microseconds."""


class YoungCollector:
    """Collects for as long as it runs; all methods are for the event loop."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begins. What is there already is never looked at."""
        gc.disable()
        gc.freeze()
        self._beat()

    def stop(self) -> None:
        """Ends, and leaves the collecting to Python again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        gc.unfreeze()
        gc.enable()

    def _beat(self) -> None:
        gc.collect(1)
        self._handle = asyncio.get_running_loop().call_later(PERIOD_S, self._beat)
