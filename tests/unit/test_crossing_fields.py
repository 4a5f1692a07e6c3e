"""Malformed groups and transactions: each a fault that names the field, and nothing changed."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from cluster.packed import Vote
from doubloon.v1 import shard_service_pb2 as shard
from shard_node.transactions import DEADLINE_AHEAD_MAX_US
from tests.support.crossing import (
    COMMITTED,
    HEADER,
    LIFE_US,
    MEMBER,
    SECOND_US,
    VOTE,
    YES,
    Attempt,
    Move,
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
    served_crossing,
    to_decide,
)
from tests.support.engines import SHARD
from tests.support.shard_service import Served


@pytest.fixture
async def node() -> AsyncIterator[Served]:
    async with served_crossing() as it:
        yield it


def sized(body: bytes, index: int, size: int) -> bytes:
    return body[:61] + bytes([index, size]) + body[63:]


GROUP = pack_bodies(b"1" * 16, [Move(ANN, BOB, 40), Move(ANN, POOR, 5)], is_group=True)
STRANGER = pack_bodies(b"2" * 16, [Move(ANN, BOB, 40)] * 2, is_group=True)

BAD_GROUPS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"bodies": b""}, "bodies"),
    "half a body": ({"bodies": GROUP[0][:-1]}, "bodies"),
    "not a group": ({"bodies": sized(GROUP[0], 0, 0)}, "bodies"),
    "cut short": ({"bodies": GROUP[0]}, "bodies"),
    "too large": ({"bodies": b"".join(sized(GROUP[0], n, 17) for n in range(17))}, "bodies"),
    "out of order": ({"bodies": GROUP[1] + GROUP[0]}, "bodies"),
    "of two groups": ({"bodies": GROUP[0] + STRANGER[1]}, "bodies"),
    "of two sizes": ({"bodies": GROUP[0] + sized(GROUP[1], 1, 3)}, "bodies"),
    "too many": ({"bodies": sized(GROUP[0], 0, 1) * 1_025}, "bodies"),
    "metadata": ({"bodies": b"".join(GROUP), "metadata": b"m"}, "metadata"),
}


@pytest.mark.parametrize("case", BAD_GROUPS)
async def test_bad_groups(node: Served, case: str) -> None:
    fields, field = BAD_GROUPS[case]
    await refuses(node, "ExecuteGroups", shard.ExecuteGroupsRequest(**fields), field)


async def refuses(node: Served, method: str, request: Any, field: str) -> None:
    ledger = node.node.engine.ledger
    before = ledger.sequence, dict(ledger.transactions.prepared), dict(ledger.transactions.decided)
    fault = await node.fault(method, request)
    assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert not fault.indefinite
    after = ledger.sequence, dict(ledger.transactions.prepared), dict(ledger.transactions.decided)
    assert after == before
    assert node.node.fatal == []


def header(it: Attempt, **fields: int) -> bytes:
    """An attempt's header, some fields being others."""
    names = ("deadline_us", "first_source", "home", "count")
    transaction_id, *values = HEADER.unpack(it.packed(SHARD)[0])
    return HEADER.pack(
        transaction_id, *{**dict(zip(names, values, strict=True)), **fields}.values()
    )


def member(it: Attempt, **fields: int) -> bytes:
    """An attempt's first member as told here, some fields being others."""
    body, source_shard, destination_shard = MEMBER.unpack_from(it.packed(SHARD)[1])
    body = sized(body, fields.get("index", body[61]), fields.get("size", body[62]))
    shards = fields.get("source_shard", source_shard), fields.get("destination", destination_shard)
    return MEMBER.pack(body, *shards)


Wrong = Callable[[Attempt], dict[str, Any]]

