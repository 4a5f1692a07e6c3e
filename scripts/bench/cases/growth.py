"""Bar 8: cost grows with work and not with history; and bar 5: nor does memory.

By name only: it writes about 15 GB and takes minutes. A million transfers at a time are made before
they are sent, so that the client holds no more of them than that.
"""

import shutil
import statistics
import tempfile

import click

from scripts.bench.cases.case import Case, Plan, at_least, at_most
from scripts.bench.cases.node import MEBIBYTE, MEMORY_MIB_MAX
from scripts.bench.drive import drive
from scripts.bench.load import Draw, bodies, packed_requests
from scripts.bench.results import Figure, Outcome
from scripts.bench.rig import BATCH
from scripts.progress import progress

WHAT = "batches of 8,000 straight to one shard node until its log has 50 million transfers"
PERCENT_MIN = 85.0
TRANSFERS = 50_000_000
CHUNKS = 50
COMPARED = 3  # chunks at each end
FILLED = CHUNKS // 10  # after so many, memory is to stay as it is
MEMORY_GROWTH_PERCENT_MAX = 5.0
BYTES_PER_TRANSFER = 300
IN_FLIGHT = 4


async def _run(plan: Plan) -> Outcome:
    """Fill the log, and compare."""
    chunk = plan.scaled(TRANSFERS // CHUNKS)
    needed, free = (
        chunk * CHUNKS * BYTES_PER_TRANSFER,
        shutil.disk_usage(tempfile.gettempdir()).free,
    )
    if free < needed:
        raise click.ClickException(
            f"{needed / 1e9:.0f} GB are needed, {free / 1e9:.0f} GB are free in "
            f"{tempfile.gettempdir()}"
        )
    rates = []
    filled_at = 0
    async with plan.cluster() as rig:
        draw = Draw(plan.accounts, "uniform", plan.seed)
        with progress(plan.console, "growth", chunk * CHUNKS) as advance:
            async with rig.measured() as section:
                assert section.memory is not None, "the section has begun"
                for _ in range(CHUNKS):
                    packed = bodies(draw, chunk, "uuid7", rig.currency)
                    timeline = await drive(
                        packed_requests(packed, BATCH), rig.shards[1].execute, IN_FLIGHT, advance
                    )
                    rates.append(timeline.transfers / timeline.seconds)
                    if len(rates) == FILLED:
                        filled_at = len(section.memory.series)
        left_bytes = rig.data_bytes()
    assert section.usage is not None, "the section has ended"
    assert section.memory is not None, "the section has begun"
    series = section.memory.series
    early = statistics.median(rates[FILLED - COMPARED : FILLED])
    late = statistics.median(rates[-COMPARED:])
    figures = [
        Figure("the last beside the first tenth", "%", [late / early * 100],
               at_least("8", PERCENT_MIN)),
        Figure("transfers", "/s", rates),
        Figure("disk, log and state", "bytes/transfer", [left_bytes / (chunk * CHUNKS)]),
        Figure("shard node's memory", "MiB",
               [section.usage.rss_anon_bytes.get("shard-1", 0) / MEBIBYTE],
               at_most("5", MEMORY_MIB_MAX)),
        Figure("its growth after the first tenth", "%",
               [growth_percent([seen.get("shard-1", 0) for _, seen in series[filled_at:]])],
               at_most("5", MEMORY_GROWTH_PERCENT_MAX)),
    ]  # fmt: skip
    return Outcome("growth", WHAT, figures, section.usage)


def growth_percent(held: list[int]) -> float:
    """By how much the later half of what was held lies above the earlier one, at the median."""
    half = len(held) // 2
    if not half or not any(held[:half]):
        return 0.0
    return (statistics.median(held[half:]) / statistics.median(held[:half]) - 1) * 100


CASES = (Case("growth", WHAT, _run, by_default=False),)
