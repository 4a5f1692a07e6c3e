"""What gRPC is told about connections is what it hears: it passes over names it does not know."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from cluster import etcd, rpc
from doubloon.channels import CHANNEL_OPTIONS
from scripts.bench.http2 import ACK, GOAWAY, HEAD, PING, SETTINGS, frame, opening

OPTIONS: dict[str, tuple[tuple[str, Any], ...]] = {
    "servers": rpc.SERVER_OPTIONS,
    "channels": rpc.CHANNEL_OPTIONS,
    "SDK": CHANNEL_OPTIONS,
    "etcd": etcd._OPTIONS,
}
PINGS = 20
STRICT_MS = 300_000


@pytest.mark.parametrize("whose", OPTIONS)
def test_every_option_is_one_that_grpc_knows(whose: str) -> None:
    (library,) = Path(grpc.__file__).parent.glob("_cython/cygrpc*.so")
    known = library.read_bytes()
    unknown = [name for name, _ in OPTIONS[whose] if name.encode() + b"\0" not in known]
    assert not unknown


@pytest.mark.parametrize(("least_ms", "closed"), [(0, False), (STRICT_MS, True)])
async def test_pings_close_a_connection_only_within_the_least_interval(
    monkeypatch: pytest.MonkeyPatch, least_ms: int, *, closed: bool
) -> None:
    """With 0 no ping comes too soon, so nothing has to be waited for."""
    options = tuple(
        (name, least_ms if "ping_interval" in name else value) for name, value in rpc.SERVER_OPTIONS
    )
    assert options != rpc.SERVER_OPTIONS
    monkeypatch.setattr(rpc, "SERVER_OPTIONS", options)
    server = await rpc.server([])
    address = await server.serve("127.0.0.1:0")
    try:
        assert await _is_closed_by_pings(address) is closed
    finally:
        await server.stop(0)


async def _is_closed_by_pings(address: str) -> bool:
    """Whether a server answers pings that follow each other at once by closing the connection."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(opening())
    writer.write(frame(PING, 0, 0, bytes(8)))
    answered = 0
    try:
        while answered < PINGS:
            high, low, kind, flags, _ = HEAD.unpack(await reader.readexactly(HEAD.size))
            payload = await reader.readexactly(high << 8 | low)
            if kind == GOAWAY:
                assert b"too_many_pings" in payload
                return True
            if kind == SETTINGS and not flags & ACK:
                writer.write(frame(SETTINGS, ACK, 0))
            if kind == PING and flags & ACK:
                answered += 1
                writer.write(frame(PING, 0, 0, bytes(8)))
        return False
    finally:
        writer.close()
