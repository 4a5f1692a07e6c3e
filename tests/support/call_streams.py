"""A server behind call streams, and a channel to it whose small calls share one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from cluster import call_streams, rpc
from cluster.faults import Fault
from doubloon.call_stream import StreamedChannel
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from doubloon.v1.wallet_service_pb2_grpc import (
    WalletServiceServicer,
    WalletServiceStub,
    add_WalletServiceServicer_to_server,
)

# Ample for anything that happens at all; no test waits for it to pass.
AMPLE_S = 20.0
SERVICE = "doubloon.v1.WalletService"
GET_ACCOUNT = f"/{SERVICE}/GetAccount"

Handler = Callable[[int, Any], Awaitable[None]]


async def at_once(_account_id: int, _context: object) -> None:
    """Answer."""


@dataclass
class Wallet(WalletServiceServicer):
    """Answers with the account asked for, once `before` has returned."""

    before: Handler = at_once
    began: list[int] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetAccount(  # noqa: N802 - the contract's name
        self, request: wallet.GetAccountRequest, context: Any
    ) -> wallet.GetAccountResponse:
        self.began.append(request.account_id)
        self.contexts.append(context)
        self.changed.set()
        try:
            await self.before(request.account_id, context)
        except asyncio.CancelledError:
            self.cancelled.append(request.account_id)
            self.changed.set()
            raise
        return wallet.GetAccountResponse(account=types_pb2.Account(account_id=request.account_id))

    async def TransferBatch(  # noqa: N802 - the contract's name
        self, request: wallet.TransferBatchRequest, context: Any
    ) -> wallet.TransferBatchResponse:
        self.contexts.append(context)
        return wallet.TransferBatchResponse(
            results=[types_pb2.TransferResult(time_us=len(request.transfers))]
        )

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so of what was called."""
        while not true():
            self.changed.clear()
            await self.changed.wait()


@dataclass
class Site:
    """A server, and a channel to it whose small calls share a stream."""

    wallet: Wallet
    server: rpc.RpcServer
    address: str
    inner: grpc.aio.Channel
    channel: StreamedChannel
    errors: list[Exception]

    @property
    def stub(self) -> Any:
        return WalletServiceStub(self.channel)

    async def ask(self, account_id: int, timeout_s: float | None = AMPLE_S, **options: Any) -> int:
        request = wallet.GetAccountRequest(account_id=account_id)
        response = await self.stub.GetAccount(request, timeout=timeout_s, **options)
        found: int = response.account.account_id
        return found

    def is_streamed(self) -> list[bool]:
        return [isinstance(each, call_streams.CallContext) for each in self.wallet.contexts]


class StatusLost:
    """A channel whose streams end as gRPC ends them when a write meets the end of one.

    The true status is lost then (grpc/grpc#36066). Which of the two comes first is chance; here it
    is always the write.
    """

    def __init__(self, inner: grpc.aio.Channel) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        method: Any = self._inner.stream_stream(*args, **options)
        return lambda: _StatusLost(method())


class _StatusLost:
    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def read(self) -> Any:
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            none = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.INTERNAL, none, none, "Internal error from Core"
            ) from error


@asynccontextmanager
async def site(*, calls_max: int = 100, apart: tuple[str, ...] = ()) -> AsyncIterator[Site]:
    errors: list[Exception] = []
    server = await rpc.server([SERVICE], concurrent_rpcs_max=calls_max, on_error=errors.append)
    servicer = Wallet()  # type: ignore[abstract] # what it lacks is not called
    add_WalletServiceServicer_to_server(servicer, server.grpc_server)
    address = await server.serve("127.0.0.1:0")
    inner = rpc.channel(address)
    async with StreamedChannel(inner, apart) as channel:
        try:
            yield Site(servicer, server, address, inner, channel, errors)
        finally:
            await server.stop(grace_s=0)


def fault_of(error: grpc.aio.AioRpcError) -> Fault:
    return rpc.fault_from_rpc_error(error)


async def until_asked_to_stop(at: Site) -> None:
    """Return once `stop`, under way in another task, has reached the streams."""
    for _ in range(1_000):
        if at.server.calls.is_stopping:
            return
        await asyncio.sleep(0)
    raise AssertionError("nothing asked the streams to stop")


async def failed(call: Awaitable[object]) -> Fault:
    """Return the fault that a call must end with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return fault_of(caught.value)
