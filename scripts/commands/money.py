"""`doubloon transfer`, `group`, `currency`, `verify`: money moved, named and added up."""

import uuid
from collections.abc import Mapping

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from doubloon import Currency, GroupResult, Transfer, TransferResult, TransferType
from scripts.commands.params import ACCOUNT_ID, ACCOUNT_ID_MAX, instant
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
        return Text(
            f"{_outcome(result)}\n"
            f"  {what}\n"
            f"  id {uuid.UUID(bytes=result.transfer_id)}, at {show_time(result.time_us)}"
            + (f", {source} has {after} {currency}" if result.time_us else "")
        )

    session.answer(result, shown)
    if result.refused:
        raise click.exceptions.Exit(EXIT_REFUSED)


def _outcome(result: TransferResult | GroupResult) -> str:
    said = f"{result.status.name}{' (repeat)' if result.repeat else ''}"
    if result.refusal is None:
        return said
    again = result.refusal.retry_class.name
    differing = result.refusal.differing_field
    field = f" of {differing}" if differing else ""
    return f"{said}: {result.refusal.reason.name}{field} (retry: {again})"


def _amount(text: str, currency: Currency, param: str = "AMOUNT") -> int:
    try:
        return parse_amount(text, currency.scale)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=param) from error


@click.command()
@click.argument("transfers", metavar="TRANSFER…", nargs=-1, required=True)
@click.option("--id", "id_", type=click.UUID, help="Ask again for a group that has this id.")
@connected
async def group(
    session: Session, clients: Clients, *, transfers: tuple[str, ...], id_: uuid.UUID | None
) -> None:
    """Make 1 … 16 transfers that all happen or none do.

    A TRANSFER is SOURCE:DESTINATION:AMOUNT:CURRENCY[:TYPE]. So this is a sale, with the price to
    the seller and the fee to the house:

        doubloon group 7:8:12.50:GOLD:SALE 8:3000:0.60:GOLD:FEE
    """
    known = {each.code: each for each in await clients.admin.currencies()}
    made = [transfer_of(text, known) for text in transfers]
    result = await clients.wallet.transfer_group(made, group_id=id_.bytes if id_ else None)

    def shown() -> RenderableType:
        about = f", transfer {result.refused_index}" if result.refused else ""
        lines = [
            f"  {show_amount(each.amount_minor, known[each.currency].scale)} {each.currency}"
            f" from {each.source} to {each.destination}, {each.type.name}"
            for each in made
        ]
        end = f"  id {uuid.UUID(bytes=result.group_id)}, at {show_time(result.time_us)}"
        return Text("\n".join([_outcome(result) + about, *lines, end]))

    session.answer(result, shown)
    if result.refused:
        raise click.exceptions.Exit(EXIT_REFUSED)


def transfer_of(text: str, known: Mapping[str, Currency]) -> Transfer:
    """Read SOURCE:DESTINATION:AMOUNT:CURRENCY[:TYPE].

    Raises:
        click.BadParameter: it is not one; says why.
    """
    param = f"TRANSFER {text!r}"
    match text.split(":"):
        case [source, destination, amount, code]:
            type_name = TransferType.TRANSFER.name
        case [source, destination, amount, code, type_name]:
            pass
        case _:
            message = "must be SOURCE:DESTINATION:AMOUNT:CURRENCY[:TYPE]"
            raise click.BadParameter(message, param_hint=param)
    types = {each.name: each for each in TransferType if each}
    if type_name.upper() not in types:
        message = f"{type_name!r} is not one of {', '.join(types)}"
        raise click.BadParameter(message, param_hint=param)
    if code not in known:
        message = f"{code!r} is not registered; there is {', '.join(known) or 'none'}"
        raise click.BadParameter(message, param_hint=param)
    payer, payee = _account(source, param), _account(destination, param)
    amount_minor = _amount(amount, known[code], param)
    return Transfer(payer, payee, code, amount_minor, types[type_name.upper()])


def _account(text: str, param: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= ACCOUNT_ID_MAX:
        raise click.BadParameter(f"{text!r} is not an account, 1 … 2^63 - 1", param_hint=param)
    return int(text)


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
        made = table("shard>", "currency", "accounts>", "above zero>", "below zero>",
                     "owed by others>", "balanced",
                     title=title)  # fmt: skip
        for each in report.books:
            scale = scales[each.currency]
            made.add_row(
                str(each.shard_id), each.currency, f"{each.accounts:,}",
                show_amount(each.positive_minor, scale), show_amount(each.negative_minor, scale),
                show_amount(each.clearing_minor, scale),
                "yes" if each.balanced else "NO",
            )  # fmt: skip
        return made

    session.answer(report, shown)
    if not report.balanced:
        raise click.exceptions.Exit(EXIT_FAILED)
