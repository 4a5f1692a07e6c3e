"""Bar 6: both questions, and small batches, while transfers run at half of what the node can do.

Everything is asked on a schedule and timed from when it was due, so a stall counts for all that it
held up. Each is due at a random moment of its period: with one beat for all, both questions and a
batch would always come in the same instant, and wait for each other and for nothing else. Half of
the questions are about one account with a month of history, imported before, the others about
accounts at random. A checkpoint is taken to run while its child process works.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from doubloon import AccountKind, AccountSpec, Transfer
from scripts.bench.cases.case import Case, Plan, at_most
from scripts.bench.cases.sdk import pairs, send_batch
from scripts.bench.drive import drive
from scripts.bench.load import CURRENCY, Draw, bodies, packed_requests
from scripts.bench.results import Bar, Figure, Outcome
from scripts.bench.rig import BATCH, NotCompletedError, Rig
from scripts.bench.usage import CHECKPOINT, children, cpu_s
from scripts.latency import Latencies
from scripts.local_cluster import SHARD
from scripts.progress import progress

WHAT = "both queries and batches of 100 through a router, while transfers run at half the maximum"
QUERY_P99_MS_MAX = 5.0
SMALL_BATCH_P99_MS_MAX = 50.0
TURN_MS_MAX = 20.0
QUERIES_PER_S = 25  # of each kind: two million of both a day
SMALL_BATCHES_PER_S = 25
SMALL_BATCH = 100
LOAD_BATCH = 1_000
FULL_SPEED_TRANSFERS = 1_500_000  # some ten seconds, so that checkpoints fall into them
STRETCH_S = 16.0  # of each repeat: 400 questions of a kind, so p99 is the fourth worst
HISTORY = 1_000_000  # entries of the account with a month of history
ALONE = 1_000  # questions of a kind about it, while nothing else goes on
HERO = 1_000_000_007  # its account's number, far from the others'
PARTNERS = 1_000
MONTH_US = 30 * 24 * 3_600 * 1_000_000
IN_FLIGHT = 4  # calls of a kind at once
WATCH_S = 0.05
BEHIND_MAX_S = 10.0
"""A schedule that falls further behind asks no more: the machine cannot do half of its best."""

Times = list[tuple[float, float]]
"""(when it was due, how long from then until the answer), seconds."""


@dataclass
class CheckpointWatch:
    """Notes when a shard node's checkpointing child is at work."""

    node: int
    spans: Times = field(default_factory=list)

    async def watch(self) -> None:
        """Look until cancelled."""
        child = next(iter(children(self.node)), None)
        if child is None:
            return
        used_s = cpu_s(child)
        while True:
            since_s = time.perf_counter()
            await asyncio.sleep(WATCH_S)
            now_s = cpu_s(child)
            if now_s > used_s:
                self.spans.append((since_s, time.perf_counter()))
            used_s = now_s

    def overlaps(self, from_s: float, to_s: float) -> bool:
        """Whether a checkpoint ran then."""
        return any(begin < to_s and end > from_s for begin, end in self.spans)


async def _scheduled(
    ask: Callable[[], Awaitable[object]], per_s: float, until_s: float, random: Random
) -> Times:
    """Ask on a schedule until then, each at a random moment of its period."""
    times: Times = []
    start_s = time.perf_counter()
    places = itertools.count()

    async def asker() -> None:
        for place in places:
            due_s = start_s + (place + random.random()) / per_s
            now_s = time.perf_counter()
            if due_s > until_s or now_s > until_s + BEHIND_MAX_S:
                return
            await asyncio.sleep(max(0.0, due_s - now_s))
            await ask()
            times.append((due_s, time.perf_counter() - due_s))

    async with asyncio.TaskGroup() as askers:
        for _ in range(IN_FLIGHT):
            askers.create_task(asker())
    return times


async def _grow_history(rig: Rig, plan: Plan, entries: int) -> None:
    """Give the hero a month of payments, evenly spread."""
    specs = [
        AccountSpec(number, AccountKind.SYSTEM, -(2**62))
        for number in range(HERO, HERO + PARTNERS + 1)
    ]
    await rig.wallet.open_accounts(specs)
    start_us = time.time_ns() // 1_000 - MONTH_US
    with progress(plan.console, f"questions: a history of {entries:,}", entries) as advance:
        for first in range(0, entries, BATCH):
            batch = [
                Transfer(
                    HERO, HERO + 1 + at % PARTNERS, CURRENCY, 1,
                    import_time_us=start_us + at * MONTH_US // entries,
                )
                for at in range(first, min(entries, first + BATCH))
            ]  # fmt: skip
            if not all(result.completed for result in await rig.wallet.transfer_batch(batch)):
                raise NotCompletedError("an import")
            advance(len(batch))


async def _alone(rig: Rig, plan: Plan) -> list[Figure]:
    """Ask about the hero, one question after the other, while nothing else goes on."""
    figures = []
    asks: dict[str, Callable[[], Awaitable[object]]] = {
        "flows": lambda: rig.wallet.flows(HERO),
        "series": lambda: rig.wallet.balance_series(HERO, CURRENCY),
    }
    for name, ask in asks.items():
        times = []
        for _ in range(plan.scaled(ALONE, least=20)):
            since_s = time.perf_counter()
            await ask()
            times.append(time.perf_counter() - since_s)
        taken = Latencies(times)
        figures += [
            Figure(f"{name}, nothing else, p{part}", "ms", [taken.percentile_ms(part)])
            for part in (50, 99)
        ]
    return figures


