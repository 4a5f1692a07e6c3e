"""Rows of the state as tests make them."""

from shard_node.books import Balance, Period


def balance_row(account_id: int, currency: int, period: Period) -> tuple[bytes, bytes]:
    """The row of a balance whose current period this is."""
    return Balance.from_period(currency, period).row(account_id)
