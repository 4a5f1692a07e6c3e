"""A real etcd server for a test: free loopback ports, the test's own folder, reaped with it."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.etcd_server import EtcdProcess, ServerTls, start_etcd
from tests.support import eventually

# An etcd that elects itself at once, and allows leases of one second.
FAST = ("--heartbeat-interval", "20", "--election-timeout", "200")
# How tests open handles: quick to notice what they wait for.
LEASE_TTL_S = 1
HEARTBEAT_S = 0.1


@contextmanager
def running_etcd(folder: Path, *, tls: ServerTls | None = None) -> Iterator[EtcdProcess]:
    """Start an etcd server and end it whatever happens."""
    with start_etcd(folder / "etcd", tls=tls, options=FAST) as server:
        yield server


def fresh_cluster() -> str:
    """A cluster's name that no other test uses, so that tests can share a server."""
    return f"test-{uuid.uuid4().hex[:12]}"


async def restart(server: EtcdProcess) -> None:
    """Start a server again without holding up the loop."""
    await asyncio.to_thread(server.start)


async def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for what another process brings about, long enough for a busy machine."""
    await eventually(holds, what, timeout_s=15.0)


class Proxy:
    """Forwards TCP to etcd, so that a client can lose its way while etcd goes on.

    Attributes:
        lose_answers_after: once a client has sent these bytes, nothing comes back any more.
        hold_requests_from: what a client sends from these bytes on never arrives.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers_lost = False
        self._requests_held = False
        self.lose_answers_after = b""
        self.hold_requests_from = b""
        self.server: asyncio.Server | None = None

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._target.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        for pump in (
            self._pump(reader, far_writer, self._request_passes),
            self._pump(far_reader, writer, lambda _data: not self._answers_lost),
        ):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _request_passes(self, data: bytes) -> bool:
        if self.lose_answers_after and self.lose_answers_after in data:
            self._answers_lost = True
        if self.hold_requests_from and self.hold_requests_from in data:
            self._requests_held = True
        return not self._requests_held

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        passes: Callable[[bytes], bool],
    ) -> None:
        try:
            while data := await source.read(65_536):
                if passes(data):
                    sink.write(data)
                    await sink.drain()
        except ConnectionError:
            pass  # the other side has gone: that is what the proxy is for
        finally:
            sink.close()

    async def cut(self) -> None:
        """Close the port and every connection through it."""
        assert self.server is not None
        self.server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.server.wait_closed()


async def forward(port: int, target: str) -> Proxy:
    proxy = Proxy(target)
    proxy.server = await asyncio.start_server(proxy.accept, "127.0.0.1", port)
    return proxy
