"""The ledger: a pure, deterministic state machine that decides every transfer of a shard.

It imports no gRPC, LMDB, asyncio, clock or randomness. Time comes in as the open block's stamp;
what is not in memory comes in through `LedgerStore`, a port that answers at once and changes
nothing.

Theory of operation. A command is checked completely, in the order of precedence of its refusals;
after the line that says so it must succeed; then memory changes and one record that says what
happened joins the open block. Nothing awaits in between. Whoever drives the ledger seals the block,
makes it durable, and only then lets the answers go. `replay` applies records of durable blocks to
memory and never decides anything: memory = fold(log).

Memory holds what no committed checkpoint has yet, and a cache of what one has:

- `epoch` counts checkpoints begun. The first time that an account changes in an epoch it joins the
  epoch's *touched* accounts. `begin_checkpoint` ends the epoch: its touched accounts become the
  *draft*, whose rows are taken in slices while commands go on. A command that touches an account of
  the draft whose rows were not taken yet makes the draft take them first, so every row shows the
  account as it was when the draft was begun.
- An account may leave memory when a committed checkpoint has its last change (`committed_epoch`).
- Keys of the epochs not committed are in two dictionaries, the current and the draft's; older ones
  are in the state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Any, Final, Protocol

from cluster.packed import BODY, BODY_BYTES, KEY_BYTES, METADATA_BYTES_MAX, RESULT, DifferingField
from cluster.refusals import RefusalReason, is_recorded
from shard_node.books import (
    BALANCE_MAX_MINOR,
    HOUR_US,
    Account,
    Balance,
    account_row,
    period_row,
)
from shard_node.records import (
    ACCOUNT,
    BLOCK_BYTES_MAX,
    BLOCK_RECORDS_MAX,
    EFFECTS,
    EPOCH,
    HASH_BYTES,
    HEADER_BYTES,
    RECORD_BYTES,
    BlockDraft,
    RecordKind,
    pack_bare_effects,
    records_of,
)

IMPORT_SHIFT_MAX_US: Final = HOUR_US
"""How far an import may be moved forward to stand behind the account's latest entry."""

TURN_LOADS_MAX: Final = 192
"""Accounts loaded from the state in one call of `execute`: at 30 µs each (beside a busy process)
these are 6 ms of the event loop."""

COMPLETED: Final = 1
REFUSED: Final = 3
KIND_SYSTEM: Final = 2
STATUS_ACTIVE: Final = 1
STATUS_FROZEN: Final = 2
STATUS_CLOSED: Final = 3

# Where a body's fields stand in what `BODY` unpacks.
_SOURCE, _DESTINATION, _CURRENCY, _LENGTH = 1, 2, 6, 7

_RECORDED: Final = frozenset(reason for reason in RefusalReason if is_recorded(reason))
_HEAP_BYTES_MAX: Final = BLOCK_BYTES_MAX - HEADER_BYTES - HASH_BYTES


class LedgerStore(Protocol):
    """What the ledger asks for when memory does not have it.

    Answers come from committed state and from the log; asking changes nothing.
    """

    def load_account(self, account_id: int) -> Account | None:
        """The account as the latest committed checkpoint has it; None = it was never opened."""
        ...

    def find_keys(self, keys: list[bytes]) -> dict[bytes, int]:
        """Those of `keys` that the latest committed checkpoint knows, with their sequences."""
        ...

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """The 128 bytes and the metadata of a transfer's record in a sealed block."""
        ...


