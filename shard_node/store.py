"""What is not in the ledger's memory: committed state, the durable log, and blocks on their way.

`Store` is the ledger's port (`ledger.LedgerStore`) and what queries read history through.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cluster.packed import BODY
from shard_node.records import RECORD_BYTES, BlockDraft, heap_offset

if TYPE_CHECKING:
    from shard_node.books import Account
    from shard_node.log import Log
    from shard_node.state import StateReader


class Store:
    """Joins a state, a log, and the sealed blocks that are not durable yet.

    Attributes:
        state: committed checkpoints.
        log: durable blocks.
        sealed: blocks handed to the committer, or about to be, oldest first.
    """

    def __init__(self, state: StateReader, log: Log) -> None:
        self.state = state
        self.log = log
        self.sealed: deque[BlockDraft] = deque()

    def load_account(self, account_id: int) -> Account | None:
        """See `LedgerStore`."""
        return self.state.load_account(account_id)

    def find_keys(self, keys: list[bytes]) -> dict[bytes, int]:
        """See `LedgerStore`."""
        return self.state.find_keys(keys)

    def read_transfer(self, sequence: int) -> tuple[bytes, bytes]:
        """See `LedgerStore`."""
        draft = self._sealed_with(sequence)
        if draft is None:
            return self.log.read_transfer(sequence)
        at = (sequence - draft.first_sequence) * RECORD_BYTES
        record = draft.records[at : at + RECORD_BYTES]
        length, offset = BODY.unpack_from(record)[7], heap_offset(record)
        return record, draft.heap[offset : offset + length]

    def read_heap(self, sequence: int, offset: int, length: int) -> bytes:
        """See `LedgerStore`."""
        draft = self._sealed_with(sequence)
        if draft is None:
            return self.log.read_heap(sequence, offset, length)
        return draft.heap[offset : offset + length]

    def stamp_of(self, sequence: int) -> int:
        """The time of the sealed block that a record is in, microseconds."""
        draft = self._sealed_with(sequence)
        return self.log.locate(sequence).time_us if draft is None else draft.time_us

    def forget_durable(self, sequence: int) -> None:
        """Lets go of sealed blocks that the log has."""
        while self.sealed and self.sealed[0].last_sequence <= sequence:
            self.sealed.popleft()

    def _sealed_with(self, sequence: int) -> BlockDraft | None:
        if not self.sealed or sequence < self.sealed[0].first_sequence:
            return None
        return next(each for each in self.sealed if sequence <= each.last_sequence)
