"""`python -m router`: a router process.

It keeps nothing that matters: any number of them may run, and any may be killed.
"""

import asyncio
import importlib.metadata
import os
import random
import socket
from dataclasses import dataclass

import click
import structlog

from cluster import rpc
from cluster.clock import WallClock
from cluster.config import CommonConfig, server_options
from cluster.etcd_membership import EtcdMembership
from cluster.logs import configure
from cluster.membership import Member, Membership, MembershipUnavailable
from cluster.runtime import LoopMonitor, collect_seldom, run, schedule_as_batch
from cluster.shard_client import GrpcShardClient
from cluster.shard_pool import ShardPool
from doubloon.v1 import admin_service_pb2_grpc, wallet_service_pb2_grpc
from router import lanes, service, transfers
from router.admin import ROLE, AdminServicer, ProcessFacts
from router.coordinators import CoordinatorPool, GrpcCoordinatorClient
from router.routes import Routes
from router.service import Deadlines, WalletServicer
from router.transfers import Admission, TransferExecutor

SERVICES = ("doubloon.v1.WalletService", "doubloon.v1.AdminService")
# How long to wait before saying again what is waited for.
REMINDER_S = 10.0
# How long to leave etcd alone after it could not be asked.
JOIN_RETRY_S = 0.5
# Ids of members have 63 letters at most; a process id needs some of them.
HOST_LETTERS_MAX = 50

_LOG = structlog.stdlib.get_logger(ROLE)


@dataclass(frozen=True)
class Bounds:
    """The router's own limits, each with its reason beside its default."""

    deadlines: Deadlines
    stream_window: int
    calls_per_shard_max: int
    queued_per_shard_max: int
    in_flight_max: int


@dataclass(frozen=True)
class Parts:
    """A router put together."""

    pool: ShardPool
    coordinators: CoordinatorPool
    routes: Routes
    wallet: WalletServicer
    server: rpc.RpcServer


@click.command(help="Serve WalletService and AdminService.")
@server_options
@click.option("--id", "router_id", default="", help="Unique among routers; made up when absent.")
@click.option("--allow-imports", is_flag=True, help="Let transfers bring their own past time.")
@click.option(
    "--deadline-default-s",
    type=click.FloatRange(0, min_open=True),
    default=service.DEADLINE_DEFAULT_S,
    show_default=True,
    help="For calls whose client set no deadline.",
)
@click.option(
    "--deadline-max-s",
    type=click.FloatRange(0, min_open=True),
    default=service.DEADLINE_MAX_S,
    show_default=True,
    help="For all calls.",
)
@click.option(
    "--stream-window",
    type=click.IntRange(1, 64),
    default=service.STREAM_WINDOW,
    show_default=True,
    help="Batches of one stream in progress at most.",
)
@click.option(
    "--calls-per-shard",
    type=click.IntRange(1, 64),
    default=lanes.CALLS_IN_FLIGHT_MAX,
    show_default=True,
    help="Batches on their way to one shard at most.",
)
@click.option(
    "--queued-per-shard",
    type=click.IntRange(1),
    default=lanes.QUEUED_TRANSFERS_MAX,
    show_default=True,
    help="Transfers that wait for one shard, or for one set of shards, at most.",
)
@click.option(
    "--in-flight",
    type=click.IntRange(1),
    default=transfers.IN_FLIGHT_MAX,
    show_default=True,
    help="Transfers in progress in this router at most.",
)
def main(
    config: CommonConfig,
    router_id: str,
    deadline_default_s: float,
    deadline_max_s: float,
    stream_window: int,
    calls_per_shard: int,
    queued_per_shard: int,
    in_flight: int,
    *,
    allow_imports: bool,
) -> None:
    """Read the options and serve until told to stop."""
    member_id = router_id or f"{socket.gethostname()[:HOST_LETTERS_MAX]}-{os.getpid()}"
    configure(ROLE, member_id, config.log_format)
    bounds = Bounds(
        Deadlines(deadline_default_s, deadline_max_s),
        stream_window,
        calls_per_shard,
        queued_per_shard,
        in_flight,
    )
    schedule_as_batch()
    run(lambda stop: serve(config, member_id, bounds, stop, allow_imports=allow_imports))


