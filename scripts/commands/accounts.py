"""`doubloon account`: open, show, freeze, unfreeze, close."""

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from doubloon import Account, AccountKind, AccountSpec, AccountStatus
from scripts.commands.params import ACCOUNT_ID
from scripts.commands.session import EXIT_REFUSED, Clients, Session, connected, table
from scripts.units import show_amount, show_time

_UNIT_HELP = "in minor units, since an account holds any number of currencies"


@click.group()
def account() -> None:
    """Open and look after accounts."""


@account.command(name="open")
@click.argument("account_ids", type=ACCOUNT_ID, nargs=-1, required=True)
@click.option(
    "--kind",
    type=click.Choice(["PLAYER", "SYSTEM"], case_sensitive=False),
    default="PLAYER",
    show_default=True,
)
@click.option(
    "--floor", type=click.IntRange(-(2**63) + 1, 0), default=0, show_default=True,
    help=f"The lowest balance it may reach, {_UNIT_HELP}; below 0 only for SYSTEM.",
)  # fmt: skip
@click.option(
    "--cap", type=click.IntRange(0, 2**63 - 1), default=0,
    help=f"The highest balance it may reach, {_UNIT_HELP}; 0 = none.",
)  # fmt: skip
@connected
async def open_(
    session: Session,
    clients: Clients,
    *,
    account_ids: tuple[int, ...],
    kind: str,
    floor: int,
    cap: int,
) -> None:
    """Open accounts; opening one again with the same attributes changes nothing."""
    if floor and kind.upper() == "PLAYER":
        raise click.BadParameter("a PLAYER never goes below 0", param_hint="--floor")
    specs = [AccountSpec(each, AccountKind[kind.upper()], floor, cap) for each in account_ids]
    results = await clients.wallet.open_accounts(specs)

    def shown() -> Table:
        made = table("account>", "outcome", "detail")
        for result in results:
            detail = f"{result.differing_field} differs" if result.differing_field else ""
            detail = result.fault.message if result.fault else detail
            outcome = result.status.name + (" (already)" if result.repeat else "")
            made.add_row(str(result.account_id), outcome, detail)
        return made

    session.answer(results, shown)
    if not all(result.opened for result in results):
        raise click.exceptions.Exit(EXIT_REFUSED)


@account.command()
@click.argument("account_id", type=ACCOUNT_ID)
@connected
async def show(session: Session, clients: Clients, *, account_id: int) -> None:
    """Show an account and its balances."""
    found = await clients.wallet.account(account_id)
    balances = (await clients.wallet.balances(account_id)).balances
    scales = await clients.scales()

    def shown() -> RenderableType:
        made = table("currency", "balance>", "reserved>", "available>", "latest entry")
        for each in balances:
            amounts = (each.posted_minor, each.reserved_minor, each.available_minor)
            shown_amounts = (show_amount(amount, scales[each.currency]) for amount in amounts)
            made.add_row(each.currency, *shown_amounts, show_time(each.latest_entry_time_us))
        return Group(_attributes(found), Text(""), made)

    session.answer({"account": found, "balances": balances}, shown)


_REASON = click.option("--reason", required=True, help="Why, for the record; at most 256 bytes.")


@account.command()
@click.argument("account_id", type=ACCOUNT_ID)
@_REASON
@connected
async def freeze(session: Session, clients: Clients, *, account_id: int, reason: str) -> None:
    """Let an account neither send nor receive, until it is unfrozen."""
    await _change(session, clients, account_id, AccountStatus.FROZEN, reason)


@account.command()
@click.argument("account_id", type=ACCOUNT_ID)
@_REASON
@connected
async def unfreeze(session: Session, clients: Clients, *, account_id: int, reason: str) -> None:
    """Let a frozen account send and receive again."""
    await _change(session, clients, account_id, AccountStatus.ACTIVE, reason)


@account.command()
@click.argument("account_id", type=ACCOUNT_ID)
@_REASON
@connected
async def close(session: Session, clients: Clients, *, account_id: int, reason: str) -> None:
    """End an account for ever; it must hold no money."""
    await _change(session, clients, account_id, AccountStatus.CLOSED, reason)


async def _change(
    session: Session, clients: Clients, account_id: int, status: AccountStatus, reason: str
) -> None:
    changed = await clients.admin.change_account_status(account_id, status, reason)
    session.answer(changed, lambda: _attributes(changed.account))


def _attributes(found: Account) -> Table:
    made = table("account>", "kind", "status", "floor, minor>", "cap, minor>", "opened", "changed",
                 "reason")  # fmt: skip
    made.add_row(
        str(found.account_id), found.kind.name, found.status.name, f"{found.floor_minor:,}",
        f"{found.cap_minor:,}" if found.cap_minor else "-", show_time(found.opened_time_us),
        show_time(found.status_time_us), found.status_reason or "-",
    )  # fmt: skip
    return made
