"""The scrub: log and state are read again while they are served, so that damage is met early.

An ordinary start reads neither old blocks nor the whole state. A scrub reads all of it in *passes*,
each in many short *steps*, every step against a `View` of its own: a read transaction held for a
whole pass would keep the state's old pages from being used again. What a step asks for is true of
every moment at which a view can be taken, whatever is appended, checkpointed or begun in between:

- *Every block* has its hash, its place and the one before it; at the log's end, as many blocks as
  the file counts, and all that the state covers.
- *What a covered block says is in the state*: each key points to its record, each account is as new
  as its last change, each entry lies in a period that has it, and whose sums, where the entry is
  its last, are the balance that the record gives. So a row that a lost write took away, or put back
  to an earlier one that was true once, is missed from the log's side.
- *Every row* has its checksum and the form of its table; one of keys points to a record of it.
- *Every key*, of blocks and of rows, is found again by a search from the tree's root, is above the
  one before it, and a table has as many as the file counts. Rows of all tables but `transactions`
  are never deleted, so a walk of several steps meets at least those that were there when it began
  and at most those that are there when it ends.

Not looked for: an earlier true row of `transactions` or of `clearing`; an audit shows the second.
Pure: `scrubber` does the reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from cluster.packed import BODY, KEY_BYTES
from shard_node.books import (
    ACCOUNT_KEY,
    BALANCE_KEY,
    PERIOD_KEY,
    PERIOD_OWNER_BYTES,
    read_account_row,
    read_balance_row,
    read_period_row,
)
from shard_node.clearing import read_clearing_row
from shard_node.damage import DamagedStateError
from shard_node.records import (
    ACCOUNT,
    EFFECTS,
    KEYED,
    LEG,
    DamagedLogError,
    RecordKind,
    check_follows,
    decode_block,
    key_rows,
    records_of,
)
from shard_node.rows import open_row, read_key_row
from shard_node.transactions import read_transaction_row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shard_node.books import Period
    from shard_node.records import Block, BlockDraft, LogIdentity

STEP_BYTES_MAX: Final = 256 * 1024
"""Read in one step, or one block: half a block at the least, so a view lives for milliseconds."""

STEP_ROWS_MAX: Final = 1_000
"""Rows in one step, each some 10 us: as for bytes, where rows are small."""

SHARE_MAX: Final = 0.1
"""The share of one core that a scrub takes: on a machine of two it is not to be felt. A transfer
takes some 50 us in all, so a pass checks 2,000 of them a second."""

LOG: Final = "log"
TABLES: Final = ("accounts", "balances", "periods", "keys", "transactions", "clearing")
PARTS: Final = (LOG, *TABLES)
"""What a pass reads, in this order."""

_SEQUENCE_BYTES: Final = 8
_SHRINKS: Final = "transactions"
_ENTRY: Final = EFFECTS.unpack_from
_LEGS: Final = (RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING)
_ACCOUNTS: Final = (RecordKind.ACCOUNT_OPENED, RecordKind.ACCOUNT_STATUS_CHANGED)


@dataclass(frozen=True, slots=True)
class Covered:
    """Up to where a view's state is true.

    Attributes:
        block, block_hash: the last block that it covers.
        sequence: that block's last record.
    """

    block: int
    block_hash: bytes
    sequence: int


class View(Protocol):
    """Log and state of one moment, or the log of a moment later. Parts are `PARTS`.

    Whatever cannot be read raises DamagedLogError or DamagedStateError.
    """

    def covered(self) -> Covered | None:
        """What the state says of itself; None = there was no checkpoint yet."""
        ...

    def after(self, part: str, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The keys and values above a key, in the order in which the file has them."""
        ...

    def find(self, part: str, key: bytes) -> bytes | None:
        """The value of a key, searched for from the tree's root."""
        ...

    def up_to(self, part: str, key: bytes) -> tuple[bytes, bytes] | None:
        """The last key that is not above this one, and its value."""
        ...

    def count(self, part: str) -> int:
        """How many keys the file says that it has."""
        ...

    def record(self, sequence: int) -> bytes:
        """The 128 bytes of a durable record."""
        ...


