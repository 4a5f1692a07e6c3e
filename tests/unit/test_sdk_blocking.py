"""The plain clients: the asyncio ones from other threads, closed cleanly."""

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import doubloon
from tests.support.wallet import FakeWallet, StandingTime, Trouble, serving
from tests.support.wallet_admin import FakeAdmin

TREASURY, ANN = 1, 7


@contextmanager
def served(wallet: FakeWallet) -> Iterator[str]:
    """Serve on a thread of its own, as another process would."""
    loop = asyncio.new_event_loop()
    ready: asyncio.Future[str] = loop.create_future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(wallet, FakeAdmin()) as address:
            ready.set_result(address)
            await stop.wait()

    def work() -> None:
        loop.run_until_complete(serve())
        loop.close()

    async def address() -> str:
        return await ready

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(address(), loop).result()
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.fixture
def wallet() -> FakeWallet:
    wallet = FakeWallet()
    wallet.open(TREASURY, floor_minor=-(10**12))
    wallet.open(ANN)
    return wallet


@pytest.fixture
def address(wallet: FakeWallet) -> Iterator[str]:
    with served(wallet) as address:
        yield address


def test_every_method(address: str) -> None:
    with doubloon.Client(address) as client:
        assert client.open_account(9).opened
        assert client.open_accounts([doubloon.AccountSpec(9)])[0].repeat
        assert client.account(9).account_id == 9
        result = client.transfer(TREASURY, ANN, "GOLD", 5, type=doubloon.TransferType.REWARD)
        assert result.completed
        batch = [doubloon.Transfer(TREASURY, ANN, "GOLD", 2) for _ in range(3)]
        assert all(each.completed for each in client.transfer_batch(batch))
        assert client.get_transfer(TREASURY, result.transfer_id).result.repeat
        assert client.balance(ANN, "GOLD").posted_minor == 11
        assert client.balances(ANN).of("GOLD") == client.balance(ANN, "GOLD")
        assert [each.amount_minor for each in client.entries(ANN, page_size=3)] == [2, 2, 2, 5]
        assert client.entries_page(ANN, page_size=3).next_page_token
        assert client.flows(ANN).of("GOLD").incoming_minor == 11
        assert client.balance_series(ANN, "GOLD").hours
        with pytest.raises(doubloon.NotFound):
            client.account(99)


@pytest.mark.parametrize("window", [1, 3])
def test_a_stream_takes_plain_iterables_in_the_callers_thread(address: str, window: int) -> None:
    threads = set()

    def source() -> Iterator[list[doubloon.Transfer]]:
        for size in (2, 1, 3, 1, 4):
            threads.add(threading.get_ident())
            yield [doubloon.Transfer(TREASURY, ANN, "GOLD", 1) for _ in range(size)]

    with doubloon.Client(address) as client:
        got = list(client.stream_transfers(source(), window=window))
    assert [len(results) for results in got] == [2, 1, 3, 1, 4]
    assert all(result.completed for results in got for result in results)
    assert threads == {threading.get_ident()}


def test_closing_does_not_wait_for_a_stream_that_is_left_alone(address: str) -> None:
    client = doubloon.Client(address)
    batches = ([doubloon.Transfer(TREASURY, ANN, "GOLD", 1)] for _ in range(9))
    stream = client.stream_transfers(batches, window=1)
    assert next(stream)[0].completed
    other = client.stream_transfers(batches, window=1)
    assert next(other)[0].completed
    client.close()
    with pytest.raises(doubloon.ClientClosed):
        next(stream)
    other.close()  # type: ignore[attr-defined] # it is a generator; leaving it raises nothing


def test_calls_that_race_with_closing_end_one_way_or_the_other(address: str) -> None:
    for _ in range(20):
        client = doubloon.Client(address)

        def call(client: doubloon.Client = client) -> bool:
            try:
                return client.transfer(TREASURY, ANN, "GOLD", 1).completed
            except doubloon.ClientClosed:
                return True

        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(call) for _ in range(4)]
            client.close()
            assert all(each.result() for each in calls)


def test_transfers_of_many_threads_gather(address: str, wallet: FakeWallet) -> None:
    with doubloon.Client(address) as client, ThreadPoolExecutor(16) as pool:

        def work(_: int) -> bool:
            return client.transfer(TREASURY, ANN, "GOLD", 1).completed

        assert all(pool.map(work, range(400)))
    assert wallet.balances[ANN, "GOLD"] == 400
    assert wallet.in_progress_max <= 4


def test_closing_waits_for_other_threads_and_ends_the_thread(
    address: str, wallet: FakeWallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    gate = asyncio.Event()
    wallet.troubles.append(Trouble(gate=gate))
    arrived = threading.Event()
    wallet.arrived = arrived  # type: ignore[assignment] # set by the service, awaited by a thread
    client = doubloon.Client(address)
    close = client._client.close
    began = threading.Event()

    async def close_and_tell() -> None:
        began.set()
        await close()

    monkeypatch.setattr(client._client, "close", close_and_tell)
    with ThreadPoolExecutor(2) as pool:
        transfer = pool.submit(client.transfer, TREASURY, ANN, "GOLD", 5)
        arrived.wait()
        closing = pool.submit(client.close)
        began.wait()
        with pytest.raises(doubloon.ClientClosed):
            client.account(ANN)
        assert not closing.done()
        gate._loop.call_soon_threadsafe(gate.set)  # type: ignore[attr-defined] # of the service
        assert transfer.result().completed
        closing.result()
    client.close()
    assert threading.active_count() == before


def test_an_operator(address: str) -> None:
    with doubloon.AdminClient(address, timing=StandingTime().timing()) as client:
        gold = client.register_currency("GOLD", scale=2)
        assert client.currencies() == (gold,)
        frozen = doubloon.AccountStatus.FROZEN
        assert client.change_account_status(ANN, frozen, "fraud").account.status is frozen
        assert client.cluster_status().etcd_connected
        assert client.process_health().role == "router"
        assert client.check_conservation().balanced


@pytest.mark.parametrize(
    ("plain", "asynchronous"),
    [
        (doubloon.Client, doubloon.AsyncClient),
        (doubloon.AdminClient, doubloon.AsyncAdminClient),
    ],
)
def test_the_plain_client_has_the_same_methods(plain: type, asynchronous: type) -> None:
    """And, but for what is iterated, the very same signatures and docstrings."""
    only_async = {"open_stream"}  # what the plain `stream_transfers` is made of
    names = {name for name in vars(asynchronous) if not name.startswith("_")} - only_async
    assert names <= set(dir(plain))
    for name in names - {"close", "stream_transfers"}:
        ours: Callable[..., Any] = getattr(plain, name)
        theirs: Callable[..., Any] = getattr(asynchronous, name)
        ours_parameters = inspect.signature(ours).parameters
        assert list(ours_parameters) == list(inspect.signature(theirs).parameters), name
        assert ours.__doc__, name
    assert inspect.signature(plain).parameters == inspect.signature(asynchronous).parameters


LEFT_OPEN = """
import sys, doubloon
client = doubloon.Client(sys.argv[1])
assert client.transfer(1, 7, "GOLD", 5).completed
print("done", flush=True)
"""


def test_a_program_that_forgets_to_close_ends_all_the_same(address: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN, address],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")
