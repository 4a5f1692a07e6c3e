"""A run: what there is, how busy it gets and how bad, all of it drawn from one seed."""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from shard_node.limits import Limits
from tests.whole_cluster import logs
from tests.whole_cluster.clients import Phase
from tests.whole_cluster.cluster import Cluster
from tests.whole_cluster.faults import Badness, draw_badness, torment
from tests.whole_cluster.world import World

if TYPE_CHECKING:
    from collections import Counter

HOUR_S: Final = 3_600.0

REPLAY: Final = "python -m tests.whole_cluster --seed {seed} --seeds 1 --trace"


@dataclass(frozen=True)
class Burst:
    """Some busy time with faults, and some quiet time after it.

    Attributes:
        busy_s, quiet_s: how long.
        think_s: between two questions of a client while it is busy, on average.
        badness: what goes wrong while it is busy.
    """

    busy_s: float
    quiet_s: float
    think_s: float
    badness: Badness


@dataclass(frozen=True)
class Setting:
    """What is drawn before anything happens.

    Attributes:
        shards, routers, coordinators, clients: how many.
        spares: whether a second node stands at every shard's disk, and takes over when it can.
        players: on each shard.
        limits: of shard nodes; small ones, so that accounts leave memory and checkpoints are many.
        transaction_life_us, sweep_period_s: of coordinators.
        asks: the share of questions among what clients ask.
        bursts: one after the other.
    """

    shards: int
    routers: int
    coordinators: int
    clients: int
    spares: bool
    players: int
    limits: Limits
    transaction_life_us: int
    sweep_period_s: float
    asks: float
    bursts: tuple[Burst, ...]


@dataclass
class Outcome:
    """What a run came to, for people and for comparing.

    Attributes:
        virtual_s: how long it took in its own time.
        steps: of the loop.
    """

    seed: int
    trace_hash: str
    virtual_s: float
    steps: int
    counts: Counter[str]
    lines: list[str] = field(default_factory=list)


def draw_setting(rng: random.Random, *, brief: bool) -> Setting:
    """How a run is; a brief one is a tenth of the work, and has all faults as well."""
    limits = Limits(
        accounts_max=rng.choice((1, 3, 1_000)),
        checkpoint_rows=rng.choice((10, 40, 200)),
        queue_transfers_max=rng.choice((40, 65_536)),
    )
    bursts = tuple(
        Burst(
            busy_s=rng.uniform(5.0, 10.0) if brief else rng.uniform(10.0, 40.0),
            quiet_s=rng.choice((20.0, HOUR_S, HOUR_S if brief else 4 * HOUR_S)),
            think_s=rng.choice((0.05, 0.2) if brief else (0.05, 0.3, 1.0)),
            badness=draw_badness(rng),
        )
        for _ in range(1 if brief else rng.randint(1, 4))
    )
    return Setting(
        shards=rng.choice((1, 2, 3)),
        routers=2,
        coordinators=2,
        clients=rng.randint(2, 5),
        spares=rng.random() < 0.3,
        players=rng.randint(1, 3),
        limits=limits,
        transaction_life_us=rng.choice((1_000_000, 5_000_000)),
        sweep_period_s=rng.choice((1.0, 10.0, 60.0, 60.0)) if not brief else 60.0,
        asks=rng.choice((0.1, 0.3)),
        bursts=bursts,
    )


async def _play(world: World, cluster: Cluster) -> None:
    await cluster.begin()
    loop = asyncio.get_running_loop()
    for burst in cluster.setting.bursts:
        until_s = loop.time() + burst.busy_s
        world.note(f"burst: {burst}")
        for client in cluster.clients:
            client.idle.clear()
            client.phases.put_nowait(Phase(until_s, burst.think_s, cluster.setting.asks))
        await torment(cluster, burst.badness, until_s)
        cluster.heal()
        for client in cluster.clients:
            await client.idle.wait()
        await cluster.settle()
        await asyncio.sleep(burst.quiet_s)
    await cluster.settle()
    await cluster.close()


def play(seed: int, *, brief: bool = False, keep_lines: bool = False) -> Outcome:
    """Draws a run and plays it; whatever goes wrong says how to play it again."""
    rng = random.Random(seed)
    world = World(rng, keep_lines=keep_lines)
    was_collecting = gc.isenabled()
    gc.disable()  # what is collected when must not depend on what else the process has done
    try:
        with logs.into(world):
            cluster = Cluster(world, draw_setting(rng, brief=brief))
            world.run(_play(world, cluster))
    except Exception as error:
        replay = REPLAY.format(seed=seed) + (" --brief" if brief else "")
        error.add_note(f"`{replay}` plays this run again")
        if keep_lines:
            error.add_note("\n".join(world.lines))
        raise
    finally:
        if was_collecting:
            gc.enable()
    return Outcome(
        seed, world.trace_hash, world.loop.time(), world.loop.steps, world.counts, world.lines
    )
