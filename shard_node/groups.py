"""Groups whose accounts are all on this shard, and what is recorded of groups that were refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.packed import (
    BODY,
    GROUP_RESULT,
    GROUP_SIZE_AT,
    KEY_BYTES,
    MEMBER_BODY,
    DifferingField,
)
from cluster.refusals import RefusalReason, is_recorded
from shard_node.legs import check_legs, legs_on, posting_time_us
from shard_node.recorded import first_difference, read_recorded
from shard_node.records import EFFECTS, GROUP, RecordKind
from shard_node.transactions import NO_TRANSACTION

if TYPE_CHECKING:
    from shard_node.legs import Member
    from shard_node.memory import Memory
    from shard_node.open_block import OpenBlock
    from shard_node.posting import Poster
    from shard_node.recorded import RecordReader

_COMPLETED, _REFUSED, _FAULT = 1, 3, 4
_UNAVAILABLE = 3

BUSY_RESULT = GROUP_RESULT.pack(_FAULT, _UNAVAILABLE, 0, 0, 0, 0, 0, 0)
"""Only something in doubt stands in the way: nothing happened, and the same key may be tried again
in a moment. Routers do; it is never recorded."""


@dataclass(slots=True)
class Counts:
    """Transfers answered since the process started, members of groups one by one.

    Attributes:
        completed, refused: for the first time, by this shard as their home.
        repeated: as they had been answered before.
    """

    completed: int = 0
    refused: int = 0
    repeated: int = 0


class Groups:
    """Decides groups on one shard.

    Args:
        shard_id: this shard.
        memory, block: what it changes.
        poster: posts legs.
        reader: reads what is recorded under a key.
        counts: kept up to date.
    """

    def __init__(
        self,
        shard_id: int,
        memory: Memory,
        block: OpenBlock,
        poster: Poster,
        reader: RecordReader,
        counts: Counts,
    ) -> None:
        self._shard_id = shard_id
        self._memory = memory
        self._block = block
        self._poster = poster
        self._reader = reader
        self.counts = counts

    def execute(self, members: list[Member]) -> bytes:
        """Decides one group; returns a packed result."""
        if refusal := _request_refusal(members):
            return refused(*refusal)
        key = members[0].body[:KEY_BYTES]
        sequence = self._memory.find_key(key)
        if sequence is not None:
            return self._answer_known(members, sequence)
        legs, stamp_us = legs_on(members, self._shard_id), self._block.stamp_us
        verdict = check_legs(self._memory, legs, stamp_us)
        if verdict.refusal is not None:
            if not is_recorded(verdict.refusal):
                return refused(verdict.refusal, verdict.index)
            time_us, minor = self.record_refusal(members, verdict.refusal, verdict.index)
            fields = (_REFUSED, verdict.refusal, 0, 0, verdict.index, 0, time_us, minor)
            return GROUP_RESULT.pack(*fields)
        if verdict.busy:
            return BUSY_RESULT

        # Point of no return.
        first = legs[0]
        source = self._memory.account(first.account_id)
        assert source, "it was checked"
        time_us = posting_time_us(source, first.import_us, stamp_us)
        balance = source.balance(first.currency)
        minor = balance.minor if balance else 0
        for leg in legs:
            if (leg.account_id, leg.currency) == (first.account_id, first.currency):
                minor += leg.amount_minor if leg.incoming else -leg.amount_minor
        self._record(members, 0, 0, minor, time_us)
        self._poster.post(legs, NO_TRANSACTION, first.account_id, stamp_us)
        self.counts.completed += len(members)
        return GROUP_RESULT.pack(_COMPLETED, 0, 0, 0, 0, 0, time_us, minor)

    def record_refusal(
        self, members: list[Member], reason: RefusalReason, index: int
    ) -> tuple[int, int]:
        """Records a refusal under a key, so that every retry hears it again.

        Returns:
            Its time, and the first source's balance.
        """
        self.counts.refused += len(members)
        fields = BODY.unpack(members[0].body)
        source = self._memory.account(fields[1])
        balance = source.balance(fields[6]) if source else None
        minor, stamp_us = balance.minor if balance else 0, self._block.stamp_us
        if members[0].body[GROUP_SIZE_AT]:
            self._record(members, reason, index, minor, stamp_us)
            return stamp_us, minor
        body, metadata = members[0].body, members[0].metadata
        offset = self._block.add_to_heap(metadata) if metadata else 0
        effects = (RecordKind.TRANSFER, reason, offset, minor, 0, 0, 0, stamp_us, stamp_us, 0, 0)
        sequence = self._block.append(body, EFFECTS.pack(*effects))
        self._memory.add_key(body[:KEY_BYTES], sequence)
        return stamp_us, minor

    def _record(
        self, members: list[Member], reason: int, index: int, minor: int, time_us: int
    ) -> None:
        content = b"".join(each.body for each in members)
        content += b"".join(each.metadata for each in members)
        offset = self._block.add_to_heap(content)
        size = len(members)
        effects = GROUP.pack(RecordKind.GROUP, reason, index, size, offset, minor, time_us)
        sequence = self._block.append(members[0].body, effects)
        self._memory.add_key(members[0].body[:KEY_BYTES], sequence)

    def _answer_known(self, members: list[Member], sequence: int) -> bytes:
        known = read_recorded(self._reader, sequence, members[0].body[:KEY_BYTES])
        bodies = b"".join(each.body for each in members)
        metadata = b"".join(each.metadata for each in members)
        if bodies != known.bodies or metadata != known.metadata:
            differing = first_difference(known, bodies, metadata)
            return refused(RefusalReason.KEY_REUSED, 0, differing)
        self.counts.repeated += len(members)
        status = _REFUSED if known.reason else _COMPLETED
        return GROUP_RESULT.pack(
            status, known.reason, 0, 1, known.index, 0, known.time_us, known.source_minor
        )


def refused(
    reason: RefusalReason, index: int, differing: DifferingField = DifferingField.NONE
) -> bytes:
    """The answer for a refusal that leaves no record."""
    return GROUP_RESULT.pack(_REFUSED, reason, differing, 0, index, 0, 0, 0)


def _request_refusal(members: list[Member]) -> tuple[RefusalReason, int] | None:
    """The refusal that no record can take precedence over, and which transfer it is about."""
    found: list[tuple[RefusalReason, int]] = []
    for index, member in enumerate(members):
        fields = MEMBER_BODY.unpack(member.body)
        if fields[3] <= 0:
            found.append((RefusalReason.BAD_AMOUNT, index))
        if fields[1] == fields[2]:
            found.append((RefusalReason.SAME_ACCOUNT, index))
        if not fields[6]:
            found.append((RefusalReason.UNKNOWN_CURRENCY, index))
    return min(found, default=None)
