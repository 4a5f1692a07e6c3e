"""The state: what the ledger's memory is loaded from, true up to the block that it names.

Tables, each an index that could be rebuilt from the log alone (promise 7):

    accounts      account id                          → attributes, status     (`books`)
    balances      account, currency                   → its current period     (`books`)
    periods       account, currency, start, sequence  → of those that ended    (`books`)
    keys          transfer id, source account         → the record's sequence
    transactions  transaction id                      → prepared, or decided   (`transactions`)
    clearing      other shard, currency               → position               (`clearing`)
    meta          `checkpoint`                        → up to where it is true (`Checkpoint`)

Keys are ordered by `transfer_id` first, so that time-ordered ids append to the index. Balances lie
close together, whatever history they have, for a checkpoint rewrites those of all accounts that
were busy; a period is written once. Rows but those of keys end with a CRC-32 of key and value; a
row of keys needs none, since the record
that it points to repeats the key.

`StateReader` is what the node reads with; a reader sees one checkpoint until `refresh`.
`write_checkpoint` is the one way in: everything that changed since the checkpoint before, sorted,
in one transaction. It takes the keys straight from the log's durable blocks, so no checkpoint runs
ahead of the log.
"""

from __future__ import annotations

import struct
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeVar

import lmdb

from shard_node.books import (
    ACCOUNT_KEY,
    BALANCE_KEY,
    PERIOD_KEY,
    Account,
    Period,
    read_account_row,
    read_balance_row,
    read_period_row,
)
from shard_node.damage import DamagedStateError
from shard_node.hours import read_hour_ends
from shard_node.log import drop_from_page_cache, missing_bytes
from shard_node.putting import put_keys, put_sealed
from shard_node.records import HASH_BYTES
from shard_node.rows import keys_in_log, open_row, read_key_row, seal_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from shard_node.hours import HourEnd
    from shard_node.log import Log
    from shard_node.memory import Rows
    from shard_node.records import LogIdentity

P = ParamSpec("P")
R = TypeVar("R")

Row = tuple[bytes, bytes]

Change = tuple[bytes, bytes | None]
"""A row to be written, or (None) deleted."""

TABLES: Final = ("accounts", "balances", "periods", "keys", "transactions", "clearing")
"""The tables that are fold(log); `meta` also tells when checkpoints were taken."""

KEY_RANGE_FACTOR: Final = 4
"""A batch's keys are looked for by one scan from its lowest key to its highest, given up after so
many rows for each key; fresh time-ordered ids find an empty range at once."""

_CHECKPOINT: Final = struct.Struct(f"<2H16s3Qq{HASH_BYTES}s")
CHECKPOINT_KEY: Final = b"checkpoint"
_FORMAT: Final = 2


def _tells_damage(read: Callable[P, R]) -> Callable[P, R]:
    """A look at the state that tells of a damaged tree, or of a row of no form, as damage."""

    @wraps(read)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return read(*args, **kwargs)
        except (lmdb.Error, struct.error) as error:
            raise DamagedStateError(f"the state cannot be read: {error}") from error

    return told


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Up to where a state is true.

    Attributes:
        cluster_id, shard_id: whose state it is.
        block, block_hash: the last block that it covers.
        sequence: that block's last record.
        first_sequence: the first record that the checkpoint before did not cover.
        time_us: that block's stamp.
    """

    cluster_id: bytes
    shard_id: int
    block: int
    block_hash: bytes
    sequence: int
    first_sequence: int
    time_us: int

    @classmethod
    def of(cls, identity: LogIdentity, log: Log, first_sequence: int, sequence: int) -> Checkpoint:
        """The checkpoint at the end of the durable block whose last record is `sequence`."""
        block = log.locate(sequence)
        assert block.last_sequence == sequence, "a checkpoint stands between blocks"
        return cls(
            identity.cluster_id,
            identity.shard_id,
            block.number,
            block.hash,
            sequence,
            first_sequence,
            block.time_us,
        )

    def pack(self) -> bytes:
        """Its row."""
        body = _CHECKPOINT.pack(
            _FORMAT,
            self.shard_id,
            self.cluster_id,
            self.block,
            self.sequence,
            self.first_sequence,
            self.time_us,
            self.block_hash,
        )
        return seal_row(CHECKPOINT_KEY, body)

    @classmethod
    def unpack(cls, value: bytes) -> Checkpoint:
        """From its row."""
        body = open_row(CHECKPOINT_KEY, value)
        if len(body) != _CHECKPOINT.size:
            raise DamagedStateError(f"the row of the checkpoint has {len(body)} bytes")
        format_, shard_id, cluster_id, block, sequence, first, time_us, digest = _CHECKPOINT.unpack(
            body
        )
        if format_ != _FORMAT:
            raise DamagedStateError(
                f"the state is of format {format_}, not {_FORMAT}: where the folder `state` is"
                " missing, a start makes it anew from the log"
            )
        return cls(cluster_id, shard_id, block, digest, sequence, first, time_us)


class StateReader(Protocol):
    """The latest committed checkpoint, as of the latest `refresh`."""

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Up to where it is true; None = nothing was ever checkpointed."""
        ...

    def refresh(self) -> None:
        """Makes later reads see the latest committed checkpoint."""
        ...

    def load_account(self, account_id: int) -> Account | None:
        """An account with its balances; None = it has no row."""
        ...

    def find_keys(self, keys: list[bytes]) -> dict[bytes, int]:
        """Those of `keys` that have a row, with their sequences; others may be told as well."""
        ...

    def period_before(
        self, account_id: int, currency: int, time_us: int, sequence: int
    ) -> Period | None:
        """The last ended period whose (start, first sequence) is below (time, sequence), if any."""
        ...

    def periods(
        self, account_id: int, currency: int, time_us: int, sequence: int, count: int
    ) -> list[Period]:
        """The next ended periods from (start, first sequence) on, at most so many."""
        ...

    def hour_ends(self, account_id: int, currency: int, from_us: int, to_us: int) -> list[HourEnd]:
        """The ends of hours in which ended periods begin, of those with from ≤ start < to."""
        ...

    def account_ids(self, after: int, count: int) -> list[int]:
        """The next accounts above `after`, in order, at most so many."""
        ...

    def transactions(self) -> list[Row]:
        """The rows of all transactions prepared or decided; see `transactions`."""
        ...

    def clearing(self) -> list[Row]:
        """The rows of all clearing positions; see `clearing`."""
        ...

    def snapshot(self) -> AbstractContextManager[StateReader]:
        """Another reader, which stays at today's checkpoint. Keep it short: it holds file pages."""
        ...

    def used_bytes(self) -> int:
        """How many bytes of room it has used."""
        ...

    def close(self) -> None:
        """Gives back files and memory."""
        ...


