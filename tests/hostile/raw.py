"""HTTP/2 by hand, for what no gRPC client would ever send."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Raw:
    """A connection on which frames are made one by one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        settings = H2Configuration(client_side=True, header_encoding="utf-8")
        settings.validate_outbound_headers = settings.normalize_outbound_headers = False
        self.http = H2Connection(settings)
        # Its Huffman coding takes seconds for what is long, and who pays lives in this process.
        encode = partial(self.http.encoder.encode, huffman=False)
        self.http.encoder.encode = encode  # type: ignore[method-assign] # of this one alone
        self.http.initiate_connection()
        self.flush()

    def flush(self) -> None:
        """Hand over to the system what was made."""
        self.writer.write(self.http.data_to_send())

    def open(self, path: str, *, more: tuple[tuple[str, str], ...] = (), kind: str = "grpc") -> int:
        """Open a stream."""
        stream = self.http.get_next_available_stream_id()
        headers = (
            *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")),
            *(("te", "trailers"), ("content-type", f"application/{kind}")),
            *more,
        )
        self.http.send_headers(stream, headers)
        return stream

    async def drain(self, seconds: float = 0.01) -> bool:
        """Read for a moment, answering as the protocol asks; False = the other end has closed."""
        self.flush()
        try:
            async with asyncio.timeout(seconds):
                data = await self.reader.read(1 << 16)
        except TimeoutError:
            return True
        except OSError:
            return False
        with suppress(ProtocolError):  # it may have told us to go away meanwhile
            self.http.receive_data(data)
            self.flush()
        return bool(data)


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Raw]:
    """Open a connection; closed at the end, however rudely it was used."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def framed(message: bytes, length: int | None = None) -> bytes:
    """A message as gRPC frames it, or as one that says another length."""
    return struct.pack(">BI", 0, len(message) if length is None else length) + message
