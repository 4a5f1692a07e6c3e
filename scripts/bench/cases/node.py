"""Bars 1 and 5: batches of 8,000 straight to one shard node, and what they leave behind.

The server is what this is about, so packed requests are made before the clock starts, with several
in flight; the client only sends bytes and looks at each result's status. The whole run is one
stretch, checkpoints included; repeats are parts of it that follow each other without a pause.
"""

from scripts.bench.cases.case import Case, Plan, at_least, at_most
from scripts.bench.drive import drive
from scripts.bench.load import Draw, Ids, Spread, bodies, packed_requests
from scripts.bench.results import Figure, Outcome
from scripts.bench.rig import BATCH
from scripts.progress import progress

PER_SECOND_MIN = 300_000
DISK_BYTES_MAX = 300
MEMORY_MIB_MAX = 600
TRANSFERS = 5_000_000
FEWER_TRANSFERS = 2_000_000  # where the question is only how much slower it gets
WARM_UP = 400_000
IN_FLIGHT = 4
MEBIBYTE = 2**20


def _case(name: str, spread: Spread, ids: Ids, transfers: int) -> Case:
    what = f"batches of {BATCH:,} straight to one shard node, {spread}, ids {ids}"
    is_bar = name == "node"

    async def run(plan: Plan) -> Outcome:
        count = plan.scaled(transfers, BATCH, plan.repeats)
        warm_up = plan.scaled(WARM_UP, BATCH)
        draw = Draw(plan.accounts, spread, plan.seed)
        async with plan.cluster() as rig:
            shard = rig.shards[1]
            requests = packed_requests(bodies(draw, warm_up, ids, rig.currency), BATCH)
            with progress(plan.console, f"{name}: warm-up", warm_up) as advance:
                await drive(requests, shard.execute, IN_FLIGHT, advance)
            requests = packed_requests(bodies(draw, count, ids, rig.currency), BATCH)
            with progress(plan.console, name, count) as advance:
                async with rig.measured() as section:
                    timeline = await drive(requests, shard.execute, IN_FLIGHT, advance)
            # Adding up all balances takes a checkpoint first: then log and state are complete.
            conserved = await rig.admin.check_conservation()
            left_bytes = rig.data_bytes()
            made = sum(s.transfers_completed for s in (await rig.admin.cluster_status()).shards)
        assert section.usage is not None, "the section has ended"
        assert section.memory is not None, "the section has begun"
        usage = section.usage
        if usage.transfers != count or not conserved.balanced:
            raise AssertionError(f"{usage.transfers} completed of {count}, {conserved}")
        peak_mib = usage.rss_anon_bytes.get("shard-1", 0) / MEBIBYTE
        figures = [
            Figure(
                "transfers", "/s", timeline.rates(plan.repeats),
                at_least("1", PER_SECOND_MIN) if is_bar else None,
            ),
            Figure("call p50", "ms", [timeline.latencies.percentile_ms(50)]),
            Figure("call p99", "ms", [timeline.latencies.percentile_ms(99)]),
            Figure(
                "disk, log and state", "bytes/transfer", [left_bytes / made],
                at_most("5", DISK_BYTES_MAX),
            ),
            Figure(
                "shard node's memory", "MiB", [peak_mib], at_most("5", MEMORY_MIB_MAX),
            ),
        ]  # fmt: skip
        notes = [f"{made:,} transfers on disk, a checkpoint just taken"]
        return Outcome(name, what, figures, usage, notes)

    return Case(name, what, run)


CASES = (
    _case("node", "uniform", "uuid7", TRANSFERS),
    _case("node-zipf", "zipf", "uuid7", FEWER_TRANSFERS),
    _case("node-random-ids", "uniform", "random", FEWER_TRANSFERS),
)