class LmdbState:
    """A state in an LMDB environment, read; the same folder is written by `StateFile`."""

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._env = file.env
        self._txn: Any = None
        self._cursors: dict[str, Any] = {}

    @property
    @_tells_damage
    def checkpoint(self) -> Checkpoint | None:
        """See `StateReader`."""
        self._cursor("meta")
        value = self._txn.get(CHECKPOINT_KEY, db=self._file.meta)
        return None if value is None else Checkpoint.unpack(value)

    def refresh(self) -> None:
        """See `StateReader`."""
        if self._txn is not None:
            self._txn.abort()
            self._txn = None
            self._cursors = {}

    @_tells_damage
    def load_account(self, account_id: int) -> Account | None:
        """See `StateReader`. Two seeks."""
        key = ACCOUNT_KEY.pack(account_id)
        accounts = self._cursor("accounts")
        if not accounts.set_key(key):
            return None
        account = read_account_row(key, open_row(key, accounts.value()))
        balances = self._cursor("balances")
        more = balances.set_range(key)
        while more and (row := balances.item())[0].startswith(key):
            currency, period = read_balance_row(row[0], open_row(*row))
            account.open_balance(currency, period.last_log).go_on_from(period)
            more = balances.next()
        return account

    @_tells_damage
    def find_keys(self, keys: list[bytes]) -> dict[bytes, int]:
        """See `StateReader`. One seek when none of them is in the range of those that are there."""
        cursor = self._cursor("keys")
        lowest, highest = min(keys), max(keys)
        if not cursor.set_range(lowest):
            return {}
        found: dict[bytes, int] = {}
        for _ in range(KEY_RANGE_FACTOR * len(keys)):
            key = cursor.key()
            if key > highest:
                break
            found[key] = read_key_row(cursor.value())
            if not cursor.next():
                break
        else:
            return {key: read_key_row(cursor.value()) for key in keys if cursor.set_key(key)}
        return found

    @_tells_damage
    def period_before(
        self, account_id: int, currency: int, time_us: int, sequence: int
    ) -> Period | None:
        """See `StateReader`."""
        bound = PERIOD_KEY.pack(account_id, currency, time_us, sequence)
        row = _row_before(self._cursor("periods"), bound)
        if row is None or _period_of(row[0]) != (account_id, currency):
            return None
        return read_period_row(row[0], open_row(*row))

    @_tells_damage
    def periods(
        self, account_id: int, currency: int, time_us: int, sequence: int, count: int
    ) -> list[Period]:
        """See `StateReader`. One seek."""
        cursor = self._cursor("periods")
        found: list[Period] = []
        more = cursor.set_range(PERIOD_KEY.pack(account_id, currency, time_us, sequence))
        while more and len(found) < count:
            key, value = cursor.item()
            if _period_of(key) != (account_id, currency):
                break
            found.append(read_period_row(key, open_row(key, value)))
            more = cursor.next()
        return found

    @_tells_damage
    def hour_ends(self, account_id: int, currency: int, from_us: int, to_us: int) -> list[HourEnd]:
        """See `StateReader`. One seek for each hour, however busy it is; none for silent ones."""
        owner = BALANCE_KEY.pack(account_id, currency)
        return read_hour_ends(self._cursor("periods"), owner, from_us, to_us)

    @_tells_damage
    def account_ids(self, after: int, count: int) -> list[int]:
        """See `StateReader`."""
        cursor = self._cursor("accounts")
        ids: list[int] = []
        more = cursor.set_range(ACCOUNT_KEY.pack(after + 1))
        while more and len(ids) < count:
            ids.append(ACCOUNT_KEY.unpack(cursor.key())[0])
            more = cursor.next()
        return ids

    @_tells_damage
    def transactions(self) -> list[Row]:
        """See `StateReader`."""
        return [(key, open_row(key, value)) for key, value in self._cursor("transactions")]

    @_tells_damage
    def clearing(self) -> list[Row]:
        """See `StateReader`."""
        return [(key, open_row(key, value)) for key, value in self._cursor("clearing")]

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of one of `TABLES`, in order."""
        cursor = self._cursor(table)
        try:
            if cursor.first():
                yield from cursor
        except lmdb.Error as error:
            raise DamagedStateError(f"the table {table} cannot be read: {error}") from error

    @contextmanager
    def snapshot(self) -> Iterator[StateReader]:
        """See `StateReader`."""
        reader = LmdbState(self._file)
        try:
            yield reader
        finally:
            reader.refresh()

    def used_bytes(self) -> int:
        """See `StateReader`."""
        return self._file.used_bytes()

    def close(self) -> None:
        """See `StateReader`."""
        self.refresh()
        self._file.close()

    def _cursor(self, table: str) -> Any:
        if self._txn is None:
            self._txn = self._env.begin()
        cursor = self._cursors.get(table)
        if cursor is None:
            cursor = self._cursors[table] = self._txn.cursor(db=getattr(self._file, table))
        return cursor


class StateFile:
    """A state's LMDB environment and its tables.

    Args:
        path: the environment's folder, made when it does not exist.
        map_bytes: the most it may ever hold; address space only, the file grows as it is used.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        try:
            drop_from_page_cache(path / "data.mdb")
            self.env: Any = lmdb.open(
                str(path), map_size=map_bytes, max_dbs=len(TABLES) + 1, max_spare_txns=4
            )
            if missing := missing_bytes(self.env, path):
                self.env.close()
                raise DamagedStateError(f"the state's file is cut short by {missing} bytes")
            self.env.reader_check()
            self.accounts: Any = self.env.open_db(b"accounts")
            self.balances: Any = self.env.open_db(b"balances")
            self.periods: Any = self.env.open_db(b"periods")
            self.keys: Any = self.env.open_db(b"keys")
            self.transactions: Any = self.env.open_db(b"transactions")
            self.clearing: Any = self.env.open_db(b"clearing")
            self.meta: Any = self.env.open_db(b"meta")
        except (OSError, lmdb.Error) as error:
            raise DamagedStateError(f"the state cannot be opened: {error}") from error

    def write_checkpoint(
        self,
        log: Log,
        rows: Rows,
        checkpoint: Checkpoint,
        transactions: Iterable[Change] = (),
        clearing: Iterable[Row] = (),
    ) -> None:
        """Commits a checkpoint, durably. When it raises, the process must end (see `log`)."""
        self.env.reader_check()  # who died while it looked on would keep old pages for ever
        with self.env.begin(write=True) as txn:
            for key, value in transactions:
                if value is None:
                    txn.delete(key, db=self.transactions)
                else:
                    txn.put(key, seal_row(key, value), db=self.transactions)
            for table, some in (
                (self.accounts, rows.accounts),
                (self.balances, rows.balances),
                (self.periods, rows.periods),
                (self.clearing, clearing),
            ):
                put_sealed(txn.cursor(db=table), some)
            keys = keys_in_log(log, checkpoint.first_sequence, checkpoint.sequence)
            put_keys(txn.cursor(db=self.keys), keys)
            txn.put(CHECKPOINT_KEY, checkpoint.pack(), db=self.meta)

    def used_bytes(self) -> int:
        """Bytes of the file up to its highest page in use."""
        pages: int = self.env.info()["last_pgno"] + 1
        page_bytes: int = self.env.stat()["psize"]
        return pages * page_bytes

    def close(self) -> None:
        """Gives back files and memory."""
        self.env.close()


def _period_of(key: bytes) -> tuple[int, int]:
    """The account and currency of a period's key, which is read before its checksum is."""
    if len(key) != PERIOD_KEY.size:
        raise DamagedStateError(f"periods have a key of {len(key)} bytes: {key.hex()}")
    account_id, currency, _, _ = PERIOD_KEY.unpack(key)
    return account_id, currency


def _row_before(cursor: Any, bound: bytes) -> Row | None:
    """The last row with a key below `bound`."""
    more = cursor.prev() if cursor.set_range(bound) else cursor.last()
    return cursor.item() if more else None
