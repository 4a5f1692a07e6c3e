"""Targets: what a shard node reads from its disk: blocks, their records in replay, rows."""

from __future__ import annotations

import struct
from functools import cache

from cluster.refusals import RefusalReason
from shard_node.books import (
    BALANCE_MAX_MINOR,
    Account,
    Period,
    account_row,
    period_row,
    read_account_row,
    read_balance_row,
    read_period_row,
)
from shard_node.checkpointer import LocalStateWriter
from shard_node.clearing import clearing_row, read_clearing_row
from shard_node.damage import DamagedStateError
from shard_node.ledger import Ledger
from shard_node.limits import Limits
from shard_node.log import MemoryLog
from shard_node.memory_state import MemoryState
from shard_node.queries import AccountHistory, StatementRequest, statement
from shard_node.recorded import read_outcome, read_recorded
from shard_node.records import (
    KEYED,
    RECORD_BYTES,
    Block,
    BlockDraft,
    DamagedLogError,
    block_value,
    decode_block,
    records_of,
)
from shard_node.rows import read_key_row, seal_row
from shard_node.startup import checkpoint_now, recover
from shard_node.state import Checkpoint
from shard_node.store import Store
from shard_node.transactions import read_transaction_row
from tests.hostile.target import Target, join_parts, split_parts
from tests.support.crossing import ANN, BOB, HERE, OTHER, THIRD, CrossingRig, Move, no, two_players
from tests.support.ledgers import BANK, EPOCH, IDENTITY, tables
from tests.support.naive_ledger import FROZEN, Ask
from tests.support.rows import balance_row

_FIRST = struct.Struct("<Q")


def rehearse() -> CrossingRig:
    """A shard to which everything that makes a kind of record has happened; all is durable."""
    rig = two_players()
    rig.transfer(Ask(b"m" * 16, ANN, BOB, 5, metadata=b"a note", type=2))
    rig.transfer(Ask(b"r" * 16, BOB, ANN, 10_000))  # refused, and recorded
    rig.group(40, Move(BANK, ANN, 7, metadata=b"x"), Move(ANN, BOB, 3))
    rig.group(41, Move(BOB, ANN, 90_000), Move(ANN, BOB, 3))  # refused, and recorded
    posted = rig.attempt(50, Move(OTHER, ANN, 9, metadata=b"in"))
    rig.prepare(posted)
    left = rig.attempt(51, Move(OTHER, BOB, 2), Move(ANN, THIRD, 1), is_group=True)
    rig.prepare(left)
    dropped = rig.attempt(52, Move(OTHER, ANN, 4))
    rig.prepare(dropped)
    rig.seal()
    rig.commit_prepared(posted)
    rig.abort(dropped)
    home = rig.attempt(53, Move(ANN, OTHER, 6, metadata=b"out"))
    rig.commit_home(home)
    group = rig.attempt(54, Move(ANN, OTHER, 1), Move(OTHER, BOB, 1, metadata=b"y"), is_group=True)
    rig.commit_home(group)
    rig.commit_home(rig.attempt(55, Move(ANN, OTHER, 6)), no(RefusalReason.INSUFFICIENT_FUNDS))
    rig.finish(home)
    rig.open(30)
    rig.change_status(30, FROZEN)
    rig.begin_block()
    rig.ledger.begin_epoch(EPOCH + 1)
    rig.seal()
    rig.sync()
    return rig


@cache
def _history() -> tuple[Block, ...]:
    return tuple(rehearse().log.blocks(1))


# --- blocks -------------------------------------------------------------------------------------


def check_block(data: bytes) -> None:
    """A block as it was written, or DamagedLogError."""
    (first,) = _FIRST.unpack(data[: _FIRST.size].ljust(_FIRST.size, b"\0"))
    value = data[_FIRST.size :]
    try:
        block = decode_block(IDENTITY, first, value)
    except DamagedLogError:
        return
    assert block_value(IDENTITY, block) == value


def block_seeds() -> list[bytes]:
    """The blocks of the rehearsal."""
    return [
        _FIRST.pack(block.draft.first_sequence) + block_value(IDENTITY, block)
        for block in _history()
    ]


# --- records in replay --------------------------------------------------------------------------


