"""What the disk, LMDB and gRPC take by themselves: no product on this machine can be faster.

The bare gRPC server answers the same messages without doing anything; its rate for batches is
bounded by whoever is slower, it or the client.
"""

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import lmdb

from cluster.packed import BODY_BYTES
from scripts.bench.cases.case import Case, Plan
from scripts.bench.cases.unary import CONNECTIONS, METHOD, timeline_of
from scripts.bench.drive import drive, in_thread
from scripts.bench.http2 import UnaryLoad
from scripts.bench.load import Draw, bodies, packed_requests, unary_requests
from scripts.bench.machine import sync_floor
from scripts.bench.report import FULL_BLOCKS
from scripts.bench.results import Figure, Outcome
from scripts.bench.rig import BATCH, Shard
from scripts.bench.usage import cpu_s
from scripts.latency import Latencies
from scripts.progress import progress

BLOCK_BYTES = 512 * 1024
RECORD_BYTES = 128
LONE_BLOCK_BYTES = 256  # a header and one record
MAP_BYTES = 16 * 2**30
SYNCS = 4_000
BLOCKS = 600
ECHO_CALLS = 60_000
ECHO_BATCHES = 400
IN_FLIGHT = 4
_KEY_BYTES = 8


async def _disk(plan: Plan) -> Outcome:
    """Append and sync."""
    with tempfile.TemporaryDirectory(prefix="doubloon-bench-") as folder:
        runs = [
            await asyncio.to_thread(sync_floor, Path(folder), plan.scaled(SYNCS, least=50))
            for _ in range(plan.repeats)
        ]
    return Outcome(
        "floor-sync", "append 4 KiB and fdatasync, one after the other",
        [
            Figure("syncs", "/s", [len(r.durations_s) / sum(r.durations_s) for r in runs]),
            Figure("sync p50", "ms", [r.percentile_ms(50) for r in runs]),
            Figure("sync p99", "ms", [r.percentile_ms(99) for r in runs]),
        ],
    )  # fmt: skip


def appends(folder: Path, value: bytes, count: int) -> Latencies:
    """Append one value a transaction to a fresh LMDB environment, synced by default."""
    latencies = Latencies()
    with lmdb.open(str(folder), map_size=MAP_BYTES) as environment:
        for number in range(count):
            begun_s = time.perf_counter()
            with environment.begin(write=True) as transaction:
                transaction.put(number.to_bytes(_KEY_BYTES, "big"), value, append=True)
            latencies.durations_s.append(time.perf_counter() - begun_s)
    return latencies


async def _lmdb(plan: Plan) -> Outcome:
    """Append what a log appends."""
    full, lone = [], []
    for _ in range(plan.repeats):
        with tempfile.TemporaryDirectory(prefix="doubloon-bench-") as temporary:
            folder = Path(temporary)
            count = plan.scaled(BLOCKS, least=10)
            full.append(
                await asyncio.to_thread(appends, folder / "full", bytes(BLOCK_BYTES), count)
            )
            count = plan.scaled(SYNCS, least=50)
            lone.append(
                await asyncio.to_thread(appends, folder / "lone", bytes(LONE_BLOCK_BYTES), count)
            )
    records = BLOCK_BYTES // RECORD_BYTES
    return Outcome(
        "floor-lmdb", "bare LMDB, one block a transaction, default sync",
        [
            Figure(FULL_BLOCKS, "/s",
                   [records * len(r.durations_s) / sum(r.durations_s) for r in full]),
            Figure("full block p50", "ms", [r.percentile_ms(50) for r in full]),
            Figure("lone block p50", "ms", [r.percentile_ms(50) for r in lone]),
        ],
    )  # fmt: skip


@asynccontextmanager
async def echo_server() -> AsyncIterator[tuple[str, int]]:
    """Run `scripts/bench/echo.py`; yields its address and process id."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.bench.echo",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None, "asked for"
    assert process.stdout is not None, "asked for"
    try:
        yield (await process.stdout.readline()).decode().strip(), process.pid
    finally:
        process.stdin.close()
        await process.wait()


async def _grpc(plan: Plan) -> Outcome:
    """Both kinds of call, answered at once."""
    draw = Draw(plan.accounts, "uniform", plan.seed)
    calls = plan.scaled(ECHO_CALLS, CONNECTIONS, plan.repeats)
    batches = plan.scaled(ECHO_BATCHES, plan.repeats)
    async with echo_server() as (address, pid):
        messages = list(unary_requests(draw, calls, "uuid7"))
        load = UnaryLoad([address], METHOD, messages, CONNECTIONS)
        before_s = cpu_s(pid)
        try:
            with progress(plan.console, "floor-grpc: unary", calls) as advance:
                made = await in_thread(load.run)
                advance(calls)
        finally:
            load.close()
        server_us = (cpu_s(pid) - before_s) * 1e6 / calls
        shard = Shard(address, 1)
        packed = bodies(draw, BATCH, "uuid7", 1)
        assert len(packed) == BATCH * BODY_BYTES, "one call's worth"
        with progress(plan.console, "floor-grpc: batches", batches * BATCH) as advance:
            requests = packed_requests(packed, BATCH) * batches
            timeline = await drive(requests, shard.execute, IN_FLIGHT, advance)
        await shard.close()
    return Outcome(
        "floor-grpc", "bare grpc.aio on uvloop that answers at once, the same messages",
        [
            Figure("unary calls", "/s", timeline_of(made).rates(plan.repeats)),
            Figure("server", "µs/call", [server_us]),
            Figure("load generator", "µs/call", [made.cpu_s * 1e6 / calls]),
            Figure(f"transfers in batches of {BATCH:,}", "/s", timeline.rates(plan.repeats)),
        ],
    )  # fmt: skip


CASES = (
    Case("floor-sync", "the disk's sync", _disk),
    Case("floor-lmdb", "LMDB's appends", _lmdb),
    Case("floor-grpc", "gRPC's calls", _grpc),
)
