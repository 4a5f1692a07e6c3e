"""One rule for times.

Every field of a result or a `Transfer` that ends in `_us` is an int: microseconds since the Unix
epoch, UTC, 0 = absent. Every *argument* for an instant takes that int or an aware `datetime`, every
argument for a length of time takes an int of microseconds or a `timedelta`, and None means absent.
A result's `x_us` comes with a property `x`: the same as an aware `datetime` in UTC, None if absent.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from doubloon.faults import invalid_argument

Instant = int | datetime
"""Microseconds since the Unix epoch, UTC, or an aware datetime."""
Duration = int | timedelta
"""Microseconds, or a timedelta."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def instant_us(instant: Instant | None, field: str) -> int:
    """Return the instant in microseconds, 0 for None, exactly (no floating point).

    Raises:
        InvalidArgument: a naive datetime (it names no instant), or one not after the epoch (0 means
            absent on the wire).
    """
    if instant is None:
        return 0
    if not isinstance(instant, datetime):
        return instant
    if instant.utcoffset() is None:
        raise invalid_argument(field, "a datetime without a time zone names no instant")
    time_us = (instant - EPOCH) // _MICROSECOND
    if time_us <= 0:
        raise invalid_argument(field, "an instant must be later than 1970-01-01 UTC")
    return time_us


def duration_us(duration: Duration | None, field: str) -> int:
    """Return the length in microseconds, 0 for None.

    Raises:
        InvalidArgument: a timedelta that is not positive (0 means absent on the wire).
    """
    if duration is None:
        return 0
    if not isinstance(duration, timedelta):
        return duration
    length_us = duration // _MICROSECOND
    if length_us <= 0:
        raise invalid_argument(field, "a length of time must be positive")
    return length_us


def as_datetime(time_us: int) -> datetime | None:
    """Return an instant as an aware datetime in UTC; None for 0."""
    return EPOCH + timedelta(microseconds=time_us) if time_us else None
