"""Connections to routers: which one to ask, and gRPC's settings with their reasons."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import grpc

from doubloon.call_stream import StreamedChannel
from doubloon.faults import invalid_argument
from doubloon.v1.admin_service_pb2_grpc import AdminServiceStub
from doubloon.v1.wallet_service_pb2_grpc import WalletServiceStub

if TYPE_CHECKING:  # the generated module has these for type checkers only
    from doubloon.v1.admin_service_pb2_grpc import AdminServiceAsyncStub
    from doubloon.v1.wallet_service_pb2_grpc import WalletServiceAsyncStub

MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""8,192 transfers with the most metadata are 3 MB, and gRPC's own limit is 4 MiB for what it
receives; a router takes no more than this."""

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A router whose machine vanished while calls were in flight is noticed within 13 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # A restarted router is found again within a second; by default gRPC backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # The SDK asks again by itself, with the same ids and within one deadline.
    ("grpc.enable_retries", 0),
    # Pings that estimate how much a long, fat line holds: a tenth of what a small call costs, and
    # a server that counts pings counts them, too.
    ("grpc.http2.bdp_probe", 0),
    # No look-ups of service configurations in DNS: this channel needs none.
    ("grpc.service_config_disable_resolution", 1),
    # Routers are near; a proxy that was set up for the web must not stand between.
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to talk TLS to the routers. All in PEM."""

    root_certificates: bytes | None = None
    """Whom to trust; None = the authorities that gRPC trusts by itself."""
    client_key: bytes | None = None
    """The client's private key, where routers ask for a certificate."""
    client_certificates: bytes | None = None
    """The client's certificate chain, where routers ask for one."""
    server_name: str | None = None
    """The name the router's certificate bears, when it is not the address's host."""


class Router:
    """One router: its address, and its services over one channel."""

    def __init__(self, address: str, channel: grpc.aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.wallet: WalletServiceAsyncStub = WalletServiceStub(channel)
        self.admin: AdminServiceAsyncStub = AdminServiceStub(channel)


class Routers:
    """The routers of one client. All calls go to one until it fails them, then to the next.

    One connection gathers better than several, and its small calls share a stream. Clients begin
    at a random router, which spreads them. Channels open when first used, on the event loop that
    runs then.
    """

    def __init__(
        self, addresses: str | Sequence[str], tls: Tls | None, random: Callable[[], float]
    ) -> None:
        self._addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        if not self._addresses or not all(self._addresses):
            raise invalid_argument("addresses", "at least one router's host:port is needed")
        self._tls = tls
        self._opened: dict[str, Router] = {}
        self._place = int(random() * len(self._addresses))

    def current(self) -> Router:
        """Return the router to ask now."""
        address = self._addresses[self._place]
        router = self._opened.get(address)
        if router is None:
            router = self._opened[address] = Router(address, self._open(address))
        return router

    def failed(self, router: Router) -> None:
        """Go on to the next router, unless other calls to the same one have led there already."""
        if router.address == self._addresses[self._place]:
            self._place = (self._place + 1) % len(self._addresses)

    async def close(self) -> None:
        """Close every channel; calls in progress are cancelled."""
        for router in self._opened.values():
            await router.channel.close()
        self._opened.clear()

    def _open(self, address: str) -> grpc.aio.Channel:
        return StreamedChannel(self._connect(address))

    def _connect(self, address: str) -> grpc.aio.Channel:
        options = list(CHANNEL_OPTIONS)
        if self._tls is None:
            return grpc.aio.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(
            self._tls.root_certificates, self._tls.client_key, self._tls.client_certificates
        )
        if self._tls.server_name is not None:
            named = ("grpc.ssl_target_name_override", self._tls.server_name)
            return grpc.aio.secure_channel(address, credentials, options=[*options, named])
        return grpc.aio.secure_channel(address, credentials, options=options)
