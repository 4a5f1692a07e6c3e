"""How far a long run is: a moving bar on a terminal, a line for each quarter elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_STEPS = 4  # lines where there is no terminal: enough to see that it moves


class Advance(Protocol):
    """Tells of progress."""

    def __call__(self, count: int) -> None:
        """Say that `count` more are done."""
        ...


@contextmanager
def progress(console: Console, label: str, total: int) -> Iterator[Advance]:
    """Show the progress of something with `total` steps while the context lasts.

    On a console that is quiet nothing is shown.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeElapsedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.advance(task, count)
    else:
        yield _Lines(console, label, total).advance


class _Lines:
    """A line whenever another quarter is done."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console = console
        self._label = label
        self._total = total
        self._done = 0

    def advance(self, count: int) -> None:
        before, self._done = self._done, self._done + count
        if before * _STEPS // max(1, self._total) < self._done * _STEPS // max(1, self._total):
            self._console.print(f"{self._label}: {self._done:,} of {self._total:,}")
