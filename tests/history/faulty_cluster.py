"""A cluster whose processes can be given a network, a clock and bugs of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scripts.etcd_server import LOOPBACK
from scripts.local_cluster import (
    COORDINATOR,
    ROUTER,
    SHARD,
    START_TIMEOUT_S,
    LocalCluster,
    wait_serving,
)
from tests.history.mutants import MUTANTS
from tests.history.namespaces import HUB
from tests.support import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.history.clocks import Clocks
    from tests.history.namespaces import Namespaces, Process

SHARDS, COORDINATORS, ROUTERS = 3, 2, 2

# Checkpoints and evictions happen all the time.
SHARD_OPTIONS: Final = ("--checkpoint-rows", "2000", "--accounts-cached", "10")
PROCESSES: Final[tuple[Process, ...]] = (
    *((SHARD, number) for number in range(1, SHARDS + 1)),
    *((COORDINATOR, number) for number in range(1, COORDINATORS + 1)),
    *((ROUTER, number) for number in range(1, ROUTERS + 1)),
)


@dataclass(frozen=True)
class World:
    """What the processes run in.

    Attributes:
        network: of their own; None = loopback.
        clocks: of their own; None = the machine's.
        bug: which the processes of one role have; see `MUTANTS`.
    """

    network: Namespaces | None = None
    clocks: Clocks | None = None
    bug: str | None = None


class FaultyCluster(LocalCluster):
    """Three shards, two coordinators, two routers.

    Args:
        folder: as in `LocalCluster`.
        world: see there.
    """

    def __init__(self, folder: Path, world: World) -> None:
        super().__init__(
            folder,
            shards=SHARDS,
            coordinators=COORDINATORS,
            routers=ROUTERS,
            shard_options=SHARD_OPTIONS,
            etcd_host=HUB if world.network else LOOPBACK,
        )
        self.world = world
        self._old_addresses: dict[int, str | None] = {}
        # A killed router is found again where it was.
        self._router_ports = {number: free_port() for number in range(1, ROUTERS + 1)}
        if world.network:
            for process in PROCESSES:
                world.network.add(process)

    def _command(self, role: str, number: int, *options: str) -> tuple[str, ...]:
        python, dash_m, room, *rest = super()._command(role, number, *options)
        network, clocks = self.world.network, self.world.clocks
        host = network.host((role, number)) if network else LOOPBACK
        port = self._router_ports[number] if role == ROUTER else 0
        bug = self.world.bug
        if bug is None or MUTANTS[bug].room != room:
            bug = "-"
        # Compiled cores cannot be changed: what has a bug runs the sources.
        sources = () if bug == "-" else ("env", "-u", "PYTHONPATH", "-u", "PYTHONSAFEPATH")
        return (
            *sources,
            *(network.prefix((role, number)) if network else ()),
            *(clocks.prefix((role, number)) if clocks else ()),
            *(python, dash_m, "tests.history.launch", bug, room),
            *(*rest, "--listen", f"{host}:{port}"),
        )

    def _spawn(self, role: str, number: int, *options: str) -> None:
        if role == SHARD:
            self._old_addresses[number] = self.membership.view.address_of_shard(number)
        super()._spawn(role, number, *options)
        if clocks := self.world.clocks:  # a member tells its start by its own clock
            self._spawned_us[role, number] += clocks.offset_us((role, number))

    async def _wait_ready(self, role: str, number: int) -> None:
        """A shard node is known by its new port: its clock may have been set back since."""
        if role != SHARD:
            await super()._wait_ready(role, number)
            return
        old = {None, self._old_addresses[number]}

        async def ready() -> None:
            view = await self.membership.wait_for(
                lambda view: view.address_of_shard(number) not in old, START_TIMEOUT_S
            )
            address = view.address_of_shard(number)
            assert address, "the condition just waited for"
            await wait_serving(address)

        await self._alive_until(role, number, ready())
