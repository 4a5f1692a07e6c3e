"""Does its worst to a cluster for a while: kills, hangs, cuts, skews, and bad disks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.whole_cluster.disk import DiskFaults
from tests.whole_cluster.membership import NAME as ETCD
from tests.whole_cluster.network import NetworkFaults

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.whole_cluster.cluster import Cluster
    from tests.whole_cluster.world import World

FUSE_MAX: Final = 600
"""A process to be killed dies within so many of its steps: anywhere in a few transactions."""


@dataclass(frozen=True)
class Badness:
    """How bad it gets.

    Attributes:
        every_s: between two of the events below, on average; 0 = there are none.
        kills, hangs, cuts, skews, absences, bumps, stops, thefts: their weights.
        down_max_s: how long who was killed is down, at the most.
        skew_max_s: how far a clock may be off.
        network, disk: chances, all the while.
        answers_lost: of etcd.
    """

    every_s: float
    kills: int
    hangs: int
    cuts: int
    skews: int
    absences: int
    bumps: int
    stops: int
    thefts: int
    down_max_s: float
    skew_max_s: float
    network: NetworkFaults
    disk: DiskFaults
    answers_lost: float


def draw_badness(rng: random.Random) -> Badness:
    """Each kind of fault may be absent, rare or frequent."""

    def level(*levels: float) -> float:
        return rng.choice((0.0, *levels))

    def weight() -> int:
        return rng.choice((0, 1, 4))

    return Badness(
        every_s=rng.choice((0.0, 0.5, 1.0, 4.0)),
        kills=1 + weight(),
        hangs=weight(),
        cuts=weight(),
        skews=weight(),
        absences=weight(),
        bumps=rng.choice((0, 1, 1)),
        stops=rng.choice((0, 0, 1)),
        thefts=rng.choice((0, 0, 1)),
        down_max_s=rng.choice((0.2, 3.0, 9.0)),
        skew_max_s=rng.choice((0.05, 0.9, 3.0)),
        network=NetworkFaults(
            lost=level(0.01, 0.05),
            doubled=level(0.02, 0.2),
            late=level(0.02, 0.2),
            late_max_s=rng.choice((0.2, 2.0, 7.0)),
        ),
        disk=DiskFaults(
            slow_sync=level(0.02, 0.2),
            slow_max_s=rng.choice((0.1, 3.0)),
            sync_error=level(0.002, 0.02),
        ),
        answers_lost=level(0.1, 0.5),
    )


async def torment(cluster: Cluster, badness: Badness, until_s: float) -> None:
    """Lets it happen until then."""
    world, loop = cluster.world, asyncio.get_running_loop()
    cluster.network.faults = NetworkFaults(**vars(badness.network) | {"cut": set()})
    for disk in cluster.disks.values():
        disk.faults = badness.disk
    cluster.store.lost = badness.answers_lost
    cluster.restart_s = (0.01, badness.down_max_s)
    doing: dict[Callable[[Cluster, Badness], None], int] = {
        _kill: badness.kills,
        _hang: badness.hangs,
        _cut: badness.cuts,
        _skew: badness.skews,
        _absent: badness.absences,
        _bump: badness.bumps,
        _stop: badness.stops,
        _steal: badness.thefts,
    }
    while badness.every_s:
        pause_s = world.rng.expovariate(1.0 / badness.every_s)
        if loop.time() + pause_s >= until_s:
            break
        await asyncio.sleep(pause_s)
        (act,) = world.rng.choices(list(doing), list(doing.values()))
        act(cluster, badness)
    await asyncio.sleep(max(0.0, until_s - loop.time()))


def _kill(cluster: Cluster, badness: Badness) -> None:
    """Somebody dies, a few steps from now; most often a shard node. It may wake up in the past."""
    world = cluster.world
    name = world.rng.choice([*cluster.servers, *(f"shard-{each}" for each in cluster.nodes)])
    process = cluster.servers[name]
    if not process.life.is_over:
        if world.chance(0.5):
            process.offset_us = _offset_us(world, badness)
        process.life.fuse = world.rng.randint(1, world.rng.choice((10, FUSE_MAX)))


def _hang(cluster: Cluster, _: Badness) -> None:
    """Somebody stands still, perhaps for longer than its lease."""
    world = cluster.world
    process = world.rng.choice(list(cluster.servers.values()))
    time_s = world.rng.uniform(0.05, world.rng.choice((0.5, 3.0, 12.0)))
    world.counts["hangs"] += 1
    process.hang(time_s)
    cluster.store.listen()
    world.after(time_s, cluster.store.listen)


def _cut(cluster: Cluster, _: Badness) -> None:
    """Some cannot reach some others, or be reached by them."""
    world, rng = cluster.world, cluster.world.rng
    names = [
        *cluster.servers,
        ETCD,
        *(f"client-{each + 1}" for each in range(len(cluster.clients))),
    ]
    apart = set(rng.sample(names, rng.choice((1, 1, 2))))
    others = [each for each in names if each not in apart]
    if rng.random() < 0.5:
        others = rng.sample(others, rng.randint(1, len(others)))
    pairs: set[tuple[str, str]] = set()
    both = rng.random() < 0.6
    for one in sorted(apart):
        for other in others:
            pairs.add((one, other))
            if both:
                pairs.add((other, one))
    world.counts["cuts"] += 1
    world.note(f"cut {sorted(apart)} from {others}, {'both ways' if both else 'one way'}")
    _part(cluster, pairs, rng.uniform(0.1, rng.choice((1.0, 8.0))))


def _part(cluster: Cluster, pairs: set[tuple[str, str]], time_s: float) -> None:
    """Lets nothing pass between these for so long."""
    cut = cluster.network.faults.cut
    cut |= pairs
    cluster.store.listen()

    def mend() -> None:
        cut.difference_update(pairs)
        cluster.store.listen()

    cluster.world.after(time_s, mend)


def _skew(cluster: Cluster, badness: Badness) -> None:
    """A clock jumps."""
    world = cluster.world
    process = world.rng.choice(list(cluster.servers.values()))
    process.offset_us = _offset_us(world, badness)
    world.counts["clock jumps"] += 1
    world.note(f"clock of {process.name} is off by {process.offset_us} us")


def _offset_us(world: World, badness: Badness) -> int:
    return round(world.rng.uniform(-1.0, 1.0) * badness.skew_max_s * 1e6)


def _absent(cluster: Cluster, _: Badness) -> None:
    """etcd cannot be asked for a while."""
    world = cluster.world
    if cluster.store.is_away:
        return
    world.note("etcd is away")
    world.counts["etcd away"] += 1
    cluster.store.is_away = True
    cluster.store.listen()

    def back() -> None:
        world.note("etcd is back")
        cluster.store.is_away = False
        cluster.store.listen()

    world.after(world.rng.uniform(0.5, 12.0), back)


def _bump(cluster: Cluster, _: Badness) -> None:
    """An operator puts a new topology in place; slots stay where they are, as yet they must.

    Often somebody does not hear of it at first.
    """
    world = cluster.world
    if world.chance(0.7):
        name = world.rng.choice(list(cluster.servers))
        _part(cluster, {(name, ETCD), (ETCD, name)}, world.rng.uniform(0.5, 5.0))
    topology = cluster.store.view.topology
    if topology is not None and not cluster.store.is_away:
        world.counts["topologies"] += 1
        cluster.store.change(topology=type(topology)(topology.version + 1, topology.shard_of_slot))


def _stop(cluster: Cluster, _: Badness) -> None:
    """An operator stops a shard node, as it is done properly."""
    world = cluster.world
    found = cluster.serving(world.rng.choice(list(cluster.nodes)))
    if found is not None:
        world.note(f"stop {found[0]}")
        world.counts["clean stops"] += 1
        found[1].stop()


def _steal(cluster: Cluster, _: Badness) -> None:
    """Somebody else claims a shard, and never serves it: its node finds out, and starts anew."""
    world = cluster.world
    if cluster.store.is_away:
        return
    shard_id = world.rng.choice(list(cluster.nodes))
    shards = cluster.store.view.shards
    if shard_id in shards:
        world.counts["claims stolen"] += 1
        world.note(f"a stranger claims shard {shard_id}")
        cluster.store.change(shards={**shards, shard_id: shards[shard_id].claimed_by("stranger")})
