"""`doubloon replay`: a CSV of transfers, played in order, as often as it takes."""

import asyncio
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from scripts.commands.params import ACCOUNT_ID
from scripts.commands.session import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    Clients,
    Session,
    connected,
    table,
)
from scripts.playing import Tally, play
from scripts.progress import progress
from scripts.replay_file import ReplayFileError, count_transfers, read_transfers
from scripts.schedule import BATCH_TRANSFERS_MAX, batches, transfers_of


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--hub",
    "hubs",
    type=ACCOUNT_ID,
    multiple=True,
    help="An account whose own order does not matter, such as a treasury that can always pay; "
    "repeat for more. Without it every row that names such an account waits for the one before.",
)
@click.option(
    "--batch", "batch_max", type=click.IntRange(1, BATCH_TRANSFERS_MAX),
    default=BATCH_TRANSFERS_MAX, show_default=True, help="The most transfers in one call.",
)  # fmt: skip
@connected
async def replay(
    session: Session, clients: Clients, *, file: Path, hubs: tuple[int, ...], batch_max: int
) -> None:
    """Make the transfers of a CSV file, each account's in the file's order.

    Running it again is safe at any time, and goes on where an earlier run ended: a row's transfer
    id depends on its `id` column alone. The whole file is checked before the first transfer.

    Columns: id, source_account_id, destination_account_id, currency, amount_minor, and optionally
    type, reference, metadata, time (ISO 8601; makes the row an import, for which the router has to
    allow imports).
    """
    try:
        total = count_transfers(file)
    except ReplayFileError as error:
        raise click.BadParameter(str(error), param_hint="FILE") from error
    tally = Tally()
    # JSON has standard output for itself.
    where = Console(stderr=True, quiet=not Console(stderr=True).is_terminal) if session.json else (
        session.console
    )  # fmt: skip
    code = 0
    try:
        with progress(where, file.name, total) as advance:
            await play(
                clients.wallet.transfer_batch,
                batches(read_transfers(file), hubs, batch_max),
                tally,
                advance,
            )
    except asyncio.CancelledError:
        tally.stopped, code = "interrupted", EXIT_INTERRUPTED
    _report(session, tally, total)
    if code or tally.stopped or tally.faulted:
        raise click.exceptions.Exit(code or EXIT_FAILED)


def _report(session: Session, tally: Tally, total: int) -> None:
    value = {
        "rows": total,
        "completed": tally.completed,
        "repeats": tally.repeats,
        "refused": {reason.name: count for reason, count in tally.refused.items()},
        "faulted": {code.name: count for code, count in tally.faulted.items()},
        "unsent": total - tally.sent,
        "stopped": tally.stopped,
        "samples": [{"transfer": transfer, "why": why} for transfer, why in tally.samples],
    }
    session.answer(value, lambda: _shown(tally, total))


def _shown(tally: Tally, total: int) -> RenderableType:
    counts = table("rows", "count>")
    counts.add_row("completed now", f"{tally.completed:,}")
    counts.add_row("repeats of earlier runs", f"{tally.repeats:,}")
    for reason, count in tally.refused.most_common():
        counts.add_row(f"refused: {reason.name}", f"{count:,}")
    for code, count in tally.faulted.most_common():
        counts.add_row(f"faulted: {code.name}", f"{count:,}")
    counts.add_row("not answered", f"{total - tally.sent:,}")
    counts.add_row("all", f"{total:,}")
    parts: list[RenderableType] = [counts]
    if tally.samples:
        samples = table("source>", "destination>", "amount, minor>", "currency", "why",
                        title="the first of them")  # fmt: skip
        for item, why in tally.samples:
            (each,) = transfers_of(item)  # a file has no groups
            samples.add_row(
                str(each.source),
                str(each.destination),
                f"{each.amount_minor:,}",
                each.currency,
                why,
            )
        parts += [Text(""), samples]
    if tally.stopped:
        parts.append(Text(f"\nstopped: {tally.stopped}\nrun it again to go on from there"))
    return Group(*parts)
