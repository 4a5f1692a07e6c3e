"""A whole cluster on this machine: etcd and every role as separate processes.

The demo, `doubloon cluster up`, integration tests and benchmarks all start theirs here. Everything
lives under one folder: `data/` holds what processes store, `logs/` what they print. A process is
ready when it is registered in etcd and its health service says SERVING; nothing waits for a guessed
time, and a process that ends while it is waited for is reported with its last log lines.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from grpc_health.v1 import health_pb2

from cluster import rpc
from cluster.etcd_membership import EtcdMembership
from cluster.membership import COORDINATOR_ROLE, SHARD_NODE_ROLE, ClusterView, Member
from cluster.topology import Topology
from doubloon.v1 import admin_service_pb2, admin_service_pb2_grpc
from scripts import compiled
from scripts.etcd_server import LOOPBACK, EtcdProcess, start_etcd
from scripts.processes import ManagedProcess, ProcessRecord, end_all, start_mark, tail

ROOT = Path(__file__).resolve().parent.parent
ETCD, SHARD, COORDINATOR, ROUTER = "etcd", "shard", "coordinator", "router"
_MEMBER_ROLES = {SHARD: SHARD_NODE_ROLE, COORDINATOR: COORDINATOR_ROLE, ROUTER: "router"}

START_TIMEOUT_S = 60.0
"""How long a process may take until it serves: a busy machine, and a log to replay."""

# How often to look whether a child has ended, and whether a router has found every shard: no event
# reaches us for either.
_POLL_S = 0.05
_STATUS_TIMEOUT_S = 5.0  # a router asks its shard nodes within less

T = TypeVar("T")


class LocalCluster:
    """Processes of one cluster, all children of this one; `async with` starts and ends them.

    The processes of each role are numbered from 1; they keep number, data and member id (`shard-1`)
    when they are restarted, and get another port.

    Args:
        folder: where data and logs go; made when missing. What is in it is taken up again.
        shards: how many shard nodes, one for each shard.
        routers: how many routers.
        coordinators: how many coordinators; None = as many as are needed, which is one when there
            are several shards.
        name: the cluster's name in etcd.
        allow_imports: whether routers take transfers with a past time.
        shard_options: further command-line options for every shard node.
        router_options: further command-line options for every router.
        coordinator_options: further command-line options for every coordinator.
        etcd_host: the address that etcd listens on.
    """

    def __init__(
        self,
        folder: Path,
        *,
        shards: int = 1,
        routers: int = 1,
        coordinators: int | None = None,
        name: str = "local",
        allow_imports: bool = False,
        shard_options: Sequence[str] = (),
        router_options: Sequence[str] = (),
        coordinator_options: Sequence[str] = (),
        etcd_host: str = LOOPBACK,
    ) -> None:
        if coordinators is None:
            coordinators = int(shards > 1)
        self.folder = folder.resolve()
        self.name = name
        self._commands = {
            **{(SHARD, n): tuple(shard_options) for n in range(1, shards + 1)},
            **{(COORDINATOR, n): tuple(coordinator_options) for n in range(1, coordinators + 1)},
            **{(ROUTER, n): tuple(router_options) for n in range(1, routers + 1)},
        }
        self._allow_imports = allow_imports
        self._etcd_host = etcd_host
        self._shard_ids = range(1, shards + 1)
        self._processes: dict[tuple[str, int], ManagedProcess] = {}
        self._spawned_us: dict[tuple[str, int], int] = {}
        self._etcd: EtcdProcess | None = None
        self._membership: EtcdMembership | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def etcd(self) -> EtcdProcess:
        """The etcd server, to be stopped, suspended and started by tests."""
        assert self._etcd is not None, "the cluster has not been started"
        return self._etcd

    @property
    def membership(self) -> EtcdMembership:
        """A handle on the cluster that has not joined it."""
        assert self._membership is not None, "the cluster has not been started"
        return self._membership

    @property
    def topology(self) -> Topology:
        """Which shard owns which account."""
        topology = self.membership.view.topology
        assert topology is not None, "the cluster has not been started"
        return topology

    @property
    def routers(self) -> tuple[str, ...]:
        """`host:port` of every router, in order of number."""
        return tuple(self.address(role, n) for role, n in self._commands if role == ROUTER)

    def address(self, role: str, number: int) -> str:
        """Return `host:port` where a process was last seen."""
        member = self.membership.view.members.get((_MEMBER_ROLES[role], f"{role}-{number}"))
        assert member is not None, f"{role} {number} is not registered"
        return member.address

    def numbers(self, role: str) -> tuple[int, ...]:
        """Return the numbers of a role's processes, in order."""
        return tuple(n for r, n in self._commands if r == role)

    def pid(self, role: str, number: int) -> int:
        """Return the id of a process, running or not."""
        return self._processes[role, number].pid

    def data_folder(self, role: str, number: int) -> Path:
        """Return the folder that a shard node's data is in."""
        return self.folder / "data" / f"{role}-{number}"

    def log_file(self, role: str, number: int) -> Path:
        """Return the file that a process logs to."""
        return self.folder / "logs" / f"{role}-{number}.log"

    async def start(self) -> None:
        """Start everything and wait until every router reaches every shard.

        Raises:
            ProcessEnded: a process ended before it served; nothing is left running.
            TimeoutError: one did not serve in time; nothing is left running.
            EtcdServerError: there is no etcd server, or it did not start.
            ValueError: the folder holds a cluster with other shards.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        for sub in ("data", "logs"):
            (self.folder / sub).mkdir(parents=True, exist_ok=True)
        self._etcd = await self._start_etcd()
        self._membership = await EtcdMembership.open((self._etcd.client,), self.name)
        await self._propose_topology(self._membership)
        for role, number in self._commands:
            self._spawn(role, number)
        for role, number in self._commands:
            await self._wait_ready(role, number)
        for role, number in self._commands:
            if role == ROUTER:
                await self._alive_until(role, number, self._reaches_all_shards(number))

    async def _start_etcd(self) -> EtcdProcess:
        data, log = self.folder / "data" / "etcd", self.folder / "logs" / "etcd.log"
        starting = asyncio.create_task(
            asyncio.to_thread(start_etcd, data, log_file=log, host=self._etcd_host)
        )
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be cancelled: wait for what it starts, or that would run for ever.
            self._etcd = await starting
            raise

    async def stop(self) -> None:
        """End every process, routers first and etcd last; idempotent, and whatever happens."""
        try:
            for role in (ROUTER, COORDINATOR, SHARD):
                await end_all([p for (r, _), p in self._processes.items() if r == role])
            if self._membership is not None:
                await self._membership.close()
        finally:
            for process in self._processes.values():
                process.kill()
            if self._etcd is not None:
                await asyncio.to_thread(self._etcd.stop)

    def records(self) -> tuple[ProcessRecord, ...]:
        """Return how another command finds the processes that now run."""
        mark = start_mark(self.etcd.pid) or ""
        etcd = ProcessRecord(ETCD, "1", self.etcd.pid, mark, str(self.etcd.log_file))
        return (etcd, *(process.record() for process in self._processes.values()))

    async def detach(self) -> None:
        """Let everything run on after this process ends; from here on `stop` does nothing."""
        await self.membership.close()
        self._processes.clear()
        self._membership = self._etcd = None

    def signal(self, role: str, number: int, signal_number: int) -> None:
        """Send a signal to a process; one that has ended raises ProcessEnded."""
        process = self._processes[role, number]
        if not process.signal(signal_number):
            process.check_alive()

    def kill(self, role: str, number: int) -> None:
        """End a process at once, as a power cut would, and reap it."""
        self._processes[role, number].kill()

    async def restart(self, role: str, number: int, *options: str) -> None:
        """Start a process again (ending it cleanly when it runs), and wait for it.

        `options` are further command-line options, for this time only.

        Raises:
            ProcessEnded: it ended before it served.
            TimeoutError: it did not serve in time.
        """
        await end_all([self._processes[role, number]])
        self._spawn(role, number, *options)
        await self._wait_ready(role, number)

    async def _propose_topology(self, membership: EtcdMembership) -> None:
        """Deal the slots evenly, once; a folder that is taken up again has its topology."""
        view = await membership.wait_for(lambda view: view.revision > 0, START_TIMEOUT_S)
        if view.topology is None:
            await membership.propose_topology(Topology.even(self._shard_ids))
            view = await membership.wait_for(lambda v: v.topology is not None, START_TIMEOUT_S)
        assert view.topology is not None, "the condition just waited for"
        if view.topology.shards != tuple(self._shard_ids):
            shards = len(view.topology.shards)
            raise ValueError(
                f"{self.folder} holds a cluster of {shards} shards, not {len(self._shard_ids)}"
            )

    def _command(self, role: str, number: int, *options: str) -> tuple[str, ...]:
        common = ("--cluster", self.name, "--etcd", self.etcd.client, "--id", f"{role}-{number}")
        if role == SHARD:
            data = str(self.data_folder(role, number))
            own: tuple[str, ...] = ("shard_node", "--shard", str(number), "--data", data)
        elif role == ROUTER:
            own = ("router", *(["--allow-imports"] if self._allow_imports else []))
        else:
            own = ("coordinator",)
        own_options = (*self._commands[role, number], *options)
        return (sys.executable, "-m", *own, *common, *own_options)

    def _spawn(self, role: str, number: int, *options: str) -> None:
        command = self._command(role, number, *options)
        self._spawned_us[role, number] = time.time_ns() // 1_000
        log = self.log_file(role, number)
        self._processes[role, number] = ManagedProcess(
            role, str(number), command, log, ROOT, compiled.environment()
        )

    async def _wait_ready(self, role: str, number: int) -> None:
        """Wait until the process now running, not an earlier one, is registered and serves."""
        spawned_us = self._spawned_us[role, number]

        def registered(view: ClusterView) -> Member | None:
            member = view.members.get((_MEMBER_ROLES[role], f"{role}-{number}"))
            if member is None or member.started_us < spawned_us:
                return None
            # A shard node that has not claimed its shard cannot be found by routers.
            found = role != SHARD or view.address_of_shard(number) == member.address
            return member if found else None

        async def ready() -> None:
            view = await self.membership.wait_for(
                lambda view: registered(view) is not None, START_TIMEOUT_S
            )
            member = registered(view)
            assert member is not None, "the condition just waited for"
            await wait_serving(member.address)

        await self._alive_until(role, number, ready())

    async def _reaches_all_shards(self, number: int) -> None:
        async with rpc.channel(self.address(ROUTER, number)) as channel:
            stub = admin_service_pb2_grpc.AdminServiceStub(channel)
            while True:
                status = await stub.GetClusterStatus(
                    admin_service_pb2.GetClusterStatusRequest(), timeout=_STATUS_TIMEOUT_S
                )
                if status.shards and all(shard.reachable for shard in status.shards):
                    return
                await asyncio.sleep(_POLL_S)

    async def _alive_until(self, role: str, number: int, done: Awaitable[T]) -> T:
        """Await something, for as long as the process lives and at most `START_TIMEOUT_S`."""
        process = self._processes[role, number]
        task = asyncio.ensure_future(done)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while not (await asyncio.wait({task}, timeout=_POLL_S))[0]:
                    process.check_alive()
            return task.result()
        except TimeoutError as error:
            log = self.log_file(role, number)
            raise TimeoutError(
                f"{process} does not serve after {START_TIMEOUT_S:g} s; "
                f"{log} ends with\n{tail(log)}"
            ) from error
        finally:
            task.cancel()


async def wait_serving(address: str) -> None:
    """Follow the standard health service until it says SERVING."""
    async with rpc.channel(address) as channel:
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        everything = health_pb2.HealthCheckRequest(service="")
        async for answer in watch(everything, timeout=START_TIMEOUT_S, wait_for_ready=True):
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise TimeoutError(f"{address} ended its health watch")
