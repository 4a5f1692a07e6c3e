"""`doubloon audit`, `doubloon txn`: what crosses between shards, compared, listed and ended."""

import re

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from doubloon import AuditReport, InDoubt
from scripts.commands.params import instant
from scripts.commands.session import EXIT_FAILED, Clients, Session, connected, table
from scripts.units import show_amount, show_time

_SECOND_US = 1_000_000
_TRANSACTION_ID = re.compile(r"[0-9a-fA-F]{32}")


@click.command()
@click.option(
    "--as-of", type=instant, help="ISO 8601, at most a minute ago. [default: two seconds ago]"
)
@connected
async def audit(session: Session, clients: Clients, *, as_of: int | None) -> None:
    """Compare what every two shards owe each other at an instant, while traffic runs."""
    report = await clients.admin.audit(as_of)
    scales = await clients.scales()
    session.answer(report, lambda: audit_table(report, scales))
    if not report.balanced:
        raise click.exceptions.Exit(EXIT_FAILED)


def audit_table(report: AuditReport, scales: dict[str, int]) -> RenderableType:
    """Return an audit for people."""
    verdict = "the shards' books agree" if report.balanced else "THE SHARDS' BOOKS DISAGREE"
    title = f"{verdict} as of {show_time(report.as_of_us)}; {report.in_doubt} in doubt"
    made = table("shards>", "currency", "the second owes>", "the first owes>", "unposted>",
                 "balanced", title=title)  # fmt: skip
    named = []
    for each in report.pairs:
        scale = scales[each.currency]
        amounts = (each.position_minor, each.peer_position_minor, each.unposted_minor)
        made.add_row(
            f"{each.shard_id} and {each.peer_shard_id}", each.currency,
            *(show_amount(amount, scale) for amount in amounts), "yes" if each.balanced else "NO",
        )  # fmt: skip
        named += [id_.hex() for id_ in each.differing_transaction_ids]
    if not named:
        return made
    return Group(made, Text("\nonly one of the two has these transactions:\n" + "\n".join(named)))


@click.group()
def txn() -> None:
    """Look after transactions between shards that are in doubt.

    Coordinators resolve them by themselves within seconds; one that stays is a sign that a shard or
    every coordinator is away.
    """


def _transaction_id(_ctx: click.Context, _param: click.Parameter, value: str) -> bytes:
    if _TRANSACTION_ID.fullmatch(value) is None:
        raise click.BadParameter("32 hexadecimal digits")
    return bytes.fromhex(value)


_ID = click.argument("transaction_id", metavar="ID", callback=_transaction_id)


@txn.command(name="list")
@click.option(
    "--older-than", "older_than_s", type=click.FloatRange(0), default=0.0, show_default=True,
    help="Only those that have stood so for as many seconds.",
)  # fmt: skip
@connected
async def list_(session: Session, clients: Clients, *, older_than_s: float) -> None:
    """List what is in doubt, or decided and not finished, the oldest first."""
    found = await clients.admin.in_doubt(older_than=int(older_than_s * _SECOND_US))
    title = f"{len(found.transactions)} in doubt or unfinished"
    session.answer(found, lambda: _transactions(found, title))
    if found.unreachable_shard_ids:
        raise click.exceptions.Exit(EXIT_FAILED)


@txn.command()
@_ID
@connected
async def show(session: Session, clients: Clients, *, transaction_id: bytes) -> None:
    """Show one transaction as every shard sees it."""
    found = await clients.admin.in_doubt(transaction_id=transaction_id)
    seen = found.transactions
    title = f"transaction {transaction_id.hex()}" + ("" if seen else " is in doubt nowhere")
    session.answer(found, lambda: _transactions(found, title))
    if not seen or found.unreachable_shard_ids:
        raise click.exceptions.Exit(EXIT_FAILED)


@txn.command()
@_ID
@connected
async def resolve(session: Session, clients: Clients, *, transaction_id: bytes) -> None:
    """Finish a transaction that was decided; abort one whose deadline is over."""
    fate = await clients.admin.resolve_transaction(transaction_id)
    session.answer({"transaction_id": transaction_id, "fate": fate}, lambda: Text(fate.name))


def _transactions(found: InDoubt, title: str) -> Table:
    if away := ", ".join(map(str, found.unreachable_shard_ids)):
        title += f"; NO ANSWER FROM SHARD {away}, which may have more"
    made = table("transaction|", "on shard>", "state", "since", "home>", "others", "deadline",
                 "decided", "transfers>", "key", title=title)  # fmt: skip
    for each in found.transactions:
        made.add_row(
            each.transaction_id.hex(), str(each.shard_id), each.state.name,
            show_time(each.since_us), str(each.home_shard_id),
            ", ".join(map(str, each.participant_shard_ids)) or "-", show_time(each.deadline_us),
            show_time(each.decided_us), str(each.size),
            f"{each.key_account_id} {each.transfer_id.hex()}",
        )  # fmt: skip
    return made
