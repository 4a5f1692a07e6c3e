"""The ledger: a pure, deterministic state machine that decides every transfer of a shard.

It imports no gRPC, LMDB, asyncio, clock or randomness. Time comes in as the open block's stamp;
what is not in memory comes in through `memory.LedgerStore`, a port that answers at once and changes
nothing.

Theory of operation. A command is checked completely, in the order of precedence of its refusals;
after the line that says so it must succeed; then memory changes and one record that says what
happened joins the open block. Nothing awaits in between. Whoever drives the ledger seals the block,
makes it durable, and only then lets the answers go. `replay` applies records of durable blocks to
memory and never decides anything: memory = fold(log).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final, Protocol

from librt.strings import BytesWriter, read_i64_le

from cluster.packed import (
    AMOUNT_AT,
    BODY,
    BODY_BYTES,
    CURRENCY_AT,
    DESTINATION_AT,
    IMPORT_AT,
    KEY_BYTES,
    METADATA_LENGTH_AT,
    RESULT,
    SOURCE_AT,
    DifferingField,
    write_completed_result,
)
from cluster.refusals import RefusalReason, is_recorded
from shard_node.books import BALANCE_MAX_MINOR, Account
from shard_node.clearing import Clearing, clearing_row, read_clearing_row
from shard_node.damage import DamagedStateError
from shard_node.groups import BUSY_RESULT, Counts, Groups
from shard_node.legs import (
    EMPTY,
    IMPORT_SHIFT_MAX_US,
    STATUS_ACTIVE,
    STATUS_CLOSED,
    Member,
    posting_time_us,
    status_refusal,
)
from shard_node.memory import Memory
from shard_node.open_block import OpenBlock
from shard_node.participant import Participant
from shard_node.posting import Poster
from shard_node.recorded import first_difference, read_recorded
from shard_node.records import (
    ACCOUNT,
    EPOCH,
    BlockDraft,
    RecordKind,
    pack_bare_effects,
    records_of,
    write_transfer,
)
from shard_node.replaying import (
    apply_transfer,
    check_group,
    check_opened,
    damaged,
    promise_of,
    status_reason,
)
from shard_node.transactions import Decided, Transactions, read_transaction_row

if TYPE_CHECKING:
    from mypy_extensions import i64

    from shard_node.batch import Batch
    from shard_node.memory import Draft, LedgerStore

TURN_LOADS_MAX: Final = 48
"""Accounts loaded from the state in one call of `execute`: at 30 µs each (beside a busy process)
these are 1.5 ms of the event loop, and 5 on a machine that is three times as slow."""

COMPLETED: Final = 1
REFUSED: Final = 3
KIND_SYSTEM: Final = 2

_RECORDED: Final = frozenset(reason for reason in RefusalReason if is_recorded(reason))


class CrossingRows(Protocol):
    """The rows of a checkpoint that concern transactions."""

    def transactions(self) -> list[tuple[bytes, bytes]]:
        """All transactions prepared or decided."""
        ...

    def clearing(self) -> list[tuple[bytes, bytes]]:
        """All clearing positions."""
        ...


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
    IN_DOUBT = 5
    """A transaction is prepared that will post to it."""


class Ledger:
    """The books of one shard. See the module's docstring.

    Args:
        log_id: names its records.
        store: answers for what memory does not have.
        sequence: of the latest record that the store's state is true up to.
        accounts_max: see `Memory`.

    Attributes:
        memory: accounts, keys, checkpoints.
        block: what was recorded and not sealed yet.
        transactions, clearing: what is between this shard and others.
        promised_us: of all that was replayed, the latest promise: stamps must be later.
        groups: decides groups.
        participant: two-phase commit.
        counts: transfers answered.
    """

    def __init__(self, log_id: int, store: LedgerStore, sequence: int, accounts_max: int) -> None:
        self.log_id = log_id
        self.memory = Memory(store, sequence, accounts_max)
        self.block = OpenBlock(sequence)
        self.transactions = Transactions()
        self.clearing = Clearing()
        self.promised_us = 0
        poster = Poster(log_id, self.memory, self.block, self.clearing)
        self.counts = Counts()
        self.groups = Groups(log_id, self.memory, self.block, poster, self, self.counts)
        self.participant = Participant(
            log_id, self.memory, self.block, self.transactions, poster, self.groups, self
        )
        self._store = store
        self._epoch = 0

    @property
    def sequence(self) -> int:
        """Of the latest record, durable or not."""
        return self.block.sequence

    # --- commands -------------------------------------------------------------------------------

    def execute(self, batch: Batch, transfers_max: int) -> int:
        """Decides the batch's next transfers; answers in `batch.results`, records in the block.

        Stops after `transfers_max`, or when `TURN_LOADS_MAX` accounts had to be loaded.

        Returns:
            How many it decided, at least 1 of those left.
        """
        bodies, start = batch.bodies, batch.done * BODY_BYTES
        end = min(len(bodies), start + transfers_max * BODY_BYTES)
        keys = [bodies[at : at + KEY_BYTES] for at in range(start, end, BODY_BYTES)]
        known = self._store.find_keys(keys)
        memory, results = self.memory, batch.results
        accounts = memory.accounts
        loads, at = 0, start
        for key in keys:
            if loads >= TURN_LOADS_MAX:
                break
            body, metadata = bodies[at : at + BODY_BYTES], b""
            at += BODY_BYTES
            if length := body[METADATA_LENGTH_AT] | body[METADATA_LENGTH_AT + 1] << 8:
                metadata = batch.next_metadata(length)
            if earlier := memory.find_recent(key) or known.get(key):
                results.write(self._answer_known(body, metadata, earlier))
                continue
            source_id, destination_id = (
                read_i64_le(body, SOURCE_AT),
                read_i64_le(body, DESTINATION_AT),
            )
            source, destination = accounts.get(source_id), accounts.get(destination_id)
            if source is None:
                source, loads = memory.load(source_id), loads + 1
            if destination is None:
                destination, loads = memory.load(destination_id), loads + 1
            self._decide(key, body, metadata, source, destination, results)
        done = (at - start) // BODY_BYTES
        batch.done += done
        return done

    def _decide(
        self,
        key: bytes,
        body: bytes,
        metadata: bytes,
        source: Account | None,
        destination: Account | None,
        results: BytesWriter,
    ) -> None:
        """Decides one new transfer: its checks, in the order of precedence of their refusals."""
        amount: int = read_i64_le(body, AMOUNT_AT)
        import_us: int = read_i64_le(body, IMPORT_AT)
        currency = body[CURRENCY_AT] | body[CURRENCY_AT + 1] << 8
        same = read_i64_le(body, SOURCE_AT) == read_i64_le(body, DESTINATION_AT)
        if (amount <= 0 or same or not currency) and (reason := _request_refusal(body)):
            return results.write(_refused(reason))
        if source is None:
            return results.write(self._refuse(RefusalReason.SOURCE_UNKNOWN, body, metadata))
        if destination is None:
            return results.write(self._refuse(RefusalReason.DESTINATION_UNKNOWN, body, metadata))
        if source.status != STATUS_ACTIVE or destination.status != STATUS_ACTIVE:
            return results.write(self._refuse(_status_refusal(source, destination), body, metadata))
        block = self.block
        source_us = destination_us = block.stamp_us
        if import_us:
            if import_us > source_us:
                return results.write(_refused(RefusalReason.IMPORT_IN_FUTURE))
            source_us = posting_time_us(source, import_us, source_us)
            destination_us = posting_time_us(destination, import_us, destination_us)
            if max(source_us, destination_us) - import_us > IMPORT_SHIFT_MAX_US:
                return results.write(_refused(RefusalReason.IMPORT_TOO_OLD))
        paying = source.balance(currency) or EMPTY
        paid = destination.balance(currency) or EMPTY
        source_minor, destination_minor = paying.minor - amount, paid.minor + amount
        if source_minor < source.floor_minor:
            return results.write(self._refuse(RefusalReason.INSUFFICIENT_FUNDS, body, metadata))
        most_before: i64 = destination.cap_minor - read_i64_le(body, AMOUNT_AT)
        if paid.minor > most_before:
            return results.write(self._refuse(RefusalReason.BALANCE_CAP_EXCEEDED, body, metadata))
        if (
            source_minor - paying.reserved_outgoing < source.floor_minor
            or paid.minor + paid.reserved_incoming > most_before
        ):
            return results.write(BUSY_RESULT)

        # Point of no return: from here on the transfer must succeed.
        self.memory.touch(source)
        self.memory.touch(destination)
        paying = paying if paying is not EMPTY else source.open_balance(currency, self.log_id)
        paid = paid if paid is not EMPTY else destination.open_balance(currency, self.log_id)
        write_transfer(
            block.records,
            body,
            block.add_to_heap(metadata) if metadata else 0,
            source_minor,
            destination_minor,
            paying.last_sequence,
            paid.last_sequence,
            source_us,
            destination_us,
            paying.last_log,
            paid.last_log,
        )
        sequence = block.next_sequence()
        self.memory.add_key(key, sequence)
        paying.post_outgoing(amount, source_minor, sequence, source_us)
        paid.post_incoming(amount, destination_minor, sequence, destination_us)
        self.counts.completed += 1
        write_completed_result(results, source_us, source_minor)
        return None

    def _answer_known(self, body: bytes, metadata: bytes, earlier: int) -> bytes:
        """Promise 3, exactly once: the recorded outcome for the same body, a refusal for another.

        What a request alone is refused for takes precedence over both.
        """
        if reason := _request_refusal(body):
            return _refused(reason)
        known = read_recorded(self, earlier, body[:KEY_BYTES])
        if known.bodies != body or known.metadata != metadata:
            return _refused(RefusalReason.KEY_REUSED, first_difference(known, body, metadata))
        self.counts.repeated += 1
        status = REFUSED if known.reason else COMPLETED
        return RESULT.pack(status, known.reason, 0, 1, known.time_us, known.source_minor)

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """A transfer's record (128 bytes) and metadata, wherever it is."""
        if sequence >= self.block.first_sequence:
            return self.block.read_transfer(sequence)
        return self._store.read_transfer(sequence)

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """Bytes of the heap of the block that a record is in."""
        if sequence >= self.block.first_sequence:
            return self.block.read_heap(offset, length)
        return self._store.read_heap(sequence, offset, length)

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
        account = self.memory.account(account_id)
        if account is not None:
            if account.kind != kind:
                return OpenStatus.DIFFERS, "kind"
            if account.floor_minor != floor_minor:
                return OpenStatus.DIFFERS, "floor_minor"
            if account.cap_minor != cap_minor:
                return OpenStatus.DIFFERS, "cap_minor"
            return OpenStatus.REPEAT, ""

        # Point of no return.
        time_us = self.block.stamp_us
        body = ACCOUNT.pack(account_id, floor_minor, cap_minor, time_us, 0, kind, STATUS_ACTIVE)
        self.block.append(body, pack_bare_effects(RecordKind.ACCOUNT_OPENED))
        self._apply_opened(self.sequence, body)
        return OpenStatus.OPENED, ""

    def change_status(self, account: Account, status: int, reason: str) -> StatusChange:
        """Freezes, unfreezes or closes an account, for a recorded reason of at most 256 bytes."""
        if account.status == status:
            return StatusChange.REPEAT
        if account.status == STATUS_CLOSED:
            return StatusChange.CLOSED_FOR_EVER
        if status == STATUS_CLOSED and account.pins:
            return StatusChange.IN_DOUBT
        if status == STATUS_CLOSED and any(each.minor for each in account.balances.values()):
            return StatusChange.HOLDS_MONEY

        # Point of no return.
        text = reason.encode()
        body = ACCOUNT.pack(
            account.account_id, 0, 0, self.block.stamp_us, len(text), account.kind, status
        )
        offset = self.block.add_to_heap(text)
        self.block.append(body, pack_bare_effects(RecordKind.ACCOUNT_STATUS_CHANGED, offset))
        self._apply_status(self.sequence, body, text)
        return StatusChange.CHANGED

    def begin_epoch(self, epoch: int) -> None:
        """Records that the driver took over the log under this epoch."""
        self._epoch = epoch
        self.promise(0)

    def promise(self, until_us: int) -> None:
        """Records that nothing will be posted up to then by whoever takes over (see `instants`)."""
        body = EPOCH.pack(self._epoch, self.block.stamp_us, until_us)
        self.block.append(body, pack_bare_effects(RecordKind.EPOCH_BEGAN))

    # --- replay ---------------------------------------------------------------------------------

    def replay(self, block: BlockDraft) -> None:
        """Applies the records of a durable block that follows `sequence`. Decides nothing.

        Raises:
            DamagedLogError: a record cannot be true (see `replaying`); nothing may be done with
                what was applied before it.
        """
        assert block.first_sequence == self.sequence + 1, "blocks are replayed in order"
        for sequence, record in enumerate(records_of(block), block.first_sequence):
            body, kind = record[:BODY_BYTES], record[BODY_BYTES]
            if kind == RecordKind.TRANSFER:
                apply_transfer(self.memory, self.log_id, sequence, record, block)
            elif kind == RecordKind.ACCOUNT_OPENED:
                check_opened(sequence, body, self.memory)
                self._apply_opened(sequence, body)
            elif kind == RecordKind.ACCOUNT_STATUS_CHANGED:
                text = status_reason(sequence, record, block.heap, self.memory)
                self._apply_status(sequence, body, text)
            elif kind == RecordKind.GROUP:
                check_group(sequence, record, block.heap)
                self.memory.add_key(body[:KEY_BYTES], sequence)
            elif kind == RecordKind.EPOCH_BEGAN:
                self.promised_us = max(self.promised_us, promise_of(sequence, body, block.time_us))
            else:
                self._apply_crossing(sequence, record, block)
        self.participant.check_local_legs(block)
        self.block.skip(block.count)

    def _apply_crossing(self, sequence: int, record: bytes, block: BlockDraft) -> None:
        participant, kind, stamp_us = self.participant, record[BODY_BYTES], block.time_us
        if kind in (RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING):
            participant.apply_leg(record, sequence, block)
        elif kind == RecordKind.PREPARED:
            participant.apply_prepared(record, sequence, block)
        elif kind == RecordKind.COMMITTED:
            participant.apply_committed(record, sequence, block)
        elif kind == RecordKind.ABORTED:
            participant.apply_aborted(record, stamp_us)
        elif kind == RecordKind.FINISHED:
            participant.apply_finished(record, sequence, block)
        else:
            raise damaged(sequence, f"is of kind {kind}, which this version does not know")

    def restore(self, state: CrossingRows, time_us: int) -> None:
        """Takes up transactions and clearing as a checkpoint of this time has them."""
        for key, value in state.clearing():
            pair, position = read_clearing_row(key, value)
            self.clearing.restore(pair, position)
        self.clearing.start(time_us)
        rows = [(each, read_transaction_row(value)) for each, value in state.transactions()]
        for transaction_id, stored in sorted(rows, key=lambda row: row[1].since_us):
            if isinstance(stored, Decided):
                self.transactions.add_decided(stored)
            else:
                wrong = self.participant.restore_prepared(stored)
                if wrong is not None:
                    row = f"the row of transactions with key {transaction_id.hex()}"
                    raise DamagedStateError(f"{row} {wrong}")
        self.transactions.mark_stored()

    def recall_ended(self, block: BlockDraft) -> None:
        """Remembers what ended, or was promised, in a block that the checkpoint covers."""
        for sequence, record in enumerate(records_of(block), block.first_sequence):
            if record[BODY_BYTES] == RecordKind.EPOCH_BEGAN:
                promised_us = promise_of(sequence, record[:BODY_BYTES], block.time_us)
                self.promised_us = max(self.promised_us, promised_us)
            else:
                self.participant.recall_ended(record, block)

    def _apply_opened(self, sequence: int, body: bytes) -> None:
        account_id, floor_minor, cap_minor, time_us, _, kind, status = ACCOUNT.unpack(body)
        account = Account(account_id, kind, status, floor_minor, cap_minor, time_us)
        account.changed_sequence = sequence
        self.memory.touch(account)

    def _apply_status(self, sequence: int, body: bytes, reason: bytes) -> None:
        account_id, _, _, time_us, _, _, status = ACCOUNT.unpack(body)
        account = self.memory.account(account_id)
        assert account, f"record {sequence} changes account {account_id}, which is not open"
        self.memory.touch(account)
        account.status, account.status_time_us = status, time_us
        account.status_reason, account.changed_sequence = reason.decode(), sequence

    # --- checkpoints ----------------------------------------------------------------------------

    def begin_checkpoint(self) -> Draft:
        """Begins a checkpoint, between blocks, of every record so far."""
        assert self.block.count == 0, "a checkpoint stands between blocks"
        draft = self.memory.begin_checkpoint(self.sequence)
        draft.transactions = self.transactions.take_changed()
        draft.clearing = [clearing_row(*each) for each in self.clearing.positions.items()]
        return draft

    # --- small parts ----------------------------------------------------------------------------

    def _refuse(self, reason: RefusalReason, body: bytes, metadata: bytes) -> bytes:
        """Records a refusal under the transfer's key, so that every retry hears it again."""
        assert reason in _RECORDED, "what depends on the request alone leaves no record"
        members = [Member(body, self.log_id, self.log_id, metadata)]
        time_us, minor = self.groups.record_refusal(members, reason, 0)
        return RESULT.pack(REFUSED, reason, 0, 0, time_us, minor)


def _refused(reason: RefusalReason, differing: DifferingField = DifferingField.NONE) -> bytes:
    """The answer for a refusal that leaves no record."""
    return RESULT.pack(REFUSED, reason, differing, 0, 0, 0)


def _status_refusal(source: Account, destination: Account) -> RefusalReason:
    """Of two accounts that are not both active."""
    reasons = (
        status_refusal(source.status, incoming=False),
        status_refusal(destination.status, incoming=True),
    )
    return min(each for each in reasons if each)


def _request_refusal(body: bytes) -> RefusalReason | None:
    """The refusals that no record can take precedence over."""
    _, source, destination, amount, _, _, currency, _, _ = BODY.unpack(body)
    if amount <= 0:
        return RefusalReason.BAD_AMOUNT
    if source == destination:
        return RefusalReason.SAME_ACCOUNT
    return None if currency else RefusalReason.UNKNOWN_CURRENCY