class Scrub:
    """Passes over one data folder, step by step.

    Attributes:
        passes: how many ended.
        part: what the next step reads.
        checked: blocks and rows read in the present pass.
        total: how many there were when it began; more may come while it goes on.
    """

    def __init__(self, identity: LogIdentity, rows_max: int = STEP_ROWS_MAX) -> None:
        self.passes = 0
        self.part = LOG
        self.checked = 0
        self.total = 0
        self._identity = identity
        self._rows_max = rows_max
        self._key = b""
        self._before: Block | None = None
        self._walked = 0
        self._least = 0

    def step(self, view: View) -> int:
        """Reads on for a bounded number of bytes, and checks what it reads; returns how many.

        Raises:
            DamagedLogError, DamagedStateError: the message names the block or the row.
        """
        part, covered = self.part, view.covered()
        begins = not self._key
        if begins:
            self._least = view.count(part)
            if part == LOG:
                self.checked, self.total = 0, sum(view.count(each) for each in PARTS)
        read_bytes = 0
        for rows, (key, value) in enumerate(view.after(part, self._key), 1):
            self._check_place(view, key, value)
            if part == LOG:
                self._check_block(view, covered, key, value)
            else:
                check_row(view, part, key, value)
            self._key = key
            self._walked += 1
            self.checked += 1
            read_bytes += len(key) + len(value)
            if read_bytes >= STEP_BYTES_MAX or rows >= self._rows_max:
                return read_bytes
        self._check_end(view, covered, in_one_step=begins)
        self._next_part()
        return read_bytes

    def _next_part(self) -> None:
        at = (PARTS.index(self.part) + 1) % len(PARTS)
        self.part, self._key, self._before, self._walked = PARTS[at], b"", None, 0
        if not at:
            self.passes += 1

    def _check_place(self, view: View, key: bytes, value: bytes) -> None:
        if key <= self._key:
            raise damaged(self.part, f"{name(self.part, key)} stands behind {self._key.hex()}")
        if view.find(self.part, key) != value:
            raise damaged(self.part, f"{name(self.part, key)} is not found by its key")

    def _check_block(self, view: View, covered: Covered | None, key: bytes, value: bytes) -> None:
        if len(key) != _SEQUENCE_BYTES:
            raise DamagedLogError(f"a block stands under the key {key.hex()}, which is none")
        block = decode_block(self._identity, int.from_bytes(key, "big"), value)
        check_follows(self._before, block)
        self._before = block
        if covered is None or block.number > covered.block:
            return
        if block.number == covered.block and block.hash != covered.block_hash:
            raise DamagedStateError(f"the state is true up to another block {block.number}")
        check_covered(view, block.draft)

    def _check_end(self, view: View, covered: Covered | None, *, in_one_step: bool) -> None:
        most = view.count(self.part)
        if self.part == LOG:
            number, last = (
                (self._before.number, self._before.draft.last_sequence) if self._before else (0, 0)
            )
            if number != most or last < (covered.sequence if covered else 0):
                raise DamagedLogError(f"the log breaks off behind block {number}")
            return
        counted = self.part != _SHRINKS or in_one_step
        if counted and not self._least <= self._walked <= most:
            raise DamagedStateError(
                f"the table {self.part} has {self._walked} rows where its tree counts {most}"
            )


def check_row(view: View, part: str, key: bytes, value: bytes) -> None:
    """Raises unless a row of the state is one that can have been written."""
    if part == "keys":
        sequence = read_key_row(value)
        try:
            record = view.record(sequence)
        except DamagedLogError as error:
            raise damaged(part, f"{name(part, key)} points to no record: {error}") from error
        if record[:KEY_BYTES] != key or record[BODY.size] not in KEYED:
            raise damaged(part, f"{name(part, key)} points elsewhere")
        return
    try:
        body = open_row(key, value)
        if part == "accounts":
            read_account_row(key, body)
        elif part == "balances":
            read_balance_row(key, body)
        elif part == "periods":
            read_period_row(key, body)
        elif part == "transactions":
            read_transaction_row(body)
        else:
            read_clearing_row(key, body)
    except DamagedStateError as error:
        raise damaged(part, f"{name(part, key)}: {error}") from error


