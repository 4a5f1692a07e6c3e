"""Rows of the state as tests make them."""

from shard_node.books import Balance, Period


def balance_row(account_id: int, currency: int, period: Period) -> tuple[bytes, bytes]:
    """The row of a balance whose current period this is."""
    balance = Balance(currency, period.last_log)
    balance.go_on_from(period)
    return balance.row(account_id)