@dataclass(slots=True)
class Batch:
    """A packed batch on its way through the ledger.

    Attributes:
        bodies, metadata: as in `cluster.packed`.
        done: how many of its transfers are decided.
        metadata_at: where in `metadata` the next transfer's begins.
        results: one packed result for each decided transfer.
    """

    bodies: bytes
    metadata: bytes
    done: int = 0
    metadata_at: int = 0
    results: list[bytes] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many transfers it has."""
        return len(self.bodies) // BODY_BYTES


class OpenStatus(IntEnum):
    """How opening an account ended."""

    OPENED = 1
    REPEAT = 2
    DIFFERS = 3


class StatusChange(IntEnum):
    """How a change of status ended."""

    CHANGED = 1
    REPEAT = 2
    CLOSED_FOR_EVER = 3
    HOLDS_MONEY = 4


class Draft:
    """A checkpoint being taken: the rows of everything that changed up to `sequence`.

    Attributes:
        epoch: the epoch that it ends.
        first_sequence, sequence: the records since the checkpoint before it, up to its own last.
    """

    def __init__(
        self, epoch: int, first_sequence: int, sequence: int, waiting: dict[int, Account]
    ) -> None:
        self.epoch = epoch
        self.first_sequence = first_sequence
        self.sequence = sequence
        self._waiting = waiting
        self._account_rows: list[tuple[bytes, bytes]] = []
        self._period_rows: list[tuple[bytes, bytes]] = []
        self._closed: list[tuple[Balance, int]] = []

    def take(
        self, accounts_max: int
    ) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]]:
        """The next (account, period) rows, of about so many accounts; none = all are taken."""
        for account_id in list(islice(self._waiting, accounts_max)):
            self._take_account(self._waiting.pop(account_id))
        rows = self._account_rows, self._period_rows
        self._account_rows, self._period_rows = [], []
        return rows

    def about_to_change(self, account: Account) -> None:
        """Takes the account's rows now if that has not been done."""
        if self._waiting.pop(account.account_id, None) is not None:
            self._take_account(account)

    def forget_closed(self, balances_max: int) -> bool:
        """Drops closed periods that the committed checkpoint has; True when none is left."""
        for _ in range(min(balances_max, len(self._closed))):
            balance, count = self._closed.pop()
            del balance.closed[:count]
        return not self._closed

    def _take_account(self, account: Account) -> None:
        if account.changed_sequence >= self.first_sequence:
            self._account_rows.append(account_row(account))
        for currency, balance in account.balances.items():
            current = balance.current()
            if current is None or balance.last_sequence < self.first_sequence:
                continue
            rows = [*balance.closed, current]
            self._period_rows.extend(period_row(account.account_id, currency, row) for row in rows)
            if balance.closed:
                self._closed.append((balance, len(balance.closed)))