async def serve(
    config: CommonConfig,
    member_id: str,
    bounds: Bounds,
    stop: asyncio.Event,
    *,
    allow_imports: bool,
) -> None:
    """Serve until `stop` is set, then let what is in progress end, for a bounded time."""
    monitor = LoopMonitor()
    membership = await EtcdMembership.open(config.etcd, config.cluster, config.etcd_tls)
    version, started_us = importlib.metadata.version("doubloon-server"), WallClock().now_us()
    process = ProcessFacts(
        member_id,
        version,
        started_us,
        lambda: int(monitor.longest_turn_ms * 1_000),
        lambda: int(monitor.longest_turn_cpu_ms * 1_000),
    )
    parts = await _build(membership, bounds, process, allow_imports=allow_imports)
    address = config.address(await _start(parts.server, config.listen))
    member = Member(ROLE, member_id, address, version, started_us)
    _LOG.info("listening", address=address, version=version, allow_imports=allow_imports)
    collect_seldom()
    monitor.start()  # only now: what a start takes holds nobody up
    async with asyncio.TaskGroup() as background:
        following = [
            background.create_task(pool.follow()) for pool in (parts.pool, parts.coordinators)
        ]
        joining = background.create_task(_join(membership, member))
        waiting = background.create_task(
            _serve_once_there_is_a_topology(membership, parts, address)
        )
        await stop.wait()
        joining.cancel()
        waiting.cancel()
        await membership.leave()
        parts.wallet.stop_streams()
        await parts.server.stop()
        await parts.routes.close(rpc.STOP_GRACE_S)
        for task in following:
            task.cancel()
    await parts.pool.close(rpc.STOP_GRACE_S)
    await parts.coordinators.close(rpc.STOP_GRACE_S)
    await membership.close()
    monitor.stop()


async def _build(
    membership: Membership, bounds: Bounds, process: ProcessFacts, *, allow_imports: bool
) -> Parts:
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    pool = ShardPool(membership, GrpcShardClient, rng)

    coordinators = CoordinatorPool(membership, GrpcCoordinatorClient, rng)
    routes = Routes(
        pool, coordinators, rng, bounds.calls_per_shard_max, bounds.queued_per_shard_max
    )
    executor = TransferExecutor(membership, pool, routes, allow_imports=allow_imports)
    wallet = WalletServicer(
        pool,
        executor,
        Admission(bounds.in_flight_max),
        bounds.deadlines,
        bounds.stream_window,
    )
    admin = AdminServicer(membership, pool, bounds.deadlines, process, WallClock())
    server = await rpc.server(SERVICES)
    wallet_service_pb2_grpc.add_WalletServiceServicer_to_server(wallet, server.grpc_server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(admin, server.grpc_server)
    return Parts(pool, coordinators, routes, wallet, server)


async def _start(server: rpc.RpcServer, listen: str) -> str:
    """Bind and start; the health service says NOT_SERVING until there is a topology."""
    port = rpc.bind(server.grpc_server, listen)
    await server.grpc_server.start()
    return f"{listen.rpartition(':')[0]}:{port}"


async def _join(membership: Membership, member: Member) -> None:
    """Register this router, however long it takes."""
    told = False
    while True:
        try:
            await membership.join(member)
        except MembershipUnavailable:
            if not told:
                _LOG.warning("waiting", waiting_for="etcd, to register this router")
                told = True
            await asyncio.sleep(JOIN_RETRY_S)
        else:
            return


async def _serve_once_there_is_a_topology(
    membership: Membership, parts: Parts, address: str
) -> None:
    while membership.view.topology is None:
        try:
            await membership.wait_for(lambda view: view.topology is not None, REMINDER_S)
        except MembershipUnavailable:
            _LOG.warning("waiting", waiting_for="etcd, to learn the topology")
        except TimeoutError:
            _LOG.warning("waiting", waiting_for="a topology to be created in etcd")
    await parts.server.set_serving(serving=True)
    _LOG.info("serving", address=address, topology_version=parts.pool.topology.version)


if __name__ == "__main__":
    main()
