"""The processes of a cluster, put together as their `__main__`s do it, on what is simulated."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.clock import HybridClock
from cluster.membership import (
    COORDINATOR_ROLE,
    SHARD_NODE_ROLE,
    Member,
    join_patiently,
)
from cluster.rpc import TOPOLOGY_VERSION_KEY
from cluster.runtime import LoopMonitor
from cluster.shard_pool import ShardPool
from coordinator.recovery import Sweeper
from coordinator.rounds import Rounds
from coordinator.service import CoordinatorServicer
from coordinator.service import Deadlines as CoordinatorDeadlines
from router.admin import ROLE as ROUTER_ROLE
from router.admin import AdminServicer
from router.admin import ProcessFacts as RouterFacts
from router.coordinators import CoordinatorPool
from router.routes import Routes
from router.service import Deadlines, WalletServicer
from router.transfers import Admission, TransferExecutor
from shard_node import startup
from shard_node.__main__ import claimed, superseded, topology_version
from shard_node.checkpointer import LocalStateWriter
from shard_node.currencies import Currencies
from shard_node.damage import DamagedStateError
from shard_node.engine import Engine
from shard_node.records import DamagedLogError
from shard_node.service import ShardServicer
from shard_node.status import ProcessFacts, StatusReporter
from shard_node.store import Store
from tests.simulation.world import Violation
from tests.whole_cluster.disk import Disk, DiskAppender, DiskLog, DiskWriter
from tests.whole_cluster.loop import Died
from tests.whole_cluster.membership import SimMembership, SimStore
from tests.whole_cluster.network import Network, SimCoordinatorClient, SimShardClient

if TYPE_CHECKING:
    from collections.abc import Callable

    from shard_node.limits import Limits
    from tests.whole_cluster.loop import Life
    from tests.whole_cluster.network import Context
    from tests.whole_cluster.world import Process, World

VERSION: Final = "simulated"


@dataclass
class Site:
    """What processes stand on.

    Attributes:
        world, network, store: see there.
        limits: of every shard node.
        transaction_life_us, sweep_period_s: of every coordinator.
        on_recovered: is shown every engine after it was recovered and before it serves.
    """

    world: World
    network: Network
    store: SimStore
    limits: Limits
    transaction_life_us: int
    sweep_period_s: float
    on_recovered: Callable[[int, Engine], None]

    def rng(self) -> random.Random:
        """A generator of a process's own."""
        return random.Random(self.world.rng.getrandbits(64))


class ShardNode:
    """A shard's node and its disk.

    Attributes:
        engine: of its latest life, once it has recovered.
        is_damaged: whether its latest life found its disk damaged.
        expects_damage: whether there is any.
        address: where its latest life listens.
    """

    def __init__(
        self, site: Site, shard_id: int, disk: Disk, free_address: Callable[[], str]
    ) -> None:
        self.site = site
        self.shard_id = shard_id
        self.disk = disk
        self.engine: Engine | None = None
        self.is_damaged = False
        self.expects_damage = False
        self.address = ""
        self._free_address = free_address
        self._stop = asyncio.Event()
        self._life: Life | None = None

    @property
    def serves(self) -> bool:
        """Whether it serves, or hangs."""
        return self._life is not None and not self._life.is_over

    def stop(self) -> None:
        """Asks it to stop, as an operator does."""
        self._stop.set()

    async def run(self, process: Process) -> None:
        """As `shard_node.__main__.serve`."""
        self._stop, self.engine, self.is_damaged = asyncio.Event(), None, False
        await self.disk.free()
        self.disk.lock()
        member_id = f"{process.name}-{process.starts}"
        membership = SimMembership(self.site.store, process)
        epoch = await claimed(membership, self.shard_id, member_id, only_first=False)
        try:
            engine = self._open(process, epoch)
            self.site.on_recovered(self.shard_id, engine)
        except (DamagedLogError, DamagedStateError) as error:
            self._refuse(error)
            return
        self.engine = engine
        await engine.start(epoch)
        facts = ProcessFacts(member_id, VERSION, process.now_us(), epoch)
        status = StatusReporter(engine, membership, facts, LoopMonitor())
        servicer = ShardServicer(
            engine, Currencies(membership), status, lambda: topology_version(membership)
        )
        self.address = self._free_address()
        network = self.site.network
        guard = _refuses_other_topologies(self.site.world, membership)
        endpoint = network.listen(process, self.address, (servicer,), guard)
        member = Member(SHARD_NODE_ROLE, member_id, self.address, VERSION, process.now_us())
        loop = asyncio.get_running_loop()
        joining = loop.create_task(join_patiently(membership, member))
        watching = loop.create_task(superseded(membership, self.shard_id, epoch))
        stopping = loop.create_task(self._stop.wait())
        self._life = process.life
        await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not self._stop.is_set():
            self.site.world.counts["superseded"] += 1
            self.site.world.kill(process, "superseded")
            raise Died
        joining.cancel()
        watching.cancel()
        await membership.leave()
        network.close(self.address, endpoint)
        await engine.stop()
        await membership.close()

    def _open(self, process: Process, epoch: int) -> Engine:
        """As `startup.open_engine`."""
        disk, site = self.disk, self.site
        disk.drop_cache()
        log = DiskLog(disk, epoch)
        store = Store(disk.state, log)
        ledger, clock = startup.recovered(
            disk.identity, store, site.limits, LocalStateWriter(disk.state, log), process
        )

        def on_fatal(error: BaseException) -> None:
            if not isinstance(error, Died):
                self._die(process, error)

        writer, appender = DiskWriter(disk, log), DiskAppender(log)
        return Engine(
            disk.identity,
            ledger,
            store,
            writer,
            process,
            clock,
            site.limits,
            None,
            on_fatal,
            appender,
        )

    def _die(self, process: Process, error: BaseException) -> None:
        """As `runtime.fatal`; only a disk may be the reason."""
        if "Input/output error" not in str(error):
            error.add_note(f"{process.name} ended by itself")
            self.site.world.violated(error if isinstance(error, Exception) else Violation(error))
        self.site.world.kill(process, "fatal")
        raise Died

    def _refuse(self, error: Exception) -> None:
        """It does not serve what it finds; there must be something to be found."""
        self.site.world.note(f"shard {self.shard_id} refuses to start: {error}")
        self.site.world.counts["damage found"] += 1
        self.is_damaged = True
        if not self.expects_damage:
            self.site.world.violated(error)


