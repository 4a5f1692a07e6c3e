"""Promise 1, conservation: adds up every balance of a checkpoint."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shard_node.clearing import read_clearing_row

if TYPE_CHECKING:
    from shard_node.state import StateReader

SLICE_ACCOUNTS: Final = 80
"""Accounts read in one turn of the event loop: 2 ms."""


@dataclass(slots=True)
class Books:
    """The sums of one currency on this shard, minor units.

    Attributes:
        accounts: how many hold or held it.
        positive_minor, negative_minor: the sums of balances above and below 0.
        clearing_minor: the sum of the positions with other shards.
    """

    accounts: int = 0
    positive_minor: int = 0
    negative_minor: int = 0
    clearing_minor: int = 0

    @property
    def balanced(self) -> bool:
        """Promise 1, conservation."""
        return self.positive_minor + self.negative_minor + self.clearing_minor == 0


async def add_up(state: StateReader) -> dict[int, Books]:
    """Adds up every balance by currency, in slices."""
    books: dict[int, Books] = {}
    account_id = 0
    while ids := state.account_ids(account_id, SLICE_ACCOUNTS):
        for account_id in ids:
            account = state.load_account(account_id)
            for currency, balance in account.balances.items() if account else ():
                each = books.setdefault(currency, Books())
                each.accounts += 1
                each.positive_minor += max(balance.minor, 0)
                each.negative_minor += min(balance.minor, 0)
        await asyncio.sleep(0)
    for key, value in state.clearing():
        (_, currency), position_minor = read_clearing_row(key, value)
        books.setdefault(currency, Books()).clearing_minor += position_minor
    return books
