"""`doubloon flows`, `doubloon series`, `doubloon entries`: the two queries and the statement."""

from datetime import timedelta
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from doubloon import BalanceSeries, Entry, EntryOrder, Flows
from scripts.chart import Series, svg, terminal_plot
from scripts.commands.params import ACCOUNT_ID, instant
from scripts.commands.session import Clients, Session, connected, table
from scripts.units import show_amount, show_time

_HOUR_US = 3_600_000_000
_PAGE_MAX = 1_000  # the wire contract's limit for one page
_HOURS_SHOWN = 24  # what fits a screen; `--json` has all of them


@click.command()
@click.argument("account_id", type=ACCOUNT_ID)
@click.option("--currency", default="", help="Only this one.")
@click.option("--as-of", type=instant, help="The window's end, ISO 8601; else now.")
@click.option(
    "--hours", type=click.FloatRange(min=0, min_open=True, max=876_000), default=24.0,
    show_default=True, help="The window's length.",
)  # fmt: skip
@connected
async def flows(
    session: Session,
    clients: Clients,
    *,
    account_id: int,
    currency: str,
    as_of: int | None,
    hours: float,
) -> None:
    """Query 1: what came in and went out of an account, in the past 24 hours by default."""
    if currency:
        await clients.currency(currency, "--currency")
    window = timedelta(hours=hours)
    answer = await clients.wallet.flows(account_id, currency=currency, as_of=as_of, window=window)
    scales = await clients.scales()
    title = (
        f"account {account_id}, after {show_time(answer.from_us)} up to {show_time(answer.to_us)}"
    )
    session.answer(answer, lambda: flows_table(answer.flows, scales, title))


def flows_table(found: tuple[Flows, ...], scales: dict[str, int], title: str) -> Table:
    """Return query 1's answer for people."""
    made = table("currency", "incoming>", "entries>", "outgoing>", "entries>", "net>", title=title)
    for each in found:
        scale = scales[each.currency]
        made.add_row(
            each.currency,
            show_amount(each.incoming_minor, scale), f"{each.incoming_count:,}",
            show_amount(each.outgoing_minor, scale), f"{each.outgoing_count:,}",
            show_amount(each.incoming_minor - each.outgoing_minor, scale),
        )  # fmt: skip
    return made


@click.command()
@click.argument("account_id", type=ACCOUNT_ID)
@click.argument("currency")
@click.option("--from", "from_", type=instant, help="ISO 8601; else 30 days before the end.")
@click.option("--to", type=instant, help="ISO 8601; else now.")
@click.option("--plot", is_flag=True, help="Draw it on the terminal.")
@click.option(
    "--svg", "svg_file", type=click.Path(dir_okay=False, path_type=Path), help="Draw it to a file."
)
@connected
async def series(
    session: Session,
    clients: Clients,
    *,
    account_id: int,
    currency: str,
    from_: int | None,
    to: int | None,
    plot: bool,
    svg_file: Path | None,
) -> None:
    """Query 2: an account's balance at the end of each hour, over 30 days by default."""
    known = await clients.currency(currency, "CURRENCY")
    answer = await clients.wallet.balance_series(account_id, currency, from_time=from_, to_time=to)
    drawn = series_of(answer, f"account {account_id}, {currency}", known.scale)
    if svg_file is not None:
        _write(svg_file, svg(drawn))

    def shown() -> RenderableType:
        if plot:
            width = session.console.width
            return Text(terminal_plot(drawn, width=min(width, 120)))
        return _hours_table(answer, known.scale, drawn.title)

    session.answer(answer, shown)


def series_of(answer: BalanceSeries, title: str, scale: int) -> Series:
    """Return query 2's answer as something to draw: each balance at its hour's end."""
    times_us = [min(hour.hour_start_us + _HOUR_US, answer.to_us) for hour in answer.hours]
    return Series(title, scale, times_us, [hour.balance_minor for hour in answer.hours])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.BadParameter(str(error), param_hint="--svg") from error


def _hours_table(answer: BalanceSeries, scale: int, title: str) -> RenderableType:
    made = table("hour from", "incoming>", "outgoing>", "balance>", title=title)
    for each in answer.hours[-_HOURS_SHOWN:]:
        amounts = (each.incoming_minor, each.outgoing_minor, each.balance_minor)
        made.add_row(show_time(each.hour_start_us), *(show_amount(a, scale) for a in amounts))
    left_out = len(answer.hours) - _HOURS_SHOWN
    note = f"{left_out} earlier hours are not shown (--plot draws all, --json has all)"
    return Group(made, Text(note)) if left_out > 0 else made


@click.command()
@click.argument("account_id", type=ACCOUNT_ID)
@click.option("--currency", default="", help="Only this one.")
@click.option("--from", "from_", type=instant, help="ISO 8601: only entries at or after it.")
@click.option("--to", type=instant, help="ISO 8601: only entries before it.")
@click.option("--oldest-first", is_flag=True)
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@connected
async def entries(
    session: Session,
    clients: Clients,
    *,
    account_id: int,
    currency: str,
    from_: int | None,
    to: int | None,
    oldest_first: bool,
    limit: int,
) -> None:
    """List an account's statement, newest first."""
    if currency:
        await clients.currency(currency, "--currency")
    order = EntryOrder.OLDEST_FIRST if oldest_first else EntryOrder.NEWEST_FIRST
    found: list[Entry] = []
    token = b""
    while len(found) < limit:
        page = await clients.wallet.entries_page(
            account_id,
            currency=currency,
            from_time=from_,
            to_time=to,
            order=order,
            page_size=min(limit - len(found), _PAGE_MAX),
            page_token=token,
        )
        found += page.entries
        token = page.next_page_token
        if not token:
            break
    scales = await clients.scales()
    title = f"account {account_id}: {len(found)} entries" + (" (there are more)" if token else "")
    session.answer(
        {"entries": found, "more": bool(token)}, lambda: entries_table(found, scales, title)
    )


def entries_table(found: list[Entry], scales: dict[str, int], title: str) -> Table:
    """Return a statement for people."""
    made = table("time", "type", "with account>", "amount>", "balance>", "currency", "reference>",
                 "record>", title=title)  # fmt: skip
    for each in found:
        scale = scales[each.currency]
        made.add_row(
            show_time(each.time_us), each.type.name, str(each.counterparty),
            show_amount(each.change_minor, scale), show_amount(each.balance_after_minor, scale),
            each.currency, str(each.reference), f"{each.record.log_id}/{each.record.sequence}",
        )  # fmt: skip
    return made