def _refuses_other_topologies(
    world: World, membership: SimMembership
) -> Callable[[Context], Callable[[], None]]:
    """Nothing that was asked for by another topology may be answered."""

    def arrived(context: Context) -> Callable[[], None]:
        told = int(dict(context.invocation_metadata())[TOPOLOGY_VERSION_KEY])
        own = topology_version(membership)

        def answered() -> None:
            if told != own:
                world.violated(
                    Violation(f"a call by topology {told} was answered by a node that knows {own}")
                )

        return answered

    return arrived


class Coordinator:
    """A coordinator's program.

    Attributes:
        rounds, sweeper: of its latest life.
    """

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.number = number
        self.rounds: Rounds | None = None
        self.sweeper: Sweeper | None = None

    async def run(self, process: Process) -> None:
        """As `coordinator.__main__.serve`."""
        site, rng = self.site, self.site.rng()
        membership = SimMembership(site.store, process)
        clock = HybridClock(process)
        pool = ShardPool(membership, _connect_shards(site.network, process), rng)
        self.rounds = Rounds(pool, clock, rng, rng.randbytes, life_us=site.transaction_life_us)
        self.sweeper = Sweeper(pool, clock, rng, site.sweep_period_s)
        member_id = f"coordinator-{self.number}-{process.starts}"
        servicer = CoordinatorServicer(
            member_id, pool, self.rounds, self.sweeper, CoordinatorDeadlines()
        )
        address = f"{member_id}:1"
        site.network.listen(process, address, (servicer,))
        member = Member(COORDINATOR_ROLE, member_id, address, VERSION, process.now_us())
        await membership.wait_for(lambda view: view.topology is not None, FOREVER_S)
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.follow())
            group.create_task(join_patiently(membership, member))
            group.create_task(self.sweeper.run())


class Router:
    """A router's program."""

    def __init__(self, site: Site, number: int) -> None:
        self.site = site
        self.address = f"router-{number}:1"
        self._number = number

    async def run(self, process: Process) -> None:
        """As `router.__main__.serve`."""
        site, rng = self.site, self.site.rng()
        membership = SimMembership(site.store, process)
        pool = ShardPool(membership, _connect_shards(site.network, process), rng)
        coordinators = CoordinatorPool(
            membership, lambda address: SimCoordinatorClient(site.network, process, address), rng
        )
        routes = Routes(pool, coordinators, rng)
        executor = TransferExecutor(membership, pool, routes, allow_imports=False)
        wallet = WalletServicer(pool, executor, Admission(), Deadlines())
        member_id = f"router-{self._number}-{process.starts}"
        facts = RouterFacts(member_id, VERSION, process.now_us(), lambda: 0, lambda: 0)
        admin = AdminServicer(membership, pool, Deadlines(), facts, process)
        site.network.listen(process, self.address, (wallet, admin))
        member = Member(ROUTER_ROLE, member_id, self.address, VERSION, process.now_us())
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.follow())
            group.create_task(coordinators.follow())
            group.create_task(join_patiently(membership, member))


FOREVER_S: Final = 1e9
"""Longer than any run."""


def _connect_shards(network: Network, owner: Process) -> Callable[[int, str], SimShardClient]:
    return lambda shard_id, address: SimShardClient(network, owner, shard_id, address)
