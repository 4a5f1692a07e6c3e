"""How much may be under way on one route, learned from how old attempts are when they end. Pure.

An attempt has to end within its life, or its home gives it up and all that was done for it was for
nothing. So what is offered beyond what the shards do in a fraction of a life waits, unbegun. Like a
TCP sender, a window grows by what ended young while more wants to begin, and halves when something
ends old. Between young and old it stays: there the shards are busy, and nothing is lost.

Only age tells of overload. What is in doubt, or a shard that refuses calls at once, ends an attempt
without aging it, so it neither halves a window nor says that the shards could do more.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from coordinator.transactions import Item

# Ends within milliseconds on any machine, and is large enough for calls that cost little apiece.
WINDOW_FIRST: Final = 1_024
# What the slowest machine does in a second; a call still carries enough to be worth its sync.
WINDOW_MIN: Final = 64
# Two full batches: one is prepared while the other is decided. At the young age of a third of a
# second this is 50,000 members a second on one route, more than a coordinator does on all of them.
WINDOW_MAX: Final = 16_384
# Of an attempt's life, by this share: double the window, and twice the age is still far from old.
YOUNG_SHARE: Final = 1 / 16
# Well before the life is over, since the attempts behind this one are as many again.
OLD_SHARE: Final = 1 / 4


class Ending(IntEnum):
    """How an attempt ended."""

    DONE = 0
    """The home has decided, and nothing is left to do."""
    RETRYING = 1
    """It could not be decided, and another one will follow."""
    CUT_OFF = 2
    """Its client's time was over first."""


# Taken from its enumeration, a member costs ten times what a global does (CPython 3.11).
_DONE: Final = Ending.DONE
_CUT_OFF: Final = Ending.CUT_OFF


@dataclass(frozen=True)
class WindowRules:
    """How windows grow and shrink.

    Attributes:
        life_s: of an attempt.
        first: a window's size to begin with, in members.
        least, most: what it never leaves.
    """

    life_s: float
    first: int = WINDOW_FIRST
    least: int = WINDOW_MIN
    most: int = WINDOW_MAX


class Window:
    """One window.

    Args:
        rules: see there.

    Attributes:
        size: how many members may be under way.
        under_way: how many are; whoever begins an attempt adds its own.
        took_s: how long an attempt takes, as far as is known.
    """

    __slots__ = (
        "_halved_s",
        "_least",
        "_most",
        "_old_s",
        "_young_s",
        "size",
        "took_s",
        "under_way",
    )

    def __init__(self, rules: WindowRules) -> None:
        self._least, self._most = rules.least, rules.most
        self._young_s = rules.life_s * YOUNG_SHARE
        self._old_s = rules.life_s * OLD_SHARE
        self._halved_s = float("-inf")
        self.size = rules.first
        self.under_way = 0
        self.took_s = 0.0

    def has_room(self, members: int) -> bool:
        """Whether an attempt may begin. A lone one always may, whatever its size."""
        under_way = self.under_way
        return not under_way or under_way + members <= self.size

    def end(self, members: int, began_s: float, now_s: float, ending: Ending, waiting: int) -> None:
        """Give an attempt's room back, and learn from its age.

        Args:
            members: as when it began.
            began_s: when it began.
            now_s: by the same clock.
            ending: see there.
            waiting: how much waits for room. A window of which nobody wants more stays as it is.
        """
        self.under_way -= members
        age_s = now_s - began_s
        if ending is _DONE:
            # A window's worth of attempts outweighs what was known before.
            self.took_s += (age_s - self.took_s) * min(1.0, members / self.size)
            if age_s < self._young_s:
                if waiting:
                    self.size = min(self.size + members, self._most)
                return
        # One that was cut off would have become older; how old, nobody will know. And what began
        # before the last halving tells of the larger window only.
        is_old = age_s >= (self._young_s if ending is _CUT_OFF else self._old_s)
        if is_old and began_s >= self._halved_s:
            self._halved_s = now_s
            self.size = max(self.size // 2, self._least)
            # Half as much takes half as long.
            self.took_s = min(max(self.took_s, age_s), self._old_s) / 2


class Route:
    """One route.

    Attributes:
        window: for what is under way.
        waiting: what is not, in order; a set from which anything is taken at once.
    """

    __slots__ = ("waiting", "window")

    def __init__(self, rules: WindowRules) -> None:
        self.window = Window(rules)
        self.waiting: OrderedDict[Item, None] = OrderedDict()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self.waiting and not self.window.under_way
