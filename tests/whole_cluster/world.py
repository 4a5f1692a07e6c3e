"""The world: virtual time, chance, the trace, and processes that die, hang and come back.

All chance comes from one generator, and everything that happens adds a line to the trace, whose
hash therefore stands for the whole run. Every line carries the number of steps that the loop has
taken, so two runs with one hash took the same steps in the same order.
"""

from __future__ import annotations

import contextvars
import hashlib
import traceback
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.simulation.world import START_US, Violation
from tests.whole_cluster.loop import LIFE, Life, SimLoop

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

S_TO_US: Final = 1_000_000


class World:
    """Everything that is not of one process.

    Args:
        rng: all chance.
        keep_lines: whether to keep the trace.

    Attributes:
        loop: see there.
        context: in which what belongs to no process is called.
        processes: by name.
        counts: how often what happened, by name.
        lines: the trace, when it is kept; for people.
        found: the first thing that must not be, if any; ends the run.
    """

    def __init__(self, rng: random.Random, *, keep_lines: bool = False) -> None:
        self.rng = rng
        self.loop: SimLoop = SimLoop(self._on_fuse, self._on_error)  # type: ignore[abstract] # has what is used
        self.context = contextvars.Context()
        self.processes: dict[str, Process] = {}
        self.counts: Counter[str] = Counter()
        self.lines: list[str] = []
        self.found: Exception | None = None
        self._keep_lines = keep_lines
        self._graveyard: list[Life] = []
        self._digest = hashlib.blake2b(digest_size=8)

    @property
    def now_us(self) -> int:
        """True time."""
        return START_US + round(self.loop.time() * S_TO_US)

    @property
    def trace_hash(self) -> str:
        """Of all that has happened, in its order."""
        return self._digest.hexdigest()

    def note(self, text: str) -> None:
        """Adds a line to the trace."""
        line = f"{self.loop.time():14.6f} {self.loop.steps:8} {text}"
        self._digest.update(line.encode())
        if self._keep_lines:
            self.lines.append(line)

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return probability > 0 and self.rng.random() < probability

    def after(self, delay_s: float, action: Callable[..., object], *args: Any) -> None:
        """Lets something happen later that no process does."""
        self.loop.call_later(delay_s, action, *args, context=self.context)

    def violated(self, error: Exception) -> None:
        """Something is not as it must be: the run ends with the first of these."""
        if self.found is None:
            self.found = error
            self.loop.is_stopped = True
            self.note(f"FOUND {error}")

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Plays until `main` is done, or something is found."""

        try:
            task = self.loop.run(main)
            if self.found is not None:
                raise self.found
            return task.result()
        finally:
            self.loop.bury([*self._graveyard, *(each.life for each in self.processes.values())])

    # --- processes ------------------------------------------------------------------------------

    def kill(self, process: Process, why: str) -> None:
        """Ends a process at once."""
        life = process.life
        if life.is_over:
            return
        self.note(f"{why} {process.name}")
        life.is_over = True
        self._graveyard.append(life)
        for action in life.at_end:
            action()
        process.on_end()

    def _on_fuse(self, life: Life) -> None:
        for process in self.processes.values():
            if process.life is life:
                self.counts["killed"] += 1
                self.kill(process, "kill")

    def _on_error(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = "".join(traceback.format_exception(error)) if error else ""
        self.violated(Violation(f"{context['message']}\n{text}"))


class Process:
    """What can die, hang and be started again.

    Args:
        world: what it is in.
        name: unique; `router 1`.
        program: what it runs; it is given this object.

    Attributes:
        life: its latest.
        starts: how often it was started.
        offset_us: how far its wall clock is ahead of true time.
        on_end: called after each life has ended.
    """

    def __init__(
        self, world: World, name: str, program: Callable[[Process], Coroutine[Any, Any, None]]
    ) -> None:
        self.world = world
        self.name = name
        self.life = Life(name)
        self.life.is_over = True
        self.starts = 0
        self.offset_us = 0
        self.on_end: Callable[[], None] = lambda: None
        self._program = program
        world.processes[name] = self

    @property
    def is_up(self) -> bool:
        """Whether it runs, or hangs."""
        return not self.life.is_over

    def now_us(self) -> int:
        """Its wall clock."""
        return self.world.now_us + self.offset_us

    def start(self) -> None:
        """Starts it."""
        assert not self.is_up, f"{self.name} runs already"
        self.starts += 1
        self.life = Life(self.name)
        self.world.note(f"start {self.name}")
        context = contextvars.Context()
        context.run(LIFE.set, self.life)
        self.world.loop.create_task(self._run(), context=context)

    def hang(self, time_s: float) -> None:
        """Lets it take no step for so long, as when it is stopped or starved."""
        life = self.life
        if life.is_over or life.hangs:
            return
        self.world.note(f"hang {self.name} for {time_s:.3f} s")
        life.hangs = True
        self.world.after(time_s, self._resume, life)

    def _resume(self, life: Life) -> None:
        if not life.is_over and life.hangs:
            self.world.note(f"resume {self.name}")
            self.world.loop.resume(life)

    async def _run(self) -> None:
        try:
            await self._program(self)
        except Violation as violation:
            self.world.violated(violation)
        except Exception as error:  # noqa: BLE001 - a program that fails is what we look for
            text = "".join(traceback.format_exception(error))
            self.world.violated(Violation(f"{self.name} failed\n{text}"))
        self.world.kill(self, "exit")
