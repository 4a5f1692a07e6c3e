"""A state in sorted lists, for tests and simulation; `state` says what a state is."""

from __future__ import annotations

from bisect import bisect_left, insort
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

from shard_node.books import (
    ACCOUNT_KEY,
    HOUR_US,
    PERIOD_KEY,
    Account,
    Period,
    period_start_us,
    read_account_row,
    read_balance_row,
    read_period_row,
    sums_after,
)
from shard_node.rows import keys_in_log, read_key_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shard_node.hours import HourEnd
    from shard_node.log import Log
    from shard_node.memory import Rows
    from shard_node.state import Change, Checkpoint, Row, StateReader


class MemoryState:
    """Read and written in one place."""

    def __init__(self) -> None:
        self._accounts: dict[bytes, bytes] = {}
        self._account_ids: list[int] = []
        self._balances: dict[bytes, bytes] = {}
        self._balance_keys: list[bytes] = []
        self._periods: dict[bytes, bytes] = {}
        self._period_keys: list[bytes] = []
        self._keys: dict[bytes, int] = {}
        self._transactions: dict[bytes, bytes] = {}
        self._clearing: dict[bytes, bytes] = {}
        self.checkpoint: Checkpoint | None = None

    def write_checkpoint(
        self,
        log: Log,
        rows: Rows,
        checkpoint: Checkpoint,
        transactions: Iterable[Change] = (),
        clearing: Iterable[Row] = (),
    ) -> None:
        """See `StateFile`."""
        for key, change in transactions:
            if change is None:
                self._transactions.pop(key, None)
            else:
                self._transactions[key] = change
        self._clearing.update(clearing)
        for key, value in rows.accounts:
            if key not in self._accounts:
                insort(self._account_ids, ACCOUNT_KEY.unpack(key)[0])
            self._accounts[key] = value
        for key, value in rows.balances:
            if key not in self._balances:
                insort(self._balance_keys, key)
            self._balances[key] = value
        for key, value in rows.periods:
            if key not in self._periods:
                insort(self._period_keys, key)
            self._periods[key] = value
        for of_block in keys_in_log(log, checkpoint.first_sequence, checkpoint.sequence):
            for key, value in of_block:
                self._keys[key] = read_key_row(value)
        self.checkpoint = checkpoint

    def refresh(self) -> None:
        """Nothing to do: reads see every checkpoint."""

    def load_account(self, account_id: int) -> Account | None:
        """See `StateReader`."""
        key = ACCOUNT_KEY.pack(account_id)
        if key not in self._accounts:
            return None
        account = read_account_row(key, self._accounts[key])
        start = bisect_left(self._balance_keys, key)
        stop = bisect_left(self._balance_keys, ACCOUNT_KEY.pack(account_id + 1))
        for row_key in self._balance_keys[start:stop]:
            currency, period = read_balance_row(row_key, self._balances[row_key])
            account.open_balance(currency, period.last_log).go_on_from(period)
        return account

    def find_keys(self, keys: list[bytes]) -> dict[bytes, int]:
        """See `StateReader`."""
        return {key: self._keys[key] for key in keys if key in self._keys}

    def period_before(
        self, account_id: int, currency: int, time_us: int, sequence: int
    ) -> Period | None:
        """See `StateReader`."""
        bound = PERIOD_KEY.pack(account_id, currency, time_us, sequence)
        at = bisect_left(self._period_keys, bound) - 1
        if at < 0 or PERIOD_KEY.unpack(self._period_keys[at])[:2] != (account_id, currency):
            return None
        key = self._period_keys[at]
        return read_period_row(key, self._periods[key])

    def periods(
        self, account_id: int, currency: int, time_us: int, sequence: int, count: int
    ) -> list[Period]:
        """See `StateReader`."""
        at = bisect_left(
            self._period_keys, PERIOD_KEY.pack(account_id, currency, time_us, sequence)
        )
        keys = self._period_keys[at : at + count]
        mine = [key for key in keys if PERIOD_KEY.unpack(key)[:2] == (account_id, currency)]
        return [read_period_row(key, self._periods[key]) for key in mine]

    def hour_ends(self, account_id: int, currency: int, from_us: int, to_us: int) -> list[HourEnd]:
        """See `StateReader`."""
        first, last = (
            bisect_left(self._period_keys, PERIOD_KEY.pack(account_id, currency, time_us, 0))
            for time_us in (from_us, to_us)
        )
        ends: dict[int, tuple[int, int]] = {}
        for key in self._period_keys[first:last]:
            start_us = period_start_us(key)
            ends[start_us - start_us % HOUR_US] = sums_after(self._periods[key])
        return list(ends.items())

    def transactions(self) -> list[Row]:
        """See `StateReader`."""
        return list(self._transactions.items())

    def clearing(self) -> list[Row]:
        """See `StateReader`."""
        return list(self._clearing.items())

    def account_ids(self, after: int, count: int) -> list[int]:
        """See `StateReader`."""
        start = bisect_left(self._account_ids, after + 1)
        return self._account_ids[start : start + count]

    @contextmanager
    def snapshot(self) -> Iterator[StateReader]:
        """See `StateReader`."""
        yield deepcopy(self)

    def used_bytes(self) -> int:
        """See `StateReader`."""
        tables = (self._accounts, self._balances, self._periods)
        return sum(len(key) + len(value) for table in tables for key, value in table.items())

    def close(self) -> None:
        """See `StateReader`."""
