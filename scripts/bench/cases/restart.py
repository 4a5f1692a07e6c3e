"""Bar 7: how long a shard is away when its node is killed with a million transfers to replay.

The node is told to take checkpoints rarely, so that the log is a million transfers ahead of the
state; with the settings it has by itself it is at most 800,000 records ahead.
"""

import time

from scripts.bench.cases.case import Case, Plan, at_most
from scripts.bench.drive import drive
from scripts.bench.load import Draw, bodies, packed_requests
from scripts.bench.results import Figure, Outcome
from scripts.bench.rig import BATCH, Shard
from scripts.local_cluster import SHARD
from scripts.progress import progress

WHAT = "from kill -9 to the first answer, a million transfers past the last checkpoint"
SECONDS_MAX = 10.0
TRANSFERS = 1_000_000
REPEATS_MAX = 3  # each makes a million transfers first
IN_FLIGHT = 4
NO_CHECKPOINT = ("--checkpoint-rows", "100000000")


async def _run(plan: Plan) -> Outcome:
    """Kill and wait, a few times."""
    count = plan.scaled(TRANSFERS, BATCH)
    seconds, notes = [], []
    async with plan.cluster(shard_options=NO_CHECKPOINT) as rig:
        draw = Draw(plan.accounts, "uniform", plan.seed)
        for _ in range(min(plan.repeats, REPEATS_MAX)):
            await rig.admin.check_conservation()  # which takes a checkpoint
            requests = packed_requests(bodies(draw, count, "uuid7", rig.currency), BATCH)
            with progress(plan.console, "restart: to be replayed", count) as advance:
                await drive(requests, rig.shards[1].execute, IN_FLIGHT, advance)
            ahead = (await rig.admin.cluster_status()).shards[0].records_since_checkpoint
            if ahead < count:
                raise AssertionError(f"{ahead} records since the checkpoint, not {count}")
            rig.cluster.kill(SHARD, 1)
            killed_s = time.perf_counter()
            await rig.cluster.restart(SHARD, 1)
            await rig.shards[1].close()
            rig.shards[1] = Shard(rig.cluster.address(SHARD, 1), 1)
            await rig.shards[1].execute(requests[-1])
            seconds.append(time.perf_counter() - killed_s)
            repeated = (await rig.admin.cluster_status()).shards[0].transfers_repeated
            if repeated != BATCH:
                raise AssertionError(f"the last batch was not on record: {repeated} repeats")
            notes = [f"{ahead:,} records to replay; the last batch, sent again, was on record"]
    figures = [Figure("away", "s", seconds, at_most("7", SECONDS_MAX))]
    return Outcome("restart", WHAT, figures, None, notes)


CASES = (Case("restart", WHAT, _run),)
