"""`make bench`: how fast a cluster of real processes on this machine is, and what it costs.

Each case sends a fixed number of fresh transfers, by so many callers at once, and reports the rate,
the calls' latency, the log's syncs, the bytes on disk and the memory of the shard node. `direct`
cases speak ShardService's packed form to the shard node itself, without a router; `router` cases
speak the public contract through one. Client, router, shard node and etcd share the machine, so
compare figures of one run with each other, not with those of another machine.

The last case makes one account's history a million entries long and then asks both queries of it.
"""

import asyncio
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cluster import rpc
from cluster.packed import BODY
from doubloon import (
    AccountKind,
    AccountSpec,
    AsyncAdminClient,
    AsyncClient,
    Transfer,
    new_transfer_id,
)
from doubloon.v1 import shard_service_pb2, shard_service_pb2_grpc
from scripts.latency import Latencies
from scripts.local_cluster import SHARD, LocalCluster
from scripts.progress import progress

CURRENCY = "GOLD"
FLOOR_MINOR = -(10**15)
TABLE_WIDTH = 120  # where there is no terminal to ask
PARTNERS = 1_000  # of the account with a long history
TOPOLOGY_VERSION = 1
CALL_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Case:
    """One way of sending transfers.

    Attributes:
        name: as reported.
        through_router: by the SDK through a router; else packed, straight to the shard node.
        batch: transfers in a call.
        callers: calls in flight.
        transfers: how many in all, after as many as one second's worth for warming up.
    """

    name: str
    through_router: bool
    batch: int
    callers: int
    transfers: int


@dataclass(frozen=True)
class Result:
    """What a case gave; bytes and syncs are those of the shard node's log."""

    name: str
    batch: int
    callers: int
    transfers: int
    per_second: float
    p50_ms: float
    p99_ms: float
    syncs: int
    log_bytes_per_transfer: float
    shard_memory_mib: float
    longest_turn_ms: float


@dataclass(frozen=True)
class QueryResult:
    """How long a query took on an account with so many entries."""

    name: str
    entries: int
    calls: int
    p50_ms: float
    p99_ms: float


CASES = (
    Case("direct", through_router=False, batch=1, callers=1, transfers=3_000),
    Case("direct", through_router=False, batch=1, callers=64, transfers=30_000),
    Case("direct", through_router=False, batch=100, callers=8, transfers=200_000),
    Case("direct", through_router=False, batch=8_000, callers=4, transfers=1_000_000),
    Case("router", through_router=True, batch=1, callers=1, transfers=3_000),
    Case("router", through_router=True, batch=1, callers=64, transfers=50_000),
    Case("router", through_router=True, batch=100, callers=8, transfers=200_000),
    Case("router", through_router=True, batch=8_000, callers=4, transfers=800_000),
)


