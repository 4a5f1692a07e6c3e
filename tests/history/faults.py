"""What befalls a cluster: each fault has its whole course here, from the blow until it is mended.

Several strike at once, each at a victim of its own. What this machine does not allow is left out,
and `unavailable` says why.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.etcd_membership import LEASE_TTL_S
from scripts.local_cluster import COORDINATOR, ETCD, ROUTER, SHARD
from tests.history.faulty_cluster import PROCESSES
from tests.history.namespaces import HUB

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from tests.history.clocks import Clocks
    from tests.history.faulty_cluster import FaultyCluster
    from tests.history.namespaces import Namespaces, Process

Course = "Callable[[Process], Awaitable[None]]"

ETCD_SERVER: Final = (ETCD, 1)
EVERYBODY: Final = ("everybody", 1)
BREATH_S: Final = (0.5, 4.0)  # between two faults of one hand
HANDS: Final = 2  # faults at once
LONG_S: Final = (LEASE_TTL_S + 0.5, LEASE_TTL_S + 2.0)  # etcd forgets who is silent for so long
SHORT_S: Final = (0.3, 3.0)
SKEW_US: Final = 900_000  # as far apart as clocks may be for all to go well
FAR_US: Final = 12_000_000  # further than any deadline lies ahead, or any ended one is remembered
HOURS_US: Final = (3_600_000_000, 5 * 3_600_000_000)


@dataclass
class Faults:
    """Strikes a cluster until it is told to stop.

    Args:
        cluster: the victim.
        rng: chooses.
        kinds: of faults; see `COURSES`.
        said: told of everything as it happens.
        long_s: how long what is to last longer than leases lasts.

    Attributes:
        counts: how many of each kind have been.
    """

    cluster: FaultyCluster
    rng: random.Random
    kinds: tuple[str, ...]
    said: Callable[[str], None]
    long_s: tuple[float, float] = LONG_S
    counts: Counter[str] = field(default_factory=Counter)
    _struck: set[Process] = field(default_factory=set)

    async def strike_until(self, over: asyncio.Event) -> None:
        """Strike with both hands; when it returns, everything is mended."""
        async with asyncio.TaskGroup() as hands:
            for _ in range(HANDS):
                hands.create_task(self._keep_striking(over))

    async def _keep_striking(self, over: asyncio.Event) -> None:
        while not over.is_set():
            await self._pass(BREATH_S)
            await self.strike(self.rng.choice(self.kinds))

    async def strike(self, kind: str) -> None:
        """One fault, if there is a victim left for it."""
        role, course = COURSES[kind]
        victims = [each for each in (*PROCESSES, ETCD_SERVER, EVERYBODY)
                   if each[0] == role or (role == ANY and each in PROCESSES)]  # fmt: skip
        free = [each for each in victims if each not in self._struck]
        if not free:
            return
        victim = self.rng.choice(free)
        self._struck.add(victim)
        self.counts[kind] += 1
        self.said(f"{kind}: {victim[0]} {victim[1]}")
        try:
            await course(self, victim)
        finally:
            self._struck.discard(victim)
        self.said(f"mended: {kind}: {victim[0]} {victim[1]}")

    async def _pass(self, between_s: tuple[float, float]) -> None:
        await asyncio.sleep(self.rng.uniform(*between_s))

    # --- processes ------------------------------------------------------------------------------

    async def kill(self, victim: Process) -> None:
        """Killed, and started again, at once or after a while."""
        self.cluster.kill(*victim)
        if self.rng.random() < 0.3:
            await self._pass(SHORT_S)
        await self.cluster.restart(*victim)

    async def stop(self, victim: Process) -> None:
        """Told to stop, as for an upgrade, and started again."""
        await self.cluster.restart(*victim)

    async def suspend(self, victim: Process) -> None:
        """Suspended for longer than its lease lives."""
        await self._suspend(victim, self.long_s)

    async def stall(self, victim: Process) -> None:
        """Suspended for a moment, about as long as a call may take."""
        await self._suspend(victim, SHORT_S)

    async def _suspend(self, victim: Process, between_s: tuple[float, float]) -> None:
        self.cluster.signal(*victim, signal.SIGSTOP)
        try:
            await self._pass(between_s)
        finally:
            self.cluster.signal(*victim, signal.SIGCONT)

    async def kill_etcd(self, victim: Process) -> None:
        """Killed, and away for longer than leases live."""
        del victim
        self.cluster.etcd.kill()
        await self._pass(self.long_s)
        await asyncio.to_thread(self.cluster.etcd.start)

    async def suspend_etcd(self, victim: Process) -> None:
        """Suspended for longer than leases live."""
        del victim
        self.cluster.etcd.suspend()
        try:
            await self._pass(self.long_s)
        finally:
            self.cluster.etcd.resume()

    # --- the network ----------------------------------------------------------------------------

    async def cut(self, victim: Process) -> None:
        """Nothing arrives, nothing leaves."""
        await self._rules(victim, "arriving drop", "leaving drop")

    async def deafen(self, victim: Process) -> None:
        """What it says is heard; it hears nothing."""
        await self._rules(victim, "arriving drop")

    async def mute(self, victim: Process) -> None:
        """It hears everything; what it says is lost."""
        await self._rules(victim, "leaving drop")

    async def part(self, victim: Process) -> None:
        """It does not hear one of the others, or etcd and the clients."""
        others = [self._network.host(each) for each in PROCESSES if each != victim]
        await self._rules(victim, f"arriving ip saddr {self.rng.choice([*others, HUB])} drop")

    async def reset(self, victim: Process) -> None:
        """Whoever talks to it is cut off."""
        with self._network.rules(victim, "arriving meta l4proto tcp reject with tcp reset"):
            await self._pass((0.05, 0.5))

    async def _rules(self, victim: Process, *rules: str) -> None:
        between_s = self.long_s if self.rng.random() < 0.3 else SHORT_S
        with self._network.rules(victim, *rules):
            await self._pass(between_s)

    @property
    def _network(self) -> Namespaces:
        assert self.cluster.world.network
        return self.cluster.world.network

    # --- clocks ---------------------------------------------------------------------------------

    async def skew(self, victim: Process) -> None:
        """Its clock is off, by less than a second either way, from now on."""
        self._clocks.set(victim, self.rng.randrange(-SKEW_US, SKEW_US))

    async def jump(self, victim: Process) -> None:
        """Its clock is seconds ahead or behind for a while, and true again after that."""
        self._clocks.set(victim, self.rng.randrange(-FAR_US, FAR_US))
        await self._pass(self.long_s)
        self._clocks.set(victim, 0)

    async def set_back(self, victim: Process) -> None:
        """Killed, and started again with its clock set back."""
        self.cluster.kill(*victim)
        self._clocks.set(victim, -self.rng.randrange(SKEW_US, FAR_US))
        await self.cluster.restart(*victim)
        await self._pass(SHORT_S)
        self._clocks.set(victim, 0)

    async def hours(self, victim: Process) -> None:
        """Everybody's clock is hours further at once."""
        del victim
        self._clocks.advance_all(self.rng.randrange(*HOURS_US))

    @property
    def _clocks(self) -> Clocks:
        assert self.cluster.world.clocks
        return self.cluster.world.clocks


