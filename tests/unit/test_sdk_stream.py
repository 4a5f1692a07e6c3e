"""Streams: many batches in flight, results in order, and nothing lost when the stream breaks."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence

import grpc
import pytest

import doubloon
from doubloon.v1 import types_pb2 as types
from tests.support.wallet import FakeWallet, StandingTime, Trouble, faulted, serving

S = grpc.StatusCode
TREASURY, ANN = 1, 7


@pytest.fixture
async def wallet() -> FakeWallet:
    wallet = FakeWallet()
    wallet.open(TREASURY, floor_minor=-(10**12))
    wallet.open(ANN)
    return wallet


@pytest.fixture
async def client(wallet: FakeWallet) -> AsyncIterator[doubloon.AsyncClient]:
    async with (
        serving(wallet) as address,
        doubloon.AsyncClient(address, timing=StandingTime().timing()) as client,
    ):
        yield client


def batches(sizes: Iterable[int]) -> list[list[doubloon.Transfer]]:
    return [[doubloon.Transfer(TREASURY, ANN, "GOLD", 1) for _ in range(size)] for size in sizes]


async def given(
    source: Sequence[Sequence[doubloon.Transfer]],
) -> AsyncIterator[Sequence[doubloon.Transfer]]:
    for batch in source:
        yield batch


def ids(source: Sequence[Sequence[doubloon.Transfer]]) -> list[list[bytes]]:
    return [[transfer.transfer_id for transfer in batch] for batch in source]


async def run(
    client: doubloon.AsyncClient, source: Sequence[Sequence[doubloon.Transfer]], window: int = 4
) -> list[list[doubloon.TransferResult]]:
    return [results async for results in client.stream_transfers(given(source), window=window)]


@pytest.mark.parametrize("window", [1, 3, 50])
async def test_results_come_in_order_over_one_stream(
    client: doubloon.AsyncClient, wallet: FakeWallet, window: int
) -> None:
    source = batches([3, 1, 5, 2, 8_192, 1])
    got = await run(client, source, window)
    assert [[result.transfer_id for result in results] for results in got] == ids(source)
    assert all(result.completed and not result.repeat for results in got for result in results)
    assert (wallet.streams, wallet.calls["TransferBatch"]) == (1, 0)


async def test_no_batches_are_no_results(client: doubloon.AsyncClient) -> None:
    assert await run(client, []) == []


async def test_what_is_in_flight_is_bounded(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    gate = asyncio.Event()
    wallet.troubles.append(Trouble(gate=gate))
    taken = []
    blocked = asyncio.Event()

    async def source() -> AsyncIterator[Sequence[doubloon.Transfer]]:
        for batch in batches([1] * 6):
            taken.append(batch)
            if len(taken) == 4:
                blocked.set()  # three in flight, and the fourth waits for room
            yield batch

    stream = client.stream_transfers(source(), window=3)
    first = asyncio.ensure_future(anext(stream))
    await blocked.wait()
    await wallet.arrived.wait()
    assert not first.done()
    assert len(taken) == 4
    gate.set()
    assert (await first)[0].completed
    assert len([results async for results in stream]) == 5


@pytest.mark.parametrize("breaks_at", [0, 1, 4])
async def test_a_broken_stream_is_settled_with_the_same_ids(
    client: doubloon.AsyncClient, wallet: FakeWallet, breaks_at: int
) -> None:
    wallet.stream_batches_max = breaks_at
    source = batches([2] * 9)
    got = await run(client, source)
    assert [[result.transfer_id for result in results] for results in got] == ids(source)
    assert all(result.completed for results in got for result in results)
    assert wallet.balances[ANN, "GOLD"] == 18
    assert wallet.calls["TransferBatch"] >= 1
    assert got[breaks_at][0].repeat  # it was executed, and its answer was lost


async def test_an_answer_that_never_comes_is_settled_otherwise(wallet: FakeWallet) -> None:
    wallet.troubles.append(Trouble(gate=asyncio.Event()))
    patience = doubloon.RetryPolicy(attempt_timeout_s=0.05)
    timing = StandingTime().timing()
    async with (
        serving(wallet) as address,
        doubloon.AsyncClient(address, retry=patience, timing=timing) as client,
    ):
        got = await run(client, batches([1, 1, 1]), window=2)
    assert [results[0].completed for results in got] == [True] * 3
    assert wallet.balances[ANN, "GOLD"] == 3


async def test_items_that_may_pass_are_asked_again_and_others_keep_their_fault(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    first, second = batches([4, 1])
    first[1] = doubloon.Transfer(TREASURY, ANN, "GOLD", 2**63)  # fits no message
    first[2] = doubloon.Transfer(TREASURY, ANN, "GOLD", 1, transfer_id=b"short")

    def item(transfer: types.Transfer) -> types.TransferResult | None:
        lost = transfer.transfer_id == first[3].transfer_id
        return faulted(types.FAULT_CODE_UNAVAILABLE, indefinite=True) if lost else None

    wallet.troubles.append(Trouble(item=item))
    got = await run(client, [first, second])
    assert [result.status.name for result in got[0]] == ["COMPLETED", "FAULT", "FAULT", "COMPLETED"]
    told = [
        (result.fault.index, result.fault.field) for result in got[0] if result.fault is not None
    ]
    assert told == [(1, "transfers.amount_minor"), (2, "transfers.transfer_id")]
    assert wallet.batches == [[first[3].transfer_id]]


async def test_a_batch_that_fits_no_message_is_not_sent(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    bad = [doubloon.Transfer(TREASURY, ANN, "GOLD", 2**63)]
    got = await run(client, [bad, *batches([1])])
    assert [results[0].status.name for results in got] == ["FAULT", "COMPLETED"]
    assert wallet.calls["StreamTransfers"] == 1


async def test_what_lasts_is_a_fault_in_each_result(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    wallet.troubles.extend([Trouble(S.UNAVAILABLE)] * 500)
    got = await run(client, batches([2, 1]))
    faults = [result.fault for results in got for result in results]
    assert all(fault is not None and fault.indefinite for fault in faults)
    assert [fault.index for fault in faults if fault is not None] == [0, 1, 0]


async def test_an_overload_that_lasts_is_definite_in_each_result(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    full = Trouble(item=lambda _: faulted(types.FAULT_CODE_RESOURCE_EXHAUSTED))
    wallet.troubles.extend([full, *[Trouble(S.RESOURCE_EXHAUSTED)] * 100])
    (results,) = await run(client, batches([2]))
    codes = [result.fault.code.name for result in results if result.fault is not None]
    assert codes == ["RESOURCE_EXHAUSTED"] * 2
    assert not any(result.fault.indefinite for result in results if result.fault is not None)


@pytest.mark.parametrize("size", [0, 8_193])
async def test_a_batch_of_a_wrong_size_ends_it_after_the_earlier_ones(
    client: doubloon.AsyncClient, size: int
) -> None:
    good = batches([1])[0]
    bad = good * size
    stream = client.stream_transfers(given([good, bad, good]))
    assert (await anext(stream))[0].completed
    with pytest.raises(doubloon.InvalidArgument, match="transfers"):
        await anext(stream)


async def test_the_sources_own_error_comes_after_the_earlier_results(
    client: doubloon.AsyncClient,
) -> None:
    async def source() -> AsyncIterator[Sequence[doubloon.Transfer]]:
        yield batches([1])[0]
        raise ZeroDivisionError

    stream = client.stream_transfers(source())
    assert (await anext(stream))[0].completed
    with pytest.raises(ZeroDivisionError):
        await anext(stream)


async def test_who_stops_early_leaves_nothing_behind(
    client: doubloon.AsyncClient, wallet: FakeWallet
) -> None:
    stream = client.stream_transfers(given(batches([1] * 50)))
    assert (await anext(stream))[0].completed
    await stream.aclose()
    # Leaving the fixture closes the client, which would wait for a stream that is still open.
    assert wallet.streams == 1


async def test_closing_the_client_ends_a_stream_that_is_left_alone(wallet: FakeWallet) -> None:
    async with serving(wallet) as address:
        client = doubloon.AsyncClient(address)
        stream = client.stream_transfers(given(batches([1] * 50)))
        assert (await anext(stream))[0].completed
        await client.close()
        with pytest.raises(doubloon.ClientClosed):
            [results async for results in stream]


async def test_a_window_is_at_least_one(client: doubloon.AsyncClient) -> None:
    with pytest.raises(doubloon.InvalidArgument, match="window"):
        await run(client, batches([1]), window=0)


async def test_random_breaks_never_lose_or_double(
    client: doubloon.AsyncClient, wallet: FakeWallet, rng: random.Random
) -> None:
    source = batches(rng.randrange(1, 20) for _ in range(40))
    for _ in range(40):
        wallet.troubles.append(
            rng.choice([Trouble(), Trouble(), Trouble(S.UNAVAILABLE, executes=True)])
        )
    got = await run(client, source)
    assert [[result.transfer_id for result in results] for results in got] == ids(source)
    assert all(result.completed for results in got for result in results)
    assert wallet.balances[ANN, "GOLD"] == sum(map(len, source))
