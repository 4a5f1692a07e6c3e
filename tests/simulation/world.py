"""Virtual time, one thing after the other, and a network that does its worst.

Everything that happens is an *event*: a moment, who it happens to, and what. Events run one at a
time in the order of their moments; all chance comes from one generator, so a seed is a trace. An
event that belongs to a process (a timer, an answer to its call) dies with that process; a message
to a shard does not, and may find another process there than was meant.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

START_US: Final = 1_790_000_000_000_000
MS: Final = 1_000
SECOND: Final = 1_000_000

EVENTS_MAX: Final = 200_000
"""A schedule takes some hundreds; one that takes this many goes round in circles."""


class Violation(AssertionError):  # noqa: N818 - it is what was found, not what went wrong with us
    """Something that must be true is not."""


class Process:
    """What can crash and be started again.

    Attributes:
        name: in the trace.
        is_up: whether it runs.
        incarnation: counts its starts.
        offset_us: how far its wall clock is ahead of true time.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.is_up = False
        self.incarnation = 0
        self.offset_us = 0

    def now_us(self) -> int:
        """Its wall clock."""
        return self.world.now_us + self.offset_us

    def start(self) -> None:
        """Comes up with what it had made durable."""
        assert not self.is_up
        self.is_up = True
        self.incarnation += 1

    def crash(self) -> None:
        """Goes down, at once."""
        self.is_up = False


@dataclass(frozen=True)
class Faults:
    """How bad it is, in chances.

    Attributes:
        lost, doubled: of each message.
        late: of each message, to take longer than milliseconds.
        late_what: of those messages only that are named so; "" = of all.
        late_min_us, late_max_us: how long.
        crash: of a process to crash after each event, most often the one that it happened to.
        crash_at: after those events only that are named so; "" = after all.
        down_max_us: how long it then is down, at the most.
        skew_us: how far a clock may be off, either way.
        stepped: of a crash, to leave the clock off by something else.
        slow_sync: of each sync, to take longer than a millisecond.
    """

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    late_what: str = ""
    late_min_us: int = 0
    late_max_us: int = 0
    crash: float = 0.0
    crash_at: str = ""
    down_max_us: int = 0
    skew_us: int = 0
    stepped: float = 0.5
    slow_sync: float = 0.0


NO_FAULTS: Final = Faults()


@dataclass(frozen=True)
class Plan:
    """What shall happen to certain events and messages, by their number; none = chance decides.

    Attributes:
        crash_after: event → the process that then crashes.
        lost, doubled, late: messages by number.
        set_back_us: how far a crash sets the clock back.
    """

    crash_after: dict[int, str]
    lost: frozenset[int] = frozenset()
    doubled: frozenset[int] = frozenset()
    late: frozenset[int] = frozenset()
    set_back_us: int = 0


NO_PLAN: Final = Plan({})
LATE_US: Final = 6 * SECOND
"""How late a message is that a plan delays: past its transaction's deadline."""
DOWN_US: Final = 300 * MS
"""How long a process is down that a plan lets crash."""


class Event:
    """Something that will happen, unless it is cancelled or its process is gone by then."""

    __slots__ = ("action", "incarnation", "is_cancelled", "label", "process")

    def __init__(self, label: str, action: Callable[[], None], process: Process | None) -> None:
        self.label = label
        self.action = action
        self.process = process
        self.incarnation = process.incarnation if process else 0
        self.is_cancelled = False

    def cancel(self) -> None:
        """Lets it not happen."""
        self.is_cancelled = True

    @property
    def is_due(self) -> bool:
        """Whether it still can happen."""
        process = self.process
        if process and (not process.is_up or process.incarnation != self.incarnation):
            return False
        return not self.is_cancelled


