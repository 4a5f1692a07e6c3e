"""Groups and audits, from the SDK's side, against a real gRPC server that can go wrong."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest

import doubloon
from doubloon.v1 import types_pb2 as types
from doubloon.v1 import wallet_service_pb2 as pb
from tests.support.wallet import START_US, FakeWallet, StandingTime, Trouble, faulted, serving
from tests.support.wallet_admin import FakeAdmin

S = grpc.StatusCode
TREASURY, ANN, BOB, HOUSE = 1, 7, 8, 9


@pytest.fixture
async def wallet() -> FakeWallet:
    wallet = FakeWallet()
    wallet.open(TREASURY, floor_minor=-(10**12))
    wallet.open(ANN, BOB, HOUSE)
    return wallet


@pytest.fixture
async def client(wallet: FakeWallet) -> AsyncIterator[doubloon.AsyncClient]:
    async with (
        serving(wallet) as address,
        doubloon.AsyncClient(address, timing=StandingTime().timing()) as client,
    ):
        yield client


def sale(price: int = 100, fee: int = 5) -> list[doubloon.Transfer]:
    kind = doubloon.TransferType
    return [
        doubloon.Transfer(TREASURY, BOB, "GOLD", price, kind.SALE),
        doubloon.Transfer(BOB, HOUSE, "GOLD", fee, kind.FEE, metadata=b"fee"),
    ]


async def test_a_group_happens_whole_and_its_entries_name_it(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    result = await client.transfer_group(sale())
    assert result.completed
    assert result.committed
    assert not result.repeat
    assert result.raise_for_refusal() is result
    assert result.source_balance_after_minor == -100
    assert result.time is not None
    assert wallet.balances[BOB, "GOLD"] == 95
    fee, price = [entry async for entry in client.entries(BOB)]
    assert {fee.transfer_id, price.transfer_id} == {result.group_id}
    assert (price.key_account_id, price.group_index, price.group_size) == (TREASURY, 0, 2)
    assert (fee.group_index, fee.group_size, fee.metadata) == (1, 2, b"fee")
    single = await client.transfer(TREASURY, ANN, "GOLD", 5)
    (entry,) = [entry async for entry in client.entries(ANN)]
    assert (entry.transfer_id, entry.group_size) == (single.transfer_id, 0)


async def test_the_same_group_again_is_a_repeat(client: doubloon.AsyncClient) -> None:
    first = await client.transfer_group(sale())
    again = await client.transfer_group(sale(), group_id=first.group_id)
    assert again.repeat
    assert again.time_us == first.time_us


async def test_a_refusal_names_the_transfer_and_nothing_moves(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    result = await client.transfer_group(sale(price=3, fee=5))
    assert result.refused
    assert not result.committed
    assert result.refused_index == 1
    assert wallet.balances[BOB, "GOLD"] == 0
    with pytest.raises(
        doubloon.GroupRefused, match="transfer 1 of the group: INSUFFICIENT_FUNDS"
    ) as caught:
        result.raise_for_refusal()
    assert caught.value.result is result


def group_fault(*, indefinite: bool) -> pb.GroupResult:
    fault = faulted(types.FAULT_CODE_UNAVAILABLE, indefinite=indefinite).fault
    return pb.GroupResult(status=types.TRANSFER_STATUS_FAULT, fault=fault)


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(S.UNAVAILABLE),
        Trouble(S.UNAVAILABLE, executes=True),
        Trouble(S.RESOURCE_EXHAUSTED),
        Trouble(group=lambda _: group_fault(indefinite=True)),
        Trouble(group=lambda _: group_fault(indefinite=False)),
        Trouble(group=lambda _: pb.GroupResult(status=99)),  # type: ignore[arg-type] # a number of the future
    ],
)
async def test_what_may_pass_is_asked_again_with_the_same_id(
    client: doubloon.AsyncClient, wallet: FakeWallet, trouble: Trouble
) -> None:
    wallet.troubles.extend([trouble, trouble])
    result = await client.transfer_group(sale())
    assert result.completed
    assert result.repeat == trouble.executes
    assert wallet.batches == [[result.group_id]] * 3
    assert wallet.balances[HOUSE, "GOLD"] == 5


@pytest.mark.parametrize(
    ("trouble", "raised"),
    [
        (Trouble(S.UNAVAILABLE), doubloon.Unavailable),
        (Trouble(S.PERMISSION_DENIED), doubloon.PermissionDenied),
        (Trouble(group=lambda _: group_fault(indefinite=True)), doubloon.Unavailable),
    ],
)
async def test_what_lasts_is_raised_with_the_groups_id(
    client: doubloon.AsyncClient,
    wallet: FakeWallet,
    trouble: Trouble,
    raised: type[doubloon.FaultError],
) -> None:
    wallet.troubles.extend([trouble] * 100)
    wanted = doubloon.new_transfer_id()
    with pytest.raises(doubloon.FaultError) as caught:
        await client.transfer_group(sale(), group_id=wanted)
    assert type(caught.value) is raised
    assert caught.value.transfer_id == wanted
    assert caught.value.fault.index == -1


async def test_in_a_batch_each_group_has_its_own_result(client: doubloon.AsyncClient) -> None:
    misfit = doubloon.Transfer(BOB, HOUSE, "GOLD", 2**63)
    batch = [
        doubloon.Group(sale()),
        doubloon.Group([*sale(), misfit]),
        doubloon.Group(sale(), b"short"),
        doubloon.Group(sale(), "text"),  # type: ignore[arg-type] # wrong on purpose
        doubloon.Group([]),
        doubloon.Group(sale(1, 2)),
    ]
    results = await client.transfer_group_batch(batch)
    assert [result.group_id for result in results] == [group.group_id for group in batch]
    assert [result.status.name for result in results] == [
        "COMPLETED", "FAULT", "FAULT", "FAULT", "FAULT", "COMPLETED",
    ]  # fmt: skip
    assert [(one.fault.index, one.fault.field) for one in results if one.fault is not None] == [
        (1, "groups.transfers[2].amount_minor"),
        (2, "groups.group_id"),
        (3, "groups.group_id"),
        (4, "groups.transfers"),
    ]


async def test_batches_of_groups_have_bounds(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    assert await client.transfer_group_batch([]) == []
    for groups in ([doubloon.Group(sale())] * 1_025, [doubloon.Group(sale() * 8)] * 513):
        with pytest.raises(doubloon.InvalidArgument, match="groups"):
            await client.transfer_group_batch(groups)
    assert not wallet.calls
    many = [doubloon.Group(sale() * 4) for _ in range(1_024)]
    assert all(result.completed for result in await client.transfer_group_batch(many))


def test_plain_code_has_groups_as_well() -> None:
    group = doubloon.Group(sale())
    assert len(group.group_id) == 16
    assert doubloon.Group(sale()).group_id > group.group_id
    assert doubloon.Client.transfer_group.__doc__ == doubloon.AsyncClient.transfer_group.__doc__


async def test_what_operators_ask_about_what_crosses(wallet: FakeWallet) -> None:
    admin = FakeAdmin()
    async with (
        serving(wallet, admin) as address,
        doubloon.AsyncAdminClient(address, timing=StandingTime().timing()) as client,
    ):
        report = await client.audit()
        assert (report.as_of_us, report.in_doubt, report.balanced) == (START_US, 4, False)
        (pair,) = report.pairs
        assert (pair.position_minor, pair.peer_position_minor) == (2**70, 5 - 2**70)
        assert (pair.unposted_minor, pair.differing_transaction_ids) == (7, (bytes(16),))
        at = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        assert (await client.audit(at)).as_of == at
        seen = await client.in_doubt(older_than=timedelta(seconds=2), transaction_id=b"x" * 16)
        assert (seen.unreachable_shard_ids, seen.is_nothing) == ((4,), False)
        (info,) = seen.transactions
        assert (info.transaction_id, info.since_us) == (b"x" * 16, START_US - 2_000_000)
        assert info.state is doubloon.TransactionState.PREPARED
        assert (info.home_shard_id, info.participant_shard_ids) == (1, (2, 3))
        assert info.since is not None
        fate = await client.resolve_transaction(bytes(16))
        assert fate is doubloon.TransactionFate.ABORTED
        # An answer that was lost may have been the one that resolved it.
        admin.troubles.extend([Trouble(S.UNAVAILABLE), Trouble(S.NOT_FOUND)])
        with pytest.raises(doubloon.Unavailable):
            await client.resolve_transaction(bytes(16))
