"""The ledger that a history is checked against, read straight from the shards' logs.

It shares the records' layout with the shard node and nothing else: no reader of theirs, no index,
no state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.packed import BODY, BODY_BYTES, MEMBER, MEMBER_BODY
from shard_node.log import LmdbLog
from shard_node.records import (
    ACCOUNT,
    COMMITTED,
    EFFECTS,
    ENDED,
    GROUP,
    LEG,
    LogIdentity,
    RecordKind,
    check_follows,
    cluster_id_of,
    records_of,
)
from tests.history.history import Key, Ledger, Move, Outcome, Posting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shard_node.records import Block, BlockDraft

MAP_BYTES: Final = 2**38  # address space only: as much as a shard node's log may take


def read_ledger(cluster: str, folders: Mapping[int, Path]) -> Ledger:
    """Read all logs (shard id → data folder) of a cluster whose shard nodes have stopped.

    Raises:
        DamagedLogError: one is not as it was written.
    """
    ledger = Ledger()
    for shard_id, folder in folders.items():
        identity = LogIdentity(cluster_id_of(cluster), shard_id)
        log = LmdbLog(folder / "log", identity, 0, MAP_BYTES, read_only=True)
        try:
            before: Block | None = None
            reader = _Reader(shard_id, ledger)
            for block in log.blocks(1):
                check_follows(before, block)
                reader.take(block.draft)
                before = block
            ledger.in_doubt += reader.prepared
        finally:
            log.close()
    return ledger


class _Reader:
    """Takes one log's blocks apart.

    Attributes:
        prepared: transactions that are, so far.
    """

    def __init__(self, shard_id: int, ledger: Ledger) -> None:
        self._shard_id = shard_id
        self._ledger = ledger
        self.prepared: set[bytes] = set()

    def take(self, draft: BlockDraft) -> None:
        """Takes a block."""
        for sequence, record in enumerate(records_of(draft), draft.first_sequence):
            kind = record[BODY_BYTES]
            if kind == RecordKind.TRANSFER:
                self._take_transfer(record, sequence, draft.time_us)
            elif kind in {RecordKind.LEG_INCOMING, RecordKind.LEG_OUTGOING}:
                incoming = kind == RecordKind.LEG_INCOMING
                self._take_leg(record, sequence, draft.time_us, incoming=incoming)
            elif kind in {RecordKind.COMMITTED, RecordKind.GROUP}:
                self._take_outcome(record, sequence, draft)
            elif kind == RecordKind.PREPARED:
                self.prepared.add(record[:16])
            elif kind == RecordKind.ABORTED:
                self.prepared.discard(ENDED.unpack_from(record)[0])
            elif kind == RecordKind.ACCOUNT_OPENED:
                account_id, floor_minor, *_ = ACCOUNT.unpack_from(record)
                self._ledger.floors[account_id] = floor_minor

    def _take_transfer(self, record: bytes, sequence: int, stamp_us: int) -> None:
        move, key = _move_of(record), _key_of(record)
        effects = EFFECTS.unpack_from(record, BODY_BYTES)
        outcome = Outcome(key, self._shard_id, sequence, stamp_us, (move,), effects[1])
        self._ledger.outcomes.append(outcome)
        if effects[1]:
            return
        for account_id, change_minor, balance_minor, time_us in (
            (move.source, -move.amount_minor, effects[3], effects[7]),
            (move.destination, move.amount_minor, effects[4], effects[8]),
        ):
            self._ledger.postings.append(
                Posting(
                    self._shard_id, sequence, time_us, stamp_us, account_id,
                    change_minor, balance_minor, key, 0, self._shard_id,
                )
            )  # fmt: skip

    def _take_leg(self, record: bytes, sequence: int, stamp_us: int, *, incoming: bool) -> None:
        move = _move_of(record)
        _, _, peer, balance_minor, _, time_us, decided_us, transaction_id, first_source = (
            LEG.unpack_from(record, BODY_BYTES)
        )
        self.prepared.discard(transaction_id)
        self._ledger.postings.append(
            Posting(
                self._shard_id,
                sequence,
                time_us,
                decided_us or stamp_us,
                move.destination if incoming else move.source,
                move.amount_minor if incoming else -move.amount_minor,
                balance_minor,
                (first_source, record[:16]),
                MEMBER_BODY.unpack_from(record)[9],
                peer,
            )
        )

    def _take_outcome(self, record: bytes, sequence: int, draft: BlockDraft) -> None:
        """Takes a group, or a decision between shards; their legs are records of their own."""
        bodies, reason, member = record[:BODY_BYTES], 0, 0
        if record[BODY_BYTES] == RecordKind.GROUP:
            _, reason, member, size, offset, _, _ = GROUP.unpack_from(record, BODY_BYTES)
            bodies = draft.heap[offset : offset + size * BODY_BYTES]
        else:
            _, size, _, offset, _, _ = COMMITTED.unpack_from(record, BODY_BYTES)
            if size:
                members = draft.heap[offset : offset + size * MEMBER.size]
                bodies = b"".join(fields[0] for fields in MEMBER.iter_unpack(members))
        moves = tuple(
            _move_of(bodies[at : at + BODY_BYTES]) for at in range(0, len(bodies), BODY_BYTES)
        )
        self._ledger.outcomes.append(
            Outcome(
                _key_of(record), self._shard_id, sequence, draft.time_us, moves, reason, member
            )
        )  # fmt: skip


def _move_of(body: bytes) -> Move:
    _, source, destination, amount_minor, reference, *_ = BODY.unpack_from(body)
    return Move(source, destination, amount_minor, reference)


def _key_of(record: bytes) -> Key:
    return BODY.unpack_from(record)[1], record[:16]
