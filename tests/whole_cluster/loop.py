"""An event loop without a clock, threads or sockets, that knows whose every step is.

Time is virtual: when nothing is ready, it is the moment of the next timer. Every callback and task
belongs to a *life* (one run of one process) by the context it was made in, or to the world. A life
that is over never takes another step: its tasks are not cancelled, no `finally` runs, nothing is
said to anybody, as when a process is killed. A life that hangs takes its steps later, all of them.
What runs next depends on nothing but what was asked for before: first come, first served.
"""

from __future__ import annotations

import asyncio
import contextvars
import warnings
from asyncio import events
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

_SWEEP_ABOVE: Final = 64
"""Tasks of a life that may be done before they are let go of."""

STEPS_MAX: Final = 20_000_000
"""A run takes some hundred thousand; one that takes this many goes round in circles."""

_CLOSE_TRIES: Final = 20
"""How often a dead task is told to end; each `finally` that awaits survives one."""


class Died(BaseException):
    """The process that runs this has just died; what is on the stack must not go on."""


class Life:
    """One run of a process.

    Attributes:
        name: for people.
        is_over: whether it ended, however it did.
        hangs: whether it takes no steps for now.
        held: steps that it will take once it does.
        fuse: it dies before so many more steps; 0 = it does not.
        tasks: those that may not be done.
        at_end: what the machine does when it ends, in this order: closes files, resets connections.
    """

    __slots__ = ("_sweep_at", "at_end", "fuse", "hangs", "held", "is_over", "name", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_over = False
        self.hangs = False
        self.held: list[Handle] = []
        self.fuse = 0
        self.tasks: list[asyncio.Task[Any]] = []
        self.at_end: list[Callable[[], None]] = []
        self._sweep_at = _SWEEP_ABOVE

    def add(self, task: asyncio.Task[Any]) -> None:
        """Keeps a task: one that only a dead timer knows of must not be collected, and so end."""
        self.tasks.append(task)
        if len(self.tasks) > self._sweep_at:
            self.tasks = [each for each in self.tasks if not each.done()]
            self._sweep_at = 2 * len(self.tasks) + _SWEEP_ABOVE


LIFE: Final[contextvars.ContextVar[Life | None]] = contextvars.ContextVar("life", default=None)


def check_alive() -> None:
    """Raises `Died` when the process that runs this is dead; for whatever acts on the world."""
    life = LIFE.get()
    if life is not None and life.is_over:
        raise Died


class Handle:
    """A callback that waits for its turn or its time."""

    __slots__ = ("_when", "args", "callback", "context", "is_cancelled", "life")

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
        when: float,
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.life = context.get(LIFE)
        self.is_cancelled = False
        self._when = when

    def cancel(self) -> None:
        """See asyncio.Handle."""
        self.is_cancelled = True

    def cancelled(self) -> bool:
        """See asyncio.Handle."""
        return self.is_cancelled

    def when(self) -> float:
        """See asyncio.TimerHandle."""
        return self._when


class SimLoop(asyncio.AbstractEventLoop):
    """The loop; its time starts at 0.

    Attributes:
        steps: callbacks run so far.
        is_stopped: ends `run` after the step that sets it.
        on_fuse: told of a life whose fuse has burnt down; must end it.
        on_error: told of what nobody caught, in a life that is not over.
    """

    def __init__(
        self, on_fuse: Callable[[Life], None], on_error: Callable[[dict[str, Any]], None]
    ) -> None:
        self.steps = 0
        self.is_stopped = False
        self.on_fuse = on_fuse
        self.on_error = on_error
        self._now_s = 0.0
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._made = 0
        self._running = False
        self._over = False
        self._world = Life("world")

    # --- what asyncio asks of a loop ------------------------------------------------------------

    def time(self) -> float:
        return self._now_s

    def call_soon(  # type: ignore[override] # a handle of ours
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        handle = Handle(
            callback, args, contextvars.copy_context() if context is None else context, self._now_s
        )
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment] # there are no threads

    def call_later(  # type: ignore[override] # a handle of ours
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        return self.call_at(self._now_s + max(0.0, delay), callback, *args, context=context)

    def call_at(  # type: ignore[override] # a handle of ours
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> Handle:
        handle = Handle(
            callback, args, contextvars.copy_context() if context is None else context, when
        )
        self._made += 1
        heappush(self._timers, (when, self._made, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Any,
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=self, name=name or "", context=context)
        ((LIFE.get() if context is None else context.get(LIFE)) or self._world).add(task)
        return task

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._over:
            self.on_error(context)

    # --- running --------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs until `main` is done, or `is_stopped`; what else there is then stands still."""
        task = self.create_task(main, context=contextvars.Context())
        self._running = True
        events._set_running_loop(self)
        try:
            while not task.done() and not self.is_stopped:
                self._step()
                if self.steps > STEPS_MAX:
                    raise RuntimeError("it goes on for ever")
        finally:
            events._set_running_loop(None)
            self._running = False
        return task

    def _step(self) -> None:
        if not self._ready:
            self._pass_time()
        handle = self._ready.popleft()
        if handle.is_cancelled:
            return
        life = handle.life
        if life is not None:
            if life.is_over:
                return
            if life.hangs:
                life.held.append(handle)
                return
            if life.fuse:
                life.fuse -= 1
                if not life.fuse:
                    self.on_fuse(life)
                    return
        self.steps += 1
        try:
            handle.context.run(handle.callback, *handle.args)
        except Died:
            pass
        except Exception as error:  # noqa: BLE001 - a callback's; tasks keep their own
            self.call_exception_handler({"message": "a callback failed", "exception": error})

    def _pass_time(self) -> None:
        timers = self._timers
        while timers and timers[0][2].is_cancelled:
            heappop(timers)
        if not timers:
            raise RuntimeError("everything waits, and for nothing that will ever happen")
        self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            self._ready.append(heappop(timers)[2])

    # --- lives ----------------------------------------------------------------------------------

    def resume(self, life: Life) -> None:
        """Lets a life that hung take its steps."""
        life.hangs = False
        self._ready.extend(life.held)
        life.held = []

    def bury(self, lives: list[Life]) -> None:
        """Ends all that lives have left lying, after the run: nothing of it can act any more."""
        self._over = True
        self._ready.clear()
        self._timers.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of what was never begun
            for life in (*lives, self._world):
                life.is_over = True
                for task in life.tasks:
                    _close(task)
                life.tasks.clear()
                life.at_end.clear()
                life.held.clear()


def _close(task: asyncio.Task[Any]) -> None:
    """Ends a task that will never run again, without a word about it."""
    if task.done():
        if not task.cancelled():
            task.exception()  # so that nobody is told that nobody asked
        return
    task._log_destroy_pending = False  # type: ignore[attr-defined] # as `asyncio.gather` does
    coroutine: Any = task.get_coro()
    for _ in range(_CLOSE_TRIES):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001 - whatever a dead process would still say
            continue
        return
