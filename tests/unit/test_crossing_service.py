"""The handlers for groups, two-phase commit and clearing, over a real gRPC server."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from cluster.packed import Fate, Vote
from cluster.refusals import RefusalReason
from doubloon.v1 import coordinator_service_pb2 as coordinator
from doubloon.v1 import shard_service_pb2 as shard
from doubloon.v1 import types_pb2, wallet_service_pb2
from shard_node import crossing
from shard_node.limits import Limits
from shard_node.records import BLOCK_BYTES_MAX, HASH_BYTES, HEADER_BYTES
from tests.support.crossing import (
    COMMITTED,
    LIFE_US,
    NOTHING,
    REFUSED,
    RESULT,
    SECOND_US,
    VOTE,
    YES,
    GroupResult,
    Move,
    no,
    pack_bodies,
)
from tests.support.crossing_service import (
    ANN,
    BOB,
    OTHER,
    POOR,
    attempt,
    decide,
    decisions,
    prepare,
    resolve,
    served_crossing,
    to_decide,
    to_prepare,
)
from tests.support.engines import FLOOR_MINOR, SHARD
from tests.support.shard_service import Served


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    async with served_crossing() as it:
        yield it


async def listed(node: Served, **fields: Any) -> list[coordinator.TransactionInfo]:
    answer = await node.call("ListTransactions", shard.ListTransactionsRequest(**fields))
    return list(answer.transactions)


async def balance(node: Served, account_id: int) -> wallet_service_pb2.Balance | None:
    request = wallet_service_pb2.GetBalancesRequest(account_id=account_id)
    balances = (await node.call("GetBalances", request)).balances
    return balances[0] if balances else None


async def test_a_participant(node: Served) -> None:
    paid = attempt(node, 1, Move(OTHER, ANN, 40, metadata=b"order 7"))
    pays = attempt(node, 2, Move(OTHER, BOB, 1), Move(ANN, OTHER, 9), is_group=True)
    poor = attempt(node, 3, Move(OTHER, BOB, 1), Move(POOR, OTHER, 1), is_group=True)
    votes = await prepare(node, paid, pays, poor)
    assert votes == [YES, YES, no(RefusalReason.INSUFFICIENT_FUNDS, 1)]
    infos = await listed(node)
    assert [(each.transaction_id, each.size) for each in infos] == [
        (paid.transaction_id, 1),
        (pays.transaction_id, 2),
    ]
    assert [infos[0].home_shard_id, infos[0].shard_id, infos[0].key_account_id] == [8, SHARD, OTHER]
    assert (infos[0].transfer_id, infos[0].deadline_us) == (paid.transfer_id, paid.deadline_us)
    decided_us = node.node.engine.clock_us
    request = shard.CommitPreparedRequest(decisions=decisions(paid, time_us=decided_us))
    await node.call("CommitPrepared", request)
    await node.call("CommitPrepared", request)
    held = await balance(node, ANN)
    assert held is not None
    assert held.posted_minor == 40
    assert held.reserved_minor == 9
    await node.call("AbortPrepared", shard.AbortPreparedRequest(transactions=decisions(pays)))
    held = await balance(node, ANN)
    assert held is not None
    assert (held.posted_minor, held.reserved_minor) == (40, 0)
    assert await listed(node) == []
    assert await prepare(node, paid, pays) == [(Vote.LATE, 0, 0)] * 2
    entry = (
        await node.call("ListEntries", wallet_service_pb2.ListEntriesRequest(account_id=ANN))
    ).entries[0]
    assert (entry.transfer_id, entry.key_account_id) == (paid.transfer_id, OTHER)
    assert (entry.counterparty_account_id, entry.metadata) == (OTHER, b"order 7")
    assert (entry.decided_time_us, entry.group_size) == (decided_us, 0)


async def test_a_home(node: Served) -> None:
    sale = attempt(node, 1, Move(ANN, BOB, 40), Move(ANN, OTHER, 5), is_group=True)
    refused = attempt(node, 2, Move(ANN, OTHER, 7))
    votes = VOTE.pack(*YES) + VOTE.pack(*no(RefusalReason.DESTINATION_UNKNOWN))
    said = await decide(node, sale, refused, votes=votes)
    assert [each[:3] for each in said] == [
        (*COMMITTED, 0),
        (*REFUSED, RefusalReason.DESTINATION_UNKNOWN),
    ]
    assert said[0].balance_minor == -45
    transfer = wallet_service_pb2.GetTransferRequest(
        source_account_id=ANN, transfer_id=sale.transfer_id
    )
    found = await node.call("GetTransfer", transfer)
    assert found.result.status == types_pb2.TRANSFER_STATUS_COMMITTED_POSTING
    assert found.result.source_balance_after_minor == -45
    (info,) = await listed(node)
    assert info.state == coordinator.TRANSACTION_STATE_COMMITTED
    assert list(info.participant_shard_ids) == [8]
    assert info.decided_us == info.since_us == said[0].decided_us
    assert await resolve(node, sale, refused) == [Fate.COMMITTED, Fate.UNDECIDED]
    await node.call("Finish", shard.FinishRequest(transaction_ids=sale.transaction_id))
    assert await listed(node) == []
    found = await node.call("GetTransfer", transfer)
    assert found.result.status == types_pb2.TRANSFER_STATUS_COMPLETED
    entries = (
        await node.call("ListEntries", wallet_service_pb2.ListEntriesRequest(account_id=ANN))
    ).entries
    assert [(each.group_index, each.group_size) for each in entries] == [(1, 2), (0, 2)]
    assert {each.key_account_id for each in entries} == {ANN}


async def test_groups_here(node: Served) -> None:
    one = pack_bodies(b"1" * 16, [Move(ANN, BOB, 40), Move(ANN, POOR, 5)], is_group=True)
    two = pack_bodies(b"2" * 16, [Move(POOR, BOB, 4), Move(POOR, ANN, 2)], is_group=True)
    bodies = b"".join([*one, *two, *one])
    answer = await node.call("ExecuteGroups", shard.ExecuteGroupsRequest(bodies=bodies))
    results = [GroupResult(*each) for each in RESULT.iter_unpack(answer.results)]
    assert [(each.status, each.reason, each.refused_at, each.repeat) for each in results] == [
        (1, 0, 0, 0),
        (3, RefusalReason.INSUFFICIENT_FUNDS, 1, 0),
        (1, 0, 0, 1),
    ]
    name = wallet_service_pb2.GetTransferRequest(source_account_id=POOR, transfer_id=b"2" * 16)
    found = await node.call("GetTransfer", name)
    assert found.result.refusal.reason == types_pb2.REFUSAL_REASON_INSUFFICIENT_FUNDS


async def test_clearing_tells_positions_and_what_is_prepared(node: Served) -> None:
    paid = attempt(node, 1, Move(OTHER, ANN, 40))
    assert await prepare(node, paid) == [YES]
    assert (await decide(node, attempt(node, 2, Move(ANN, OTHER, 7))))[0][:2] == COMMITTED
    clock_us = node.node.engine.clock_us
    as_of_us = clock_us - clock_us % SECOND_US + SECOND_US
    node.node.wall.advance(2 * SECOND_US)
    request = shard.GetClearingRequest(as_of_us=as_of_us)
    answer = await node.call("GetClearing", request)
    (position,) = answer.positions
    assert (position.peer_shard_id, position.currency, position.position_minor) == (8, "GOLD", "7")
    (leg,) = answer.prepared
    assert (leg.transaction_id, leg.home_shard_id) == (paid.transaction_id, 8)
    assert (leg.peer_shard_id, leg.currency, leg.amount_minor) == (8, "GOLD", -40)
    wanted = shard.ListCrossingsRequest(
        peer_shard_id=8, currency="GOLD", after_us=clock_us - 1, to_us=as_of_us
    )
    crossings = await node.call("ListCrossings", wanted)
    (crossing,) = crossings.crossings
    assert (crossing.amount_minor, crossing.key_account_id) == (7, ANN)
    node.node.wall.advance(100 * SECOND_US)
    await node.node.open(99)
    assert (await node.fault("GetClearing", request)).code is grpc.StatusCode.FAILED_PRECONDITION


async def test_answers_stand_in_the_order_of_what_was_asked(node: Served) -> None:
    """Also when a call is far more than fits one turn, and blocks stay within their bound."""
    count = 8_192
    amounts = [1 if number % 3 else 2 * -FLOOR_MINOR for number in range(count)]
    asked = [attempt(node, 1 + n, Move(ANN, OTHER, amount)) for n, amount in enumerate(amounts)]
    said = await decide(node, *asked)
    wanted = [COMMITTED if amount == 1 else REFUSED for amount in amounts]
    assert [each[:2] for each in said] == wanted
    committed = [each for each, fate in zip(asked, wanted, strict=True) if fate == COMMITTED]
    fates = await resolve(node, *asked[:100])
    assert fates == [Fate.COMMITTED if each == COMMITTED else 0 for each in wanted[:100]]
    ids = b"".join(each.transaction_id for each in asked)
    await node.call("Finish", shard.FinishRequest(transaction_ids=ids))
    assert await listed(node) == []
    votes = await prepare(
        node,
        *(
            attempt(node, 10_000 + n, Move(OTHER, BOB, 1, metadata=b"m" * 256))
            for n in range(len(committed[:1_000]))
        ),
    )
    assert votes == [YES] * 1_000
    overhead_bytes = HEADER_BYTES + HASH_BYTES
    for block in node.node.log.blocks(1):
        draft = block.draft
        assert overhead_bytes + len(draft.records) + len(draft.heap) <= BLOCK_BYTES_MAX


async def test_admission_refuses_new_work_and_lets_pass_what_finishes_old(node: Served) -> None:
    one = attempt(node, 1, Move(OTHER, ANN, 1))
    two = attempt(node, 2, Move(OTHER, ANN, 1))
    assert await prepare(node, one, two) == [YES, YES]
    home = attempt(node, 3, Move(BOB, OTHER, 1))
    node.node.engine.limits = Limits(queue_transfers_max=0)
    assert await prepare(node, attempt(node, 4, Move(OTHER, ANN, 1))) == [(Vote.BUSY, 0, 0)]
    assert await prepare(node, one) == [YES]
    group = b"".join(pack_bodies(b"1" * 16, [Move(ANN, BOB, 40)], is_group=True))
    fault = await node.fault("ExecuteGroups", shard.ExecuteGroupsRequest(bodies=group))
    assert fault.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not fault.indefinite
    decided = decisions(one, time_us=one.deadline_us - 1)
    await node.call("CommitPrepared", shard.CommitPreparedRequest(decisions=decided))
    await node.call("AbortPrepared", shard.AbortPreparedRequest(transactions=decisions(two)))
    assert (await decide(node, home))[0][:2] == COMMITTED
    assert await resolve(node, home) == [Fate.COMMITTED]
    await node.call("Finish", shard.FinishRequest(transaction_ids=home.transaction_id))
    assert await listed(node) == []


async def test_listing_takes_the_oldest_and_those_that_are_asked_for(node: Served) -> None:
    for number in (3, 2, 1):
        node.node.wall.advance(1_000)
        assert await prepare(node, attempt(node, number, Move(OTHER, ANN, 1))) == [YES]
    found = await listed(node)
    assert [each.transaction_id[-1] for each in found] == [3, 2, 1]
    assert await listed(node, limit=2) == found[:2]
    assert await listed(node, since_us=found[1].since_us) == found[:2]
    assert await listed(node, transaction_id=found[2].transaction_id) == found[2:]
    assert await listed(node, transaction_id=bytes(16)) == []


async def test_only_what_a_listing_tells_becomes_messages(
    node: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tens of thousands may be in doubt, and a sweep asks for a few of them every second."""
    made: list[object] = []
    real = crossing._info

    def count(found: Any, shard_id: int) -> coordinator.TransactionInfo:
        made.append(found)
        return real(found, shard_id)

    monkeypatch.setattr(crossing, "_info", count)
    attempts = [attempt(node, number, Move(OTHER, ANN, 1)) for number in range(1, 10)]
    assert await prepare(node, *attempts) == [YES] * 9
    assert len(await listed(node, limit=2)) == 2
    assert len(made) == 2