BAD_TO_PREPARE: dict[str, tuple[Wrong, str]] = {
    "nothing": (lambda _: {"headers": b""}, "headers"),
    "half a header": (lambda it: {"headers": header(it)[:-1]}, "headers"),
    "no members": (lambda it: {"headers": header(it, count=0), "members": b""}, "headers"),
    "too few members": (lambda it: {"headers": header(it, count=2)}, "headers"),
    "too many in one": (
        lambda it: {"headers": header(it, count=17), "members": member(it) * 17},
        "headers",
    ),
    "members left over": (lambda it: {"members": member(it) * 2}, "members"),
    "metadata missing": (lambda _: {"metadata": b""}, "metadata"),
    "metadata left over": (lambda _: {"metadata": b"order 77"}, "metadata"),
    "home is here": (lambda it: {"headers": header(it, home=SHARD)}, "headers"),
    "home is nowhere": (lambda it: {"headers": header(it, home=0)}, "headers"),
    "no transaction id": (lambda it: {"headers": bytes(16) + header(it)[16:]}, "headers"),
    "paid from nowhere": (lambda it: {"members": member(it, source_shard=0)}, "members"),
    "an account past 63 bits": (
        lambda it: {"members": member(it)[:31] + b"\x80" + member(it)[32:]},
        "members",
    ),
    "a time past 63 bits": (lambda it: to_dict(it.with_move(0, import_us=2**63)), "members"),
    "touches others only": (lambda it: {"members": member(it, destination=9)}, "members"),
    "plain, and two of it": (
        lambda it: {
            "headers": header(it, count=2),
            "members": member(it) * 2,
            "metadata": b"order 7" * 2,
        },
        "members",
    ),
    "an index too high": (lambda it: {"members": member(it, index=1)}, "members"),
    "a size too high": (lambda it: {"members": member(it, size=17)}, "members"),
    "pays itself": (lambda it: to_dict(it.with_move(0, source=ANN)), "members"),
    "nothing to pay": (lambda it: to_dict(it.with_move(0, amount_minor=0)), "members"),
    "less than nothing": (lambda it: to_dict(it.with_move(0, amount_minor=-5)), "members"),
    "no such currency": (lambda it: to_dict(it.with_move(0, currency=0)), "members"),
    "more metadata than there may be": (
        lambda it: to_dict(it.with_move(0, metadata=b"m" * 257)),
        "metadata",
    ),
}


def to_dict(it: Attempt) -> dict[str, Any]:
    headers, members, metadata = it.packed(SHARD)
    return {
        "headers": header(it, home=8) if headers else b"",
        "members": members,
        "metadata": metadata,
    }


@pytest.mark.parametrize("case", BAD_TO_PREPARE)
async def test_bad_transactions_to_prepare(node: Served, case: str) -> None:
    wrong, field = BAD_TO_PREPARE[case]
    it = attempt(node, 1, Move(OTHER, ANN, 40, metadata=b"order 7"))
    fields = {**to_dict(it), **wrong(it)}
    await refuses(node, "Prepare", shard.PrepareRequest(**fields), field)
    assert await prepare(node, it) == [YES]


BAD_TO_DECIDE: dict[str, tuple[Wrong, str]] = {
    "no votes": (lambda _: {"votes": b""}, "votes"),
    "two votes": (lambda _: {"votes": VOTE.pack(*YES) * 2}, "votes"),
    "busy": (lambda _: {"votes": VOTE.pack(Vote.BUSY, 0, 0)}, "votes"),
    "no without a reason": (lambda _: {"votes": VOTE.pack(Vote.NO, 0, 0)}, "votes"),
    "no for no known reason": (lambda _: {"votes": VOTE.pack(Vote.NO, 99, 0)}, "votes"),
    "no about no transfer": (lambda _: {"votes": VOTE.pack(Vote.NO, 13, 2)}, "votes"),
    "home is elsewhere": (lambda it: {"headers": header(it, home=8)}, "headers"),
    "another key": (lambda it: {"headers": header(it, first_source=BOB)}, "headers"),
    "much too late a deadline": (
        lambda it: {
            "headers": header(it, deadline_us=it.deadline_us - LIFE_US + 2 * DEADLINE_AHEAD_MAX_US)
        },
        "headers",
    ),
    "not all of the group": (
        lambda it: {"headers": header(it, count=1), "members": it.packed()[1][:72]},
        "members",
    ),
    "out of order": (
        lambda it: {"members": it.packed()[1][72:] + it.packed()[1][:72]},
        "members",
    ),
    "all of it here": (lambda it: {"members": local(it)}, "members"),
    "pays somebody nowhere": (
        lambda it: {"members": it.packed()[1][:-8] + MEMBER.pack(b"", SHARD, 0)[-8:]},
        "members",
    ),
    "no transaction id": (lambda it: {"headers": bytes(16) + header(it)[16:]}, "headers"),
}


