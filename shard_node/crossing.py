"""The handlers of `ShardService` that concern more than one transfer or more than one shard.

Packed messages in, calls of the ledger's `participant` and `groups` in the middle, packed messages
out; the engine makes what they record durable before anything is answered.
"""

from __future__ import annotations

import asyncio
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import grpc

from cluster.faults import Fault
from cluster.packed import (
    BODY_BYTES,
    DECISION_BYTES,
    KEY_BYTES,
    KEY_SOURCE,
    MEMBER_BODY,
    MEMBER_BYTES,
    TRANSACTION_ID_BYTES,
    VOTE_BYTES,
)
from doubloon.v1 import (
    coordinator_service_pb2,
    shard_service_pb2,
    shard_service_pb2_grpc,
)
from shard_node.clearing import SECOND_US
from shard_node.errors import ShardNodeError
from shard_node.faults import as_fault, bad_request
from shard_node.log import first_sequence_since
from shard_node.records import LEG, RecordKind, records_of
from shard_node.transactions import Prepared
from shard_node.unpacking import (
    check_votes,
    decisions_of,
    groups_of,
    records_to_decide,
    records_to_post,
    records_to_prepare,
    requests_to_decide,
    requests_to_prepare,
    shares,
    transaction_ids_of,
)
from shard_node.work import RECORDS_PER_MEMBER

if TYPE_CHECKING:
    from collections.abc import Callable

    from shard_node.currencies import Currencies
    from shard_node.engine import Engine
    from shard_node.transactions import Decided
    from shard_node.unpacking import Share

LIST_DEFAULT: Final = 1_000
LIST_MAX: Final = 8_192
"""Transactions in one listing: what a sweep can finish in a second."""

TURN_INFOS_MAX: Final = 128
"""Transactions made into messages in one turn of the event loop: 2 to 4 ms."""

TURN_SORTED_MAX: Final = 4_096
"""Transactions looked at in one turn of the event loop, for the oldest: 2 ms."""

CROSSINGS_MAX: Final = 100_000
"""Legs in one listing, 6 MB: what explains a difference lies within a second."""

FINISH_IDS: Final = 1_024
"""Ids in one FINISHED record: 16 KiB of heap, which a block has room for."""

AUDIT_AGE_MAX_US: Final = 60 * SECOND_US
"""How long ago the time of an audit may be; positions are kept twice as long by the second."""

Context = Any  # grpc.aio.ServicerContext, generic in what handlers do not use


