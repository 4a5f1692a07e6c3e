"""Bars 2 and 3: what game servers get that use the SDK, whose own cost is part of it.

Bar 2 hands the SDK lists of 8,000 transfers, several at a time, through one router to two shards;
half of all transfers cross. Bar 3 has 64 tasks that each call `transfer()` and wait, and then one
alone. Accounts are drawn before the clock starts, since a game knows who pays whom; everything
that a game server's program does to have it done (making the transfer and its id, the call,
reading the results) is timed. The client runs on uvloop.
"""

from collections.abc import Iterator

from doubloon import Transfer
from scripts.bench.cases.case import Case, Plan, at_least, at_most
from scripts.bench.drive import drive
from scripts.bench.load import CURRENCY, Draw, Spread
from scripts.bench.machine import sync_floor
from scripts.bench.results import Figure, Outcome
from scripts.bench.rig import BATCH, NotCompletedError, Rig
from scripts.progress import progress

CROSSING_PER_SECOND_MIN = 120_000
GATHERED_PER_SECOND_MIN = 30_000
ALONE_ABOVE_SYNC_MS_MAX = 1.5
CALLERS = 64

Pair = tuple[int, int, int]


def pairs(draw: Draw, count: int) -> list[Pair]:
    """Return (source, destination, amount) of so many transfers."""
    source, destination = draw.pairs(count)
    amounts = draw.amounts(count)
    return list(zip(source.tolist(), destination.tolist(), amounts.tolist(), strict=True))


def batches_of(drawn: list[Pair], batch: int) -> Iterator[list[Pair]]:
    """Yield them so many at a time."""
    return (drawn[at : at + batch] for at in range(0, len(drawn), batch))


async def send_batch(rig: Rig, drawn: list[Pair]) -> int:
    """Make one batch as a game server would, and see that all of it was completed."""
    transfers = [
        Transfer(source, destination, CURRENCY, amount) for source, destination, amount in drawn
    ]
    results = await rig.wallet.transfer_batch(transfers)
    if not all(result.completed for result in results):
        raise NotCompletedError(str(next(r for r in results if not r.completed)))
    return len(results)


async def send_one(rig: Rig, pair: Pair) -> int:
    """Make one transfer as a game server would."""
    source, destination, amount = pair
    result = await rig.wallet.transfer(source, destination, CURRENCY, amount)
    if not result.completed:
        raise NotCompletedError(str(result))
    return 1


def crossing_case(
    name: str, spread: Spread, transfers: int, *, shards: int = 2, share: float = 0.5,
    bar: float = 0, batch: int = BATCH, in_flight: int = 4, by_default: bool = True,
) -> Case:  # fmt: skip
    """Return a case of batches by the SDK through one router."""
    part = f"{share:.0%} crossing" if shards > 1 else "one shard"
    what = f"batches of {batch:,} by the SDK through a router, {shards} shards, {part}, {spread}"

    async def run(plan: Plan) -> Outcome:
        size = plan.batch(batch)
        count = plan.scaled(transfers, size, plan.repeats)
        warm_up = plan.scaled(transfers // 8, size)
        async with plan.cluster(shards=shards) as rig:
            crossing = share if shards > 1 else None
            draw = Draw(plan.accounts, spread, plan.seed, rig.cluster.topology, crossing)
            with progress(plan.console, f"{name}: warm-up", warm_up) as advance:
                await drive(
                    batches_of(pairs(draw, warm_up), size),
                    lambda drawn: send_batch(rig, drawn), in_flight, advance,
                )  # fmt: skip
            drawn = pairs(draw, count)
            with progress(plan.console, name, count) as advance:
                async with rig.measured() as section:
                    timeline = await drive(
                        batches_of(drawn, size),
                        lambda drawn: send_batch(rig, drawn), in_flight, advance,
                    )  # fmt: skip
            if not (await rig.admin.check_conservation()).balanced:
                raise AssertionError("the books do not balance")
        assert section.usage is not None, "the section has ended"
        if section.usage.transfers != count:
            raise AssertionError(f"{section.usage.transfers} completed of {count}")
        figures = [
            Figure(
                "transfers", "/s", timeline.rates(plan.repeats),
                at_least("2", bar) if bar else None,
            ),
            Figure("call p50", "ms", [timeline.latencies.percentile_ms(50)]),
            Figure("call p99", "ms", [timeline.latencies.percentile_ms(99)]),
        ]  # fmt: skip
        return Outcome(name, what, figures, section.usage)

    return Case(name, what, run, by_default)


def _callers_case(
    name: str, callers: int, transfers: int, bar: float = 0, spread: Spread = "uniform"
) -> Case:
    what = f"{callers} concurrent callers of the SDK's transfer() through a router, {spread}"

    async def run(plan: Plan) -> Outcome:
        count = plan.scaled(transfers, callers, plan.repeats)
        warm_up = plan.scaled(transfers // 8, callers)
        async with plan.cluster() as rig:
            draw = Draw(plan.accounts, spread, plan.seed)
            with progress(plan.console, f"{name}: warm-up", warm_up) as advance:
                await drive(
                    pairs(draw, warm_up), lambda pair: send_one(rig, pair), callers, advance
                )
            drawn = pairs(draw, count)
            with progress(plan.console, name, count) as advance:
                async with rig.measured() as section:
                    timeline = await drive(
                        drawn, lambda pair: send_one(rig, pair), callers, advance
                    )
            floor_ms = sync_floor(rig.cluster.folder, plan.scaled(3_000, least=100))
            call_s = timeline.latencies.percentile_ms(50) / 1_000
            seldom_ms = sync_floor(rig.cluster.folder, plan.scaled(500, least=50), call_s)
        assert section.usage is not None, "the section has ended"
        if section.usage.transfers != count:
            raise AssertionError(f"{section.usage.transfers} completed of {count}")
        p50_ms = timeline.latencies.percentile_ms(50)
        sync_ms = floor_ms.percentile_ms(50)
        alone = Figure(
            "above a bare sync, p50", "ms", [p50_ms - sync_ms],
            at_most("3", ALONE_ABOVE_SYNC_MS_MAX),
        )  # fmt: skip
        seldom = Figure("the same, once a call's time", "ms", [seldom_ms.percentile_ms(50)])
        figures = [
            Figure(
                "transfers", "/s", timeline.rates(plan.repeats),
                at_least("3", bar) if bar else None,
            ),
            *([alone] if callers == 1 else []),
            Figure("call p50", "ms", [p50_ms]),
            Figure("call p99", "ms", [timeline.latencies.percentile_ms(99)]),
            Figure("bare sync p50", "ms", [sync_ms]),
            *([seldom] if callers == 1 else []),
        ]  # fmt: skip
        return Outcome(name, what, figures, section.usage)

    return Case(name, what, run)


CASES = (
    crossing_case("two-shards", "uniform", 2_000_000, bar=CROSSING_PER_SECOND_MIN),
    crossing_case("two-shards-zipf", "zipf", 1_000_000, bar=CROSSING_PER_SECOND_MIN),
    _callers_case("callers-64", CALLERS, 400_000, GATHERED_PER_SECOND_MIN),
    _callers_case("callers-64-zipf", CALLERS, 200_000, GATHERED_PER_SECOND_MIN, "zipf"),
    _callers_case("callers-1", 1, 5_000),
)