class Ledger:
    """The books of one shard. See the module's docstring.

    Args:
        log_id: names its records.
        store: answers for what memory does not have.
        sequence: of the latest record that the store's state is true up to.
        accounts_max: how many accounts to keep in memory besides those that changed since the
            latest committed checkpoint.
    """

    def __init__(self, log_id: int, store: LedgerStore, sequence: int, accounts_max: int) -> None:
        self.log_id = log_id
        self.sequence = sequence
        self.completed_count = self.refused_count = self.repeated_count = 0
        self._store = store
        self._accounts_max = accounts_max
        self._accounts: dict[int, Account] = {}
        self._keys: dict[bytes, int] = {}
        self._draft_keys: dict[bytes, int] = {}
        self._touched: dict[int, Account] = {}
        self._epoch = 1
        self._committed_epoch = 0
        self._draft: Draft | None = None
        self._draft_from = sequence + 1
        self._to_review = 0
        self._stamp_us = 0
        self._first_sequence = sequence + 1
        self._parts: list[bytes] = []
        self._heap: list[bytes] = []
        self._heap_bytes = 0

    # --- what the driver sees -------------------------------------------------------------------

    @property
    def stamp_us(self) -> int:
        """The open block's stamp; 0 = none is open."""
        return self._stamp_us

    @property
    def accounts_cached(self) -> int:
        """Accounts in memory."""
        return len(self._accounts)

    @property
    def rows_not_checkpointed(self) -> int:
        """What a driver bounds by beginning a checkpoint: accounts touched and keys recorded."""
        return len(self._touched) + len(self._keys)

    def begin_block(self, stamp_us: int) -> None:
        """Opens a block with the time of all its records; later than every block before."""
        assert not self._stamp_us, "the open block must be sealed first"
        self._stamp_us = stamp_us

    def room(self) -> int:
        """How many more commands fit the open block for certain, whatever metadata they carry."""
        by_count = BLOCK_RECORDS_MAX - (self.sequence + 1 - self._first_sequence)
        used = (self.sequence + 1 - self._first_sequence) * RECORD_BYTES + self._heap_bytes
        return min(by_count, (_HEAP_BYTES_MAX - used) // (RECORD_BYTES + METADATA_BYTES_MAX))

    def seal(self) -> BlockDraft | None:
        """Ends the open block and hands it over; None when nothing was recorded in it."""
        stamp_us, self._stamp_us = self._stamp_us, 0
        count = self.sequence + 1 - self._first_sequence
        if not count:
            return None
        draft = BlockDraft(
            self._first_sequence, count, stamp_us, b"".join(self._parts), b"".join(self._heap)
        )
        self._first_sequence = self.sequence + 1
        self._parts, self._heap, self._heap_bytes = [], [], 0
        return draft

    # --- commands -------------------------------------------------------------------------------

    def execute(self, batch: Batch, transfers_max: int) -> int:
        """Decides the batch's next transfers; answers in `batch.results`, records in the block.

        Stops after `transfers_max`, or when `TURN_LOADS_MAX` accounts had to be loaded.

        Returns:
            How many it decided, at least 1 of those left.
        """
        assert self._stamp_us, "a block must be open"
        start = batch.done * BODY_BYTES
        bodies = batch.bodies[start : start + transfers_max * BODY_BYTES]
        keys = [bodies[at : at + KEY_BYTES] for at in range(0, len(bodies), BODY_BYTES)]
        known = self._store.find_keys(keys)
        recent, draft_keys, accounts = self._keys, self._draft_keys, self._accounts
        answer, metadata_at = batch.results.append, batch.metadata_at
        loads, done = 0, 0
        for key, fields in zip(keys, BODY.iter_unpack(bodies), strict=True):
            if loads >= TURN_LOADS_MAX:
                break
            body = bodies[done * BODY_BYTES : done * BODY_BYTES + BODY_BYTES]
            done += 1
            metadata = b""
            if length := fields[_LENGTH]:
                metadata = batch.metadata[metadata_at : metadata_at + length]
                metadata_at += length
            earlier = recent.get(key) or draft_keys.get(key) or known.get(key)
            source, destination = accounts.get(fields[_SOURCE]), accounts.get(fields[_DESTINATION])
            if source is None:
                source, loads = self._load(fields[_SOURCE]), loads + 1
            if destination is None:
                destination, loads = self._load(fields[_DESTINATION]), loads + 1
            answer(self._decide(body, fields, metadata, earlier, source, destination))
        batch.done += done
        batch.metadata_at = metadata_at
        return done

    def _decide(
        self,
        body: bytes,
        fields: tuple[Any, ...],
        metadata: bytes,
        earlier: int | None,
        source: Account | None,
        destination: Account | None,
    ) -> bytes:
        """Decides one transfer. The checks stand in the order of precedence of their refusals."""
        _, source_id, destination_id, amount, _, import_us, currency, _, _ = fields
        source_us = destination_us = self._stamp_us
        if amount <= 0:
            return _refused(RefusalReason.BAD_AMOUNT)
        if source_id == destination_id:
            return _refused(RefusalReason.SAME_ACCOUNT)
        if not currency:
            return _refused(RefusalReason.UNKNOWN_CURRENCY)
        if earlier:
            return self._repeat(body, metadata, earlier)
        if source is None:
            return self._refuse(RefusalReason.SOURCE_UNKNOWN, body, metadata, source)
        if destination is None:
            return self._refuse(RefusalReason.DESTINATION_UNKNOWN, body, metadata, source)
        if source.status != STATUS_ACTIVE or destination.status != STATUS_ACTIVE:
            reason = _status_refusal(source.status, destination.status)
            return self._refuse(reason, body, metadata, source)
        if import_us:
            if import_us > self._stamp_us:
                return _refused(RefusalReason.IMPORT_IN_FUTURE)
            source_us = max(import_us, source.latest_time_us())
            destination_us = max(import_us, destination.latest_time_us())
            if max(source_us, destination_us) - import_us > IMPORT_SHIFT_MAX_US:
                return _refused(RefusalReason.IMPORT_TOO_OLD)
        paying, paid = source.balances.get(currency), destination.balances.get(currency)
        source_minor = (paying.minor if paying else 0) - amount
        if source_minor < source.floor_minor:
            return self._refuse(RefusalReason.INSUFFICIENT_FUNDS, body, metadata, source)
        destination_minor = (paid.minor if paid else 0) + amount
        if destination_minor > destination.cap_minor:
            return self._refuse(RefusalReason.BALANCE_CAP_EXCEEDED, body, metadata, source)

        # Point of no return: from here on the transfer must succeed.
        epoch = self._epoch
        if source.touched_epoch != epoch:
            self._touch(source)
        if destination.touched_epoch != epoch:
            self._touch(destination)
        paying = paying or self._new_balance(source, currency)
        paid = paid or self._new_balance(destination, currency)
        self._append(
            body,
            EFFECTS.pack(
                RecordKind.TRANSFER,
                0,
                self._add_to_heap(metadata) if metadata else 0,
                source_minor,
                destination_minor,
                paying.last_sequence,
                paid.last_sequence,
                source_us,
                destination_us,
                paying.last_log,
                paid.last_log,
            ),
        )
        sequence = self.sequence
        self._keys[body[:KEY_BYTES]] = sequence
        paying.post_outgoing(amount, source_minor, sequence, source_us)
        paid.post_incoming(amount, destination_minor, sequence, destination_us)
        self.completed_count += 1
        return RESULT.pack(COMPLETED, 0, 0, 0, source_us, source_minor)

    def open_account(
        self, account_id: int, kind: int, floor_minor: int, cap_minor: int
    ) -> tuple[OpenStatus, str]:
        """Opens an account.

        Args:
            account_id: 1 … 2^63 − 1.
            kind: the contract's AccountKind.
            floor_minor: ≤ 0, and 0 for a PLAYER (promise 1 rests on it).
            cap_minor: ≥ 0; 0 = 2^63 − 1.

        Returns:
            How it ended and, when it differs from the account that is open, the first such field.
        """
        assert floor_minor == 0 or (floor_minor < 0 and kind == KIND_SYSTEM), (
            "checked by the caller"
        )
        cap_minor = cap_minor or BALANCE_MAX_MINOR
        account = self.account(account_id)
        if account is not None:
            if account.kind != kind:
                return OpenStatus.DIFFERS, "kind"
            if account.floor_minor != floor_minor:
                return OpenStatus.DIFFERS, "floor_minor"
            if account.cap_minor != cap_minor:
                return OpenStatus.DIFFERS, "cap_minor"
            return OpenStatus.REPEAT, ""

        # Point of no return.
        time_us = self._stamp_us
        body = ACCOUNT.pack(account_id, floor_minor, cap_minor, time_us, 0, kind, STATUS_ACTIVE)
        self._append(body, pack_bare_effects(RecordKind.ACCOUNT_OPENED))
        self._apply_opened(self.sequence, body)
        return OpenStatus.OPENED, ""

    def change_status(self, account: Account, status: int, reason: str) -> StatusChange:
        """Freezes, unfreezes or closes an account, for a recorded reason of at most 256 bytes."""
        if account.status == status:
            return StatusChange.REPEAT
        if account.status == STATUS_CLOSED:
            return StatusChange.CLOSED_FOR_EVER
        if status == STATUS_CLOSED and any(each.minor for each in account.balances.values()):
            return StatusChange.HOLDS_MONEY

        # Point of no return.
        text = reason.encode()
        body = ACCOUNT.pack(
            account.account_id, 0, 0, self._stamp_us, len(text), account.kind, status
        )
        offset = self._add_to_heap(text)
        self._append(body, pack_bare_effects(RecordKind.ACCOUNT_STATUS_CHANGED, offset))
        self._apply_status(self.sequence, body, text)
        return StatusChange.CHANGED

    def begin_epoch(self, epoch: int) -> None:
        """Records that the driver took over the log under this epoch."""
        body = EPOCH.pack(epoch, self._stamp_us)
        self._append(body, pack_bare_effects(RecordKind.EPOCH_BEGAN))

    # --- reading --------------------------------------------------------------------------------

    def account(self, account_id: int) -> Account | None:
        """The account as of every record so far, durable or not; None = not open."""
        return self._accounts.get(account_id) or self._load(account_id)

    def find_key(self, key: bytes) -> int | None:
        """The sequence of the record under a transfer's key; None = none so far."""
        recent = self._keys.get(key) or self._draft_keys.get(key)
        return recent or self._store.find_keys([key]).get(key)

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """A transfer's record and metadata, from the open block or from the store."""
        if sequence < self._first_sequence:
            return self._store.read_transfer(sequence)
        at = 2 * (sequence - self._first_sequence)
        body, effects = self._parts[at : at + 2]
        length = BODY.unpack(body)[_LENGTH]
        offset = EFFECTS.unpack(effects)[2]
        return body + effects, b"".join(self._heap)[offset : offset + length]

    # --- replay ---------------------------------------------------------------------------------

    def replay(self, block: BlockDraft) -> None:
        """Applies the records of a durable block that follows `sequence`. Decides nothing."""
        assert block.first_sequence == self.sequence + 1, "blocks are replayed in order"
        for record in records_of(block):
            self.sequence += 1
            body, kind = record[:BODY_BYTES], record[BODY_BYTES]
            if kind == RecordKind.TRANSFER:
                self._apply_transfer(body, EFFECTS.unpack_from(record, BODY_BYTES))
            elif kind == RecordKind.ACCOUNT_OPENED:
                self._apply_opened(self.sequence, body)
            elif kind == RecordKind.ACCOUNT_STATUS_CHANGED:
                offset = EFFECTS.unpack_from(record, BODY_BYTES)[2]
                text = block.heap[offset : offset + ACCOUNT.unpack(body)[4]]
                self._apply_status(self.sequence, body, text)
            else:
                assert kind == RecordKind.EPOCH_BEGAN, f"record {self.sequence} is of kind {kind}"
        self._first_sequence = self.sequence + 1

    def _apply_transfer(self, body: bytes, effects: tuple[Any, ...]) -> None:
        self._keys[body[:KEY_BYTES]] = self.sequence
        _, reason, _, source_minor, destination_minor, _, _, source_us, destination_us, _, _ = (
            effects
        )
        if reason:
            return
        _, source_id, destination_id, amount, _, _, currency, _, _ = BODY.unpack(body)
        source, destination = self.account(source_id), self.account(destination_id)
        assert source, f"record {self.sequence} pays from account {source_id}, which is not open"
        assert destination, (
            f"record {self.sequence} pays account {destination_id}, which is not open"
        )
        paying = self._balance_to_change(source, currency)
        paid = self._balance_to_change(destination, currency)
        assert paying.minor - amount == source_minor, f"record {self.sequence}: source's balance"
        assert paid.minor + amount == destination_minor, f"record {self.sequence}: destination's"
        paying.post_outgoing(amount, source_minor, self.sequence, source_us)
        paid.post_incoming(amount, destination_minor, self.sequence, destination_us)

    def _apply_opened(self, sequence: int, body: bytes) -> None:
        account_id, floor_minor, cap_minor, time_us, _, kind, status = ACCOUNT.unpack(body)
        account = Account(account_id, kind, status, floor_minor, cap_minor, time_us)
        account.changed_sequence = sequence
        self._accounts[account_id] = account
        self._touch(account)

    def _apply_status(self, sequence: int, body: bytes, reason: bytes) -> None:
        account_id, _, _, time_us, _, _, status = ACCOUNT.unpack(body)
        account = self.account(account_id)
        assert account, f"record {sequence} changes account {account_id}, which is not open"
        self._touch(account)
        account.status, account.status_time_us = status, time_us
        account.status_reason, account.changed_sequence = reason.decode(), sequence

    # --- checkpoints ----------------------------------------------------------------------------

    def begin_checkpoint(self) -> Draft:
        """Ends the epoch, between blocks: the draft covers every record so far."""
        assert self._draft is None, "one checkpoint at a time"
        assert self._first_sequence == self.sequence + 1, "a checkpoint stands between blocks"
        self._draft = Draft(self._epoch, self._draft_from, self.sequence, self._touched)
        self._draft_from = self.sequence + 1
        self._draft_keys, self._keys = self._keys, {}
        self._touched = {}
        self._epoch += 1
        return self._draft

    def end_checkpoint(self) -> None:
        """The draft is committed: what it holds may leave memory (see `release`)."""
        assert self._draft is not None, "no checkpoint was begun"
        self._committed_epoch = self._draft.epoch
        self._to_review = len(self._accounts)

    def release(self, items_max: int) -> bool:
        """Lets go of some of what the committed draft holds; True when nothing is left of it.

        In slices, because dropping a million keys at once would stall the event loop.
        """
        draft = self._draft
        if draft is None:
            return True
        assert draft.epoch <= self._committed_epoch, "the checkpoint must be committed first"
        keys = self._draft_keys
        for _ in range(min(items_max, len(keys))):
            keys.popitem()
        reviewed = min(items_max, self._to_review)
        self._to_review -= reviewed
        self._make_room(reviewed)
        if keys or self._to_review or not draft.forget_closed(items_max):
            return False
        self._draft = None
        return True

    # --- small parts ----------------------------------------------------------------------------

    def _append(self, body: bytes, effects: bytes) -> None:
        self.sequence += 1
        self._parts.append(body)
        self._parts.append(effects)

    def _add_to_heap(self, data: bytes) -> int:
        offset = self._heap_bytes
        self._heap.append(data)
        self._heap_bytes += len(data)
        return offset

    def _refuse(
        self, reason: RefusalReason, body: bytes, metadata: bytes, source: Account | None
    ) -> bytes:
        """Records a refusal under the transfer's key, so that every retry hears it again."""
        assert reason in _RECORDED, "what depends on the request alone leaves no record"
        currency = BODY.unpack(body)[_CURRENCY]
        paying = source.balances.get(currency) if source else None
        minor, stamp_us = paying.minor if paying else 0, self._stamp_us
        offset = self._add_to_heap(metadata) if metadata else 0
        effects = (RecordKind.TRANSFER, reason, offset, minor, 0, 0, 0, stamp_us, stamp_us, 0, 0)
        self._append(body, EFFECTS.pack(*effects))
        self._keys[body[:KEY_BYTES]] = self.sequence
        self.refused_count += 1
        return RESULT.pack(REFUSED, reason, 0, 0, stamp_us, minor)

    def _repeat(self, body: bytes, metadata: bytes, earlier: int) -> bytes:
        """Promise 3: the recorded outcome for the same body, a refusal for another."""
        record, recorded_metadata = self.read_transfer(earlier)
        if record[:BODY_BYTES] != body or recorded_metadata != metadata:
            differing = first_difference(record[:BODY_BYTES], recorded_metadata, body, metadata)
            return _refused(RefusalReason.KEY_REUSED, differing)
        effects = EFFECTS.unpack_from(record, BODY_BYTES)
        reason, source_minor, source_us = effects[1], effects[3], effects[7]
        self.repeated_count += 1
        status = REFUSED if reason else COMPLETED
        return RESULT.pack(status, reason, 0, 1, source_us, source_minor)

    def _touch(self, account: Account) -> None:
        """Must be called before an account changes: see the module's docstring."""
        if account.touched_epoch == self._epoch:
            return
        if self._draft is not None:
            self._draft.about_to_change(account)
        account.touched_epoch = self._epoch
        self._touched[account.account_id] = account
        # Loading the other account of the same transfer may just have pushed this one out.
        self._accounts[account.account_id] = account

    def _balance_to_change(self, account: Account, currency: int) -> Balance:
        self._touch(account)
        return account.balances.get(currency) or self._new_balance(account, currency)

    def _new_balance(self, account: Account, currency: int) -> Balance:
        balance = account.balances[currency] = Balance(currency, self.log_id)
        return balance

    def _load(self, account_id: int) -> Account | None:
        account = self._store.load_account(account_id)
        if account is not None:
            self._make_room(2)  # more than one comes in, so the cache shrinks after a burst
            self._accounts[account_id] = account
        return account

    def _make_room(self, accounts_max: int) -> None:
        """Reviews so many accounts, oldest first, while there are too many in memory.

        Those that a committed checkpoint has leave; the others go to the back of the queue.
        """
        accounts = self._accounts
        excess = len(accounts) + 1 - self._accounts_max
        for account_id in list(islice(accounts, max(0, min(accounts_max, excess)))):
            account = accounts.pop(account_id)
            if account.touched_epoch > self._committed_epoch:
                accounts[account_id] = account


def first_difference(
    recorded: bytes, recorded_metadata: bytes, body: bytes, metadata: bytes
) -> DifferingField:
    """The first field, in the order of `DifferingField`, in which two bodies of one key differ."""
    _, _, destination, amount, reference, import_us, currency, _, kind = BODY.unpack(body)
    old = BODY.unpack(recorded)
    pairs = (
        (DifferingField.DESTINATION_ACCOUNT_ID, old[2], destination),
        (DifferingField.CURRENCY, old[6], currency),
        (DifferingField.AMOUNT_MINOR, old[3], amount),
        (DifferingField.TYPE, old[8], kind),
        (DifferingField.REFERENCE, old[4], reference),
        (DifferingField.METADATA, recorded_metadata, metadata),
        (DifferingField.IMPORT_TIME_US, old[5], import_us),
    )
    return next((name for name, was, now in pairs if was != now), DifferingField.NONE)


def _refused(reason: RefusalReason, differing: DifferingField = DifferingField.NONE) -> bytes:
    """The answer for a refusal that leaves no record."""
    return RESULT.pack(REFUSED, reason, differing, 0, 0, 0)


def _status_refusal(source: int, destination: int) -> RefusalReason:
    if source == STATUS_CLOSED:
        return RefusalReason.SOURCE_CLOSED
    if destination == STATUS_CLOSED:
        return RefusalReason.DESTINATION_CLOSED
    return (
        RefusalReason.SOURCE_FROZEN if source == STATUS_FROZEN else RefusalReason.DESTINATION_FROZEN
    )
