"""Groups through the router: what is malformed, which way they go, and what comes back."""

import random
from typing import Any

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import GROUP_RESULT, MEMBER, MEMBER_BODY
from cluster.refusals import RefusalReason
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.groups import split_groups
from router.results import unpack_groups, write_group_results
from router.routing import Packed, Rules
from tests.support.routers import (
    TOPOLOGY,
    Call,
    Router,
    accounts_of,
    completed,
    crossing,
    group,
    router,
    transfer,
)
from tests.support.virtual_time import virtual_time

INVALID = types_pb2.FAULT_CODE_INVALID_ARGUMENT
DENIED = types_pb2.FAULT_CODE_PERMISSION_DENIED
COMPLETED = types_pb2.TRANSFER_STATUS_COMPLETED
REFUSED = types_pb2.TRANSFER_STATUS_REFUSED
FAULT = types_pb2.TRANSFER_STATUS_FAULT
RULES = Rules(TOPOLOGY, {"GOLD": 1}, allow_imports=False)
IMPORTING = Rules(TOPOLOGY, {"GOLD": 1}, allow_imports=True)
(ELSEWHERE,) = accounts_of(3, 1)


def same_as_source(item: types_pb2.Transfer) -> types_pb2.Transfer:
    item.destination_account_id = item.source_account_id
    return item


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"group_id": b""}, INVALID, "group_id"),
        ({"group_id": bytes(17)}, INVALID, "group_id"),
        ({"transfers": []}, INVALID, "transfers"),
        ({"transfers": [transfer(1, 1)] * 17}, INVALID, "transfers"),
        ({"transfers": [transfer(1, 1)]}, INVALID, "transfers[0].transfer_id"),
    ],
)
def test_a_malformed_group(changes: dict[str, Any], code: int, field: str) -> None:
    groups = [group(1, transfer(1, 1)), group(2, transfer(1, 2), **changes), group(3, crossing(3))]
    parts = split_groups(enumerate(groups), RULES, "groups")
    (fault,) = parts.answered.values()
    assert isinstance(fault, types_pb2.Fault)
    assert (fault.code, fault.field, fault.index) == (code, f"groups.{field}", 1)
    assert fault.message
    assert not fault.indefinite
    assert parts.batches[1].positions == [0]
    assert parts.crossing is not None
    assert parts.crossing.positions == [2]


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"source_account_id": 0}, INVALID, "source_account_id"),
        ({"destination_account_id": 2**63}, INVALID, "destination_account_id"),
        ({"currency": "gold"}, INVALID, "currency"),
        ({"type": 0}, INVALID, "type"),
        ({"metadata": bytes(257)}, INVALID, "metadata"),
        ({"import_time_us": -1}, INVALID, "import_time_us"),
        ({"import_time_us": 1}, DENIED, "import_time_us"),
        # What is malformed is not also judged as business, wherever in the group it stands.
        ({"type": 0, "amount_minor": 0}, INVALID, "type"),
    ],
)
def test_a_malformed_transfer_makes_its_group_malformed(
    changes: dict[str, Any], code: int, field: str
) -> None:
    wrong = group(1, crossing(1, amount_minor=0), transfer(1, 2, **changes))
    (fault,) = split_groups([(7, wrong)], RULES, "groups").answered.values()
    assert isinstance(fault, types_pb2.Fault)
    assert (fault.code, fault.field, fault.index) == (code, f"groups.transfers[1].{field}", 7)


def test_one_import_time_for_a_whole_group() -> None:
    wrong = group(1, transfer(1, 1, import_time_us=5), transfer(1, 2, import_time_us=6))
    (fault,) = split_groups([(0, wrong)], IMPORTING, "group").answered.values()
    assert isinstance(fault, types_pb2.Fault)
    assert fault.field == "group.transfers[1].import_time_us"
    right = group(1, transfer(1, 1, import_time_us=5), transfer(1, 2, import_time_us=5))
    assert not split_groups([(0, right)], IMPORTING, "group").answered


@pytest.mark.parametrize(
    ("transfers", "reason", "index"),
    [
        ([transfer(1, 1), same_as_source(transfer(1, 2))], RefusalReason.SAME_ACCOUNT, 1),
        ([crossing(1), same_as_source(transfer(3, 2))], RefusalReason.SAME_ACCOUNT, 1),
        ([transfer(1, 1, amount_minor=0)], RefusalReason.BAD_AMOUNT, 0),
        ([crossing(1, currency="DUST")], RefusalReason.UNKNOWN_CURRENCY, 0),
        # The reason that comes first, wherever it stands; of several such, the first transfer.
        (
            [
                transfer(1, 1, currency="DUST"),
                same_as_source(transfer(1, 2)),
                transfer(1, 3, amount_minor=-1),
                crossing(4, amount_minor=0),
            ],
            RefusalReason.BAD_AMOUNT,
            2,
        ),
    ],
)
def test_what_needs_no_ledger_is_refused_the_same_on_either_way(
    transfers: list[types_pb2.Transfer], reason: RefusalReason, index: int
) -> None:
    parts = split_groups([(0, group(1, *transfers))], RULES, "groups")
    assert parts.answered == {0: (REFUSED, reason, 0, 0, index, 0, 0, 0)}
    assert not parts.batches
    assert parts.crossing is None


