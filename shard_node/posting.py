"""Posting legs: the one way in which groups and transactions change accounts and clearing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cluster.packed import BODY_BYTES, METADATA_LENGTH_AT
from shard_node.legs import EMPTY, Leg, balance_of, posting_time_us
from shard_node.records import LEG, RecordKind, write_leg
from shard_node.replaying import check_metadata, known_account, wrong_entry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shard_node.books import Account
    from shard_node.clearing import Clearing
    from shard_node.memory import Memory
    from shard_node.open_block import OpenBlock
    from shard_node.records import BlockDraft

# Looked up once: 0.2 µs each time otherwise.
_LEG_INCOMING: Final = int(RecordKind.LEG_INCOMING)
_LEG_OUTGOING: Final = int(RecordKind.LEG_OUTGOING)


class Poster:
    """Records legs and applies them.

    Args:
        shard_id: this shard; also its log's id.
        memory, block, clearing: what it changes.

    Attributes:
        local_minor: of the legs replayed, what was moved to and from accounts of this same shard,
            by currency. No transaction is spread over blocks, so at a block's end it comes to zero.
    """

    def __init__(self, shard_id: int, memory: Memory, block: OpenBlock, clearing: Clearing) -> None:
        self._shard_id = shard_id
        self._memory = memory
        self._block = block
        self._clearing = clearing
        self.local_minor: dict[int, int] = {}

    def post(
        self, legs: Sequence[Leg], transaction_id: bytes, first_source: int, decided_us: int
    ) -> None:
        """Records and applies legs, in their order. They were checked: it cannot fail."""
        block = self._block
        for leg in legs:
            account = leg.account or self._account(leg.account_id)
            time_us = posting_time_us(account, leg.import_us, block.stamp_us)
            balance = account.balance(leg.currency) or EMPTY
            minor = balance.minor + leg.signed_minor
            metadata = leg.metadata
            write_leg(
                block.records,
                leg.body,
                _LEG_INCOMING if leg.incoming else _LEG_OUTGOING,
                block.add_to_heap(metadata) if metadata else 0,
                balance.last_log,
                leg.peer,
                minor,
                balance.last_sequence,
                time_us,
                decided_us,
                transaction_id,
                first_source,
            )
            self._apply(leg, account, minor, block.next_sequence(), time_us, decided_us)

    def apply_record(self, record: bytes, sequence: int, block: BlockDraft) -> None:
        """Applies a leg's record.

        Raises:
            DamagedLogError: it does not go on where the account's last entry ended.
        """
        kind_and_offset, _, peer, minor, previous, time_us, decided_us, _, _ = LEG.unpack_from(
            record, BODY_BYTES
        )
        incoming = record[BODY_BYTES] == _LEG_INCOMING
        leg = Leg(record[:BODY_BYTES], b"", incoming=incoming, peer=peer)
        if length := record[METADATA_LENGTH_AT] | record[METADATA_LENGTH_AT + 1] << 8:
            check_metadata(sequence, block.heap, kind_and_offset >> 8, length)
        account = known_account(self._memory, leg.account_id)
        balance = account.balance(leg.currency) if account else None
        was = balance or EMPTY
        amount = leg.amount_minor if incoming else -leg.amount_minor
        if account is None or not (
            was.minor + amount == minor
            and account.floor_minor <= minor <= account.cap_minor
            and was.last_sequence == previous
            and was.last_time_us <= time_us
            and 0 < time_us <= block.time_us
            and leg.amount_minor > 0
            and leg.currency
            and peer
        ):
            raise wrong_entry(sequence, account, balance, amount, "leg")
        if peer == self._shard_id:
            sums = self.local_minor
            sums[leg.currency] = sums.get(leg.currency, 0) + amount
        self._apply(leg, account, minor, sequence, time_us, decided_us)

    def recall_record(self, record: bytes) -> None:
        """Remembers when a leg that a checkpoint covers was decided, without applying it again."""
        fields = LEG.unpack_from(record, BODY_BYTES)
        peer, decided_us = fields[2], fields[6]
        if peer != self._shard_id:
            incoming = record[BODY_BYTES] == _LEG_INCOMING
            leg = Leg(record[:BODY_BYTES], b"", incoming=incoming, peer=peer)
            self._clearing.recall((peer, leg.currency), -leg.signed_minor, decided_us)

    def _apply(
        self, leg: Leg, account: Account, minor: int, sequence: int, time_us: int, decided_us: int
    ) -> None:
        self._memory.touch(account)
        self._memory.legs += 1
        balance = balance_of(account, leg.currency, self._shard_id)
        if leg.incoming:
            balance.post_incoming(leg.amount_minor, minor, sequence, time_us)
        else:
            balance.post_outgoing(leg.amount_minor, minor, sequence, time_us)
        if leg.peer != self._shard_id:
            self._clearing.post((leg.peer, leg.currency), -leg.signed_minor, decided_us)

    def _account(self, account_id: int) -> Account:
        account = self._memory.account(account_id)
        assert account, f"account {account_id} was checked, or recorded, to be open"
        return account