def local(it: Attempt) -> bytes:
    return b"".join(
        MEMBER.pack(body, SHARD, SHARD) for body, _, _ in MEMBER.iter_unpack(it.packed()[1])
    )


@pytest.mark.parametrize("case", BAD_TO_DECIDE)
async def test_bad_transactions_to_decide(node: Served, case: str) -> None:
    wrong, field = BAD_TO_DECIDE[case]
    it = attempt(node, 1, Move(ANN, BOB, 1), Move(ANN, OTHER, 40), is_group=True)
    good = to_decide(it)
    fields = {
        "headers": good.headers,
        "members": good.members,
        "votes": good.votes,
        **wrong(it),
    }
    await refuses(node, "CommitHome", shard.CommitHomeRequest(**fields), field)
    assert (await decide(node, it))[0][:2] == COMMITTED


async def test_shards_whose_low_byte_is_nothing_are_shards(node: Served) -> None:
    it = attempt(node, 1, Move(OTHER, ANN, 40))
    members = member(it, source_shard=0x100)
    request = shard.PrepareRequest(headers=header(it, home=0x100), members=members)
    assert (await node.call("Prepare", request)).votes == VOTE.pack(*YES)


async def test_a_decision_past_the_deadline_is_no_decision(node: Served) -> None:
    """It would stand in the clearing of a second that no audit reaches."""
    it = attempt(node, 1, Move(OTHER, ANN, 40))
    assert await prepare(node, it) == [YES]
    for late_us in (it.deadline_us, 2**63 - 1):
        late = shard.CommitPreparedRequest(decisions=decisions(it, time_us=late_us))
        await refuses(node, "CommitPrepared", late, "decisions")
    in_time = decisions(it, time_us=it.deadline_us - 1)
    await node.call("CommitPrepared", shard.CommitPreparedRequest(decisions=in_time))
    assert not node.node.engine.ledger.transactions.prepared


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("CommitPrepared", shard.CommitPreparedRequest(), "decisions"),
        ("CommitPrepared", shard.CommitPreparedRequest(decisions=bytes(23)), "decisions"),
        ("CommitPrepared", shard.CommitPreparedRequest(decisions=bytes(24)), "decisions"),
        ("CommitPrepared", shard.CommitPreparedRequest(decisions=b"1" * 24 * 8_193), "decisions"),
        ("AbortPrepared", shard.AbortPreparedRequest(), "transactions"),
        ("AbortPrepared", shard.AbortPreparedRequest(transactions=bytes(24)), "transactions"),
        ("Resolve", shard.ResolveRequest(), "transactions"),
        ("Resolve", shard.ResolveRequest(transactions=b"1" * 25), "transactions"),
        ("Finish", shard.FinishRequest(), "transaction_ids"),
        ("Finish", shard.FinishRequest(transaction_ids=bytes(17)), "transaction_ids"),
        ("Finish", shard.FinishRequest(transaction_ids=bytes(16) * 8_193), "transaction_ids"),
        ("ListTransactions", shard.ListTransactionsRequest(limit=8_193), "limit"),
        (
            "ListTransactions",
            shard.ListTransactionsRequest(transaction_id=b"short"),
            "transaction_id",
        ),
        ("ListTransactions", shard.ListTransactionsRequest(since_us=-1), "since_us"),
        ("GetClearing", shard.GetClearingRequest(), "as_of_us"),
        ("GetClearing", shard.GetClearingRequest(as_of_us=-SECOND_US), "as_of_us"),
        ("GetClearing", shard.GetClearingRequest(as_of_us=SECOND_US + 1), "as_of_us"),
        ("GetClearing", shard.GetClearingRequest(as_of_us=2**40 * SECOND_US), "as_of_us"),
        ("ListCrossings", shard.ListCrossingsRequest(after_us=2, to_us=2), "to_us"),
        (
            "ListCrossings",
            shard.ListCrossingsRequest(after_us=1, to_us=2, currency="LEAD"),
            "currency",
        ),
    ],
)
async def test_other_bad_input(node: Served, method: str, request_: Any, field: str) -> None:
    await refuses(node, method, request_, field)
