"""Unary gRPC calls at some microseconds each: a load generator on plain sockets.

A Python gRPC client spends a quarter of a millisecond of processor on a unary call, ten times what
pgbench spends on a statement. Beside a server on the same two cores that would measure the client.
So this speaks just as much HTTP/2 as one outstanding call per connection needs:

- Every call's HEADERS and DATA frames are made before the clock starts. Header fields are literals
  that enter no table, so the same bytes are right on every stream; a connection's n-th call is
  stream 2n - 1, so stream ids are known as well.
- Our SETTINGS allow the server no header table, so its header blocks stand alone as well, and the
  same block always means the same; each distinct one is decoded once, by the `hpack` package.
- The connection's window is opened once by two gigabytes; no call of a benchmark closes it again.
- SETTINGS and PING are acknowledged. Padding, continuation and push do not occur between gRPC
  servers and a client that forbids push; what else comes ends the run with an error.

Every answer is looked at: `grpc-status` must be 0, and the result's status COMPLETED.
"""

import selectors
import socket
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import hpack

from doubloon.v1 import types_pb2

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD: Final = struct.Struct("!HBBBI")
"""Of a frame: length (16 bits and the lowest 8), type, flags, stream."""

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_TABLE_SIZE, ENABLE_PUSH, INITIAL_WINDOW_SIZE = 1, 2, 4
WINDOW_MAX: Final = 2**31 - 1
WINDOW_DEFAULT: Final = 65_535
RECEIVE_BYTES: Final = 65_536
CONNECT_TIMEOUT_S: Final = 10.0
SILENCE_MAX_S: Final = 30.0
"""No answer on any connection for so long: the server is gone, or stuck."""

DEADLINE: Final = "10S"  # of each call, as a careful client sets one
_COMPLETED: Final = bytes((0x08, types_pb2.TRANSFER_STATUS_COMPLETED))
"""How a result begins: field 1, a number."""


