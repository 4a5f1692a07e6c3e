"""The asyncio client against a real gRPC server that speaks the contract and can go wrong."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest

import doubloon
from doubloon.v1 import types_pb2 as types
from tests.support.wallet import (
    HOUR_US,
    START_US,
    FakeWallet,
    StandingTime,
    Trouble,
    faulted,
    refused,
    serving,
)
from tests.support.wallet_admin import FakeAdmin

S = grpc.StatusCode
TREASURY, ANN, BOB = 1, 7, 8
IN_PAST_US = START_US - 5 * HOUR_US


@pytest.fixture
async def wallet() -> FakeWallet:
    wallet = FakeWallet()
    wallet.open(TREASURY, floor_minor=-(10**12))
    wallet.open(ANN, BOB)
    return wallet


@pytest.fixture
async def address(wallet: FakeWallet) -> AsyncIterator[str]:
    async with serving(wallet) as address:
        yield address


@pytest.fixture
async def client(address: str) -> AsyncIterator[doubloon.AsyncClient]:
    async with doubloon.AsyncClient(address, timing=StandingTime().timing()) as client:
        yield client


async def test_a_transfer_completes_and_is_found(client: doubloon.AsyncClient) -> None:
    result = await client.transfer(
        TREASURY,
        ANN,
        "GOLD",
        250,
        type=doubloon.TransferType.REWARD,
        reference=2**64 - 1,
        metadata=b"quest 9",
        import_time=datetime(2023, 11, 14, 17, 13, 20, tzinfo=UTC),
    )
    assert result.completed
    assert result.committed
    assert result.raise_for_refusal() is result
    assert result.source_balance_after_minor == -250
    assert not result.repeat
    found = await client.get_transfer(TREASURY, result.transfer_id)
    assert found.transfer == doubloon.Transfer(
        TREASURY,
        ANN,
        "GOLD",
        250,
        doubloon.TransferType.REWARD,
        2**64 - 1,
        b"quest 9",
        IN_PAST_US,
        result.transfer_id,
    )
    assert found.transfer.import_time == datetime(2023, 11, 14, 17, 13, 20, tzinfo=UTC)
    assert found.result.completed
    assert found.result.repeat
    assert found.record == doubloon.RecordName(1, 7)


async def test_the_same_id_again_is_a_repeat(client: doubloon.AsyncClient) -> None:
    first = await client.transfer(TREASURY, ANN, "GOLD", 5)
    again = await client.transfer(TREASURY, ANN, "GOLD", 5, transfer_id=first.transfer_id)
    assert again.repeat
    assert again.time_us == first.time_us


async def test_a_refusal_is_a_value_and_raises_on_request(client: doubloon.AsyncClient) -> None:
    result = await client.transfer(ANN, BOB, "GOLD", 1)
    assert result.refused
    assert not result.committed
    assert result.refusal == doubloon.Refusal(
        doubloon.RefusalReason.INSUFFICIENT_FUNDS, doubloon.RetryClass.NEW_KEY
    )
    with pytest.raises(doubloon.TransferRefused, match="INSUFFICIENT_FUNDS") as caught:
        result.raise_for_refusal()
    assert caught.value.result is result


async def test_a_refusal_that_left_no_record_is_returned_and_not_asked_again(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    result = await client.transfer(TREASURY, ANN, "RUBLE", 1)
    assert result.refusal is not None
    assert result.refusal.retry_class is doubloon.RetryClass.SAME_KEY
    assert wallet.calls["TransferBatch"] == 1


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble(S.UNAVAILABLE),
        Trouble(S.UNAVAILABLE, executes=True),
        Trouble(S.DEADLINE_EXCEEDED, executes=True),
        Trouble(S.CANCELLED, executes=True),
        Trouble(S.UNKNOWN, executes=True),
        Trouble(S.RESOURCE_EXHAUSTED),
        Trouble(item=lambda _: faulted(types.FAULT_CODE_UNAVAILABLE, indefinite=True)),
        Trouble(item=lambda _: faulted(types.FAULT_CODE_INTERNAL, indefinite=True)),
        Trouble(item=lambda _: faulted(types.FAULT_CODE_RESOURCE_EXHAUSTED)),
        Trouble(item=lambda _: types.TransferResult(status=99)),  # type: ignore[arg-type] # a number of the future
    ],
)
async def test_what_may_pass_is_asked_again_with_the_same_id(
    client: doubloon.AsyncClient, wallet: FakeWallet, trouble: Trouble
) -> None:
    wallet.troubles.extend([trouble, trouble])
    result = await client.transfer(TREASURY, ANN, "GOLD", 3)
    assert result.completed
    assert result.repeat == trouble.executes
    assert wallet.batches == [[result.transfer_id]] * 3
    assert wallet.balances[ANN, "GOLD"] == 3


async def test_an_attempt_without_an_answer_ends_at_its_own_deadline(
    address: str, wallet: FakeWallet
) -> None:
    never = asyncio.Event()
    wallet.troubles.append(Trouble(gate=never))
    patience = doubloon.RetryPolicy(attempt_timeout_s=0.05)
    async with doubloon.AsyncClient(
        address, retry=patience, timing=StandingTime().timing()
    ) as client:
        result = await client.transfer(TREASURY, ANN, "GOLD", 3)
    assert result.completed
    assert len(wallet.batches) == 2


@pytest.mark.parametrize(
    ("trouble", "raised"),
    [
        (Trouble(S.UNAVAILABLE), doubloon.Unavailable),
        (Trouble(S.RESOURCE_EXHAUSTED), doubloon.ResourceExhausted),
        (Trouble(item=lambda _: faulted(types.FAULT_CODE_UNAVAILABLE, indefinite=True)),
         doubloon.Unavailable),
        (Trouble(item=lambda _: faulted(types.FAULT_CODE_UNIMPLEMENTED)), doubloon.Unimplemented),
        (Trouble(S.PERMISSION_DENIED), doubloon.PermissionDenied),
        (Trouble(S.UNAUTHENTICATED), doubloon.Unauthenticated),
    ],
)  # fmt: skip
async def test_a_single_transfer_raises_what_lasts(
    client: doubloon.AsyncClient,
    wallet: FakeWallet,
    trouble: Trouble,
    raised: type[doubloon.FaultError],
) -> None:
    wallet.troubles.extend([trouble] * 100)
    wanted = doubloon.new_transfer_id()
    with pytest.raises(doubloon.FaultError) as caught:
        await client.transfer(TREASURY, ANN, "GOLD", 3, transfer_id=wanted)
    assert type(caught.value) is raised
    assert caught.value.transfer_id == wanted
    assert caught.value.fault.index == -1


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"amount_minor": 2**63}, "transfers.amount_minor"),
        ({"source": -1}, "transfers.source_account_id"),
        ({"destination": 2**64}, "transfers.destination_account_id"),
        ({"reference": -1}, "transfers.reference"),
        ({"metadata": "text"}, "transfers.metadata"),
        ({"currency": 7}, "transfers.currency"),
        ({"transfer_id": b"short"}, "transfers.transfer_id"),
        ({"transfer_id": "a string"}, "transfers.transfer_id"),
        ({"import_time": datetime(2024, 1, 1)}, "import_time_us"),  # noqa: DTZ001 - what is tried
    ],
)
async def test_a_bad_argument_names_its_field(
    client: doubloon.AsyncClient, wallet: FakeWallet, arguments: dict[str, object], field: str
) -> None:
    good = {"source": TREASURY, "destination": ANN, "currency": "GOLD", "amount_minor": 5}
    with pytest.raises(doubloon.InvalidArgument) as caught:
        await client.transfer(**{**good, **arguments})  # type: ignore[arg-type] # wrong on purpose
    assert caught.value.fault.field == field
    assert not wallet.records


async def test_concurrent_transfers_are_gathered(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    async def caller() -> None:
        for _ in range(5):
            assert (await client.transfer(TREASURY, ANN, "GOLD", 1)).completed

    await asyncio.gather(*(caller() for _ in range(40)))
    assert wallet.balances[ANN, "GOLD"] == 200
    assert len(wallet.batches) <= 50  # five of 40 when all keep step; never one each
    assert wallet.in_progress_max <= 4


async def test_in_a_batch_each_item_has_its_own_result(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    lost = doubloon.Transfer(TREASURY, BOB, "GOLD", 6)

    def item(transfer: types.Transfer) -> types.TransferResult | None:
        if transfer.transfer_id != lost.transfer_id:
            return None
        return faulted(types.FAULT_CODE_UNAVAILABLE, indefinite=True)

    wallet.troubles.extend([Trouble(item=item)] * 100)
    batch = [
        doubloon.Transfer(TREASURY, ANN, "GOLD", 5),
        doubloon.Transfer(TREASURY, ANN, "GOLD", 2**63),
        doubloon.Transfer(BOB, ANN, "GOLD", 5),
        lost,
        doubloon.Transfer(TREASURY, ANN, "GOLD", 7, transfer_id=b"short"),
        doubloon.Transfer(TREASURY, ANN, "GOLD", 8),
    ]
    results = await client.transfer_batch(batch)
    assert [result.transfer_id for result in results] == [each.transfer_id for each in batch]
    assert [result.status.name for result in results] == [
        "COMPLETED", "FAULT", "REFUSED", "FAULT", "FAULT", "COMPLETED",
    ]  # fmt: skip
    told = [
        (result.fault.index, result.fault.field, result.fault.indefinite)
        for result in results
        if result.fault is not None
    ]
    assert told == [
        (1, "transfers.amount_minor", False),
        (3, "", True),
        (4, "transfers.transfer_id", False),
    ]
    assert set(map(tuple, wallet.batches[1:])) == {(lost.transfer_id,)}
    assert not any(result.repeat for result in results)


async def test_a_batch_raises_only_when_nothing_of_it_happened(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    batch = [doubloon.Transfer(TREASURY, ANN, "GOLD", 5)]
    wallet.troubles.append(Trouble(S.PERMISSION_DENIED))
    with pytest.raises(doubloon.PermissionDenied):
        await client.transfer_batch(batch)
    wallet.troubles.extend([Trouble(S.UNAVAILABLE, executes=True), Trouble(S.PERMISSION_DENIED)])
    (result,) = await client.transfer_batch(batch)
    assert result.fault is not None
    assert result.fault.indefinite
    assert wallet.balances[ANN, "GOLD"] == 5


async def test_a_lost_answer_and_a_refusal_without_record_leave_doubt(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    unknown = Trouble(
        item=lambda _: refused(types.REFUSAL_REASON_UNKNOWN_CURRENCY, types.RETRY_CLASS_SAME_KEY)
    )
    wallet.troubles.extend([Trouble(S.UNAVAILABLE, executes=True), *[unknown] * 100])
    with pytest.raises(doubloon.Unavailable):
        await client.transfer(TREASURY, ANN, "GOLD", 5)
    assert wallet.balances[ANN, "GOLD"] == 5


@pytest.mark.parametrize("count", [0, 8_192])
async def test_the_sizes_of_batches(client: doubloon.AsyncClient, count: int) -> None:
    batch = [doubloon.Transfer(TREASURY, ANN, "GOLD", 1, metadata=bytes(256)) for _ in range(count)]
    assert all(result.completed for result in await client.transfer_batch(batch))


async def test_a_batch_too_long_is_not_sent(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    one = doubloon.Transfer(TREASURY, ANN, "GOLD", 1)
    with pytest.raises(doubloon.InvalidArgument, match="transfers"):
        await client.transfer_batch([one] * 8_193)
    with pytest.raises(doubloon.InvalidArgument, match="accounts"):
        await client.open_accounts([doubloon.AccountSpec(5)] * 8_193)
    assert not wallet.calls


async def test_an_answer_of_another_length_tells_nothing(
    client: doubloon.AsyncClient, wallet: FakeWallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wallet, "_execute", lambda transfers, trouble: [])
    with pytest.raises(doubloon.InternalFault, match="contract"):
        await client.transfer(TREASURY, ANN, "GOLD", 1)


async def test_accounts_are_opened_once(client: doubloon.AsyncClient, wallet: FakeWallet) -> None:
    wallet.troubles.append(Trouble(S.UNAVAILABLE, executes=True))
    opened = await client.open_account(20, doubloon.AccountKind.SYSTEM, floor_minor=-5)
    assert opened.opened
    assert opened.repeat  # the first answer was lost
    other = await client.open_account(20, doubloon.AccountKind.SYSTEM, floor_minor=-6)
    assert (other.refused, other.differing_field) == (True, "cap_minor")
    with pytest.raises(doubloon.AccountRefused, match="20"):
        other.raise_for_refusal()
    first, second = await client.open_accounts(
        [doubloon.AccountSpec(21), doubloon.AccountSpec(22, cap_minor=2**63)]
    )
    assert first.raise_for_refusal().opened
    assert second.fault is not None
    assert (second.fault.field, second.fault.index) == ("accounts.cap_minor", 1)
    with pytest.raises(doubloon.InvalidArgument, match="cap_minor"):
        await client.open_account(23, cap_minor=2**63)


async def test_an_account_is_described(client: doubloon.AsyncClient) -> None:
    account = await client.account(TREASURY)
    assert (account.kind, account.floor_minor) == (doubloon.AccountKind.SYSTEM, -(10**12))
    assert account.opened_time == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert account.status_time is None
    with pytest.raises(doubloon.NotFound) as caught:
        await client.account(99)
    assert caught.value.fault.field == "account_id"
    with pytest.raises(doubloon.InvalidArgument, match="account_id"):
        await client.account(-1)


async def test_a_question_whose_answer_was_lost_is_not_in_doubt(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    wallet.troubles.append(Trouble(S.UNAVAILABLE))
    with pytest.raises(doubloon.NotFound):
        await client.account(99)


async def test_balances_now_and_then(client: doubloon.AsyncClient) -> None:
    await client.transfer(TREASURY, ANN, "GOLD", 5)
    at = datetime(2023, 11, 14, tzinfo=UTC)
    balances = await client.balances(ANN, as_of=at)
    assert balances.as_of == at
    gold = balances.of("GOLD")
    assert gold is not None
    assert (gold.posted_minor, gold.available_minor) == (5, 5)
    assert gold.latest_entry_time is not None
    assert await client.balance(ANN, "GOLD") == gold
    never = await client.balance(TREASURY, "GEMS")
    assert never == doubloon.Balance("GEMS", 0, 0, 10**12, 0)
    assert never.latest_entry_time is None


async def test_entries_are_read_page_by_page(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    sent = [await client.transfer(TREASURY, ANN, "GOLD", amount) for amount in range(1, 8)]
    newest = [entry async for entry in client.entries(ANN, page_size=3)]
    assert [entry.amount_minor for entry in newest] == [7, 6, 5, 4, 3, 2, 1]
    assert wallet.calls["ListEntries"] == 3
    middle = client.entries(
        ANN,
        currency="GOLD",
        order=doubloon.EntryOrder.OLDEST_FIRST,
        from_time=sent[2].time,
        to_time=sent[5].time_us,
    )
    entries = [entry async for entry in middle]
    assert [entry.change_minor for entry in entries] == [3, 4, 5]
    first = entries[0]
    assert (first.counterparty, first.transfer_id) == (TREASURY, sent[2].transfer_id)
    assert first.time == sent[2].time
    assert [entry.change_minor async for entry in client.entries(TREASURY)][:2] == [-7, -6]


async def test_flows(client: doubloon.AsyncClient) -> None:
    result = await client.transfer(TREASURY, ANN, "GOLD", 5)
    window = await client.flows(ANN, currency="GOLD", as_of=result.time, window=timedelta(hours=1))
    assert window.of("GOLD") == doubloon.Flows("GOLD", 5, 0, 1, 0)
    assert window.of("GEMS") == doubloon.Flows("GEMS", 0, 0, 0, 0)
    assert window.to_time == result.time
    assert window.from_time is not None
    assert window.to_us - window.from_us == HOUR_US
    default = await client.flows(ANN)
    assert default.to_us - default.from_us == 24 * HOUR_US


async def test_a_balance_series(client: doubloon.AsyncClient) -> None:
    await client.transfer(TREASURY, ANN, "GOLD", 5)
    series = await client.balance_series(
        ANN, "GOLD", from_time=IN_PAST_US, to_time=datetime(2023, 11, 14, 19, 0, tzinfo=UTC)
    )
    assert [point.hour_start for point in series.hours] == [
        datetime(2023, 11, 14, hour, tzinfo=UTC) for hour in (17, 18, 19)
    ]
    assert series.hours[0] == doubloon.HourPoint(series.hours[0].hour_start_us, 5, 3, 0)
    assert series.to_time == datetime(2023, 11, 14, 19, 0, tzinfo=UTC)
    assert series.opening_balance_minor == 1


async def test_a_router_that_is_away_is_left_for_the_next(wallet: FakeWallet) -> None:
    async with serving(FakeWallet()) as gone:
        pass
    async with serving(wallet) as here:
        timing = StandingTime().timing(random=lambda: 0.0)  # begins with the first address
        async with doubloon.AsyncClient([gone, here], timing=timing) as client:
            assert (await client.transfer(TREASURY, ANN, "GOLD", 5)).completed
            assert (await client.transfer(TREASURY, ANN, "GOLD", 5)).completed
    assert wallet.calls["TransferBatch"] == 2


@pytest.mark.parametrize("addresses", ["", [], ["a:1", ""]])
def test_addresses_are_needed(addresses: str | list[str]) -> None:
    with pytest.raises(doubloon.InvalidArgument, match="addresses"):
        doubloon.AsyncClient(addresses)


async def test_closing_waits_for_calls_in_progress(address: str, wallet: FakeWallet) -> None:
    gate = asyncio.Event()
    wallet.troubles.extend([Trouble(gate=gate), Trouble(gate=gate)])
    client = doubloon.AsyncClient(address)
    transfer = asyncio.create_task(client.transfer(TREASURY, ANN, "GOLD", 5))
    await wallet.arrived.wait()
    wallet.arrived.clear()
    question = asyncio.create_task(client.account(ANN))
    await wallet.arrived.wait()
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0)
    with pytest.raises(doubloon.ClientClosed):
        await client.transfer(TREASURY, ANN, "GOLD", 5)
    gate.set()
    assert (await transfer).completed
    assert (await question).account_id == ANN
    await closing
    with pytest.raises(doubloon.ClientClosed):
        await client.account(ANN)
    await client.close()  # again is nothing


async def test_closing_waits_for_a_question(address: str, wallet: FakeWallet) -> None:
    gate = asyncio.Event()
    wallet.troubles.append(Trouble(gate=gate))
    client = doubloon.AsyncClient(address)
    question = asyncio.create_task(client.account(ANN))
    await wallet.arrived.wait()
    closing = asyncio.create_task(client.close())
    for _ in range(10):
        await asyncio.sleep(0)
    assert not closing.done()
    gate.set()
    assert (await question).account_id == ANN
    await closing


async def test_an_operator(wallet: FakeWallet) -> None:
    admin = FakeAdmin()
    async with (
        serving(wallet, admin) as address,
        doubloon.AsyncAdminClient(address, timing=StandingTime().timing()) as client,
    ):
        gold = await client.register_currency("GOLD", scale=2, name="gold")
        assert gold == doubloon.Currency("GOLD", 1, 2, "gold")
        assert await client.currencies() == (gold,)
        with pytest.raises(doubloon.AlreadyExists):
            await client.register_currency("GOLD", scale=3)
        change = await client.change_account_status(ANN, doubloon.AccountStatus.FROZEN, "fraud")
        assert (change.account.status_reason, change.repeat) == ("fraud", False)
        status = await client.cluster_status()
        assert (status.topology_version, status.shards[0].log_syncs) == (3, 9)
        assert status.members[0].started is not None
        health = await client.process_health()
        assert not health.healthy
        report = await client.check_conservation()
        assert (report.books[0].positive_minor, report.balanced) == (2**70, True)
        assert report.books[0].clearing_minor == -3
        admin.troubles.append(Trouble(S.UNAVAILABLE, executes=True))
        admin.troubles.append(Trouble(S.PERMISSION_DENIED))
        with pytest.raises(doubloon.Unavailable):  # it may be registered: it is
            await client.register_currency("GEMS")
        assert "GEMS" in admin.currencies
