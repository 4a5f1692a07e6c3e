"""Many schedules, on every core, and what they came to."""

from __future__ import annotations

import hashlib
import multiprocessing
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.simulation.scenario import Outcome, play

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 50  # schedules that a process takes at a time: a fraction of a second


@dataclass
class Sum:
    """What all schedules came to."""

    schedules: int = 0
    events: int = 0
    messages: int = 0
    crashes: int = 0
    transactions: int = 0
    committed: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    digest: bytes = b""

    def add(self, outcome: Outcome) -> None:
        """Adds the next schedule."""
        self.schedules += 1
        self.events += outcome.events
        self.messages += outcome.messages
        self.crashes += outcome.crashes
        self.transactions += outcome.transactions
        self.committed += outcome.committed
        self.counts.update(outcome.counts)
        hashed = hashlib.blake2b(self.digest + outcome.trace_hash.encode(), digest_size=8)
        self.digest = hashed.digest()


def play_or_tell(seed: int, *, trace: bool) -> Outcome | str:
    """A schedule's outcome, or what went wrong with it."""
    try:
        return play(seed, keep_lines=trace)
    except Exception:  # noqa: BLE001 - whatever it is, it is told with its seed
        return traceback.format_exc()


def outcomes(seeds: range, jobs: int, *, trace: bool) -> Iterator[Outcome | str]:
    """Of each seed, in order."""
    one = partial(play_or_tell, trace=trace)
    if jobs == 1 or len(seeds) <= CHUNK:
        yield from map(one, seeds)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        yield from pool.map(one, seeds, chunksize=CHUNK)
