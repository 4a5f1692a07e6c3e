"""`python -m coordinator`: a coordinator process.

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
from cluster.clock import HybridClock, WallClock
from cluster.config import CommonConfig, server_options
from cluster.etcd_membership import EtcdMembership
from cluster.logs import configure
from cluster.membership import (
    COORDINATOR_ROLE,
    Member,
    Membership,
    MembershipUnavailable,
    join_patiently,
)
from cluster.runtime import collect_seldom, run
from cluster.shard_client import GrpcShardClient
from cluster.shard_pool import ShardPool
from coordinator import recovery, rounds, service
from coordinator.recovery import Sweeper
from coordinator.rounds import Rounds
from coordinator.service import CoordinatorServicer, Deadlines
from doubloon.v1 import coordinator_service_pb2_grpc

SERVICES = ("doubloon.v1.CoordinatorService",)
# How long to wait before saying again what is waited for.
REMINDER_S = 10.0
# Ids of members have 63 letters at most; a process id needs some of them.
HOST_LETTERS_MAX = 50
# Shard nodes refuse deadlines further ahead than ten seconds; the rest is for clocks that differ.
TRANSACTION_LIFE_MAX_S = 8.0

_LOG = structlog.stdlib.get_logger(COORDINATOR_ROLE)


@dataclass(frozen=True)
class Bounds:
    """The coordinator's own limits, each with its reason beside its default."""

    deadlines: Deadlines
    in_progress_max: int
    transaction_life_us: int
    sweep_period_s: float


@dataclass(frozen=True)
class Parts:
    """A coordinator put together."""

    pool: ShardPool
    rounds: Rounds
    sweeper: Sweeper
    server: rpc.RpcServer


@click.command(help="Serve CoordinatorService: transfers and groups between shards.")
@server_options
@click.option(
    "--id", "coordinator_id", default="", help="Unique among coordinators; made up when absent."
)
@click.option(
    "--deadline-default-s",
    type=click.FloatRange(0, min_open=True),
    default=service.DEADLINE_DEFAULT_S,
    show_default=True,
    help="For calls whose caller set no deadline.",
)
@click.option(
    "--deadline-max-s",
    type=click.FloatRange(0, min_open=True),
    default=service.DEADLINE_MAX_S,
    show_default=True,
    help="For all calls.",
)
@click.option(
    "--in-progress",
    type=click.IntRange(1),
    default=rounds.IN_PROGRESS_MAX,
    show_default=True,
    help="Transfers of transactions in progress in this coordinator at most.",
)
@click.option(
    "--transaction-life-s",
    type=click.FloatRange(0, TRANSACTION_LIFE_MAX_S, min_open=True),
    default=rounds.TRANSACTION_LIFE_US / 1e6,
    show_default=True,
    help="After which the home gives an undecided attempt up.",
)
@click.option(
    "--sweep-period-s",
    type=click.FloatRange(0, min_open=True),
    default=recovery.SWEEP_PERIOD_S,
    show_default=True,
    help="Between two looks for what others left in doubt, on average.",
)
def main(
    config: CommonConfig,
    coordinator_id: str,
    deadline_default_s: float,
    deadline_max_s: float,
    in_progress: int,
    transaction_life_s: float,
    sweep_period_s: float,
) -> None:
    """Read the options and serve until told to stop."""
    member_id = coordinator_id or f"{socket.gethostname()[:HOST_LETTERS_MAX]}-{os.getpid()}"
    configure(COORDINATOR_ROLE, member_id, config.log_format)
    bounds = Bounds(
        Deadlines(deadline_default_s, deadline_max_s),
        in_progress,
        int(transaction_life_s * 1e6),
        sweep_period_s,
    )
    run(lambda stop: serve(config, member_id, bounds, stop))


async def serve(config: CommonConfig, member_id: str, bounds: Bounds, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then let what is in progress end, for a bounded time."""
    membership = await EtcdMembership.open(config.etcd, config.cluster, config.etcd_tls)
    version, started_us = importlib.metadata.version("doubloon-server"), WallClock().now_us()
    parts = await build(membership, member_id, bounds)
    port = rpc.bind(parts.server.grpc_server, config.listen)
    await parts.server.grpc_server.start()
    address = config.address(f"{config.listen.rpartition(':')[0]}:{port}")
    member = Member(COORDINATOR_ROLE, member_id, address, version, started_us)
    _LOG.info("listening", address=address, version=version)
    collect_seldom()
    async with asyncio.TaskGroup() as background:
        following = background.create_task(parts.pool.follow())
        working = background.create_task(_work(membership, member, parts))
        await stop.wait()
        working.cancel()
        await membership.leave()
        await parts.server.stop()
        await parts.rounds.close(rpc.STOP_GRACE_S)
        following.cancel()
    await parts.pool.close(rpc.STOP_GRACE_S)
    await membership.close()


async def build(membership: Membership, member_id: str, bounds: Bounds) -> Parts:
    """Put a coordinator together, that serves nothing yet."""
    rng = random.Random()  # noqa: S311 - jitter, not secrets
    clock = HybridClock(WallClock())
    pool = ShardPool(membership, GrpcShardClient, rng)
    running = Rounds(
        pool, clock, rng, os.urandom, bounds.in_progress_max, bounds.transaction_life_us
    )
    sweeper = Sweeper(pool, clock, rng, bounds.sweep_period_s)
    servicer = CoordinatorServicer(member_id, pool, running, sweeper, bounds.deadlines)
    server = await rpc.server(SERVICES)
    coordinator_service_pb2_grpc.add_CoordinatorServiceServicer_to_server(
        servicer, server.grpc_server
    )
    return Parts(pool, running, sweeper, server)


async def _work(membership: Membership, member: Member, parts: Parts) -> None:
    """Once there is a topology: serve, let routers know, and sweep until cancelled."""
    while membership.view.topology is None:
        try:
            await membership.wait_for(lambda view: view.topology is not None, REMINDER_S)
        except MembershipUnavailable:
            _LOG.warning("waiting", waiting_for="etcd, to learn the topology")
        except TimeoutError:
            _LOG.warning("waiting", waiting_for="a topology to be created in etcd")
    await parts.server.set_serving(serving=True)
    _LOG.info("serving", address=member.address, topology_version=parts.pool.topology.version)
    async with asyncio.TaskGroup() as group:
        group.create_task(join_patiently(membership, member))
        group.create_task(parts.sweeper.run())


if __name__ == "__main__":
    main()
