"""`doubloon transfer`, `doubloon currency`, `doubloon verify`: money moved, named and audited."""

import uuid

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from doubloon import Currency, TransferType
from scripts.commands.params import ACCOUNT_ID, instant
from scripts.commands.session import (
    EXIT_FAILED,
    EXIT_REFUSED,
    Clients,
    Session,
    connected,
    table,
)
from scripts.units import parse_amount, show_amount, show_time


@click.command()
@click.argument("source", type=ACCOUNT_ID)
@click.argument("destination", type=ACCOUNT_ID)
@click.argument("amount")
@click.argument("currency")
@click.option(
    "--type", "type_name", default="TRANSFER", show_default=True,
    type=click.Choice([each.name for each in TransferType if each], case_sensitive=False),
)  # fmt: skip
@click.option(
    "--reference", type=click.IntRange(0, 2**64 - 1), default=0, help="A number of yours."
)
@click.option("--metadata", default="", help="A text of yours, at most 256 bytes.")
@click.option("--id", "id_", type=click.UUID, help="Ask again for a transfer that has this id.")
@click.option("--time", type=instant, help="ISO 8601: import it as having happened then.")
@connected
async def transfer(
    session: Session,
    clients: Clients,
    *,
    source: int,
    destination: int,
    amount: str,
    currency: str,
    type_name: str,
    reference: int,
    metadata: str,
    id_: uuid.UUID | None,
    time: int | None,
) -> None:
    """Move AMOUNT (such as 12.50) of CURRENCY from account SOURCE to account DESTINATION."""
    known = await clients.currency(currency, "CURRENCY")
    amount_minor = _amount(amount, known)
    result = await clients.wallet.transfer(
        source,
        destination,
        currency,
        amount_minor,
        type=TransferType[type_name.upper()],
        reference=reference,
        metadata=metadata.encode(),
        transfer_id=id_.bytes if id_ else None,
        import_time=time,
    )

    def shown() -> RenderableType:
        what = f"{show_amount(amount_minor, known.scale)} {currency} from {source} to {destination}"
        after = show_amount(result.source_balance_after_minor, known.scale)
        why = ""
        if result.refusal is not None:
            again = result.refusal.retry_class.name
            differing = result.refusal.differing_field
            field = f" of {differing}" if differing else ""
            why = f": {result.refusal.reason.name}{field} (retry: {again})"
        return Text(
            f"{result.status.name}{' (repeat)' if result.repeat else ''}{why}\n"
            f"  {what}\n"
            f"  id {uuid.UUID(bytes=result.transfer_id)}, at {show_time(result.time_us)}"
            + (f", {source} has {after} {currency}" if result.time_us else "")
        )

    session.answer(result, shown)
    if result.refused:
        raise click.exceptions.Exit(EXIT_REFUSED)


def _amount(text: str, currency: Currency) -> int:
    try:
        return parse_amount(text, currency.scale)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="AMOUNT") from error


@click.group()
def currency() -> None:
    """Register and list currencies."""


@currency.command()
@click.argument("code")
@click.option("--scale", type=click.IntRange(0, 18), default=0, show_default=True, help="Decimals.")
@click.option("--name", "label", default="", help="For people; at most 64 bytes.")
@connected
async def register(
    session: Session, clients: Clients, *, code: str, scale: int, label: str
) -> None:
    """Register a currency such as GOLD; doing so again with the same attributes changes nothing."""
    made = await clients.admin.register_currency(code, scale=scale, name=label)
    session.answer(made, lambda: _currencies([made]))


@currency.command(name="list")
@connected
async def list_(session: Session, clients: Clients) -> None:
    """List the registered currencies."""
    found = await clients.admin.currencies()
    session.answer(found, lambda: _currencies(found))


def _currencies(found: "list[Currency] | tuple[Currency, ...]") -> Table:
    made = table("code", "number>", "decimals>", "name")
    for each in found:
        made.add_row(each.code, str(each.number), str(each.scale), each.name)
    return made


@click.command()
@connected
async def verify(session: Session, clients: Clients) -> None:
    """Check promise 1, conservation: on every shard, all balances of a currency sum to zero."""
    report = await clients.admin.check_conservation()
    scales = await clients.scales()

    def shown() -> RenderableType:
        title = "the books balance" if report.balanced else "THE BOOKS DO NOT BALANCE"
        made = table("shard>", "currency", "accounts>", "above zero>", "below zero>", "balanced",
                     title=title)  # fmt: skip
        for each in report.books:
            scale = scales[each.currency]
            made.add_row(
                str(each.shard_id), each.currency, f"{each.accounts:,}",
                show_amount(each.positive_minor, scale), show_amount(each.negative_minor, scale),
                "yes" if each.balanced else "NO",
            )  # fmt: skip
        return made

    session.answer(report, shown)
    if not report.balanced:
        raise click.exceptions.Exit(EXIT_FAILED)
