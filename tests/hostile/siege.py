"""A real cluster under attack: `python -m tests.hostile.siege --seconds 60`.

Every attack on every kind of process, one after the other, while a client that means well goes on
paying. What must hold: all processes live, the client is answered, memory stays bounded, and at the
end the books are as if nothing had been.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from doubloon import Transfer
from scripts.local_cluster import COORDINATOR, ROUTER, SHARD
from tests.hostile.attacks import ATTACKS, Mark
from tests.support.clusters import GOLD, LiveCluster, Town, live_cluster, settle_town

PATHS = {
    ROUTER: "/doubloon.v1.WalletService/TransferBatch",
    SHARD: "/doubloon.v1.ShardService/ExecuteTransfers",
    COORDINATOR: "/doubloon.v1.CoordinatorService/ExecuteTransactions",
}
ROLES = tuple(PATHS)
SAMPLE_S = 0.05  # between two looks at memory
TABLE_WIDTH = 120  # where there is no terminal to ask
QUIET_S = 1.0  # before anything: what the client is used to


@dataclass
class Blow:
    """One attack on one process. Memory in MiB, latencies in ms."""

    attack: str
    role: str
    times: int = 0
    memory_before: float = 0.0
    memory_peak: float = 0.0
    memory_after: float = 0.0
    calls: int = 0
    median_ms: float = 0.0
    slowest_ms: float = 0.0


@dataclass
class Payer:
    """A client that means well: it pays a coin, waits for the answer, and pays the next one."""

    live: LiveCluster
    town: Town
    paid: int = 0
    waits_ms: list[float] = field(default_factory=list)

    async def pay(self) -> None:
        """Go on until cancelled. Every payment must be answered COMPLETED."""
        loop = asyncio.get_running_loop()
        shards = sorted(self.town.treasuries)
        source, target = self.town.treasuries[shards[0]], self.town.players[shards[-1]][0]
        while True:
            began = loop.time()
            result = (await self.live.wallet.transfer_batch([Transfer(source, target, GOLD, 1)]))[0]
            assert result.completed, result
            self.paid += 1
            self.waits_ms.append((loop.time() - began) * 1_000)

    def take(self) -> list[float]:
        """The waits since the last time."""
        waits, self.waits_ms = self.waits_ms, []
        return waits


def memory_mib(pid: int) -> float:
    """A process's own anonymous memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} is gone")


async def strike(live: LiveCluster, payer: Payer, name: str, role: str, seconds: float) -> Blow:
    """One attack, while the payer pays."""
    pid = live.processes.pid(role, 1)
    mark = Mark(live.processes.address(role, 1), PATHS[role])
    blow = Blow(name, role, memory_before=memory_mib(pid))
    payer.take()
    loop = asyncio.get_running_loop()
    attack = asyncio.ensure_future(ATTACKS[name](mark, loop.time() + seconds))
    while not attack.done():
        blow.memory_peak = max(blow.memory_peak, memory_mib(pid))
        await asyncio.wait([attack], timeout=SAMPLE_S)
    blow.times = attack.result()
    waits = payer.take()
    blow.calls = len(waits)
    if waits:
        blow.median_ms, blow.slowest_ms = statistics.median(waits), max(waits)
    blow.memory_after = memory_mib(pid)
    return blow


async def besiege(
    folder: Path,
    names: list[str],
    seconds_each: float,
    roles: tuple[str, ...] = ROLES,
    told: asyncio.Queue[Blow] | None = None,
) -> list[Blow]:
    """Strike with every attack on every role, and look at the books. The first row is of peace."""
    blows = []
    async with live_cluster(folder, shards=2, coordinators=1) as live:
        town = await settle_town(live, 1)
        payer = Payer(live, town)
        paying = asyncio.create_task(payer.pay())
        try:
            await asyncio.sleep(QUIET_S)
            waits = payer.take()
            assert waits, "nothing was paid before the first attack"
            middle, slowest = statistics.median(waits), max(waits)
            blows.append(Blow("none", "", calls=len(waits), median_ms=middle, slowest_ms=slowest))
            for role in roles:
                for name in names:
                    blows.append(await strike(live, payer, name, role, seconds_each))
                    if told is not None:
                        told.put_nowait(blows[-1])
                    if paying.done():
                        paying.result()
        finally:
            paying.cancel()
            with suppress(asyncio.CancelledError):
                await paying
        await check_books(live, payer)
    return blows


async def check_books(live: LiveCluster, payer: Payer) -> None:
    """Nothing was moved but what was paid."""
    shards = sorted(payer.town.treasuries)
    player = payer.town.players[shards[-1]][0]
    balance = (await live.wallet.balances(player)).of(GOLD)
    has = balance.posted_minor if balance else 0
    assert payer.paid <= has <= payer.paid + 1, f"{payer.paid} paid, {has} there"
    assert (await live.admin.check_conservation()).balanced
    assert (await live.admin.audit()).balanced


@click.command()
@click.option("--seconds", default=72, show_default=True, type=click.IntRange(1), help="In all.")
@click.option("--attack", "names", multiple=True, type=click.Choice(list(ATTACKS)))
@click.option("--json", "as_json", is_flag=True, help="Tell the end as JSON.")
def main(*, seconds: int, names: tuple[str, ...], as_json: bool) -> None:
    """Attack a cluster that this starts, and tell how it stood it."""
    chosen = list(names or ATTACKS)
    with tempfile.TemporaryDirectory(prefix="siege-") as folder:
        blows = asyncio.run(_with_progress(Path(folder), chosen, seconds))
    if as_json:
        click.echo(json.dumps([asdict(blow) for blow in blows]))
    else:
        shown = Console()
        wide = shown if shown.is_terminal else Console(width=TABLE_WIDTH)
        wide.print(table_of(blows))


async def _with_progress(folder: Path, names: list[str], seconds: int) -> list[Blow]:
    told: asyncio.Queue[Blow] = asyncio.Queue()
    columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
    total = len(names) * len(ROLES)
    siege = asyncio.ensure_future(besiege(folder, names, seconds / total, ROLES, told))
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=total)
        while not siege.done():
            next_blow = asyncio.ensure_future(told.get())
            await asyncio.wait([siege, next_blow], return_when=asyncio.FIRST_COMPLETED)
            if next_blow.done():
                blow = next_blow.result()
                progress.update(bar, advance=1, description=f"{blow.attack} on {blow.role}")
            next_blow.cancel()
    return siege.result()


def table_of(blows: list[Blow]) -> Table:
    """What was done, and what the payer noticed, for people."""
    table = Table(title="every process lived, every payment was answered, the books agree")
    names = ("attack", "on", "times", "MiB before", "peak", "after", "paid", "median ms", "slowest")
    for name in names:
        table.add_column(name, justify="left" if name in names[:2] else "right")
    for b in blows:
        memory = (f"{each:.0f}" for each in (b.memory_before, b.memory_peak, b.memory_after))
        waits = (f"{b.median_ms:.1f}", f"{b.slowest_ms:.0f}")
        table.add_row(b.attack, b.role, f"{b.times:,}", *memory, f"{b.calls:,}", *waits)
    return table


if __name__ == "__main__":
    sys.exit(main())
