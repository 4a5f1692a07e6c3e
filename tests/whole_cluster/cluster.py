"""A cluster: its processes, their disks, who starts them again, and its quiet end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from cluster.topology import Topology
from doubloon import AccountKind, AccountSpec, AsyncAdminClient, AsyncClient
from shard_node.records import LogIdentity, cluster_id_of
from tests.simulation.checks import check_fold, check_nothing_reserved, must
from tests.whole_cluster.clients import Client, sdk
from tests.whole_cluster.disk import Disk, DiskFaults, DiskLog
from tests.whole_cluster.membership import SimMembership, SimStore
from tests.whole_cluster.network import Network, NetworkFaults
from tests.whole_cluster.nodes import FOREVER_S, Coordinator, Router, ShardNode, Site
from tests.whole_cluster.oracle import CODES, LATEST_EPOCH, Oracle
from tests.whole_cluster.wishes import BANK_FLOOR_MINOR, Accounts, Wishes
from tests.whole_cluster.world import Process, World

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.whole_cluster.scenario import Setting

CLUSTER: Final = cluster_id_of("simulation")

SETTLE_S: Final = 180.0
"""After the faults: clients ask again, deadlines pass, sweeps sweep. It takes some ten seconds, and
up to two sweeps of coordinators that sweep once a minute."""

QUICK_RESTART_S: Final = 0.1
"""How long a process is down that is started again at once."""

LOOK_S: Final = 0.5
"""Between two looks whether everything is quiet."""

OPERATOR_TIMEOUT_S: Final = 60.0
"""How long an operator is willing to wait for any one answer."""


class Cluster:
    """Everything there is.

    Args:
        world: to put it in.
        setting: how it shall be.

    Attributes:
        servers: processes that may be killed, by name.
        disks: by shard.
        nodes: those who may serve a shard, by shard: one, or two that stand at one disk.
        restart_s: how long who is down stays down, at the least and at the most.
    """

    def __init__(self, world: World, setting: Setting) -> None:
        self.world = world
        self.setting = setting
        self.network = Network(world)
        self.store = SimStore(world, lambda: self.network.faults.cut)
        self.oracle = Oracle(world)
        self.site = Site(
            world,
            self.network,
            self.store,
            setting.limits,
            setting.transaction_life_us,
            setting.sweep_period_s,
            self.oracle.recovered,
        )
        self.restart_s = (0.1, 1.0)
        self.servers: dict[str, Process] = {}
        self.disks: dict[int, Disk] = {}
        self.nodes: dict[int, dict[str, ShardNode]] = {}
        topology = Topology.even(range(1, setting.shards + 1))
        self.accounts = Accounts.of(topology, setting.players)
        self.wishes = Wishes(self._rng(), self.accounts)
        self.oracle.intents = self.wishes.all
        for shard_id in topology.shards:
            self._add_nodes(shard_id)
        self.routers = [Router(self.site, each + 1) for each in range(setting.routers)]
        self.coordinators = [
            Coordinator(self.site, each + 1) for each in range(setting.coordinators)
        ]
        for router in self.routers:
            self._add_server(router.address.partition(":")[0], router.run)
        for coordinator in self.coordinators:
            self._add_server(f"coordinator-{coordinator.number}", coordinator.run)
        self.clients = [self._client(each + 1) for each in range(setting.clients)]
        self._operator = Process(world, "operator", self._operate)
        self._topology = topology
        self._hands: asyncio.Queue[SimMembership] = asyncio.Queue()
        self._tools: tuple[AsyncClient, AsyncAdminClient] | None = None

    def _rng(self) -> random.Random:
        return self.site.rng()

    def _add_nodes(self, shard_id: int) -> None:
        identity = LogIdentity(CLUSTER, shard_id)
        disk = Disk(self.world, identity, lambda: self.oracle.durable(shard_id))
        self.disks[shard_id] = disk
        self.oracle.watch(shard_id, disk)
        nodes = self.nodes[shard_id] = {}
        for name in (f"shard-{shard_id}", f"shard-{shard_id}-spare")[: 1 + self.setting.spares]:
            nodes[name] = ShardNode(self.site, shard_id, disk, self._free_address)
            self._add_server(name, nodes[name].run)

    def serving(self, shard_id: int) -> tuple[str, ShardNode] | None:
        """Whoever serves a shard now: its process's name, and the node."""
        found = [each for each in self.nodes[shard_id].items() if each[1].serves]
        must(len(found) < 2, f"two serve shard {shard_id}")
        return found[0] if found else None

    def _add_server(self, name: str, program: object) -> None:
        process = Process(self.world, name, program)  # type: ignore[arg-type] # one of ours
        process.on_end = lambda: self._restart_later(process)
        self.servers[name] = process

    def _client(self, number: int) -> Client:
        rng = self._rng()
        addresses = [each.address for each in self.routers]
        client = Client(
            self.world, self.network, self.oracle, self.wishes, self.accounts, addresses, rng
        )
        Process(self.world, f"client-{number}", client.run)
        return client

    def _free_address(self) -> str:
        """Where a node that starts listens: now and then where another one was just before."""
        free = [
            address
            for address in (f"host-{each + 1}:1" for each in range(2 * len(self.disks)))
            if address not in self.network.endpoints
        ]
        return self.world.rng.choice(free)

    def _restart_later(self, process: Process) -> None:
        low_s, high_s = self.restart_s
        # Often it is back before anybody has noticed.
        high_s = max(low_s, self.world.rng.choice((QUICK_RESTART_S, high_s)))
        self.world.after(self.world.rng.uniform(low_s, high_s), self._restart, process)

    def _restart(self, process: Process) -> None:
        if not process.is_up:
            process.start()

    # --- the beginning --------------------------------------------------------------------------

    async def begin(self) -> None:
        """Starts everything, and opens the accounts."""
        self._operator.start()
        for process in self.servers.values():
            process.start()
        membership = await self._hands.get()
        must(await membership.propose_topology(self._topology), "the first topology")
        for code in CODES.values():
            await membership.register_currency(code, 0, code)
        assert self._tools, "the operator has begun"
        specs = [
            AccountSpec(each, AccountKind.SYSTEM, BANK_FLOOR_MINOR) for each in self.accounts.banks
        ]
        specs += [
            AccountSpec(each, cap_minor=self.world.rng.choice((0, 0, 120)))
            for each in self.accounts.players
        ]
        for result in await self._tools[0].open_accounts(specs):
            must(result.fault is None, f"an account is not open: {result}")
        for name, process in self.world.processes.items():
            if name.startswith("client-"):
                process.start()

    async def _operate(self, process: Process) -> None:
        addresses = [each.address for each in self.routers]
        self._tools = sdk(self.network, process, addresses, self._rng(), OPERATOR_TIMEOUT_S)
        self._hands.put_nowait(SimMembership(self.store, process))
        await asyncio.sleep(FOREVER_S)

    # --- the end --------------------------------------------------------------------------------

    def heal(self) -> None:
        """Ends all faults; who is down is up in a moment."""
        self.world.note("heal")
        self.network.faults = NetworkFaults()
        self.store.is_away, self.store.lost = False, 0.0
        self.restart_s = (0.1, 1.0)
        for disk in self.disks.values():
            disk.faults = DiskFaults()
        for process in self.servers.values():
            process.offset_us = 0
            process.life.fuse = 0
            if process.life.hangs:
                self.world.loop.resume(process.life)
        self.store.listen()

    async def settle(self) -> None:
        """Returns once everybody knows how everything ended, and nothing is in doubt."""
        await self._until(lambda: not self._unsettled(), lambda: ", ".join(self._unsettled()))

    async def _until(self, holds: Callable[[], bool], what_is_left: Callable[[], str]) -> None:
        limit_s = self.world.loop.time() + SETTLE_S
        while not holds():
            must(self.world.loop.time() < limit_s, f"not settled: {what_is_left()}")
            await asyncio.sleep(LOOK_S)

    def _unsettled(self) -> list[str]:
        left = [f"{name} is down" for name, each in self.servers.items() if not each.is_up]
        for shard_id in self.nodes:
            found = self.serving(shard_id)
            if found is None or found[1].engine is None:
                left.append(f"shard {shard_id} does not serve")
                continue
            table = found[1].engine.ledger.transactions
            if table.prepared or table.decided:
                left.append(f"shard {shard_id} is in doubt")
        return left

    async def close(self) -> None:
        """Looks at everything once more, when all is quiet: disks, books, a last restart."""
        assert self._tools, "the operator has begun"
        _, admin = self._tools
        audit = await admin.audit()
        must(audit.balanced and not audit.in_doubt, f"the last audit finds {audit}")
        report = await admin.check_conservation()
        must(report.balanced, f"the books do not balance: {report}")
        self.oracle.at_the_end()
        for shard_id, nodes in self.nodes.items():
            found = self.serving(shard_id)
            assert found, "all is quiet"
            name, node = found
            for each in nodes:
                self.servers[each].on_end = lambda: None
                if each != name:
                    self.world.kill(self.servers[each], "retire")
            await self._close(node, self.servers[name])

    async def _close(self, node: ShardNode, process: Process) -> None:
        """The same for one shard, whose last node this is."""
        engine, disk = node.engine, node.disk
        assert engine, "it serves"
        self.oracle.shards[node.shard_id].books.compare(engine.ledger)
        check_nothing_reserved(engine.ledger)
        node.stop()
        await self._until(lambda: not process.is_up, lambda: f"{process.name} does not stop")
        disk.state.refresh()
        check_fold(disk.identity, disk.state, DiskLog(disk, LATEST_EPOCH))
        await self._find_damage(node, process)

    async def _find_damage(self, node: ShardNode, process: Process) -> None:
        """A node must refuse to start over one bit that is not as it was written, and name it."""
        shard_id = node.shard_id
        blocks = len(node.disk.values)
        restore = node.disk.flip(blocks - 1)  # recovery always reads the last one
        node.expects_damage = True
        process.start()
        await self._until(
            lambda: node.serves or not process.is_up, lambda: f"shard {shard_id} does not end"
        )
        must(node.is_damaged, f"shard {shard_id} serves with a bit flipped in its last block")
        node.expects_damage = False
        restore()
        process.start()
        await self._until(lambda: node.serves, lambda: f"shard {shard_id} does not serve")