def test_members_are_packed_with_index_size_and_shards() -> None:
    first, second = transfer(1, 1, metadata=b"one"), crossing(2, source_shard=1, metadata=b"two")
    parts = split_groups([(4, group(9, first, second))], RULES, "groups")
    assert parts.crossing is not None
    assert parts.crossing.shards == (1, 2)
    assert (parts.crossing.positions, parts.crossing.metadata) == ([4], b"onetwo")
    members = list(MEMBER.iter_unpack(parts.crossing.records))
    assert [shards for _, *shards in members] == [[1, 1], [1, 2]]
    for index, ((body, _, _), item) in enumerate(zip(members, (first, second), strict=True)):
        assert MEMBER_BODY.unpack(body) == (
            (9).to_bytes(16, "big"), item.source_account_id, item.destination_account_id,
            item.amount_minor, item.reference, 0, 1, 3, item.type, index, 2,
        )  # fmt: skip


def test_a_group_of_one_is_a_group() -> None:
    parts = split_groups([(0, group(1, transfer(2, 5)))], RULES, "groups")
    assert isinstance(parts.batches[2], Packed)
    assert MEMBER_BODY.unpack(parts.batches[2].records)[-2:] == (0, 1)


def test_results_are_written_whole() -> None:
    rows = [
        (COMPLETED, 0, 0, 1, 0, 0, 5, -6),
        (types_pb2.TRANSFER_STATUS_COMMITTED_POSTING, 0, 0, 0, 0, 0, 7, 8),
        (REFUSED, RefusalReason.INSUFFICIENT_FUNDS, 0, 0, 3, 0, 9, 10),
        (FAULT, types_pb2.FAULT_CODE_UNAVAILABLE, 0, 0, 0, 1, 0, 0),
    ]
    packed = b"".join(GROUP_RESULT.pack(*row) for row in rows)
    response = wallet.TransferGroupBatchResponse()
    write_group_results(unpack_groups(packed, [0, 1, 2, 3]), response.results.add)
    done, posting, refused, fault = response.results
    assert done == wallet.GroupResult(
        status=COMPLETED, repeat=True, time_us=5, source_balance_after_minor=-6
    )
    assert (posting.time_us, posting.HasField("refusal")) == (7, False)
    assert (int(refused.refusal.reason), refused.refused_index, refused.time_us) == (13, 3, 9)
    assert (fault.fault.code, fault.fault.index, fault.fault.indefinite) == (3, 3, True)


async def groups_of(it: Router, *groups: wallet.Group) -> list[wallet.GroupResult]:
    request = wallet.TransferGroupBatchRequest(groups=groups)
    return list((await it.wallet.TransferGroupBatch(request, Call())).results)


def done(number: int, *, repeat: bool = False) -> wallet.GroupResult:
    """What nodes and coordinators in memory make of a group that begins with transfer `number`."""
    single = completed(number, repeat=repeat)
    return wallet.GroupResult(
        status=single.status,
        repeat=single.repeat,
        time_us=single.time_us,
        source_balance_after_minor=single.source_balance_after_minor,
    )


@virtual_time
async def test_a_group_on_one_shard_never_sees_a_coordinator() -> None:
    async with router() as it:
        assert await groups_of(it, group(1, transfer(2, 5), transfer(2, 6))) == [done(5)]
        assert not it.coordinators["c1"].asked
        assert [method for method, _ in it.cluster.node(2).asked] == ["ExecuteGroups"]


@virtual_time
async def test_groups_come_back_in_request_order_over_random_ways(rng: random.Random) -> None:
    async with router() as it:
        for size in (1, 2, 60):
            groups, expected = [], []
            for number in range(1, size + 1):
                unique = rng.getrandbits(40) << 20 | number
                shards = [rng.choice(TOPOLOGY.shards) for _ in range(rng.randrange(1, 17))]
                kind = rng.choice((transfer, crossing))
                members = [
                    kind(shard, 1 + rng.getrandbits(30)) if kind is transfer else crossing(1, shard)
                    for shard in shards
                ]
                members[0].reference = members[0].amount_minor = unique
                groups.append(group(unique, *members))
                expected.append(done(unique))
            assert await groups_of(it, *groups) == expected
            assert await groups_of(it, *reversed(groups)) == [
                done(each.time_us, repeat=True) for each in reversed(expected)
            ]


@virtual_time
async def test_one_group() -> None:
    async with router() as it:
        request = wallet.TransferGroupRequest(group=group(1, crossing(5), crossing(6, 2)))
        assert (await it.wallet.TransferGroup(request, Call())).result == done(5)
        wrong = wallet.TransferGroupRequest(group=group(1, crossing(5, type=0)))
        response = await it.wallet.TransferGroup(wrong, Call())
        assert (response.result.fault.field, response.result.fault.index) == (
            "group.transfers[0].type",
            0,
        )


@pytest.mark.parametrize(("groups", "transfers"), [(0, 1), (1_025, 1), (513, 16)])
@virtual_time
async def test_a_batch_of_no_or_too_many_groups_is_refused_whole(
    groups: int, transfers: int
) -> None:
    async with router() as it:
        one = group(1, *(transfer(1, 1) for _ in range(transfers)))
        with pytest.raises(Fault) as caught:
            await groups_of(it, *[one] * groups)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert (caught.value.field, caught.value.index) == ("groups", -1)
        assert not it.cluster.node(1).asked


@virtual_time
async def test_the_largest_batch_of_groups_is_taken() -> None:
    async with router() as it:
        groups = [group(n, *(transfer(1, n) for _ in range(8))) for n in range(1, 1_025)]
        assert await groups_of(it, *groups) == [done(n) for n in range(1, 1_025)]
