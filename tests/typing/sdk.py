"""What type checkers see of the SDK. Never run: mypy checks it, with everything else, strictly."""

from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime, timedelta
from typing import assert_type

import doubloon


async def asynchronous(client: doubloon.AsyncClient) -> None:
    """The asyncio client's methods."""
    transfer = doubloon.Transfer(1, 2, "GOLD", 5)
    assert_type(await client.open_account(7), doubloon.OpenAccountResult)
    assert_type(
        await client.open_accounts([doubloon.AccountSpec(7)]), list[doubloon.OpenAccountResult]
    )
    assert_type(await client.account(7), doubloon.Account)
    assert_type(await client.balance(7, "GOLD"), doubloon.Balance)
    result = await client.transfer(1, 7, "GOLD", 5, import_time=datetime(2024, 1, 1, tzinfo=UTC))
    assert_type(result, doubloon.TransferResult)
    assert_type(result.raise_for_refusal(), doubloon.TransferResult)
    assert_type(result.time, datetime | None)
    assert_type(await client.transfer_batch((transfer,)), list[doubloon.TransferResult])
    assert_type(client.entries(7), AsyncGenerator[doubloon.Entry, None])
    assert_type(await client.flows(7, window=timedelta(days=1)), doubloon.FlowsWindow)
    assert_type(await client.balance_series(7, "GOLD", to_time=5), doubloon.BalanceSeries)
    async with client as entered:
        assert_type(entered, doubloon.AsyncClient)


def plain(client: doubloon.Client, admin: doubloon.AdminClient) -> None:
    """The plain clients' methods have the asyncio ones' signatures, without the awaiting."""
    assert_type(client.open_account(7, doubloon.AccountKind.SYSTEM), doubloon.OpenAccountResult)
    result = client.transfer(1, 7, "GOLD", 5, type=doubloon.TransferType.SALE, metadata=b"m")
    assert_type(result, doubloon.TransferResult)
    assert_type(client.transfer_group([doubloon.Transfer(1, 7, "GOLD", 5)]), doubloon.GroupResult)
    assert_type(admin.audit().pairs, tuple[doubloon.ShardPairAudit, ...])
    assert_type(client.balances(7).of("GOLD"), doubloon.Balance | None)
    assert_type(client.entries(7), Iterator[doubloon.Entry])
    assert_type(client.stream_transfers([[]]), Iterator[list[doubloon.TransferResult]])
    assert_type(client.flows(7).of("GOLD").incoming_minor, int)
    assert_type(admin.currencies(), tuple[doubloon.Currency, ...])
    with client as entered:
        assert_type(entered, doubloon.Client)


def refused(client: doubloon.Client) -> None:
    """What must not pass: each line's error is expected, and mypy tells when one is missing."""
    client.transfer(1, 7, "GOLD")  # type: ignore[call-arg] # an amount is needed
    client.transfer(1, 7, "GOLD", "5")  # type: ignore[arg-type] # the amount is an int
    client.transfer(1, 7, "GOLD", 5, metadata="m")  # type: ignore[arg-type] # bytes are needed
    client.flows(7, as_of="now")  # type: ignore[arg-type] # an instant is needed
    transfer = doubloon.Transfer(1, 2, "GOLD", 5)
    transfer.amount_minor = 6  # type: ignore[misc] # it is frozen


def errors(error: doubloon.FaultError) -> None:
    """What a caught error offers."""
    assert_type(error.fault.code, doubloon.FaultCode)
    assert_type(error.transfer_id, bytes)
