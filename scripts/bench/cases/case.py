"""What every case is told, and how it is named."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from scripts.bench.results import Bar, Outcome
from scripts.bench.rig import Rig, Rigs, Shape

ACCOUNTS = 100_000
TINY_ACCOUNTS = 1_000
TINY_BATCH = 500
TINY_SCALE = 0.01
"""Below it a run only proves that everything runs, and need not open all accounts."""


@dataclass(frozen=True)
class Plan:
    """How a run was asked for.

    Attributes:
        scale: of all amounts of work; 1 = what the bars are about.
        repeats: how often each figure is taken.
        seed: of everything that is drawn.
        console: where progress goes.
        rigs: where clusters come from.
        install_peers: whether missing peers may be installed.
        outcomes: of the cases that have run already, by name: what others are compared with.
    """

    scale: float
    repeats: int
    seed: int
    console: Console
    rigs: Rigs
    install_peers: bool = False
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def accounts(self) -> int:
        """How many accounts take part."""
        return TINY_ACCOUNTS if self.is_tiny else ACCOUNTS

    @property
    def is_tiny(self) -> bool:
        """Whether this run only proves that everything runs."""
        return self.scale < TINY_SCALE

    def batch(self, batch: int) -> int:
        """Return how many transfers a call has that shall have `batch`."""
        return min(batch, TINY_BATCH) if self.is_tiny else batch

    def cluster(self, **shape: Any) -> AbstractAsyncContextManager[Rig]:
        """Return a cluster of a shape (see there), with this run's accounts."""
        return self.rigs.rig(Shape(self.accounts, **shape))

    def scaled(self, count: int, step: int = 1, least: int = 1) -> int:
        """Return an amount of work at this scale: a multiple of `step`, `least` steps at least."""
        return max(least, round(count * self.scale / step)) * step


@dataclass(frozen=True)
class Case:
    """One kind of work.

    Attributes:
        name: as `--only` takes it.
        what: how the work is sent, in a few words.
        run: does it.
        by_default: whether it runs when nobody names it.
    """

    name: str
    what: str
    run: Callable[[Plan], Awaitable[Outcome]]
    by_default: bool = True


def at_least(number: str, value: float, source: str = "") -> Bar:
    """Return a bar that more is better for."""
    return Bar(number, "at least", value, source)


def at_most(number: str, value: float, source: str = "") -> Bar:
    """Return a bar that less is better for."""
    return Bar(number, "at most", value, source)
