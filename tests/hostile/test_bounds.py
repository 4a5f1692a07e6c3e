"""The bounds of every server, held against who would pass them."""

import asyncio
from contextlib import suppress

from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster import rpc

EXCESS = 20
CLOSED_WITHIN_S = 5.0  # well before what is silent would be closed for being silent
WAIT_S = 20.0


async def test_connections_past_the_bound_are_closed_and_places_are_given_again() -> None:
    made = await rpc.server([])
    address = await made.serve("127.0.0.1:0")
    host, _, port = address.rpartition(":")
    held = []
    try:
        for _ in range(rpc.CONNECTIONS_MAX + EXCESS):
            with suppress(OSError):
                held.append(await asyncio.open_connection(host, int(port)))
        ended = {asyncio.create_task(_until_closed(reader)) for reader, _ in held}
        done, open_still = await asyncio.wait(
            ended, timeout=CLOSED_WITHIN_S, return_when=asyncio.FIRST_COMPLETED
        )
        assert done, "none was closed"
        for task in open_still:
            task.cancel()
    finally:
        for _, writer in held:
            writer.transport.abort()
    async with rpc.channel(address) as channel:
        health: object = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(  # type: ignore[attr-defined] # untyped for aio
            health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=WAIT_S
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await made.stop(0)


async def _until_closed(reader: asyncio.StreamReader) -> None:
    with suppress(OSError):
        while await reader.read(1_024):
            pass  # the server's own settings
