"""Amounts and instants as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.units import parse_amount, parse_time_us, show_amount, show_time


@pytest.mark.parametrize(
    ("text", "scale", "amount_minor", "shown"),
    [
        ("12.50", 2, 1_250, "12.50"),
        ("12.5", 2, 1_250, "12.50"),
        ("12", 2, 1_200, "12.00"),
        ("0.05", 2, 5, "0.05"),
        ("-0.05", 2, -5, "-0.05"),
        ("1234567", 0, 1_234_567, "1,234,567"),
        ("-1234.5", 3, -1_234_500, "-1,234.500"),
        ("9.223372036854775807", 18, 2**63 - 1, "9.223372036854775807"),
    ],
)
def test_amounts(text: str, scale: int, amount_minor: int, shown: str) -> None:
    assert parse_amount(text, scale) == amount_minor
    assert show_amount(amount_minor, scale) == shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a decimal number"),
        ("twelve", "not a decimal number"),
        ("1,000", "not a decimal number"),
        ("1.", "not a decimal number"),
        ("1e3", "not a decimal number"),
        ("0.001", "has 3 decimals, the currency has 2"),
        ("92233720368547758.08", "does not fit 64 bits"),
    ],
)
def test_what_is_not_an_amount(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_amount(text, 2)


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(0, 18))
def test_what_is_shown_can_be_entered(amount_minor: int, scale: int) -> None:
    assert parse_amount(show_amount(amount_minor, scale).replace(",", ""), scale) == amount_minor


@pytest.mark.parametrize(
    ("text", "time_us", "shown"),
    [
        ("2026-03-01T12:00:00Z", 1_772_366_400_000_000, "2026-03-01 12:00:00Z"),
        ("2026-03-01 12:00", 1_772_366_400_000_000, "2026-03-01 12:00:00Z"),
        ("2026-03-01T12:00:00+02:00", 1_772_359_200_000_000, "2026-03-01 10:00:00Z"),
        ("2026-03-01T12:00:00.123456Z", 1_772_366_400_123_456, "2026-03-01 12:00:00.123Z"),
        ("2026-03-01", 1_772_323_200_000_000, "2026-03-01 00:00:00Z"),
    ],
)
def test_times(text: str, time_us: int, shown: str) -> None:
    assert parse_time_us(text) == time_us
    assert show_time(time_us) == shown


def test_no_time_is_a_dash() -> None:
    assert show_time(0) == "-"


@pytest.mark.parametrize(
    ("text", "said"), [("soon", "not a time such as"), ("1969-12-31", "not after 1970")]
)
def test_what_is_not_a_time(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_time_us(text)