class CrossingServicer(shard_service_pb2_grpc.ShardServiceServicer):
    """The handlers for groups, two-phase commit and clearing.

    Args:
        engine: the shard, running.
        currencies: codes and numbers.
    """

    def __init__(self, engine: Engine, currencies: Currencies) -> None:
        self._engine = engine
        self._currencies = currencies

    def _check_target(self, context: Context) -> None:
        raise NotImplementedError

    async def ExecuteGroups(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.ExecuteGroupsRequest, context: Context
    ) -> shard_service_pb2.ExecuteGroupsResponse:
        """Executes groups whose accounts are all here."""
        self._check_target(context)
        groups = groups_of(request.bodies, request.metadata, self._engine.identity.shard_id)
        try:
            results = await self._engine.execute_groups(groups)
        except ShardNodeError as error:
            raise as_fault(error) from error
        return shard_service_pb2.ExecuteGroupsResponse(results=results)

    # --- two-phase commit -----------------------------------------------------------------------

    async def Prepare(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.PrepareRequest, context: Context
    ) -> shard_service_pb2.PrepareResponse:
        """Votes."""
        self._check_target(context)
        self._engine.observe(request.clock_us)
        requests = await requests_to_prepare(
            request.headers, request.members, request.metadata, self._engine.identity.shard_id
        )
        members = len(request.members) // MEMBER_BYTES
        room = self._engine.has_room(RECORDS_PER_MEMBER * members + len(requests))
        prepare = self._engine.ledger.participant.prepare_all
        votes = await self._finish_shares(
            shares(records_to_prepare(requests)),
            lambda start, end: prepare(requests[start:end], room=room),
        )
        return shard_service_pb2.PrepareResponse(votes=votes, clock_us=self._engine.clock_us)

    async def CommitHome(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.CommitHomeRequest, context: Context
    ) -> shard_service_pb2.CommitHomeResponse:
        """Decides."""
        self._check_target(context)
        self._engine.observe(request.clock_us)
        requests = await requests_to_decide(
            request.headers,
            request.members,
            request.metadata,
            self._engine.identity.shard_id,
            self._engine.clock_us,
        )
        votes = request.votes
        check_votes(votes, requests)
        some = shares(records_to_decide(requests))
        # It ends what others have prepared, so load does not refuse it; but nothing was promised
        # of the home's own part, so lack of space does.
        room = self._engine.has_space(sum(each.records for each in some))
        commit = self._engine.ledger.participant.commit_home_all
        answers = await self._finish_shares(
            some,
            lambda start, end: commit(
                requests[start:end], votes[start * VOTE_BYTES : end * VOTE_BYTES], room=room
            ),
        )
        return shard_service_pb2.CommitHomeResponse(answers=answers, clock_us=self._engine.clock_us)

    async def CommitPrepared(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.CommitPreparedRequest, context: Context
    ) -> shard_service_pb2.CommitPreparedResponse:
        """Posts what was prepared."""
        self._check_target(context)
        self._engine.observe(request.clock_us)
        decisions = request.decisions
        commit = self._engine.ledger.participant.commit_prepared_all
        await self._finish_shares(
            shares(records_to_post(decisions, self._engine.ledger.transactions)),
            lambda start, end: commit(decisions[start * DECISION_BYTES : end * DECISION_BYTES]),
        )
        return shard_service_pb2.CommitPreparedResponse(clock_us=self._engine.clock_us)

    async def AbortPrepared(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.AbortPreparedRequest, context: Context
    ) -> shard_service_pb2.AbortPreparedResponse:
        """Drops what was prepared."""
        self._check_target(context)
        decisions = decisions_of(request.transactions, "transactions")
        abort = self._engine.ledger.participant.abort
        await self._finish([partial(abort, *each) for each in decisions], [1] * len(decisions))
        return shard_service_pb2.AbortPreparedResponse()

    async def Resolve(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.ResolveRequest, context: Context
    ) -> shard_service_pb2.ResolveResponse:
        """Tells what became of transactions."""
        self._check_target(context)
        decisions = decisions_of(request.transactions, "transactions")
        resolve = self._engine.ledger.participant.resolve
        resolutions = await self._finish(
            [partial(resolve, *each) for each in decisions], [1] * len(decisions)
        )
        return shard_service_pb2.ResolveResponse(
            resolutions=resolutions, clock_us=self._engine.clock_us
        )

    async def Finish(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.FinishRequest, context: Context
    ) -> shard_service_pb2.FinishResponse:
        """Forgets decisions that are posted everywhere."""
        self._check_target(context)
        ids = transaction_ids_of(request.transaction_ids, "transaction_ids")
        some = [ids[at : at + FINISH_IDS] for at in range(0, len(ids), FINISH_IDS)]
        finish = self._engine.ledger.participant.finish
        # 16 bytes each in the heap, so they are far smaller than they are counted.
        await self._finish(
            [partial(finish, each) for each in some], [1 + FINISH_IDS // 16] * len(some)
        )
        return shard_service_pb2.FinishResponse()

    async def ListTransactions(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.ListTransactionsRequest, context: Context
    ) -> shard_service_pb2.ListTransactionsResponse:
        """Lists what is in doubt here."""
        self._check_target(context)
        if request.limit > LIST_MAX:
            raise bad_request("limit", f"must be 1 … {LIST_MAX}, or 0 for {LIST_DEFAULT}")
        if len(request.transaction_id) not in (0, TRANSACTION_ID_BYTES):
            raise bad_request("transaction_id", f"must be {TRANSACTION_ID_BYTES} bytes")
        if request.since_us < 0:
            raise bad_request("since_us", "must not be negative")
        table = self._engine.ledger.transactions
        if only := request.transaction_id:
            prepared = [table.prepared[only]] if only in table.prepared else []
            decided = [table.decided[only]] if only in table.decided else []
        else:
            prepared, decided = list(table.prepared.values()), list(table.decided.values())
        limit = request.limit or LIST_DEFAULT
        found = await _oldest([*prepared, *decided], request.since_us, limit)
        # Read first, then wait: what is decided meanwhile may be lost, and must not be told.
        await self._engine.committer.durable(self._engine.ledger.sequence)
        shard_id = self._engine.identity.shard_id
        response = shard_service_pb2.ListTransactionsResponse()
        # Only what is told becomes a message: tens of thousands may be in doubt.
        for start in range(0, len(found), TURN_INFOS_MAX):
            some = found[start : start + TURN_INFOS_MAX]
            response.transactions.extend([_info(each, shard_id) for each in some])
            await asyncio.sleep(0)
        return response

    # --- clearing -------------------------------------------------------------------------------

    async def GetClearing(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.GetClearingRequest, context: Context
    ) -> shard_service_pb2.GetClearingResponse:
        """Tells the positions as of a logical time, and what is prepared."""
        self._check_target(context)
        if request.as_of_us <= 0 or request.as_of_us % SECOND_US:
            raise bad_request("as_of_us", "must be a whole second")
        try:
            self._engine.settle_instant(request.as_of_us, "as_of_us")
        except ShardNodeError as error:
            raise as_fault(error) from error
        ledger = self._engine.ledger
        positions = ledger.clearing.at(request.as_of_us)
        if positions is None or request.as_of_us < self._engine.clock_us - AUDIT_AGE_MAX_US:
            raise Fault(
                grpc.StatusCode.FAILED_PRECONDITION,
                "that is too long ago, or before this node's latest start: ask for a later time",
                "as_of_us",
            )
        prepared = list(ledger.transactions.prepared.values())
        await self._engine.committer.durable(ledger.sequence)
        legs = [(each, leg) for each in prepared for leg in each.legs]
        shard_id = self._engine.identity.shard_id
        crossing = [(each, leg) for each, leg in legs if leg.peer != shard_id]
        codes = await self._currencies.codes(
            {pair[1] for pair in positions} | {leg.currency for _, leg in crossing}
        )
        return shard_service_pb2.GetClearingResponse(
            positions=[
                shard_service_pb2.ClearingPosition(
                    peer_shard_id=peer, currency=codes[currency], position_minor=str(position)
                )
                for (peer, currency), position in sorted(positions.items())
            ],
            prepared=[
                shard_service_pb2.PreparedLeg(
                    transaction_id=each.header.transaction_id,
                    home_shard_id=each.header.home,
                    deadline_us=each.header.deadline_us,
                    peer_shard_id=leg.peer,
                    currency=codes[leg.currency],
                    amount_minor=-leg.amount_minor if leg.incoming else leg.amount_minor,
                )
                for each, leg in crossing
            ],
        )

    async def ListCrossings(  # noqa: N802 - the contract's name
        self, request: shard_service_pb2.ListCrossingsRequest, context: Context
    ) -> shard_service_pb2.ListCrossingsResponse:
        """Lists legs that were decided in a range of time. Reads the log from there on."""
        self._check_target(context)
        if not 0 < request.after_us < request.to_us:
            raise bad_request("to_us", "must be later than after_us")
        currency = self._currencies.number(request.currency, "currency")
        log, last = self._engine.store.log, self._engine.committer.durable_sequence
        found: list[shard_service_pb2.Crossing] = []
        # A leg is posted after it was decided, or a clock was off by no more than a second.
        start = first_sequence_since(log, request.after_us - SECOND_US, last)
        for block in log.blocks(start):
            for record in records_of(block.draft):
                crossing = _crossing(record, request.peer_shard_id, currency)
                if crossing and request.after_us < crossing.decided_us <= request.to_us:
                    found.append(crossing)
            if len(found) >= CROSSINGS_MAX:
                break
            await asyncio.sleep(0)
        return shard_service_pb2.ListCrossingsResponse(crossings=found[:CROSSINGS_MAX])

    async def _finish_shares(self, some: list[Share], call: Callable[[int, int], bytes]) -> bytes:
        """As `_finish`, for a call that takes items from one up to another."""
        return await self._finish(
            [partial(call, each.start, each.end) for each in some],
            [each.records for each in some],
        )

    async def _finish(self, calls: list[Any], records: list[int]) -> bytes:
        try:
            answers = await self._engine.finish_begun(calls, records)
        except ShardNodeError as error:
            raise as_fault(error) from error
        return b"".join(each for each in answers if each)


async def _oldest(
    found: list[Prepared | Decided], since_us: int, limit: int
) -> list[Prepared | Decided]:
    """Returns the oldest, in order, so many at the most.

    Args:
        found: to choose from.
        since_us: only those that have stood so since then or before; 0 = all.
        limit: how many.
    """
    oldest: list[Prepared | Decided] = []
    for start in range(0, len(found), TURN_SORTED_MAX):
        if start:
            await asyncio.sleep(0)
        some = found[start : start + TURN_SORTED_MAX]
        if since_us:
            some = [each for each in some if each.since_us <= since_us]
        oldest = sorted((*oldest, *some), key=attrgetter("since_us"))[:limit]
    return oldest


def _info(found: Prepared | Decided, shard_id: int) -> coordinator_service_pb2.TransactionInfo:
    header = found.header
    info = coordinator_service_pb2.TransactionInfo(
        transaction_id=header.transaction_id,
        shard_id=shard_id,
        home_shard_id=header.home,
        deadline_us=header.deadline_us,
        transfer_id=found.key[:TRANSACTION_ID_BYTES],
        key_account_id=KEY_SOURCE.unpack_from(found.key, KEY_BYTES - KEY_SOURCE.size)[0],
        size=found.size,
    )
    if isinstance(found, Prepared):
        info.state = coordinator_service_pb2.TRANSACTION_STATE_PREPARED
        info.since_us = found.since_us
        info.participant_shard_ids.append(shard_id)
    else:
        info.state = coordinator_service_pb2.TRANSACTION_STATE_COMMITTED
        info.since_us = info.decided_us = found.decided_us
        info.participant_shard_ids.extend(found.participants)
    return info


def _crossing(
    record: bytes, peer_shard_id: int, currency: int
) -> shard_service_pb2.Crossing | None:
    kind = record[BODY_BYTES]
    if kind not in (RecordKind.LEG_OUTGOING, RecordKind.LEG_INCOMING):
        return None
    body, leg = MEMBER_BODY.unpack_from(record), LEG.unpack_from(record, BODY_BYTES)
    if leg[2] != peer_shard_id or body[6] != currency:
        return None
    return shard_service_pb2.Crossing(
        transaction_id=leg[7],
        group_index=body[9],
        amount_minor=-body[3] if kind == RecordKind.LEG_INCOMING else body[3],
        decided_us=leg[6],
        transfer_id=body[0],
        key_account_id=leg[8],
    )