def check_replay(data: bytes) -> None:
    """Records behind some history, in a block whose hash is right: applied, or DamagedLogError.

    What was applied keeps the promises: sums are zero, floors and caps hold, a checkpoint can be
    taken and says the same again when it is loaded, and every question has an answer.
    """
    many, records, heap = split_parts(data, 3)
    behind = 1 + (many[0] if many else 0) % (len(_history()) + 1)
    records = records[: len(records) - len(records) % RECORD_BYTES]
    state, log = MemoryState(), MemoryLog(IDENTITY, EPOCH + 1)
    store = Store(state, log)
    ledger = Ledger(HERE, store, 0, 1_000)
    for block in _history()[: behind - 1]:
        log.append([block.draft])
        ledger.replay(block.draft)
    if not records:
        return
    time_us = (log.last.draft.time_us if log.last else 0) + 1_000_000
    draft = BlockDraft(ledger.sequence + 1, len(records) // RECORD_BYTES, time_us, records, heap)
    log.append([draft])
    try:
        ledger.replay(draft)
    except DamagedLogError:
        return
    check_books(ledger)
    writer = LocalStateWriter(state, log)
    checkpoint_now(IDENTITY, ledger, store, writer)
    again, _ = recover(IDENTITY, store, Limits(), LocalStateWriter(state, log))
    for account_id in state.account_ids(0, 1_000):
        mine, loaded = ledger.memory.account(account_id), again.memory.account(account_id)
        assert mine is not None
        assert loaded is not None
        assert balances_of(mine) == balances_of(loaded)
        _ask(again, store, loaded)
    check_books(again)
    assert again.transactions.prepared.keys() == ledger.transactions.prepared.keys()
    _read_keys(again, log)
    tables(state)


def replay_seeds() -> list[bytes]:
    """Every block of the rehearsal, behind those before it, and single records of all of them."""
    seeds = []
    for at, block in enumerate(_history()):
        draft = block.draft
        seeds.append(join_parts((bytes([at]), draft.records, draft.heap)))
        seeds += [join_parts((bytes([at]), each, draft.heap)) for each in records_of(draft)]
    return seeds


def balances_of(account: Account) -> dict[int, tuple[int, int, int]]:
    """An account's balances and what is reserved of them, by currency."""
    return {
        currency: (each.minor, each.reserved_outgoing, each.reserved_incoming)
        for currency, each in account.balances.items()
        if each.first_sequence or each.reserved_outgoing or each.reserved_incoming
    }


def check_books(ledger: Ledger) -> None:
    """Promises 1 and 2."""
    sums: dict[int, int] = {}
    for account in ledger.memory.accounts:
        assert ledger.memory.account(account.account_id) is account, "it is in memory twice"
        for currency, balance in account.balances.items():
            sums[currency] = sums.get(currency, 0) + balance.minor
            assert account.floor_minor <= balance.minor <= account.cap_minor, "floor or cap"
            assert balance.minor <= BALANCE_MAX_MINOR
    for (_, currency), minor in ledger.clearing.positions.items():
        sums[currency] = sums.get(currency, 0) + minor
    assert not any(sums.values()), f"conservation: {sums}"


def _ask(ledger: Ledger, store: Store, account: Account) -> None:
    """Every question about an account."""
    for currency, balance in account.balances.items():
        if not balance.first_sequence:
            continue
        history = AccountHistory(ledger, store, account, currency)
        end_us = balance.last_time_us
        assert history.totals_at(end_us).balance_minor == balance.minor
        assert history.totals_at(balance.start_us - 1).last_time_us < balance.start_us
        for oldest_first in (True, False):
            wanted = StatementRequest(
                account.account_id, currency, 0, end_us + 1, oldest_first, 1_000, b""
            )
            legs, _ = statement([history], wanted)
            totals = history.totals_at(end_us)
            assert len(legs) == totals.incoming_count + totals.outgoing_count


def _read_keys(ledger: Ledger, log: MemoryLog) -> None:
    """What is recorded under every key can be told."""
    for block in log.blocks(1):
        for sequence, record in enumerate(records_of(block.draft), block.draft.first_sequence):
            if record[64] in KEYED:
                read_recorded(ledger, sequence)
                read_outcome(ledger, sequence)


# --- rows ---------------------------------------------------------------------------------------


def check_row(data: bytes) -> None:
    """A row of any table, behind a checksum that is right: what it says, or DamagedStateError."""
    which, key, value = split_parts(data, 3)
    read = _ROWS[(which[0] if which else 0) % len(_ROWS)]
    try:
        read(key, value)
    except DamagedStateError:
        return


def _account(key: bytes, value: bytes) -> None:
    account = read_account_row(key, value)
    assert account_row(account) == (key, value)


def _period(key: bytes, value: bytes) -> None:
    period = read_period_row(key, value)
    assert isinstance(period, Period)
    account_id, currency = struct.unpack_from(">QH", key)
    assert period_row(account_id, currency, period) == (key, value)


def _balance(key: bytes, value: bytes) -> None:
    currency, period = read_balance_row(key, value)
    account_id = int.from_bytes(key[:8], "big")
    assert balance_row(account_id, currency, period) == (key, value)


def _transaction(_: bytes, value: bytes) -> None:
    read_transaction_row(value)


def _position(key: bytes, value: bytes) -> None:
    assert clearing_row(*read_clearing_row(key, value)) == (key, value)


def _checkpoint(_: bytes, value: bytes) -> None:
    Checkpoint.unpack(seal_row(b"checkpoint", value))


def _key(_: bytes, value: bytes) -> None:
    read_key_row(value)


_ROWS = (_account, _period, _transaction, _position, _checkpoint, _key, _balance)


def row_seeds() -> list[bytes]:
    """The rows of a checkpoint of the rehearsal."""
    rig = rehearse()
    rig.checkpoint()
    found = tables(rig.state)
    names = ("accounts", "periods", "transactions", "clearing", None, None, "balances")
    seeds = [
        join_parts((bytes([at]), key, value))
        for at, name in enumerate(names)
        if name
        for key, value in found[name].items()
        if isinstance(value, bytes)
    ]
    checkpoint = rig.state.checkpoint
    assert checkpoint is not None
    seeds.append(join_parts((b"\4", b"checkpoint", checkpoint.pack()[:-4])))
    seeds.append(join_parts((b"\5", b"k" * 24, struct.pack("<Q", 7))))
    return seeds


TARGETS = (
    Target("block", check_block, block_seeds, RECORD_BYTES),
    Target("replay", check_replay, replay_seeds, RECORD_BYTES),
    Target("row", check_row, row_seeds),
)