class World:
    """Time, events and messages.

    Args:
        rng: all chance.
        faults: until `heal`.
        plan: what happens besides.

    Attributes:
        now_us: true time.
        events, crashes: how many there were.
        is_healed: whether the faults have ended.
        counts: how often what happened, by name.
        sent: what each message was, in their order.
        lines: what happened, when `keep_lines`; for people.
    """

    def __init__(
        self, rng: random.Random, faults: Faults, plan: Plan = NO_PLAN, *, keep_lines: bool = False
    ) -> None:
        self.rng = rng
        self.faults = faults
        self.plan = plan
        self.now_us = START_US
        self.events = 0
        self.crashes = 0
        self.is_healed = False
        self.counts: Counter[str] = Counter()
        self.sent: list[str] = []
        self.lines: list[str] = []
        self.processes: dict[str, Process] = {}
        self._keep_lines = keep_lines
        self._heap: list[tuple[int, int, Event]] = []
        self._pushed = 0
        self._acting: Process | None = None
        self._digest = hashlib.blake2b(digest_size=8)

    @property
    def trace_hash(self) -> str:
        """Of all that has happened, in its order."""
        return self._digest.hexdigest()

    def add(self, process: Process, skew_us: int = 0) -> None:
        """Puts a process into the world; it still has to be started."""
        self.processes[process.name] = process
        process.offset_us = skew_us

    def after(
        self, delay_us: int, label: str, action: Callable[[], None], process: Process | None = None
    ) -> Event:
        """Lets something happen later; it does not if `process` is no longer the same then."""
        self._pushed += 1
        event = Event(label, action, process)
        heappush(self._heap, (self.now_us + delay_us, self._pushed, event))
        return event

    def chance(self, probability: float) -> bool:
        """Whether something of this probability happens."""
        return probability > 0 and self.rng.random() < probability

    def note(self, text: str) -> None:
        """Adds a line to the trace."""
        self._digest.update(text.encode())
        if self._keep_lines:
            self.lines.append(f"{(self.now_us - START_US) / SECOND:10.6f}  {text}")

    def send(self, label: str, to: Process, deliver: Callable[[], None]) -> None:
        """Sends a message; `deliver` is called when it arrives at a running process, if it does."""
        self.sent.append(label)
        number, faults, plan = len(self.sent), self.faults, self.plan
        if number in plan.lost or self.chance(faults.lost):
            self.note(f"lost {label}")
            return
        copies = 2 if number in plan.doubled or self.chance(faults.doubled) else 1
        for copy in range(copies):
            delay_us = self.rng.randrange(50, 2 * MS)
            if number in plan.late:
                delay_us += LATE_US + copy * SECOND
            elif copy and number in plan.doubled:
                delay_us += LATE_US
            late = 0.5 if copy and faults.late else faults.late
            if faults.late_what in label and self.chance(late):
                delay_us += self._late_us()
            self.after(delay_us, label, lambda: self._arrive(to, label, deliver))

    def run(self, until: Callable[[], bool], limit_us: int) -> bool:
        """Lets events happen until it is so, or until none is left or the time is over."""
        while not until():
            if not self._heap or self._heap[0][0] > limit_us:
                return until()
            self._step()
        return True

    def heal(self) -> None:
        """Ends all faults: messages arrive, clocks are right, and who is down comes up."""
        self.note("heal")
        self.faults, self.is_healed = NO_FAULTS, True
        for process in self.processes.values():
            process.offset_us = 0
            if not process.is_up:
                self._start(process)

    def crash(self, process: Process, down_us: int) -> None:
        """Lets a process crash, and start again a while later."""
        self.note(f"crash {process.name}")
        self.crashes += 1
        process.crash()
        self.after(down_us, f"restart {process.name}", lambda: self._restart(process))

    def _step(self) -> None:
        self.now_us, _, event = heappop(self._heap)
        if not event.is_due:
            return
        self.events += 1
        if self.events > EVENTS_MAX:
            raise Violation("it goes on for ever")
        self.note(f"{self.now_us} {event.label}")
        self._acting = event.process
        event.action()
        victim = self.plan.crash_after.get(self.events)
        if victim and self.processes[victim].is_up:
            self.processes[victim].offset_us -= self.plan.set_back_us
            self.crash(self.processes[victim], DOWN_US)
        elif self.faults.crash_at in event.label and self.chance(self.faults.crash):
            self._crash_someone()

    def _crash_someone(self) -> None:
        process = self.rng.choice(list(self.processes.values()))
        if self._acting is not None and self.chance(0.7):
            process = self._acting
        if process.is_up and process.name in self.processes:
            # Often it is back before the messages under way have arrived.
            down_max_us = self.rng.choice((2 * MS, self.faults.down_max_us))
            if self.chance(self.faults.stepped):
                process.offset_us = self.skew_us()
            self.crash(process, self.rng.randrange(1, down_max_us))

    def skew_us(self) -> int:
        """How far a clock is off."""
        skew_us = self.faults.skew_us
        return self.rng.randint(-skew_us, skew_us) if skew_us else 0

    def _restart(self, process: Process) -> None:
        if not process.is_up:
            self._start(process)

    def _start(self, process: Process) -> None:
        self.note(f"start {process.name}")
        process.start()

    def _arrive(self, to: Process, label: str, deliver: Callable[[], None]) -> None:
        if to.is_up:
            self._acting = to
            deliver()
        else:
            self.note(f"nobody there for {label}")

    def _late_us(self) -> int:
        # As many of them some milliseconds late as seconds: what matters is what they overtake.
        least_us, most_us = self.faults.late_min_us, self.faults.late_max_us
        scale_us = self.rng.choice((10 * MS, 300 * MS, most_us))
        return self.rng.randint(least_us, max(least_us, min(scale_us, most_us)))
