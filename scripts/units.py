"""Amounts and instants as people write them, to and from what the wire carries.

Pure. People write `12.50` and `2026-03-01T12:00:00Z`; the wire carries minor units and microseconds
since the Unix epoch. Every error says what is wrong with the text; the caller names the field.
"""

import re
from datetime import UTC, datetime, timedelta

_AMOUNT = re.compile(r"(-?)(\d+)(?:\.(\d+))?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AMOUNT_MAX_MINOR = 2**63 - 1


def parse_amount(text: str, scale: int) -> int:
    """Return minor units for a decimal number such as `12.50`; `scale` decimals make a major unit.

    Raises:
        ValueError: not a number, more decimals than the currency has, or beyond 64 bits.
    """
    match = _AMOUNT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a decimal number such as 12.50")
    sign, major, decimals = match[1], match[2], match[3] or ""
    if len(decimals) > scale:
        raise ValueError(f"{text!r} has {len(decimals)} decimals, the currency has {scale}")
    amount_minor = int(major + decimals.ljust(scale, "0"))
    if amount_minor > AMOUNT_MAX_MINOR:
        raise ValueError(f"{text!r} does not fit 64 bits of minor units")
    return -amount_minor if sign else amount_minor


def show_amount(amount_minor: int, scale: int) -> str:
    """Return a decimal number with `scale` decimals and thousands set apart: `1,234.50`."""
    sign, digits = ("-" if amount_minor < 0 else ""), str(abs(amount_minor)).rjust(scale + 1, "0")
    major, decimals = (digits[:-scale], f".{digits[-scale:]}") if scale else (digits, "")
    return f"{sign}{int(major):,}{decimals}"


def parse_time_us(text: str) -> int:
    """Return microseconds since the Unix epoch for ISO 8601; without an offset it is UTC.

    Raises:
        ValueError: not ISO 8601, or before 1970.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not a time such as 2026-03-01T12:00:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    time_us = (moment - _EPOCH) // timedelta(microseconds=1)
    if time_us <= 0:
        raise ValueError(f"{text!r} is not after 1970-01-01")
    return time_us


def show_time(time_us: int) -> str:
    """Return UTC as ISO 8601, with milliseconds when there are any; `-` for 0, which means none."""
    if time_us == 0:
        return "-"
    moment = _EPOCH + timedelta(microseconds=time_us)
    precision = "milliseconds" if moment.microsecond >= 1_000 else "seconds"
    return moment.replace(tzinfo=None).isoformat(sep=" ", timespec=precision) + "Z"
