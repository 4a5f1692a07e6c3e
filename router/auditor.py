"""Asks the shards what an audit needs; `router.audit` says why it takes so many looks."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from cluster import packed
from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX, DECISION, RESOLUTION
from cluster.shard_client import GET_CLEARING, LIST_CROSSINGS, RESOLVE
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import shard_service_pb2 as shard
from router.asking import Shards
from router.audit import (
    DIFFERING_MAX,
    SECOND_US,
    Crossing,
    Fate,
    Leg,
    PairAudit,
    Snapshot,
    audit,
    differing,
)

# A difference is most likely of what happened last. So the last minute is looked at first, then
# four times as much before it, and so on: fourteen steps reach back to 1970.
_FIRST_SPAN_US: Final = 60 * SECOND_US
_SPAN_GROWTH: Final = 4
# The contract's bound of one list; one that has reached it is asked for again in two halves.
_CROSSINGS_MAX: Final = 100_000

_LOG = structlog.stdlib.get_logger("audit")


class Auditor:
    """Makes audits."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    async def audit(self, as_of_us: int, deadline_s: float) -> admin.AuditResponse:
        """Compare what every two shards owe each other.

        Args:
            as_of_us: the logical time, a whole second; what was decided before it counts.
            deadline_s: in the running loop's time.

        Raises:
            Fault: a shard did not answer, or not for that time.
        """
        await self._look(as_of_us, deadline_s)
        second = await self._look(as_of_us, deadline_s)
        fates = await self._fates(second, deadline_s)
        third = await self._look(as_of_us, deadline_s)
        findings = audit(second, third, fates, as_of_us)
        pairs = [await self._shown(pair, as_of_us, deadline_s) for pair in findings.pairs]
        return admin.AuditResponse(
            as_of_us=as_of_us,
            pairs=pairs,
            in_doubt=findings.in_doubt,
            balanced=all(pair.balanced for pair in pairs),
        )

    async def _look(self, as_of_us: int, deadline_s: float) -> dict[int, Snapshot]:
        request = shard.GetClearingRequest(as_of_us=as_of_us)
        answers = await self._shards.ask_all(GET_CLEARING, request, deadline_s)
        return {shard_id: _snapshot(answer) for shard_id, answer in answers.items()}

    async def _fates(
        self, snapshots: Mapping[int, Snapshot], deadline_s: float
    ) -> dict[bytes, Fate]:
        """Ask every home what became of the transactions that are prepared."""
        deadlines_us: dict[int, dict[bytes, int]] = {}
        for snapshot in snapshots.values():
            for leg in snapshot.legs:
                deadlines_us.setdefault(leg.home, {})[leg.transaction_id] = leg.deadline_us
        asked = [
            self._resolve(home, part, deadline_s)
            for home, transactions in deadlines_us.items()
            for part in _parts(transactions)
        ]
        fates: dict[bytes, Fate] = {}
        for found in await asyncio.gather(*asked):
            fates |= found
        return fates

    async def _resolve(
        self, home: int, deadlines_us: Mapping[bytes, int], deadline_s: float
    ) -> dict[bytes, Fate]:
        transactions = b"".join(DECISION.pack(*each) for each in deadlines_us.items())
        request = shard.ResolveRequest(transactions=transactions)
        answer = await self._shards.ask(home, RESOLVE, request, deadline_s)
        return {
            transaction_id: Fate(
                decided_us if fate == packed.Fate.COMMITTED else 0, fate == packed.Fate.ABORTED
            )
            for transaction_id, (fate, decided_us) in zip(
                deadlines_us, RESOLUTION.iter_unpack(answer.resolutions), strict=True
            )
        }

    async def _shown(
        self, found: PairAudit, as_of_us: int, deadline_s: float
    ) -> admin.ShardPairAudit:
        pair = found.pair
        shown = admin.ShardPairAudit(
            shard_id=pair.shard_id,
            peer_shard_id=pair.peer,
            currency=pair.currency,
            position_minor=str(found.position_minor),
            peer_position_minor=str(found.peer_position_minor),
            unposted_minor=str(found.unposted_minor),
            balanced=found.balanced,
        )
        if not found.balanced:
            ids = await _Explanation(self._shards, found, as_of_us, deadline_s).transaction_ids()
            shown.differing_transaction_ids.extend(ids)
            _LOG.error(
                "audit_mismatch",
                shard=pair.shard_id,
                peer=pair.peer,
                currency=pair.currency,
                difference_minor=found.position_minor + found.peer_position_minor,
                transactions=[each.hex() for each in ids],
            )
        return shown


@dataclass(frozen=True, slots=True)
class _Explanation:
    """What two shards posted differently."""

    shards: Shards
    found: PairAudit
    as_of_us: int
    deadline_s: float

    async def transaction_ids(self) -> list[bytes]:
        """Return the transactions that explain a difference, as far as shards can tell in time."""
        found = self.found
        unexplained_minor = found.position_minor + found.peer_position_minor
        wrong: dict[bytes, int] = {}
        to_us, span_us = self.as_of_us - 1, _FIRST_SPAN_US
        try:
            while unexplained_minor and to_us > 1 and len(wrong) < DIFFERING_MAX:
                after_us = max(1, to_us - span_us)
                more = await self._between(after_us, to_us)
                unexplained_minor -= sum(more.values())
                wrong |= more
                to_us, span_us = after_us, _SPAN_GROWTH * span_us
        except Fault as fault:
            # That they differ is known and has to be told, whether or not it can be explained.
            _LOG.warning("audit_unexplained", reason=str(fault))
        return sorted(wrong)[:DIFFERING_MAX]

    async def _between(self, after_us: int, to_us: int) -> dict[bytes, int]:
        """Compare what was decided in a span of time, split until it can be listed whole."""
        pair = self.found.pair
        ours, theirs = await asyncio.gather(
            self._list(pair.shard_id, pair.peer, after_us, to_us),
            self._list(pair.peer, pair.shard_id, after_us, to_us),
        )
        if max(len(ours), len(theirs)) < _CROSSINGS_MAX or to_us - after_us <= 1:
            return differing(ours, theirs, self.found.unposted)
        middle_us = (after_us + to_us) // 2
        later = await self._between(middle_us, to_us)
        return later | await self._between(after_us, middle_us)

    async def _list(self, shard_id: int, peer: int, after_us: int, to_us: int) -> list[Crossing]:
        request = shard.ListCrossingsRequest(
            peer_shard_id=peer,
            currency=self.found.pair.currency,
            after_us=after_us,
            to_us=to_us,
        )
        answer = await self.shards.ask(shard_id, LIST_CROSSINGS, request, self.deadline_s)
        return [
            Crossing(each.transaction_id, each.group_index, each.amount_minor)
            for each in answer.crossings
        ]


def _snapshot(answer: shard.GetClearingResponse) -> Snapshot:
    return Snapshot(
        {
            (each.peer_shard_id, each.currency): int(each.position_minor)
            for each in answer.positions
        },
        [
            Leg(
                each.transaction_id,
                each.home_shard_id,
                each.deadline_us,
                each.peer_shard_id,
                each.currency,
                each.amount_minor,
            )
            for each in answer.prepared
        ],
    )


def _parts(transactions: Mapping[bytes, int]) -> Iterable[dict[bytes, int]]:
    """Cut into as many as one call takes."""
    todo = list(transactions.items())
    for start in range(0, len(todo), BATCH_TRANSFERS_MAX):
        yield dict(todo[start : start + BATCH_TRANSFERS_MAX])
