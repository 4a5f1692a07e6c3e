"""Slow, obvious answers to compare the cluster's with: folds over every transfer that completed.

Pure. Nothing here is clever on purpose: what it says is what the two queries and the balances mean.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from doubloon import Transfer

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


class Flows(NamedTuple):
    """What came in and went out: minor units and numbers of entries."""

    incoming_minor: int
    outgoing_minor: int
    incoming_count: int
    outgoing_count: int


class Books:
    """Balances by account and currency, with the one rule that no account goes below its floor.

    Args:
        floors_minor: account id → lowest balance, for those whose floor is not 0.
    """

    def __init__(self, floors_minor: Mapping[int, int]) -> None:
        self._floors_minor = floors_minor
        self._balances_minor: defaultdict[tuple[int, str], int] = defaultdict(int)

    def balance_minor(self, account_id: int, currency: str) -> int:
        """Return a balance; 0 for an account that never had the currency."""
        return self._balances_minor.get((account_id, currency), 0)

    def apply(self, *transfers: Transfer) -> bool:
        """Make all transfers, in order, and return True; else False, and nothing has changed.

        False means that the funds of one do not suffice when it is its turn.
        """
        before = {
            (account, transfer.currency): self.balance_minor(account, transfer.currency)
            for transfer in transfers
            for account in (transfer.source, transfer.destination)
        }
        for transfer in transfers:
            source = (transfer.source, transfer.currency)
            after_minor = self._balances_minor.get(source, 0) - transfer.amount_minor
            if after_minor < self._floors_minor.get(transfer.source, 0):
                self._balances_minor.update(before)
                return False
            self._balances_minor[source] = after_minor
            destination = (transfer.destination, transfer.currency)
            self._balances_minor[destination] += transfer.amount_minor
        return True


def flows(
    completed: Iterable[Transfer], account_id: int, currency: str, from_us: int, to_us: int
) -> Flows:
    """Return query 1's answer: the account's flows with `from_us` < import time <= `to_us`."""
    incoming_minor = outgoing_minor = incoming_count = outgoing_count = 0
    for transfer in completed:
        if transfer.currency != currency or not from_us < transfer.import_time_us <= to_us:
            continue
        if transfer.destination == account_id:
            incoming_minor += transfer.amount_minor
            incoming_count += 1
        elif transfer.source == account_id:
            outgoing_minor += transfer.amount_minor
            outgoing_count += 1
    return Flows(incoming_minor, outgoing_minor, incoming_count, outgoing_count)


def hourly_balances(
    completed: Iterable[Transfer], account_id: int, currency: str, from_us: int, to_us: int
) -> list[int]:
    """Return query 2's balances: one for each UTC hour from `from_us`'s up to `to_us`'s.

    Entries after `to_us` do not count.
    """
    first_hour, last_hour = from_us // HOUR_US, to_us // HOUR_US
    changes_minor = [0] * (last_hour - first_hour + 1)
    for transfer in completed:
        if transfer.currency != currency or transfer.import_time_us > to_us:
            continue
        hour = max(0, transfer.import_time_us // HOUR_US - first_hour)
        if transfer.destination == account_id:
            changes_minor[hour] += transfer.amount_minor
        elif transfer.source == account_id:
            changes_minor[hour] -= transfer.amount_minor
    balances_minor = []
    balance_minor = 0
    for change_minor in changes_minor:
        balance_minor += change_minor
        balances_minor.append(balance_minor)
    return balances_minor
