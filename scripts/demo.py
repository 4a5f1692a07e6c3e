"""`make demo`: a cluster, a month of a game's economy, both queries, the books; then an end.

Exits with 1 when anything is not as the game's own naive books say.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from doubloon import AsyncAdminClient, AsyncClient, ClusterStatus
from scripts.chart import svg, terminal_plot
from scripts.commands.history import entries_table, flows_table, series_of
from scripts.commands.session import EXIT_FAILED, console, plain, run, table
from scripts.demo_steps import BusyPlayer, Demo, Findings
from scripts.economy import GOLD, SCALES, EconomyConfig
from scripts.etcd_server import EtcdServerError, find_etcd
from scripts.latency import Latencies
from scripts.local_cluster import ROOT, LocalCluster
from scripts.processes import ProcessEnded
from scripts.progress import progress
from scripts.units import show_time

_PLOT_WIDTH = 100
_COORDINATORS = 1  # any number may run at once; more only make the calls smaller here


@click.command()
@click.option("--shards", type=click.IntRange(1, 16), default=3, show_default=True)
@click.option("--players", type=click.IntRange(100), default=10_000, show_default=True)
@click.option(
    "--events", type=click.IntRange(1_000), default=104_000, show_default=True,
    help="How often a player does something in the month; each makes about two transfers.",
)  # fmt: skip
@click.option(
    "--seed", type=int, default=1993, show_default=True, help="Another one, another month."
)
@click.option(
    "--output", type=click.Path(file_okay=False, path_type=Path), default=ROOT / "build" / "demo",
    help="The folder that the picture goes to.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
def main(*, shards: int, players: int, events: int, seed: int, output: Path, as_json: bool) -> None:
    """Start a cluster, play a month of a game's economy, ask both queries, check, stop."""
    shown = Console(stderr=True, quiet=True) if as_json else console()
    try:
        value, passed = run(
            _demo(shown, shards, players, events, seed, output),
            "interrupted; everything is stopped and its folder removed",
        )
    except (EtcdServerError, ProcessEnded, TimeoutError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))
    if not passed:
        raise click.exceptions.Exit(EXIT_FAILED)


async def _demo(
    shown: Console, shards: int, players: int, events: int, seed: int, output: Path
) -> tuple[dict[str, Any], bool]:
    start_s = time.perf_counter()
    coordinators = _COORDINATORS if shards > 1 else 0
    findings = Findings()
    etcd = find_etcd()
    play_only = " (for play only: it can lose data when killed)" if etcd.play_only else ""
    plural = "" if coordinators == 1 else "s"
    roles = f"{shards} shard nodes, {coordinators} coordinator{plural} and a router"
    shown.print(f"starting etcd {etcd.version}{play_only}, {roles}")
    with tempfile.TemporaryDirectory(prefix="doubloon-demo-") as folder:
        async with LocalCluster(
            Path(folder), shards=shards, coordinators=coordinators, allow_imports=True
        ) as cluster:
            started_s = time.perf_counter() - start_s
            routers = cluster.routers
            shown.print(f"up in {started_s:.1f} s; the router is {routers[0]}")
            config = EconomyConfig(
                seed, end_us=time.time_ns() // 1_000, players=players, events=events
            )
            async with AsyncClient(routers) as wallet, AsyncAdminClient(routers) as admin:
                demo = Demo(wallet, admin, config, cluster.topology, findings)
                busy = await _play(demo, shown)
                status = await admin.cluster_status()
    picture = _draw(busy, output)
    for part in (_busy_player(busy), _measurements(findings, status), _checks(findings)):
        shown.print()
        shown.print(part)
    elapsed_s = time.perf_counter() - start_s
    shown.print(
        f"\npicture: {picture}\nall of it took {elapsed_s:.1f} s, and everything is stopped"
    )
    return _value(findings, busy, status, picture, elapsed_s), findings.passed