ANY: Final = "any"

COURSES: Final[dict[str, tuple[str, Callable[[Faults, Process], Awaitable[None]]]]] = {
    "kill a shard node": (SHARD, Faults.kill),
    "kill a coordinator": (COORDINATOR, Faults.kill),
    "kill a router": (ROUTER, Faults.kill),
    "stop a process": (ANY, Faults.stop),
    "suspend a process": (ANY, Faults.suspend),
    "stall a process": (ANY, Faults.stall),
    "kill etcd": (ETCD, Faults.kill_etcd),
    "suspend etcd": (ETCD, Faults.suspend_etcd),
    "cut a process off": (ANY, Faults.cut),
    "deafen a process": (ANY, Faults.deafen),
    "mute a process": (ANY, Faults.mute),
    "part two processes": (ANY, Faults.part),
    "reset connections": (ANY, Faults.reset),
    "skew a clock": (ANY, Faults.skew),
    "jump a clock": (ANY, Faults.jump),
    "set a clock back": (SHARD, Faults.set_back),
    "jump all clocks by hours": (EVERYBODY[0], Faults.hours),
}
"""By name: whom it befalls, and its course."""

NETWORK: Final = frozenset({
    "cut a process off", "deafen a process", "mute a process", "part two processes",
    "reset connections",
})  # fmt: skip
CLOCK: Final = frozenset(
    {"skew a clock", "jump a clock", "set a clock back", "jump all clocks by hours"}
)
"""Kinds that need a network, or clocks, of the processes' own."""
QUICK: Final = tuple(each for each in COURSES if "etcd" not in each and each != "suspend a process")
"""Kinds that are over within a few seconds."""