async def _full_speed(rig: Rig, plan: Plan, draw: Draw) -> float:
    """Return the most transfers a second that the node makes of such batches."""
    count = plan.scaled(FULL_SPEED_TRANSFERS, LOAD_BATCH, IN_FLIGHT)
    requests = packed_requests(bodies(draw, count, "uuid7", rig.currency), LOAD_BATCH)
    with progress(plan.console, "questions: full speed", count) as advance:
        timeline = await drive(requests, rig.shards[1].execute, IN_FLIGHT, advance)
    return timeline.transfers / timeline.seconds


@dataclass
class _Asked:
    """What was asked, and how long it took."""

    flows: Times
    series: Times
    small: Times
    load: Times


async def _ask_all(rig: Rig, draw: Draw, per_s: float, seconds: float, seed: int) -> _Asked:
    """Run the load and every question side by side."""
    count = int(per_s * seconds * 1.1 / LOAD_BATCH + 1) * LOAD_BATCH
    requests = iter(packed_requests(bodies(draw, count, "uuid7", rig.currency), LOAD_BATCH))
    small = pairs(draw, int(SMALL_BATCHES_PER_S * seconds * 1.1 + 1) * SMALL_BATCH)
    smalls = (small[at : at + SMALL_BATCH] for at in range(0, len(small), SMALL_BATCH))
    strangers = draw.pairs(1_000)[0].tolist()
    whom: Iterator[int] = itertools.chain.from_iterable(
        (HERO, each) for each in itertools.cycle(strangers)
    )
    until_s = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:

        def schedule(
            name: str, ask: Callable[[], Awaitable[object]], often_per_s: float
        ) -> asyncio.Task[Times]:
            moments = Random(f"{seed} {name}")
            return group.create_task(_scheduled(ask, often_per_s, until_s, moments))

        flows = schedule("flows", lambda: rig.wallet.flows(next(whom)), QUERIES_PER_S)
        series = schedule(
            "series", lambda: rig.wallet.balance_series(next(whom), CURRENCY), QUERIES_PER_S
        )
        small_task = schedule("small", lambda: send_batch(rig, next(smalls)), SMALL_BATCHES_PER_S)
        load = schedule("load", lambda: rig.shards[1].execute(next(requests)), per_s / LOAD_BATCH)
    return _Asked(flows.result(), series.result(), small_task.result(), load.result())


async def _run(plan: Plan) -> Outcome:
    """Measure it."""
    seconds = max(1.0, STRETCH_S * plan.repeats * min(1.0, plan.scale))
    async with plan.cluster(allow_imports=True) as rig:
        draw = Draw(plan.accounts, "uniform", plan.seed)
        await _grow_history(rig, plan, plan.scaled(HISTORY, least=1_000))
        alone = await _alone(rig, plan)
        per_s = await _full_speed(rig, plan, draw) / 2
        watch = CheckpointWatch(rig.cluster.pid(SHARD, 1))
        watching = asyncio.create_task(watch.watch())
        with progress(plan.console, f"questions at {per_s:,.0f} transfers/s", 1) as advance:
            async with rig.measured() as section:
                asked = await _ask_all(rig, draw, per_s, seconds, plan.seed)
            advance(1)
        watching.cancel()
    assert section.usage is not None, "the section has ended"
    turns, turns_cpu = section.usage.longest_turn_ms, section.usage.turn_cpu_ms
    during = [each for each in asked.small if watch.overlaps(each[0], each[0] + each[1])]
    figures = [
        *alone,
        _percentile("flows of 24 h", 50, asked.flows, plan),
        _percentile("flows of 24 h", 99, asked.flows, plan, at_most("6", QUERY_P99_MS_MAX)),
        _percentile("series of 30 days", 50, asked.series, plan),
        _percentile("series of 30 days", 99, asked.series, plan, at_most("6", QUERY_P99_MS_MAX)),
        _percentile("beside a checkpoint, batch of 100", 99, during, plan,
                    at_most("6", SMALL_BATCH_P99_MS_MAX)),
        _percentile("batch of 100", 50, asked.small, plan),
        _percentile("batch of 100", 99, asked.small, plan),
        Figure("longest turn, shard node", "ms", [turns["shard-1"]], at_most("6", TURN_MS_MAX)),
        Figure("most processor time of one", "ms", [turns_cpu["shard-1"]]),
        Figure("longest turn, router", "ms", [turns["router-1"]], at_most("6", TURN_MS_MAX)),
        Figure("most processor time of one, router", "ms", [turns_cpu["router-1"]]),
        Figure("transfers meanwhile", "/s", [section.usage.transfers / section.usage.seconds]),
    ]  # fmt: skip
    note = (
        f"load at {per_s:,.0f} transfers/s in batches of {LOAD_BATCH:,}; {len(asked.flows)} and "
        f"{len(asked.series)} questions; {len(during)} of {len(asked.small)} small batches beside "
        f"one of {CHECKPOINT} working; turns are the longest since the processes started"
    )
    return Outcome("questions", WHAT, [f for f in figures if f.values], section.usage, [note])


def _percentile(name: str, part: int, times: Times, plan: Plan, bar: Bar | None = None) -> Figure:
    """One percentile of each stretch."""
    ordered = sorted(times)
    each = max(1, len(ordered) // plan.repeats)
    stretches: Sequence[Times] = [
        ordered[at : at + each] for at in range(0, len(ordered) - each + 1, each)
    ]
    values = [
        Latencies([took_s for _, took_s in stretch]).percentile_ms(part) for stretch in stretches
    ]
    return Figure(f"{name}, p{part}", "ms", values, bar)


CASES = (Case("questions", WHAT, _run),)