async def _play(demo: Demo, shown: Console) -> BusyPlayer:
    accounts = len(demo.economy.players) + len(demo.economy.hubs)
    await demo.register_currencies()
    with progress(shown, "accounts", accounts) as advance:
        await demo.open_accounts(advance)
    with progress(shown, "transfers and groups", len(demo.month)) as advance:
        await demo.play_month(advance)
    busy = await demo.ask_busy_player()
    await demo.compare_balances()
    await demo.measure()
    await demo.check_conservation()
    await demo.audit()
    return busy


def _draw(busy: BusyPlayer, output: Path) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    picture = output / f"account-{busy.account_id}-{GOLD}.svg"
    drawn = series_of(busy.series, f"account {busy.account_id}, {GOLD}, 30 days", SCALES[GOLD])
    picture.write_text(svg(drawn), encoding="utf-8")
    return picture


def _busy_player(busy: BusyPlayer) -> RenderableType:
    drawn = series_of(busy.series, f"account {busy.account_id}, {GOLD}, 30 days", SCALES[GOLD])
    window = f"after {show_time(busy.flows.from_us)} up to {show_time(busy.flows.to_us)}"
    return Group(
        flows_table(busy.flows.flows, SCALES, f"query 1: account {busy.account_id}, {window}"),
        Text(""),
        entries_table(list(busy.statement), SCALES, "its latest entries"),
        Text("\nquery 2: its balance at the end of each hour"),
        Text(terminal_plot(drawn, width=_PLOT_WIDTH)),
    )


def _measurements(findings: Findings, status: ClusterStatus) -> RenderableType:
    made = table("call", "calls>", "p50 ms>", "p99 ms>", title="how long calls took")
    for name, measured in _latencies(findings).items():
        made.add_row(
            name, f"{len(measured.durations_s):,}",
            f"{measured.percentile_ms(50):.2f}", f"{measured.percentile_ms(99):.2f}",
        )  # fmt: skip
    transfers, syncs = findings.transfers, sum(shard.log_syncs for shard in status.shards)
    disk = sum(shard.log_bytes + shard.state_bytes for shard in status.shards)
    return Group(
        Text(
            f"{findings.accounts:,} accounts opened in {findings.opening_s:.1f} s; "
            f"{transfers:,} transfers in {findings.playing_s:.1f} s, "
            f"{transfers / findings.playing_s:,.0f} a second, each account's in order;\n"
            f"{findings.crossing / max(1, transfers):.0%} are between shards, "
            f"{findings.groups:,} groups;\n"
            f"{findings.batches:,} batches of {transfers / max(1, findings.batches):.0f} on "
            f"average, {syncs:,} syncs, {disk / max(1, transfers):,.0f} bytes on disk per transfer"
        ),
        Text(""),
        made,
    )


def _latencies(findings: Findings) -> dict[str, Latencies]:
    return {
        "a batch of transfers, while playing": findings.batch,
        "a single transfer": findings.single,
        "query 1, flows of 24 hours": findings.flows_query,
        "query 2, balances of 30 days": findings.series_query,
    }


def _checks(findings: Findings) -> RenderableType:
    made = table("check", "passed", "detail", title="checks")
    for check in findings.checks:
        made.add_row(check.name, "yes" if check.passed else "NO", check.detail)
    return made


def _value(
    findings: Findings, busy: BusyPlayer, status: ClusterStatus, picture: Path, elapsed_s: float
) -> dict[str, Any]:
    return {
        "passed": findings.passed,
        "checks": findings.checks,
        "accounts": findings.accounts,
        "transfers": findings.transfers,
        "crossing": findings.crossing,
        "groups": findings.groups,
        "completed": findings.tally.completed,
        "refused": {reason.name: count for reason, count in findings.tally.refused.items()},
        "opening_s": findings.opening_s,
        "playing_s": findings.playing_s,
        "elapsed_s": elapsed_s,
        "batches": findings.batches,
        "latency_ms": {
            name: {
                "calls": len(measured.durations_s),
                "p50": measured.percentile_ms(50),
                "p99": measured.percentile_ms(99),
            }
            for name, measured in _latencies(findings).items()
        },
        "busy_player": busy,
        "cluster": status,
        "picture": str(picture),
    }


if __name__ == "__main__":
    main()
