"""The one rule for times, as a table."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

import doubloon
from doubloon.times import Duration, Instant, as_datetime, duration_us, instant_us

EAST = timezone(timedelta(hours=5, minutes=30))


@pytest.mark.parametrize(
    ("instant", "expected_us"),
    [
        (None, 0),
        (0, 0),
        (1_700_000_000_000_001, 1_700_000_000_000_001),
        (datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), 1),
        (datetime(2024, 2, 29, 12, 30, 15, 123_457, tzinfo=UTC), 1_709_209_815_123_457),
        (datetime(2024, 2, 29, 18, 0, 15, 123_457, tzinfo=EAST), 1_709_209_815_123_457),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), 253_402_300_799_999_999),
    ],
)
def test_an_instant_is_exact(instant: Instant | None, expected_us: int) -> None:
    assert instant_us(instant, "as_of_us") == expected_us


@pytest.mark.parametrize(
    "instant",
    [
        datetime(2024, 1, 1),  # noqa: DTZ001 - a naive one is what is tried
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, tzinfo=UTC),
    ],
)
def test_what_names_no_instant_names_the_field(instant: datetime) -> None:
    with pytest.raises(doubloon.InvalidArgument) as caught:
        instant_us(instant, "as_of_us")
    assert caught.value.fault.field == "as_of_us"


@pytest.mark.parametrize(
    ("duration", "expected_us"),
    [(None, 0), (5, 5), (timedelta(days=1, microseconds=1), 86_400_000_001)],
)
def test_a_length_is_exact(duration: Duration | None, expected_us: int) -> None:
    assert duration_us(duration, "window_us") == expected_us


@pytest.mark.parametrize("duration", [timedelta(0), timedelta(seconds=-1)])
def test_a_length_is_positive(duration: timedelta) -> None:
    with pytest.raises(doubloon.InvalidArgument, match="window_us"):
        duration_us(duration, "window_us")


def test_there_and_back() -> None:
    assert as_datetime(0) is None
    for time_us in (1, 1_709_209_815_123_457, 253_402_300_799_999_999):
        there = as_datetime(time_us)
        assert there is not None
        assert there.tzinfo is UTC
        assert instant_us(there, "time") == time_us
