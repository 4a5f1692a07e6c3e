"""`doubloon cluster`: a cluster on this machine, left running for play."""

from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from doubloon import AsyncAdminClient, ClusterStatus, FaultError
from scripts.commands.session import (
    EXIT_FAILED,
    Session,
    console,
    json_option,
    load_state,
    name_option,
    run,
    table,
    var_option,
)
from scripts.etcd_server import EtcdServerError
from scripts.local_cluster import COORDINATOR, ETCD, ROUTER, SHARD, LocalCluster
from scripts.processes import ProcessEnded, ProcessRecord, end_all
from scripts.state_file import RunningCluster
from scripts.units import show_time

_STATUS_TIMEOUT_S = 5.0  # of one question to a router on the same machine
_SHARDS_MAX = 64  # processes on one machine, for play


@click.group()
def cluster() -> None:
    """Start, stop and look at a cluster on this machine, for play."""


@cluster.command()
@click.option("--shards", type=click.IntRange(1, _SHARDS_MAX), default=3, show_default=True)
@click.option("--routers", type=click.IntRange(1, _SHARDS_MAX), default=1, show_default=True)
@click.option(
    "--coordinators", type=click.IntRange(0, _SHARDS_MAX),
    help="They run what crosses shards. [default: 1, or 0 with one shard]",
)  # fmt: skip
@click.option("--allow-imports", is_flag=True, help="Let routers take transfers with a past time.")
@name_option
@var_option
@json_option
def up(
    *,
    shards: int,
    routers: int,
    coordinators: int | None,
    allow_imports: bool,
    name: str,
    var: Path,
    as_json: bool,
) -> None:
    """Start a cluster and leave it running.

    Data and logs go to VAR/CLUSTER, and are taken up again by the next `up`.
    """
    session = Session(as_json, console())
    state = load_state(var / name)
    if state is not None and state.alive:
        _answer_already_up(session, state)
        return
    try:
        made = run(
            _up(
                LocalCluster(
                    var / name,
                    shards=shards,
                    routers=routers,
                    coordinators=coordinators,
                    name=name,
                    allow_imports=allow_imports,
                )
            ),
            "interrupted; nothing is left running",
        )
    except (EtcdServerError, ProcessEnded, TimeoutError) as error:
        raise click.ClickException(f"{error}\nnothing is left running") from error
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--shards") from error
    session.answer(made, lambda: _shown(made, f"cluster {name} is up"))


def _answer_already_up(session: Session, state: RunningCluster) -> None:
    alive, all_ = len(state.alive), len(state.processes)
    if alive < all_:
        raise click.ClickException(
            f"cluster {state.name} is up in part, {alive} of {all_} processes: "
            "end it with `doubloon cluster down`"
        )
    session.answer(state, lambda: _shown(state, f"cluster {state.name} is already up"))


async def _up(made: LocalCluster) -> RunningCluster:
    await made.start()
    try:
        addresses, etcd = made.routers, made.etcd.client
        state = RunningCluster(made.name, str(made.folder), etcd, addresses, made.records())
        state.save()
        await made.detach()
    except BaseException:
        await made.stop()
        raise
    return state


@cluster.command()
@name_option
@var_option
@json_option
def down(*, name: str, var: Path, as_json: bool) -> None:
    """End the processes that `up` started; data and logs stay."""
    session = Session(as_json, console())
    state = load_state(var / name)
    alive = state.alive if state is not None else ()
    killed = run(_down(alive))
    if state is not None:
        state.forget()
    ended = [{"role": p.role, "id": p.id, "pid": p.pid} for p in alive]
    said = f"cluster {name} is down; {len(alive)} processes ended" if alive else (
        f"cluster {name} was not running"
    )  # fmt: skip
    if killed:
        said += f"\nthese did not stop by themselves and were killed: {', '.join(killed)}"
    session.answer({"ended": ended, "killed": killed}, lambda: Text(said))


async def _down(alive: tuple[ProcessRecord, ...]) -> list[str]:
    killed = []
    for role in (ROUTER, COORDINATOR, SHARD, ETCD):
        killed += await end_all([process for process in alive if process.role == role])
    return killed


@cluster.command()
@name_option
@var_option
@json_option
def status(*, name: str, var: Path, as_json: bool) -> None:
    """Show the processes, and what the cluster says of itself."""
    session = Session(as_json, console())
    state = load_state(var / name)
    if state is None:
        session.answer({"up": False}, lambda: Text(f"cluster {name} is not up"))
        raise click.exceptions.Exit(EXIT_FAILED)
    found, said = run(_status(state.routers))
    complete = found is not None and len(state.alive) == len(state.processes)
    value = {"up": complete, "state": state, "status": found, "fault": said}

    def shown() -> RenderableType:
        parts = (_processes(state), Text(""))
        if found is None:
            return Group(*parts, Text(f"no router answers: {said}"))
        return Group(*parts, _members(found), Text(""), _shards(found))

    session.answer(value, shown)
    if not complete:
        raise click.exceptions.Exit(EXIT_FAILED)


async def _status(routers: tuple[str, ...]) -> tuple[ClusterStatus | None, str]:
    try:
        async with AsyncAdminClient(routers, timeout_s=_STATUS_TIMEOUT_S) as client:
            return await client.cluster_status(), ""
    except FaultError as error:
        return None, str(error)


def _shown(state: RunningCluster, headline: str) -> RenderableType:
    router = state.routers[0]
    return Text(
        f"{headline}\n"
        f"  routers  {', '.join(state.routers)}\n"
        f"  etcd     {state.etcd}\n"
        f"  logs     {state.folder}/logs\n"
        "go on with\n"
        "  doubloon currency register GOLD --scale 2\n"
        "  doubloon account open 1 --kind SYSTEM --floor -1000000\n"
        "  doubloon account open 2\n"
        "  doubloon transfer 1 2 12.50 GOLD --type REWARD\n"
        "  doubloon account show 2\n"
        f"  buf curl --protocol grpc --http2-prior-knowledge http://{router} --list-methods\n"
        "  doubloon cluster down"
    )


def _processes(state: RunningCluster) -> Table:
    made = table("process", "pid>", "state", "log", title=f"cluster {state.name}")
    for each in state.processes:
        alive = "running" if each.is_alive() else "ended"
        made.add_row(f"{each.role} {each.id}", str(each.pid), alive, each.log)
    return made


def _members(found: ClusterStatus) -> Table:
    made = table("member", "id", "address", "version", "since")
    for each in found.members:
        made.add_row(each.role, each.id, each.address, each.version, show_time(each.started_us))
    return made


def _shards(found: ClusterStatus) -> Table:
    made = table(
        "shard>", "epoch>", "primary", "slots>", "block>", "transfers>", "refused>", "repeats>",
        "syncs>", "in doubt>", "unfinished>", "MiB on disk>", "clock", "scrubbed",
        title=f"topology {found.topology_version}"
        + ("" if found.etcd_connected else "; the router has lost etcd"),
    )  # fmt: skip
    for each in found.shards:
        disk = (each.log_bytes + each.state_bytes) / 2**20
        numbers = (each.slots, each.durable_block, each.transfers_completed,
                   each.transfers_refused, each.transfers_repeated, each.log_syncs,
                   each.transactions_prepared, each.transactions_unfinished)  # fmt: skip
        made.add_row(
            str(each.shard_id), str(each.epoch), each.primary if each.reachable else "unreachable",
            *(f"{number:,}" for number in numbers), f"{disk:,.1f}", show_time(each.clock_us),
            show_time(each.scrub_ended_us) if each.scrub_ended_us else "-",
        )  # fmt: skip
    return made
