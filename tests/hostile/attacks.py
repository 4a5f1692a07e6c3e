"""What somebody with a socket can do to a server. Each attack is bounded and ends by itself.

An attack goes on until its deadline (in the running loop's time) and returns how many times it did
what it does. That the server closes the connection is not its failure but the server's right.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from h2.exceptions import ProtocolError

from tests.hostile.raw import connected, framed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

CONNECTIONS_MAX = 1_500  # below what processes here may have open, on either side
HELD_STREAMS = 200
MESSAGE_BYTES = 4 << 20


class Mark(NamedTuple):
    """A server, and a method that it serves."""

    address: str
    path: str


def _over(end_s: float) -> bool:
    return asyncio.get_running_loop().time() >= end_s


async def rapid_reset(mark: Mark, end_s: float) -> int:
    """Open streams and reset each at once, as fast as the socket takes it."""
    count = 0
    while not _over(end_s):
        with suppress(ProtocolError, OSError):
            async with connected(mark.address) as raw:
                alive = await raw.drain(0.1)
                while alive and not _over(end_s):
                    for _ in range(100):
                        raw.http.reset_stream(raw.open(mark.path), 8)
                        count += 1
                    alive = await raw.drain()
                    await raw.writer.drain()
    return count


async def ping_flood(mark: Mark, end_s: float) -> int:
    """Ping without any pause; one that is cut off comes back."""
    count = 0
    while not _over(end_s):
        with suppress(ProtocolError, OSError):
            async with connected(mark.address) as raw:
                alive = await raw.drain(0.1)
                while alive and not _over(end_s):
                    for _ in range(100):
                        raw.http.ping(os.urandom(8))
                        count += 1
                    alive = await raw.drain()
                    await raw.writer.drain()
    return count


async def connection_flood(mark: Mark, end_s: float) -> int:
    """Open connections that say nothing, and keep them."""
    host, _, port = mark.address.rpartition(":")
    held: list[asyncio.StreamWriter] = []
    try:
        while not _over(end_s) and len(held) < CONNECTIONS_MAX:
            with suppress(OSError):
                held.append((await asyncio.open_connection(host, int(port)))[1])
        await asyncio.sleep(max(0, end_s - asyncio.get_running_loop().time()))
    finally:
        for writer in held:
            writer.transport.abort()
    return len(held)


async def garbage(mark: Mark, end_s: float) -> int:
    """Connect, send bytes that are no HTTP/2, or a preface and then no frames, and again."""
    host, _, port = mark.address.rpartition(":")
    count = 0
    while not _over(end_s):
        with suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" if count % 2 else b"GET / HTTP/1.1\r\n"
            writer.write(preface + os.urandom(2_000))
            await writer.drain()
            writer.transport.abort()
            count += 1
        await asyncio.sleep(0)
    return count


async def half_messages(mark: Mark, end_s: float) -> int:
    """On many streams, all but the last byte of a large message, which then never comes."""
    async with AsyncExitStack() as stack:
        raw = await stack.enter_async_context(connected(mark.address))
        await raw.drain(0.2)
        left = {raw.open(mark.path): MESSAGE_BYTES - 1 for _ in range(HELD_STREAMS)}
        for stream in left:
            raw.http.send_data(stream, framed(b"", MESSAGE_BYTES))
        sent = 0
        alive = True
        while alive and not _over(end_s):
            for stream, missing in left.items():
                with suppress(ProtocolError):
                    window = raw.http.local_flow_control_window(stream)
                    size = min(window, missing, raw.http.max_outbound_frame_size)
                    if size > 0:
                        raw.http.send_data(stream, bytes(size))
                        left[stream] = missing - size
                        sent += size
            alive = await raw.drain(0.005)
    return sent


async def silent_streams(mark: Mark, end_s: float) -> int:
    """Open streams on many connections, and neither write nor read."""
    count = 0
    async with AsyncExitStack() as stack:
        for _ in range(10):
            with suppress(OSError, ProtocolError):
                raw = await stack.enter_async_context(connected(mark.address))
                await raw.drain(0.1)
                for _ in range(HELD_STREAMS // 2):
                    raw.open(mark.path)
                    count += 1
                await raw.drain()
        await asyncio.sleep(max(0, end_s - asyncio.get_running_loop().time()))
    return count


async def large_metadata(mark: Mark, end_s: float) -> int:
    """Calls whose metadata is at, over, and far over the bound."""
    count = 0
    while not _over(end_s):
        with suppress(ProtocolError, OSError):
            async with connected(mark.address) as raw:
                await raw.drain(0.1)
                for size in (8_000, 20_000, 100_000):
                    stream = raw.open(mark.path, more=(("x-large", "a" * size),))
                    raw.http.send_data(stream, framed(b""), end_stream=True)
                    count += 1
                await raw.drain(0.05)
    return count


async def wrong_calls(mark: Mark, end_s: float) -> int:
    """Other content types, unknown paths, lengths that lie, messages over the limit."""
    count = 0
    while not _over(end_s):
        with suppress(ProtocolError, OSError):
            async with connected(mark.address) as raw:
                await raw.drain(0.1)
                for path, kind, body in (
                    (mark.path, "json", b"{}"),
                    ("/nothing/Here", "grpc", framed(b"")),
                    (mark.path, "grpc", framed(os.urandom(300))),
                    (mark.path, "grpc", framed(b"short", 2**32 - 1)),
                    (mark.path, "grpc", b"\7\0\0\0\1x"),
                ):
                    raw.http.send_data(raw.open(path, kind=kind), body, end_stream=True)
                    count += 1
                await raw.drain(0.05)
    return count


ATTACKS: dict[str, Callable[[Mark, float], Awaitable[int]]] = {
    attack.__name__: attack
    for attack in (
        *(rapid_reset, ping_flood, connection_flood, garbage),
        *(half_messages, silent_streams, large_metadata, wrong_calls),
    )
}