def check_covered(view: View, draft: BlockDraft) -> None:
    """Raises unless the state has what a block that it covers says."""
    for key, value in key_rows(draft):
        if view.find("keys", key) != value:
            sequence = int.from_bytes(value, "little")
            raise damaged("keys", f"{name('keys', key)} does not point to record {sequence}")
    for sequence, record in enumerate(records_of(draft), draft.first_sequence):
        kind = record[BODY.size]
        if kind == RecordKind.TRANSFER:
            _, reason, _, *numbers = _ENTRY(record, BODY.size)
            if not reason:
                _, source, destination, _, _, _, currency, _, _ = BODY.unpack_from(record)
                _check_entry(view, source, currency, sequence, numbers[4], numbers[0])
                _check_entry(view, destination, currency, sequence, numbers[5], numbers[1])
        elif kind in _LEGS:
            _, source, destination, _, _, _, currency, _, _ = BODY.unpack_from(record)
            _, _, _, minor, _, time_us, _, _, _ = LEG.unpack_from(record, BODY.size)
            account_id = destination if kind == RecordKind.LEG_INCOMING else source
            _check_entry(view, account_id, currency, sequence, time_us, minor)
        elif kind in _ACCOUNTS:
            _check_account(view, ACCOUNT.unpack_from(record)[0], sequence)


def _check_account(view: View, account_id: int, sequence: int) -> None:
    key = ACCOUNT_KEY.pack(account_id)
    value = view.find("accounts", key)
    if value is None or read_account_row(key, open_row(key, value)).changed_sequence < sequence:
        raise damaged("accounts", f"{name('accounts', key)} is older than record {sequence}")


def _check_entry(
    view: View, account_id: int, currency: int, sequence: int, time_us: int, minor: int
) -> None:
    part, period = _period_of(view, account_id, currency, time_us, sequence)
    if period is not None:
        if sequence < period.last_sequence:
            return
        if sequence == period.last_sequence and minor == period.closing_minor:
            return
    bound = PERIOD_KEY.pack(account_id, currency, time_us, sequence)
    raise damaged(part, f"the row of {part} for {bound.hex()} is not what record {sequence} says")


def _period_of(
    view: View, account_id: int, currency: int, time_us: int, sequence: int
) -> tuple[str, Period | None]:
    """The period that an entry is in, and in which part that is: the current one, or a former."""
    owner = BALANCE_KEY.pack(account_id, currency)
    value = view.find("balances", owner)
    if value is None:
        return "balances", None
    current = read_balance_row(owner, open_row(owner, value))[1]
    if current[:2] <= (time_us, sequence):
        return "balances", current
    row = view.up_to("periods", PERIOD_KEY.pack(account_id, currency, time_us, sequence))
    if row is None or row[0][:PERIOD_OWNER_BYTES] != owner:
        return "periods", None
    return "periods", read_period_row(row[0], open_row(*row))


def damaged(part: str, message: str) -> DamagedLogError | DamagedStateError:
    """The error for damage of a part."""
    return DamagedLogError(message) if part == LOG else DamagedStateError(message)


def name(part: str, key: bytes) -> str:
    """What stands under a key, for people."""
    if part == LOG:
        return f"the block at sequence {int.from_bytes(key, 'big')}"
    return f"the row of {part} with key {key.hex()}"


def pause_s(read_bytes: int, took_s: float, bytes_per_s: int) -> float:
    """How long to rest after a step, so that neither the rate nor the share is passed."""
    return max(read_bytes / bytes_per_s - took_s, took_s / SHARE_MAX - took_s, 0.0)