class Bench:
    """A one-shard cluster under load.

    Args:
        cluster: running.
        wallet, admin: through its router.
        accounts: how many take part.
        rng: draws accounts and amounts.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        wallet: AsyncClient,
        admin: AsyncAdminClient,
        accounts: int,
        rng: random.Random,
    ) -> None:
        self._cluster = cluster
        self._wallet = wallet
        self._admin = admin
        self._accounts = accounts
        self._rng = rng
        self._channel = rpc.channel(cluster.address(SHARD, 1))
        self._shard = shard_service_pb2_grpc.ShardServiceStub(self._channel)
        self._target = ((rpc.SHARD_KEY, "1"), (rpc.TOPOLOGY_VERSION_KEY, str(TOPOLOGY_VERSION)))

    async def prepare(self) -> None:
        """Register the currency and open the accounts."""
        await self._admin.register_currency(CURRENCY, scale=2)
        specs = [
            AccountSpec(number, AccountKind.SYSTEM, FLOOR_MINOR)
            for number in range(1, self._accounts + 1)
        ]
        for start in range(0, len(specs), 8_000):
            await self._wallet.open_accounts(specs[start : start + 8_000])

    async def run(self, case: Case, console: Console) -> Result:
        """Run one case."""
        send = self._send_by_router if case.through_router else self._send_direct
        calls = max(1, case.transfers // case.batch)
        latencies = Latencies()
        before = (await self._admin.cluster_status()).shards[0]
        label = f"{case.name}, {case.batch:,} a call, {case.callers} callers"
        with progress(console, label, calls * case.batch) as advance:
            started_s = time.perf_counter()
            left = iter(range(calls))

            async def caller() -> None:
                for _ in left:
                    await send(case.batch, latencies)
                    advance(case.batch)

            async with asyncio.TaskGroup() as callers:
                for _ in range(case.callers):
                    callers.create_task(caller())
            elapsed_s = time.perf_counter() - started_s
        after = (await self._admin.cluster_status()).shards[0]
        made = after.transfers_completed - before.transfers_completed
        if made != calls * case.batch:
            raise click.ClickException(f"{label}: {made} completed, not {calls * case.batch}")
        return Result(
            case.name,
            case.batch,
            case.callers,
            made,
            made / elapsed_s,
            latencies.percentile_ms(50),
            latencies.percentile_ms(99),
            after.log_syncs - before.log_syncs,
            (after.log_bytes - before.log_bytes) / made,
            after.memory_bytes / 2**20,
            after.longest_turn_us / 1_000,
        )

    async def ask(self, account_id: int, entries: int, calls: int) -> list[QueryResult]:
        """Ask both queries of one account, again and again, one call at a time."""
        queries: dict[str, Callable[[], Awaitable[object]]] = {
            "query 1, flows of 24 hours": lambda: self._wallet.flows(account_id),
            "query 2, balances of 30 days": lambda: self._wallet.balance_series(
                account_id, CURRENCY
            ),
        }
        results = []
        for name, query in queries.items():
            latencies = Latencies()
            for _ in range(calls):
                await latencies.timed(query())
            p50_ms, p99_ms = latencies.percentile_ms(50), latencies.percentile_ms(99)
            results.append(QueryResult(name, entries, calls, p50_ms, p99_ms))
        return results

    async def grow_history(self, account_id: int, entries: int, console: Console) -> None:
        """Import a month of payments from one account, evenly spread."""
        month_us = 30 * 24 * 3_600 * 1_000_000
        start_us = time.time_ns() // 1_000 - month_us
        with progress(console, f"a history of {entries:,} entries", entries) as advance:
            for first in range(0, entries, 8_000):
                count = min(8_000, entries - first)
                batch = [
                    self._transfer(account_id, start_us + (first + at) * month_us // entries)
                    for at in range(count)
                ]
                results = await self._wallet.transfer_batch(batch)
                if not all(result.completed for result in results):
                    raise click.ClickException("an import was not completed")
                advance(count)

    async def close(self) -> None:
        """Close the channel to the shard node."""
        await self._channel.close()

    def _pair(self) -> tuple[int, int]:
        source = self._rng.randrange(1, self._accounts + 1)
        step = self._rng.randrange(1, self._accounts)
        return source, (source + step - 1) % self._accounts + 1

    def _transfer(self, source: int, import_time_us: int) -> Transfer:
        # Only accounts without later entries take imports.
        destination = source + self._rng.randrange(1, PARTNERS + 1)
        return Transfer(source, destination, CURRENCY, 1, import_time_us=import_time_us)

    async def _send_by_router(self, batch: int, latencies: Latencies) -> None:
        transfers = [Transfer(*self._pair(), CURRENCY, 1) for _ in range(batch)]
        if batch == 1:
            (only,) = transfers
            await latencies.timed(
                self._wallet.transfer(
                    only.source, only.destination, CURRENCY, 1, transfer_id=only.transfer_id
                )
            )
        else:
            await latencies.timed(self._wallet.transfer_batch(transfers))

    async def _send_direct(self, batch: int, latencies: Latencies) -> None:
        new_id, pack, pair = new_transfer_id, BODY.pack, self._pair
        bodies = b"".join(pack(new_id(), *pair(), 1, 0, 0, 1, 0, 1) for _ in range(batch))
        await latencies.timed(
            self._shard.ExecuteTransfers(
                shard_service_pb2.ExecuteTransfersRequest(bodies=bodies),
                timeout=CALL_TIMEOUT_S,
                metadata=self._target,
            )
        )


async def measure(
    cases: Sequence[Case], accounts: int, history: int, calls: int, seed: int, console: Console
) -> dict[str, object]:
    """Run everything on a fresh cluster in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="doubloon-bench-") as folder:
        async with (
            LocalCluster(Path(folder), allow_imports=True) as cluster,
            AsyncClient(cluster.routers, timeout_s=CALL_TIMEOUT_S) as wallet,
            AsyncAdminClient(cluster.routers) as admin,
        ):
            bench = Bench(cluster, wallet, admin, accounts, random.Random(seed))
            await bench.prepare()
            results = [await bench.run(case, console) for case in cases]
            queries: list[QueryResult] = []
            if history:
                hero = accounts + 1
                await wallet.open_accounts(
                    [
                        AccountSpec(number, AccountKind.SYSTEM, FLOOR_MINOR)
                        for number in range(hero, hero + PARTNERS + 1)
                    ]
                )
                await bench.grow_history(hero, history, console)
                queries = await bench.ask(hero, history, calls)
            await bench.close()
            size = sum(path.stat().st_blocks * 512 for path in _files(cluster, "state"))
            made = sum(result.transfers for result in results) + history
    return {
        "machine": {
            "processors": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "seed": seed,
        "accounts": accounts,
        "cases": [asdict(result) for result in results],
        "queries": [asdict(query) for query in queries],
        "state_bytes_per_transfer": size / made,
    }


def _files(cluster: LocalCluster, environment: str) -> list[Path]:
    return list((cluster.data_folder(SHARD, 1) / environment).iterdir())


@click.command()
@click.option("--accounts", type=click.IntRange(2), default=100_000, show_default=True)
@click.option("--history", type=click.IntRange(0), default=1_000_000, show_default=True)
@click.option("--scale", type=click.FloatRange(0.001, 10), default=1.0, show_default=True)
@click.option("--seed", type=int, default=1993, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
def main(*, accounts: int, history: int, scale: float, seed: int, as_json: bool) -> None:
    """Measure a one-shard cluster on this machine."""
    console = Console(stderr=True, quiet=as_json)
    cases = [
        Case(c.name, c.through_router, c.batch, c.callers, max(c.batch, int(c.transfers * scale)))
        for c in CASES
    ]
    calls = max(100, int(2_000 * scale))
    report = asyncio.run(measure(cases, accounts, int(history * scale), calls, seed, console))
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        shown = Console()
        _show(report, shown if shown.is_terminal else Console(width=TABLE_WIDTH))


def _show(report: dict[str, Any], console: Console) -> None:
    table = Table(title="transfers, one shard")
    for name in (
        "path", "a call", "callers", "a second", "p50 ms", "p99 ms", "syncs", "log bytes each",
        "memory MiB", "longest turn ms",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for case in report["cases"]:
        table.add_row(
            case["name"],
            f"{case['batch']:,}",
            str(case["callers"]),
            f"{case['per_second']:,.0f}",
            f"{case['p50_ms']:.2f}",
            f"{case['p99_ms']:.2f}",
            f"{case['syncs']:,}",
            f"{case['log_bytes_per_transfer']:.0f}",
            f"{case['shard_memory_mib']:.0f}",
            f"{case['longest_turn_ms']:.1f}",
        )
    console.print(table)
    for query in report["queries"]:
        console.print(
            f"{query['name']}, account of {query['entries']:,} entries: "
            f"p50 {query['p50_ms']:.2f} ms, p99 {query['p99_ms']:.2f} ms"
        )
    console.print(f"state: {report['state_bytes_per_transfer']:.0f} bytes for each transfer")


if __name__ == "__main__":
    main()
