"""Many runs, on every core, and what they came to."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tests.whole_cluster.scenario import Outcome, play

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Played:
    """One run.

    Attributes:
        seed: its seed.
        outcome: what it came to; None = a promise was broken.
        why: then what, with the command that plays it again.
        cpu_s: what it took.
    """

    seed: int
    outcome: Outcome | None
    why: str
    cpu_s: float


@dataclass
class Sum:
    """What all runs came to."""

    runs: int = 0
    virtual_s: float = 0.0
    steps: int = 0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    digest: bytes = b""

    def add(self, played: Played) -> None:
        """Adds the next run that went well."""
        outcome = played.outcome
        assert outcome, "it went well"
        self.runs += 1
        self.virtual_s += outcome.virtual_s
        self.steps += outcome.steps
        self.cpu_s += played.cpu_s
        self.counts.update(outcome.counts)
        hashed = hashlib.blake2b(self.digest + outcome.trace_hash.encode(), digest_size=8)
        self.digest = hashed.digest()


def play_or_tell(seed: int, *, brief: bool, trace: bool, twice: bool) -> Played:
    """A run, or what went wrong with it.

    Args:
        seed: of the run.
        brief: see `scenario.draw_setting`.
        trace: whether to keep its trace.
        twice: whether to play it again, and compare.
    """
    started_s = time.process_time()
    try:
        outcome = play(seed, brief=brief, keep_lines=trace)
        if twice and (again := play(seed, brief=brief).trace_hash) != outcome.trace_hash:
            why = f"seed {seed} played twice has two traces: {outcome.trace_hash}, {again}"
            return Played(seed, None, why, time.process_time() - started_s)
    except Exception:  # noqa: BLE001 - whatever it is, it is told with its seed
        return Played(seed, None, traceback.format_exc(), time.process_time() - started_s)
    return Played(seed, outcome, "", time.process_time() - started_s)


def outcomes(seeds: range, jobs: int, *, brief: bool, trace: bool, twice: bool) -> Iterator[Played]:
    """Of each seed, in order."""
    one = partial(play_or_tell, brief=brief, trace=trace, twice=twice)
    if jobs == 1 or len(seeds) == 1:
        yield from map(one, seeds)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        try:
            yield from pool.map(one, seeds)
        finally:
            pool.shutdown(cancel_futures=True)