async def test_clocks_are_observed_within_bounds(node: Served) -> None:
    engine = node.node.engine
    it = attempt(node, 1, Move(OTHER, ANN, 1))
    ahead_us = engine.clock_us + SECOND_US // 2
    request = to_prepare(it)
    request.clock_us = ahead_us
    assert (await node.call("Prepare", request)).clock_us > ahead_us
    request.clock_us = ahead_us + 3_600 * SECOND_US
    await node.call("Prepare", request)
    assert engine.clock_us < ahead_us + SECOND_US


GROUP = pack_bodies(b"1" * 16, [Move(ANN, BOB, 40), Move(ANN, POOR, 5)], is_group=True)


async def test_another_shards_calls_are_refused(node: Served) -> None:
    it = attempt(node, 1, Move(OTHER, ANN, 1))
    elsewhere = (("doubloon-shard", "8"), ("doubloon-topology-version", "1"))
    for method, request in (
        ("ExecuteGroups", shard.ExecuteGroupsRequest(bodies=b"".join(GROUP))),
        ("Prepare", to_prepare(it)),
        ("CommitHome", to_decide(it)),
        ("CommitPrepared", shard.CommitPreparedRequest(decisions=decisions(it))),
        ("AbortPrepared", shard.AbortPreparedRequest(transactions=decisions(it))),
        ("Resolve", shard.ResolveRequest(transactions=decisions(it))),
        ("Finish", shard.FinishRequest(transaction_ids=it.transaction_id)),
        ("ListTransactions", shard.ListTransactionsRequest()),
        ("GetClearing", shard.GetClearingRequest(as_of_us=SECOND_US)),
        ("ListCrossings", shard.ListCrossingsRequest(after_us=1, to_us=2)),
    ):
        fault = await node.fault(method, request, elsewhere)
        assert fault.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (await decide(node, attempt(node, 2, Move(POOR, OTHER, 1))))[0][:2] == REFUSED


async def test_what_a_fault_says_of_a_call_is_cut_short(node: Served) -> None:
    """The fault goes out in metadata, too, which has a bound of its own."""
    for shard_id, version in (("7" * 9_000, "1"), ("1", "9" * 9_000)):
        target = (("doubloon-shard", shard_id), ("doubloon-topology-version", version))
        fault = await node.fault("ListTransactions", shard.ListTransactionsRequest(), target)
        assert fault.code is grpc.StatusCode.FAILED_PRECONDITION
        assert len(fault.message) < 200


async def test_late_answers_over_the_wire(node: Served) -> None:
    it = attempt(node, 1, Move(ANN, OTHER, 1))
    node.node.wall.advance(LIFE_US + SECOND_US)
    assert await resolve(node, it) == [Fate.ABORTED]
    assert (await decide(node, it))[0][:2] == NOTHING
