"""`python -m scripts.bench.fleet --target 1000000`: what a fleet for so many transfers would need.

Reckoned, not measured: the processor time that each process of a measured run took for a transfer,
multiplied. It assumes

- that accounts are spread evenly and chosen at random, so that of all transfers (N − 1) / N cross
  between N shards (or the share that `--crossing` names);
- that costs per transfer are those of large batches in the measured run: `crossing-0` (else
  `shards-1`) for transfers inside a shard, `crossing-100` for those between two;
- that a process uses one core and no more than `--load` of it, and that processes do not slow each
  other down: true between machines, and not quite on one, where they share caches and memory;
- that routers, coordinators and shards can be added freely. Nothing is shared between them but
  etcd, which is on nobody's path. The network is not reckoned; it is told what it must carry.

What it cannot tell is what only a fleet would show: uneven slots, slow disks, lost machines.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from scripts.bench.report import check_format

INSIDE = ("crossing-0", "shards-1")
BETWEEN = ("crossing-100",)
WIRE_BYTES_CLIENT = 75  # a transfer and its result in the public messages
WIRE_BYTES_PACKED = 88  # a body and its result
SHARDS_MAX = 4_096  # a slot each


@dataclass(frozen=True)
class Costs:
    """Processor microseconds for one transfer, by role, and what a shard writes."""

    router_us: float
    coordinator_us: float
    shard_us: float
    checkpoint_us: float
    disk_bytes: float

    @classmethod
    def of(cls, report: dict[str, Any], names: tuple[str, ...]) -> "Costs":
        """Read those of the first case of a name.

        Raises:
            ValueError: the run has none of them.
        """
        for name in names:
            for case in report["cases"]:
                if case["name"] == name and case["usage"] is not None:
                    cpu = case["usage"]["cpu_us_per_transfer"]
                    return cls(
                        cpu.get("router", 0.0),
                        cpu.get("coordinator", 0.0),
                        cpu.get("shard", 0.0),
                        cpu.get("checkpoint", 0.0),
                        case["usage"]["disk_bytes_per_transfer"],
                    )
        raise ValueError(f"the run has no case {' or '.join(names)}: --only {','.join(names)}")

    def mixed(self, other: "Costs", share: float) -> "Costs":
        """Return what it is on average when `share` of all transfers cost what the other says."""

        def between(ours: float, theirs: float) -> float:
            return ours + (theirs - ours) * share

        return Costs(
            between(self.router_us, other.router_us),
            between(self.coordinator_us, other.coordinator_us),
            between(self.shard_us, other.shard_us),
            between(self.checkpoint_us, other.checkpoint_us),
            between(self.disk_bytes, other.disk_bytes),
        )


@dataclass(frozen=True)
class Fleet:
    """How many of everything."""

    target: int
    crossing: float
    routers: int
    coordinators: int
    shards: int
    cores: int
    disk_mb_per_s: float
    disk_tb_per_day: float
    network_mb_per_s: float


def fleet_for(
    target: int, inside: Costs, between: Costs, load: float, crossing: float | None = None
) -> Fleet:
    """Return the smallest fleet for so many transfers a second.

    The number of shards decides how many transfers cross, and that how many shards are needed: it
    is looked for from 1 up.

    Raises:
        ValueError: more shards would be needed than there are slots.
    """
    for shards in range(1, SHARDS_MAX + 1):
        share = crossing if crossing is not None else (shards - 1) / shards
        costs = inside.mixed(between, share if shards > 1 else 0.0)
        if shards * load >= target * costs.shard_us / 1e6:
            break
    else:
        raise ValueError(f"more than {SHARDS_MAX:,} shards")

    def processes(us: float) -> int:
        return math.ceil(target * us / 1e6 / load)

    routers, coordinators = processes(costs.router_us), processes(costs.coordinator_us)
    cores = routers + coordinators + shards + processes(costs.checkpoint_us)
    written = target * costs.disk_bytes
    crossing_share = share if shards > 1 else 0.0
    carried = target * (WIRE_BYTES_CLIENT + WIRE_BYTES_PACKED * (1 + 2 * crossing_share))
    return Fleet(
        target=target,
        crossing=crossing_share,
        routers=routers,
        coordinators=coordinators,
        shards=shards,
        cores=cores,
        disk_mb_per_s=written / 1e6,
        disk_tb_per_day=written * 86_400 / 1e12,
        network_mb_per_s=carried / 1e6,
    )


@click.command()
@click.option("--json", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              required=True, help="A run with crossing-0 and crossing-100.")  # fmt: skip
@click.option("--target", "targets", type=click.IntRange(1), multiple=True,
              default=(100_000, 300_000, 1_000_000), help="Transfers a second.")  # fmt: skip
@click.option("--load", type=click.FloatRange(0.05, 1.0), default=0.6, show_default=True,
              help="Of each core at the most: the rest is for peaks.")  # fmt: skip
@click.option("--crossing", type=click.FloatRange(0.0, 1.0),
              help="The share that crosses. [default: (N - 1) / N]")  # fmt: skip
def main(*, path: Path, targets: tuple[int, ...], load: float, crossing: float | None) -> None:
    """Reckon from a measured run what a fleet would need."""
    report = json.loads(path.read_text(encoding="utf-8"))
    try:
        check_format(report)
        inside, between = Costs.of(report, INSIDE), Costs.of(report, BETWEEN)
        fleets = [fleet_for(target, inside, between, load, crossing) for target in targets]
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    console = Console()
    for name, costs in (("inside a shard", inside), ("between two shards", between)):
        console.print(
            f"{name}: router {costs.router_us:.1f}, coordinator {costs.coordinator_us:.1f}, "
            f"shards {costs.shard_us:.1f}, checkpoints {costs.checkpoint_us:.1f} µs and "
            f"{costs.disk_bytes:.0f} bytes of disk for each transfer"
        )
    table = Table(title=f"cores at most {load:.0%} busy", title_justify="left")
    for column in ("transfers/s", "crossing", "routers", "coordinators", "shards", "cores",
                   "disk MB/s", "disk TB/day", "network MB/s"):  # fmt: skip
        table.add_column(column, justify="right")
    for fleet in fleets:
        table.add_row(
            f"{fleet.target:,}", f"{fleet.crossing:.0%}", f"{fleet.routers:,}",
            f"{fleet.coordinators:,}", f"{fleet.shards:,}", f"{fleet.cores:,}",
            f"{fleet.disk_mb_per_s:,.0f}", f"{fleet.disk_tb_per_day:,.1f}",
            f"{fleet.network_mb_per_s:,.0f}",
        )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