class WireError(Exception):
    """The server did not answer as a gRPC server does, or a call was not completed."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    size = len(payload)
    return HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def opening() -> bytes:
    """Return what a client sends first."""
    settings = b"".join(
        struct.pack("!HI", name, value)
        for name, value in (
            (HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW_MAX),
        )
    )  # fmt: skip
    more = struct.pack("!I", WINDOW_MAX - WINDOW_DEFAULT)
    return PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, more)


def header_block(path: str, authority: str) -> bytes:
    """Return the header fields of a unary call, none of which enters a table."""
    fields = (
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority),
        ("te", "trailers"), ("content-type", "application/grpc"),
        ("user-agent", "doubloon-bench"), ("grpc-timeout", DEADLINE),
    )  # fmt: skip
    return b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in fields)


def _literal(text: str) -> bytes:
    raw = text.encode("ascii")
    assert len(raw) < 0x7F, "a length that fits into its first byte"
    return bytes((len(raw),)) + raw


def call_bytes(block: bytes, stream: int, message: bytes) -> bytes:
    """Return all that a client sends for one unary call."""
    payload = struct.pack("!BI", 0, len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, END_STREAM, stream, payload)


@dataclass
class Unary:
    """What a run of unary calls gave.

    Attributes:
        ends: (when, 1) of every call, in order of time, on the performance counter.
        durations_s: of every call.
        started_s: when the first was sent.
        cpu_s: processor time of this thread.
    """

    started_s: float = 0.0
    ends: list[tuple[float, int]] = field(default_factory=list)
    durations_s: list[float] = field(default_factory=list)
    cpu_s: float = 0.0


class Connection:
    """One connection with at most one call outstanding.

    Args:
        address: `host:port`.
        path: of the method, such as `/doubloon.v1.WalletService/Transfer`.
        messages: of its calls, in order.
        blocks: header blocks seen so far, with whether they are good; shared by all.
    """

    def __init__(
        self, address: str, path: str, messages: Iterable[bytes], blocks: dict[bytes, bool]
    ) -> None:
        host, _, port = address.rpartition(":")
        block = header_block(path, address)
        self._calls = [
            call_bytes(block, 2 * index + 1, message) for index, message in enumerate(messages)
        ]
        self._next = 0
        self._rest = b""
        self._result = b""
        self._blocks = blocks
        self.ready = False
        self.sent_s = 0.0
        self.socket = socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(opening())

    def send(self) -> bool:
        """Send the next call; False when there is none left."""
        at = self._next
        if at == len(self._calls):
            return False
        self._next = at + 1
        self.sent_s = time.perf_counter()
        self.socket.sendall(self._calls[at])
        return True

    def receive(self) -> bool:
        """Take in what has arrived; True when the outstanding call has ended, completed.

        Raises:
            WireError: it ended otherwise, or the server closed the connection.
        """
        arrived = self.socket.recv(RECEIVE_BYTES)
        if not arrived:
            raise WireError("the server closed a connection")
        buffer = self._rest + arrived if self._rest else arrived
        at, size, ended = 0, len(buffer), False
        while size - at >= HEAD.size:
            high, low, kind, flags, _ = HEAD.unpack_from(buffer, at)
            begin = at + HEAD.size
            end = begin + (high << 8 | low)
            if end > size:
                break
            if kind == HEADERS:
                ended = self._header(buffer[begin:end], flags) or ended
            elif kind == DATA:
                self._result += buffer[begin:end]
            else:
                self._other(kind, flags, buffer[begin:end])
            at = end
        self._rest = buffer[at:]
        return ended

    def _header(self, block: bytes, flags: int) -> bool:
        good = self._blocks.get(block)
        if good is None:
            if not flags & END_HEADERS:
                raise WireError("a header block in several frames")
            good = self._blocks[block] = _is_good(block)
        if not flags & END_STREAM:
            return False
        # A result stands behind gRPC's 5 bytes and the response's own tag and length.
        if not good or self._result[7:9] != _COMPLETED:
            raise WireError(f"not completed: {_decoded(block)}, answer {self._result.hex()}")
        self._result = b""
        return True

    def _other(self, kind: int, flags: int, payload: bytes) -> None:
        if kind == SETTINGS:
            if not flags & ACK:
                self.socket.sendall(frame(SETTINGS, ACK, 0))
                self.ready = True
        elif kind == PING:
            if not flags & ACK:
                self.socket.sendall(frame(PING, ACK, 0, payload))
        elif kind != WINDOW_UPDATE:
            raise WireError(f"frame of type {kind}: {payload.hex()}")


def _is_good(block: bytes) -> bool:
    """Whether a header block is of an answer, or says that the call went well."""
    return _decoded(block).get("grpc-status", "0") == "0"


def _decoded(block: bytes) -> dict[str, str]:
    fields = hpack.Decoder().decode(block)
    return {_text(name): _text(value) for name, value, *_ in fields}


def _text(raw: str | bytes) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


class UnaryLoad:
    """Many connections, each with one call outstanding, until all calls are answered.

    Args:
        addresses: servers; connections are dealt to them in turn.
        path: of the method.
        messages: of all calls, dealt to the connections in turn.
        connections: how many.
    """

    def __init__(
        self, addresses: Sequence[str], path: str, messages: Sequence[bytes], connections: int
    ) -> None:
        self._connections: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        blocks: dict[bytes, bool] = {}
        try:
            for index in range(connections):
                made = Connection(
                    addresses[index % len(addresses)], path, messages[index::connections], blocks
                )
                self._connections.append(made)
                self._selector.register(made.socket, selectors.EVENT_READ, made)
            self._connect()
        except BaseException:
            self.close()
            raise

    def run(self, stop: threading.Event) -> Unary:
        """Make all calls; for a thread of its own, ended early by the event.

        Raises:
            WireError: a call was not completed.
        """
        made = Unary()
        ends, durations, clock = made.ends, made.durations_s, time.perf_counter
        cpu_s = time.thread_time()
        made.started_s = clock()
        outstanding = sum(connection.send() for connection in self._connections)
        while outstanding and not stop.is_set():
            ready = self._selector.select(SILENCE_MAX_S)
            if not ready:
                raise WireError(f"no answer for {SILENCE_MAX_S:g} s")
            for key, _ in ready:
                connection: Connection = key.data
                if connection.receive():
                    now_s = clock()
                    ends.append((now_s, 1))
                    durations.append(now_s - connection.sent_s)
                    outstanding -= not connection.send()
        made.cpu_s = time.thread_time() - cpu_s
        return made

    def close(self) -> None:
        """Close every connection."""
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def _connect(self) -> None:
        """Wait until every server has said its SETTINGS, so that no handshake is timed."""
        until_s = time.monotonic() + CONNECT_TIMEOUT_S
        while not all(connection.ready for connection in self._connections):
            if time.monotonic() > until_s:
                raise WireError(f"no HTTP/2 server after {CONNECT_TIMEOUT_S:g} s")
            for key, _ in self._selector.select(CONNECT_TIMEOUT_S):
                key.data.receive()
