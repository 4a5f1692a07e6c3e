"""An event loop whose time passes only when nothing else is left to do, and then all at once.

Whatever waits for a time (time-outs, back-off, deadlines) is exact and costs nothing. No sockets:
what comes from outside the loop has no place on its clock.
"""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

P = ParamSpec("P")

_EARLY_TICKS = 5


class _Selector(selectors.SelectSelector):
    """Never waits: when there is no event, the time that was to be waited has passed."""

    def __init__(self, early_s: float) -> None:
        super().__init__()
        self.now_s = 0.0
        self._early_s = early_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("everything waits, and for nothing that will ever happen")
            self.now_s += max(0.0, timeout - self._early_s)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop; its time starts at 0.

    Args:
        tick_s: how much time passes each time that somebody looks at the clock. Timers then come
            some ticks early, as real loops let them by up to their clock's resolution.
    """

    def __init__(self, tick_s: float = 0.0) -> None:
        self._virtual = _Selector(_EARLY_TICKS * tick_s)
        self._tick_s = tick_s
        super().__init__(self._virtual)
        early_s = 2 * _EARLY_TICKS * tick_s
        self._clock_resolution += early_s  # type: ignore[attr-defined]  # declared nowhere

    def time(self) -> float:
        """Seconds of virtual time since the loop was made."""
        self._virtual.now_s += self._tick_s
        return self._virtual.now_s


async def pass_time(time_s: float) -> None:
    """Let so much time pass, and everything happen that is due until then."""
    await asyncio.sleep(time_s)


def virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a loop of its own with virtual time; fixtures are passed on."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
