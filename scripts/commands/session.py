"""What every subcommand shares: which router to ask, how to answer, how to end.

Programs get JSON (`--json`): amounts as `…_minor` integers, times as `…_us` integers, enums by
name, ids as UUIDs, other bytes as hex. People get tables, with amounts in the currency's own scale.

Exit codes: 0 done, 1 a fault (or a check that failed), 2 a wrong option, 3 a refusal, 130 Ctrl-C.
"""

import asyncio
import functools
import json
import re
import signal
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import click
import uvloop
from msgspec import Struct, structs
from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

from doubloon import AsyncAdminClient, AsyncClient, Currency, DoubloonError, Fault, FaultError
from scripts.state_file import RunningCluster, StateFileError

EXIT_FAILED = 1
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 130

DEFAULT_CLUSTER = "local"
_CLUSTER_NAME = re.compile(
    r"[a-z0-9][a-z0-9._-]{0,62}"
)  # a folder's name, and a part of etcd's keys
_UUIDS = frozenset({"transfer_id", "group_id"})
# Wide enough for every table of ours when nobody says how wide the output is (a file, a pipe).
_PIPE_WIDTH = 150

T = TypeVar("T")


@dataclass(frozen=True)
class Clients:
    """The two clients of the same routers."""

    wallet: AsyncClient
    admin: AsyncAdminClient

    async def scales(self) -> dict[str, int]:
        """Return each registered currency's number of decimals, by code."""
        return {currency.code: currency.scale for currency in await self.admin.currencies()}

    async def currency(self, code: str, param: str) -> Currency:
        """Return a registered currency.

        Raises:
            click.BadParameter: it is not registered; names the parameter and the codes there are.
        """
        known = {currency.code: currency for currency in await self.admin.currencies()}
        if code not in known:
            codes = ", ".join(known) or "none"
            message = f"{code!r} is not registered; there is {codes}"
            raise click.BadParameter(message, param_hint=param)
        return known[code]


@dataclass(frozen=True)
class Session:
    """How one command was asked to work.

    Attributes:
        json: answer for programs.
        console: where people's answers go.
    """

    json: bool
    console: Console

    def answer(self, value: object, shown: Callable[[], RenderableType]) -> None:
        """Print a value as JSON, or what `shown` makes of it."""
        if self.json:
            click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))
        else:
            self.console.print(shown())


def plain(value: object) -> Any:
    """Return a value as JSON can spell it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {
            each.name: _plain_field(each.name, getattr(value, each.name)) for each in fields(value)
        }
    if isinstance(value, Struct):
        return plain(structs.asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain_field(str(key), each) for key, each in value.items()}
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def _plain_field(name: str, value: object) -> Any:
    if name in _UUIDS and isinstance(value, bytes) and len(value) == 16:
        return str(uuid.UUID(bytes=value))
    return plain(value)


TRANSACTION_ID_DIGITS = 32


def table(*columns: str, title: str = "") -> Table:
    """Return an empty table; a column whose name ends in `>` is aligned to the right.

    One whose name ends in `|` is never broken or cut: what stands there is to be copied.
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        title=title or None,
        title_justify="left",
        min_width=len(title),  # or the title would be broken to the columns' width
    )
    for column in columns:
        right = column.endswith(">")
        whole = column.endswith("|")
        made.add_column(
            column.rstrip(">|"),
            justify="right" if right else "left",
            no_wrap=right or whole,
            min_width=TRANSACTION_ID_DIGITS if whole else None,
        )
    return made


def console() -> Console:
    """Return a console that writes whole lines of a fixed width when it is not a terminal."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def run(main: Coroutine[Any, Any, T], when_interrupted: str = "interrupted") -> T:
    """Run to the end; Ctrl-C and SIGTERM cancel it, so that it can clean up and say what was done.

    Args:
        main: what to run.
        when_interrupted: what to say then.

    Raises:
        click.exceptions.Exit: it was interrupted.
    """

    async def interruptible() -> T:
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await main

    try:
        return uvloop.run(interruptible())
    except asyncio.CancelledError:
        click.echo(when_interrupted, err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None


def _cluster_name(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if _CLUSTER_NAME.fullmatch(value) is None:
        raise click.BadParameter("lower-case letters, digits, '.', '_', '-'; at most 63")
    return value


json_option = click.option("--json", "as_json", is_flag=True, help="Answer in JSON, for programs.")
name_option = click.option(
    "--cluster",
    "name",
    callback=_cluster_name,
    envvar="DOUBLOON_CLUSTER",
    default=DEFAULT_CLUSTER,
    show_default=True,
    help="The local cluster's name.",
)
var_option = click.option(
    "--var",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="DOUBLOON_VAR",
    default=Path("var"),
    show_default=True,
    help="The folder that local clusters live in.",
)
router_option = click.option(
    "--router",
    metavar="HOST:PORT[,…]",
    envvar="DOUBLOON_ROUTER",
    help="The router to ask; else a running local cluster's.",
)


def connected(command: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make `async (session, clients, **own options)` the body of a command that asks a router."""

    @json_option
    @var_option
    @name_option
    @router_option
    @functools.wraps(command)
    def body(*, router: str | None, name: str, var: Path, as_json: bool, **own: Any) -> None:
        targets = router.split(",") if router else list(_local_routers(var, name))
        session = Session(as_json, console())

        async def ask() -> None:
            async with AsyncClient(targets) as wallet, AsyncAdminClient(targets) as admin:
                await command(session, Clients(wallet, admin), **own)

        try:
            run(ask())
        except FaultError as error:
            fail(session, error.fault, f"{', '.join(targets)}: {error}")
        except DoubloonError as error:
            raise click.ClickException(str(error)) from error

    return body


def fail(session: Session, fault: Fault, message: str) -> None:
    """End the command because of a fault.

    Raises:
        click.exceptions.Exit: always.
    """
    if session.json:
        click.echo(json.dumps({"fault": plain(fault)}, indent=2, ensure_ascii=False))
    known = " (it may or may not have happened)" if fault.indefinite else ""
    click.echo(f"Error: {message}{known}", err=True)
    raise click.exceptions.Exit(EXIT_FAILED)


def load_state(folder: Path) -> RunningCluster | None:
    """Read a local cluster's state file.

    Raises:
        click.ClickException: it is damaged.
    """
    try:
        return RunningCluster.load(folder)
    except StateFileError as error:
        raise click.ClickException(str(error)) from error


def _local_routers(var: Path, name: str) -> tuple[str, ...]:
    state = load_state(var / name)
    if state is None or not state.alive:
        raise click.UsageError(
            f"no cluster {name!r} runs under {var}/: start one with `doubloon cluster up`, "
            "or say --router HOST:PORT (or set DOUBLOON_ROUTER)"
        )
    return state.routers
