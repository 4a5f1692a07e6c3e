"""`python -m shard_node`: the process that serves one shard."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib.metadata
import os
import socket
import sys
import traceback
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import structlog

from cluster import rpc, runtime
from cluster.clock import WallClock
from cluster.config import CommonConfig, server_options
from cluster.etcd_membership import EtcdMembership
from cluster.logs import configure
from cluster.membership import (
    SHARD_NODE_ROLE,
    Member,
    Membership,
    MembershipUnavailable,
    join_patiently,
)
from doubloon.v1 import shard_service_pb2_grpc
from shard_node import startup
from shard_node.collector import YoungCollector
from shard_node.committer import SWITCH_INTERVAL_S
from shard_node.currencies import Currencies
from shard_node.damage import DamagedStateError
from shard_node.limits import Limits
from shard_node.records import DamagedLogError, LogIdentity, cluster_id_of
from shard_node.scrubber import ScrubChild, ScrubProgress
from shard_node.service import ShardServicer
from shard_node.status import ProcessFacts, StatusReporter
from shard_node.verify import verify_history

if TYPE_CHECKING:
    from typing import NoReturn

    from shard_node.checkpointer import StateWriter
    from shard_node.engine import Engine

SERVICES: Final = ("doubloon.v1.ShardService",)
MEBIBYTE: Final = 1024 * 1024

FIRST_REMINDER_S: Final = 2.0
"""How long to wait before saying what is waited for: whoever starts a node looks on."""

REMINDER_S: Final = 10.0
"""How long to wait before saying so again."""

_LOG = structlog.stdlib.get_logger(SHARD_NODE_ROLE)


@dataclass(frozen=True)
class StartChecks:
    """What is checked of the data folder before it is served.

    Attributes:
        verify_all: the whole history, not just what is newer than the latest checkpoint.
        accept_empty: begin a ledger in an empty folder although the shard had one.
    """

    verify_all: bool
    accept_empty: bool


@click.command(help="Serve one shard.")
@server_options
@click.option("--shard", "shard_id", type=click.IntRange(1, 65_535), required=True)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    help="The folder for this shard's log and state.",
)
@click.option("--id", "member_id", default="", help="Unique among shard nodes; made up if absent.")
@click.option(
    "--accept-empty",
    is_flag=True,
    help="Begin a new ledger in an empty folder although the shard was served before.",
)
@click.option("--verify-all", is_flag=True, help="Check the whole history before serving.")
@click.option(
    "--accounts-cached",
    type=click.IntRange(1),
    default=Limits.accounts_max,
    show_default=True,
    help="Accounts kept in memory besides those changed since the latest checkpoint.",
)
@click.option(
    "--checkpoint-rows",
    type=click.IntRange(1),
    default=Limits.checkpoint_rows,
    show_default=True,
    help="Changed accounts plus new keys after which a checkpoint is taken.",
)
@click.option(
    "--log-map-mib",
    type=click.IntRange(1),
    default=Limits.log_map_bytes // MEBIBYTE,
    show_default=True,
    help="The most that the log may grow to.",
)
@click.option(
    "--state-map-mib",
    type=click.IntRange(1),
    default=Limits.state_map_bytes // MEBIBYTE,
    show_default=True,
    help="The most that the state may grow to.",
)
@click.option(
    "--scrub-mib-s",
    type=click.IntRange(0, 4_096),
    default=Limits.scrub_bytes_per_s // MEBIBYTE,
    show_default=True,
    help="How fast log and state are read again in the background; 0 = not at all.",
)
@click.option(
    "--scrub-period-s",
    type=click.IntRange(1),
    default=Limits.scrub_period_s,
    show_default=True,
    help="The least time from one such pass to the next.",
)
def main(
    config: CommonConfig,
    shard_id: int,
    data: Path,
    member_id: str,
    accounts_cached: int,
    checkpoint_rows: int,
    log_map_mib: int,
    state_map_mib: int,
    scrub_mib_s: int,
    scrub_period_s: int,
    *,
    accept_empty: bool,
    verify_all: bool,
) -> None:
    """Read the options and serve until told to stop."""
    member_id = member_id or f"{socket.gethostname()}-{os.getpid()}"
    configure(SHARD_NODE_ROLE, member_id, config.log_format)
    limits = Limits(
        accounts_max=accounts_cached,
        checkpoint_rows=checkpoint_rows,
        log_map_bytes=log_map_mib * MEBIBYTE,
        state_map_bytes=state_map_mib * MEBIBYTE,
        scrub_bytes_per_s=scrub_mib_s * MEBIBYTE,
        scrub_period_s=scrub_period_s,
    )
    identity = LogIdentity(cluster_id_of(config.cluster), shard_id)
    checks = StartChecks(verify_all=verify_all, accept_empty=accept_empty)
    runtime.run(lambda stop: serve(config, identity, data, member_id, limits, stop, checks))


async def serve(
    config: CommonConfig,
    identity: LogIdentity,
    data: Path,
    member_id: str,
    limits: Limits,
    stop: asyncio.Event,
    checks: StartChecks,
) -> None:
    """Recover, claim the shard, serve until `stop`, then leave a fresh checkpoint behind."""
    faulthandler.enable()  # a damaged page may end the process inside LMDB: at least it says where
    gc.disable()  # recovery makes no garbage in cycles; then see `YoungCollector`
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    started_us = WallClock().now_us()
    version = importlib.metadata.version("doubloon-server")
    try:
        lock_fd = startup.lock_folder(data)
    except startup.FolderInUseError as error:
        raise runtime.StartRefused(str(error)) from error
    is_empty = check_folder(data, identity, limits, checks)
    writer = await startup.start_writer(data, identity, limits, lock_fd)  # before gRPC: it forks
    scrub = await start_scrub(data, identity, limits, lock_fd)  # as well
    membership = await EtcdMembership.open(config.etcd, config.cluster, config.etcd_tls)
    try:
        refused = is_empty and not checks.accept_empty
        epoch = await claim(membership, identity.shard_id, member_id, stop, only_first=refused)
        if epoch is None:
            return
        engine = recover_engine(data, identity, epoch, limits, writer, checks)
        await engine.start(epoch)
        collector = YoungCollector()
        collector.start()
        monitor = runtime.LoopMonitor()
        facts = ProcessFacts(member_id, version, started_us, epoch)
        status = StatusReporter(engine, membership, facts, monitor, progress_of(scrub))
        if scrub is not None:
            scrub.begin()
        servicer = ShardServicer(
            engine, Currencies(membership), status, lambda: topology_version(membership)
        )
        server = await rpc.server(SERVICES, on_error=partial(end_if_damaged, data))
        shard_service_pb2_grpc.add_ShardServiceServicer_to_server(servicer, server.grpc_server)
        address = config.address(await server.serve(config.listen))
        member = Member(SHARD_NODE_ROLE, member_id, address, version, started_us)
        joining = asyncio.create_task(join_patiently(membership, member))
        _LOG.info("serving", address=address, shard=identity.shard_id, epoch=epoch, version=version)
        monitor.start()  # only now: what a start takes holds nobody up
        await stopped_or_superseded(membership, identity.shard_id, epoch, stop)
        joining.cancel()
        await membership.leave()
        await server.stop()
        await engine.stop()
        monitor.stop()
        collector.stop()
    finally:
        if scrub is not None:
            await scrub.close()
        await writer.close()
        await membership.close()


def check_folder(data: Path, identity: LogIdentity, limits: Limits, checks: StartChecks) -> bool:
    """Refuse what can be seen to be wrong before the shard is claimed; return whether it is empty.

    A claim ends whoever serves the shard from another folder, and spends an epoch.
    """
    try:
        if checks.verify_all:
            verify_history(data, identity, limits)
            startup.forget_damage(data)
        elif damage := startup.known_damage(data):
            raise runtime.StartRefused(
                f"the node came upon damage here before ({damage}); --verify-all looks at all of it"
            )
        return startup.is_empty(data, identity, limits)
    except (DamagedLogError, DamagedStateError) as error:
        raise runtime.StartRefused(str(error)) from error


async def start_scrub(
    data: Path, identity: LogIdentity, limits: Limits, lock_fd: int
) -> ScrubChild | None:
    """Start the process that reads the folder again while it is served; None = not wanted."""
    if not limits.scrub_bytes_per_s:
        return None
    on_damage = partial(end_process, data)
    return await ScrubChild.start(data, identity, limits, lock_fd, WallClock(), on_damage)


def progress_of(scrub: ScrubChild | None) -> ScrubProgress:
    """How far the scrub is, now and later."""
    return scrub.progress if scrub else ScrubProgress()


def recover_engine(
    data: Path,
    identity: LogIdentity,
    epoch: int,
    limits: Limits,
    writer: StateWriter,
    checks: StartChecks,
) -> Engine:
    """Open and verify the data folder; refuse to start on anything that is not as written."""
    try:
        return startup.open_engine(
            data,
            identity,
            epoch,
            limits,
            WallClock(),
            writer,
            partial(end_process, data),
            accept_empty=checks.accept_empty,
        )
    except (DamagedLogError, DamagedStateError) as error:
        raise runtime.StartRefused(str(error)) from error


async def claim(
    membership: Membership,
    shard_id: int,
    member_id: str,
    stop: asyncio.Event,
    *,
    only_first: bool = False,
) -> int | None:
    """Wait for a topology with this shard and become its primary; None = told to stop first.

    `only_first`: refuse to start if the shard was ever claimed before.
    """
    claiming = asyncio.create_task(claimed(membership, shard_id, member_id, only_first=only_first))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((claiming, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if claiming.done():
        return claiming.result()
    claiming.cancel()  # a claim that etcd has got all the same only makes the next epoch higher
    return None


async def claimed(
    membership: Membership, shard_id: int, member_id: str, *, only_first: bool
) -> int:
    """Claim the shard, however long it takes, and say what is waited for; returns the epoch."""
    patience_s = FIRST_REMINDER_S
    while True:
        try:
            await membership.wait_for(
                lambda view: view.topology is not None and shard_id in view.topology.shards,
                patience_s,
            )
            known = membership.view.shards.get(shard_id)
            if only_first and known is not None:
                raise runtime.StartRefused(startup.no_log(shard_id, known.epoch))
            if epoch := await membership.claim_shard(shard_id, member_id):
                return epoch
        except TimeoutError:
            waiting_for = f"a topology with shard {shard_id} to be created in etcd"
            _LOG.warning("waiting", waiting_for=waiting_for)
        except MembershipUnavailable as error:
            _LOG.warning("waiting", waiting_for="etcd", reason=str(error))
        patience_s = REMINDER_S


async def stopped_or_superseded(
    membership: Membership, shard_id: int, epoch: int, stop: asyncio.Event
) -> None:
    """Return when told to stop; end the process when a later epoch has the shard."""
    watching = asyncio.create_task(superseded(membership, shard_id, epoch))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
    if watching.done() and not stop.is_set():
        runtime.fatal("another shard node has claimed this shard", epoch=epoch)
    watching.cancel()
    stopping.cancel()


async def superseded(membership: Membership, shard_id: int, epoch: int) -> None:
    """Return when a later epoch has the shard."""
    async for view in membership.watch():
        shard = view.shards.get(shard_id)
        if shard is not None and shard.epoch > epoch:
            return


def topology_version(membership: Membership) -> int:
    """The version of the topology that this node knows; 0 = none."""
    topology = membership.view.topology
    return topology.version if topology else 0


def end_if_damaged(data: Path, error: Exception) -> None:
    """A question has come upon damage: nobody knows what else is wrong, so nothing is served."""
    if isinstance(error, DamagedLogError | DamagedStateError):
        end_process(data, error)


def end_process(data: Path, error: BaseException) -> NoReturn:
    """Durability, or what is stored, is in doubt: the only way on is recovery from the log."""
    if isinstance(error, DamagedLogError | DamagedStateError):
        startup.mark_damaged(data, str(error))
    trace = "".join(traceback.format_exception(error))
    runtime.fatal(f"{type(error).__name__}: {error}", trace=trace)


if __name__ == "__main__":
    main()
