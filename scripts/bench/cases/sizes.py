"""How throughput depends on the batch, on how much crosses, and on the number of shards.

On two cores more shards are no faster: their processes share what one had. What the figures show is
what a transfer costs each process, from which `scripts/bench/fleet.py` reckons larger fleets.
"""

from scripts.bench.cases.case import Case, Plan
from scripts.bench.cases.sdk import batches_of, crossing_case, pairs, send_batch
from scripts.bench.drive import drive
from scripts.bench.load import Draw, bodies, packed_requests
from scripts.bench.results import Figure, Outcome
from scripts.progress import progress

SIZES = ((1, 10_000), (10, 60_000), (100, 200_000), (1_000, 500_000), (8_000, 800_000))
"""Transfers in a call, and transfers in all: some seconds each."""

IN_FLIGHT = 8


async def _by_sdk(plan: Plan) -> Outcome:
    """Through a router, as game servers send them."""
    figures = []
    draw = Draw(plan.accounts, "uniform", plan.seed)
    async with plan.cluster() as rig, rig.measured() as section:
        for size, transfers in SIZES:
            count = plan.scaled(transfers, size, plan.repeats)
            drawn = batches_of(pairs(draw, count), size)
            with progress(plan.console, f"batches of {size:,}", count) as advance:
                timeline = await drive(
                    drawn, lambda batch: send_batch(rig, batch), IN_FLIGHT, advance
                )
            figures.append(Figure(f"batches of {size:,}", "/s", timeline.rates(plan.repeats)))
    return Outcome("sizes", _BY_SDK, figures, section.usage)


async def _straight(plan: Plan) -> Outcome:
    """Packed, straight to the shard node."""
    figures = []
    draw = Draw(plan.accounts, "uniform", plan.seed)
    async with plan.cluster() as rig, rig.measured() as section:
        for size, transfers in SIZES:
            count = plan.scaled(transfers, size, plan.repeats)
            requests = packed_requests(bodies(draw, count, "uuid7", rig.currency), size)
            with progress(plan.console, f"batches of {size:,}", count) as advance:
                timeline = await drive(requests, rig.shards[1].execute, IN_FLIGHT, advance)
            figures.append(Figure(f"batches of {size:,}", "/s", timeline.rates(plan.repeats)))
    return Outcome("sizes-node", _STRAIGHT, figures, section.usage)


_BY_SDK = f"batches of 1 … 8,000 by the SDK through a router, {IN_FLIGHT} in flight"
_STRAIGHT = f"batches of 1 … 8,000 straight to one shard node, {IN_FLIGHT} in flight"

CASES = (
    Case("sizes", _BY_SDK, _by_sdk),
    Case("sizes-node", _STRAIGHT, _straight),
    crossing_case("crossing-0", "uniform", 1_000_000, share=0.0),
    crossing_case("crossing-100", "uniform", 500_000, share=1.0),
    crossing_case("shards-1", "uniform", 1_000_000, shards=1),
    crossing_case("shards-3", "uniform", 500_000, shards=3),
    crossing_case("shards-4", "uniform", 500_000, shards=4),
)
