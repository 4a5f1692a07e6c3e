"""One call to a router: chosen, bounded in time, asked again, its failure translated."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import grpc

from doubloon.channels import Router, Routers
from doubloon.enums import FaultCode
from doubloon.faults import ClientClosed, error_from_rpc
from doubloon.retry import Retrier

RequestT_contra = TypeVar("RequestT_contra", contravariant=True)
ResponseT_co = TypeVar("ResponseT_co", covariant=True)

# These say that this router is away or stuck: another one may do better.
ROUTER_FAILED: Final = frozenset({FaultCode.UNAVAILABLE, FaultCode.DEADLINE_EXCEEDED})


class Method(Protocol[RequestT_contra, ResponseT_co]):
    """A unary method of a stub."""

    def __call__(
        self, request: RequestT_contra, /, *, timeout: float | None
    ) -> Awaitable[ResponseT_co]:
        """Start the call; `timeout` is in seconds."""
        ...


class Caller:
    """Makes calls, and knows which are in progress so that closing can wait for them."""

    def __init__(self, routers: Routers, retrier: Retrier, timeout_s: float) -> None:
        self.routers = routers
        self.retrier = retrier
        self.timeout_s = timeout_s
        self._closing = False
        self._in_progress = 0
        self._idle: asyncio.Event | None = None

    async def unary(
        self,
        pick: Callable[[Router], Method[RequestT_contra, ResponseT_co]],
        request: RequestT_contra,
        *,
        has_effect: bool = False,
    ) -> ResponseT_co:
        """Ask until there is an answer, within the client's timeout.

        Raises:
            FaultError: there was none, or it was a fault.
            ClientClosed: the client is closed.
        """

        async def attempt(timeout_s: float) -> ResponseT_co:
            return await self.attempt(pick, request, timeout_s)

        with self.in_progress():
            deadline_s = self.retrier.deadline_s(self.timeout_s)
            return await self.retrier.run(attempt, deadline_s, has_effect=has_effect)

    async def attempt(
        self,
        pick: Callable[[Router], Method[RequestT_contra, ResponseT_co]],
        request: RequestT_contra,
        timeout_s: float,
    ) -> ResponseT_co:
        """Ask the current router once.

        Raises:
            FaultError: it failed.
        """
        router = self.routers.current()
        try:
            return await pick(router)(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as rpc_error:
            error = error_from_rpc(rpc_error)
            if error.fault.code in ROUTER_FAILED:
                self.routers.failed(router)
            raise error from rpc_error

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """Hold the channels open for the work within.

        Raises:
            ClientClosed: they are closed, or about to be.
        """
        if self._closing:
            raise ClientClosed("the client is closed")
        self._in_progress += 1
        try:
            yield
        finally:
            self._in_progress -= 1
            if self._idle is not None and not self._in_progress:
                self._idle.set()

    async def close(self) -> None:
        """Take no more calls, wait for those in progress (each has its deadline), disconnect."""
        self._closing = True
        if self._in_progress:
            self._idle = self._idle or asyncio.Event()
            await self._idle.wait()
        await self.routers.close()


class Closing:
    """What is closed by leaving its `async with`."""

    async def close(self) -> None:
        """Let go of everything."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
