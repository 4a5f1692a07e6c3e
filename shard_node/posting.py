"""Posting legs: the one way in which groups and transactions change accounts and clearing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.packed import BODY_BYTES
from shard_node.legs import Member, balance_of, leg_of, posting_time_us
from shard_node.records import LEG, RecordKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shard_node.books import Account
    from shard_node.clearing import Clearing
    from shard_node.legs import Leg
    from shard_node.memory import Memory
    from shard_node.open_block import OpenBlock

NO_TRANSACTION = bytes(16)
"""In place of a transaction's id, in the legs of a group that needed none."""


class Poster:
    """Records legs and applies them.

    Args:
        shard_id: this shard; also its log's id.
        memory, block, clearing: what it changes.
    """

    def __init__(self, shard_id: int, memory: Memory, block: OpenBlock, clearing: Clearing) -> None:
        self._shard_id = shard_id
        self._memory = memory
        self._block = block
        self._clearing = clearing

    def post(
        self, legs: Sequence[Leg], transaction_id: bytes, first_source: int, decided_us: int
    ) -> None:
        """Records and applies legs, in their order. They were checked: it cannot fail."""
        for leg in legs:
            account = self._account(leg.account_id)
            time_us = posting_time_us(account, leg.import_us, self._block.stamp_us)
            balance = account.balance(leg.currency)
            amount = leg.amount_minor if leg.incoming else -leg.amount_minor
            minor = (balance.minor if balance else 0) + amount
            metadata = leg.member.metadata
            offset = self._block.add_to_heap(metadata) if metadata else 0
            kind = RecordKind.LEG_INCOMING if leg.incoming else RecordKind.LEG_OUTGOING
            effects = LEG.pack(
                kind | offset << 8,
                balance.last_log if balance else 0,
                leg.peer,
                minor,
                balance.last_sequence if balance else 0,
                time_us,
                decided_us,
                transaction_id,
                first_source,
            )
            sequence = self._block.append(leg.member.body, effects)
            self._apply(leg, account, minor, sequence, time_us, decided_us)

    def apply_record(self, record: bytes, sequence: int) -> None:
        """Applies a leg's record."""
        fields = LEG.unpack_from(record, BODY_BYTES)
        peer, minor, time_us, decided_us = fields[2], fields[3], fields[5], fields[6]
        incoming = record[BODY_BYTES] == RecordKind.LEG_INCOMING
        leg = leg_of(Member(record[:BODY_BYTES], 0, 0, b""), incoming=incoming, peer=peer)
        account = self._account(leg.account_id)
        balance = account.balance(leg.currency)
        amount = leg.amount_minor if incoming else -leg.amount_minor
        assert (balance.minor if balance else 0) + amount == minor, f"record {sequence}: balance"
        self._apply(leg, account, minor, sequence, time_us, decided_us)

    def _apply(
        self, leg: Leg, account: Account, minor: int, sequence: int, time_us: int, decided_us: int
    ) -> None:
        self._memory.touch(account)
        self._memory.legs += 1
        balance = balance_of(account, leg.currency, self._shard_id)
        post = balance.post_incoming if leg.incoming else balance.post_outgoing
        post(leg.amount_minor, minor, sequence, time_us)
        if leg.peer != self._shard_id:
            owed = -leg.amount_minor if leg.incoming else leg.amount_minor
            self._clearing.post((leg.peer, leg.currency), owed, decided_us)

    def _account(self, account_id: int) -> Account:
        account = self._memory.account(account_id)
        assert account, f"account {account_id} was checked, or recorded, to be open"
        return account
