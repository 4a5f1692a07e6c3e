"""Kinds of parameters that several subcommands take."""

import click

from scripts.units import parse_time_us

ACCOUNT_ID_MAX = 2**63 - 1
ACCOUNT_ID = click.IntRange(1, ACCOUNT_ID_MAX)


def instant(text: str) -> int:
    """Read an option's ISO 8601 instant, as microseconds; click adds the option's name."""
    try:
        return parse_time_us(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
