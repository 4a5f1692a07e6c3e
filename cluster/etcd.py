"""etcd over asyncio: keys, leases, compare-and-swap, and following a prefix for ever.

A thin layer over etcd's own messages and stubs (see `etcd_proto`). What it adds is manners:

- Every attempt has a deadline. One that fails for reasons of reach moves the client on to the next
  endpoint; *reads* are then tried again, boundedly and with jitter. *Changes* are never: whether
  one happened is not known, so the caller reads again and decides (`EtcdUnavailable`).
- `follow` yields a listing of a prefix and then every change to it. It resumes after the last
  revision it has shown when a connection breaks, and lists afresh when etcd has compacted that
  revision away (what was deleted meanwhile is then seen by its absence) or was set back itself.
- An idle watch looks just like a dead one, and a member of etcd cut off from its quorum keeps an
  idle watch open for ever. So while a watch is quiet the same connection is asked something that
  only a member with a quorum can answer.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import grpc
import structlog

from cluster import etcd_proto
from cluster.config import EtcdTls

# A healthy etcd answers in milliseconds, and elects a new leader in one to two seconds.
ATTEMPT_TIMEOUT_S = 0.5
# With the pauses below, enough to outlast an election.
READ_ATTEMPTS = 5
PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 0.3
# While following: how long a watch may be quiet before the connection is asked for a sign of life.
HEARTBEAT_S = 1.0
# A listing comes in pages, so that no answer nears gRPC's limits: 1,000 topologies would be 20 MB,
# but there is one, and everything else is some hundred bytes.
PAGE_KEYS = 1_000
MESSAGE_BYTES_MAX = 32 * 1024 * 1024

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # A restarted etcd is found again at once: by default gRPC backs off to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Two clients in one process must not share one another's back-off.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
)

# Statuses after which nothing is known, and another endpoint may do better.
_OUT_OF_REACH = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # our own deadline or closing, or a proxy's
        grpc.StatusCode.INTERNAL,  # a connection reset in the middle of an answer
        grpc.StatusCode.UNKNOWN,  # a server that is stopping
    }
)

_LOG = structlog.stdlib.get_logger("etcd")


class EtcdError(Exception):
    """Root of what this module raises."""


class EtcdUnavailable(EtcdError):  # noqa: N818 - named for what it tells the caller
    """No answer. A change that was asked for may or may not have happened, or may happen yet."""


class EtcdRefused(EtcdError):  # noqa: N818 - as above
    """etcd answered that it will not (a bad request, a full disk): nothing changed."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code = code


class _HistoryGone(Exception):  # noqa: N818 - internal
    """The revision to resume from was compacted away, or belongs to another etcd: list again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it stands, or as a change left it.

    Attributes:
        key: full key.
        value: bytes.
        mod_revision: of the last change; what a compare-and-swap compares.
        create_revision: of the key's creation; a fencing token that only grows.
    """

    key: str
    value: bytes
    mod_revision: int
    create_revision: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """A key that is gone."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything under a prefix at one revision, in order; what is missing does not exist."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to a prefix after the last update and up to `revision`, in order."""

    revision: int
    events: tuple[KeyValue | Deleted, ...]


@dataclass(frozen=True, slots=True)
class Unchanged:
    """Condition: the key's last change is `mod_revision`; 0 = the key does not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class NoneAfter:
    """Condition: no key under the prefix was created or changed after `revision`."""

    prefix: str
    revision: int


@dataclass(frozen=True, slots=True)
class Swap:
    """The outcome of a compare-and-swap: whether the conditions held, and etcd's revision then."""

    won: bool
    revision: int


class _Link:
    """One endpoint: its channel and its methods."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        self.channel = (
            grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
            if credentials is None
            else grpc.aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        )
        stubs = etcd_proto.load().stubs
        kv, lease = stubs.KVStub(self.channel), stubs.LeaseStub(self.channel)
        self.range, self.put, self.delete = kv.Range, kv.Put, kv.DeleteRange
        self.txn, self.compact = kv.Txn, kv.Compact
        self.grant, self.revoke = lease.LeaseGrant, lease.LeaseRevoke
        self.keep_alive = lease.LeaseKeepAlive
        self.watch = stubs.WatchStub(self.channel).Watch


class Etcd:
    """A client of one etcd cluster, through any of its endpoints.

    Attributes:
        connected: whether a `follow` in progress is being served; False before and without one.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        tls: EtcdTls | None = None,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        rng: random.Random | None = None,
    ) -> None:
        if not endpoints:
            raise ValueError("endpoints: at least one is needed")
        credentials = None if tls is None else _credentials(tls)
        self._rpc = etcd_proto.load().rpc
        self._links = [_Link(endpoint, credentials) for endpoint in endpoints]
        self._at = 0
        self._heartbeat_s = heartbeat_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not secrets
        self.connected = False
        self._loss_told = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection; calls in progress fail."""
        self.connected = False
        for link in self._links:
            await link.channel.close()

    # Keys

    async def get(self, key: str) -> KeyValue | None:
        """Return the key, or None when it does not exist; linearizable."""
        answer = await self._read(self._rpc.RangeRequest(key=key.encode()))
        return _key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Return everything under a prefix as of one revision; linearizable."""
        start, end, revision = prefix.encode(), _end_of(prefix), 0
        items: list[KeyValue] = []
        while True:
            page = self._rpc.RangeRequest(
                key=start, range_end=end, limit=PAGE_KEYS, revision=revision
            )
            answer = await self._read(page)
            revision = revision or answer.header.revision
            items.extend(_key_value(one) for one in answer.kvs)
            if not answer.more:
                return Listing(revision, tuple(items))
            start = answer.kvs[-1].key + b"\0"

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        """Put a key, whatever was there; return the revision. Not retried.

        Raises:
            EtcdRefused: with NOT_FOUND when the lease is gone.
            EtcdUnavailable: see there.
        """
        request = self._rpc.PutRequest(key=key.encode(), value=value, lease=lease)
        return int((await self._change("put", request)).header.revision)

    async def delete(self, key: str) -> int:
        """Delete a key, if it is there; return the revision. Not retried."""
        request = self._rpc.DeleteRangeRequest(key=key.encode())
        return int((await self._change("delete", request)).header.revision)

    async def swap(
        self,
        conditions: Sequence[Unchanged | NoneAfter],
        key: str,
        value: bytes,
        lease: int = 0,
    ) -> Swap:
        """Put a key if every condition holds, as one step. Not retried: read again instead.

        Raises:
            EtcdRefused: nothing changed.
            EtcdUnavailable: see there.
        """
        put = self._rpc.PutRequest(key=key.encode(), value=value, lease=lease)
        request = self._rpc.TxnRequest(
            compare=[self._compare(one) for one in conditions],
            success=[self._rpc.RequestOp(request_put=put)],
        )
        answer = await self._change("txn", request)
        return Swap(answer.succeeded, answer.header.revision)

    async def compact(self, revision: int) -> None:
        """Make etcd forget what was before a revision. Not retried."""
        await self._change("compact", self._rpc.CompactionRequest(revision=revision))

    def _compare(self, condition: Unchanged | NoneAfter) -> Any:
        compare = self._rpc.Compare
        if isinstance(condition, Unchanged):
            return compare(
                target=compare.MOD,
                result=compare.EQUAL,
                key=condition.key.encode(),
                mod_revision=condition.mod_revision,
            )
        return compare(
            target=compare.MOD,
            result=compare.LESS,
            key=condition.prefix.encode(),
            range_end=_end_of(condition.prefix),
            mod_revision=condition.revision + 1,
        )

    # Leases

    async def lease_grant(self, ttl_s: int) -> int:
        """Return a new lease's id; it lives `ttl_s` seconds beyond each keep-alive. Not retried."""
        return int((await self._change("grant", self._rpc.LeaseGrantRequest(TTL=ttl_s))).ID)

    async def lease_keep_alive(self, lease: int) -> int:
        """Renew a lease; return for how many seconds, 0 when it is gone. Not retried."""
        link = self._links[self._at]
        call = link.keep_alive(timeout=ATTEMPT_TIMEOUT_S)
        try:
            await call.write(self._rpc.LeaseKeepAliveRequest(ID=lease))
            answer = await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise self._failed(link, error) from error
        finally:
            call.cancel()
        if answer is grpc.aio.EOF:
            raise self._failed(link, None)
        return int(answer.TTL)

    async def lease_revoke(self, lease: int) -> None:
        """End a lease and delete its keys, if it still lives. Not retried."""
        try:
            await self._change("revoke", self._rpc.LeaseRevokeRequest(ID=lease))
        except EtcdRefused as error:
            if error.code is not grpc.StatusCode.NOT_FOUND:
                raise

    # Following

    async def follow(self, prefix: str) -> AsyncGenerator[Listing | Changes, None]:
        """Yield a Listing, then Changes as they happen; for ever, through any loss of connection.

        Another Listing means that changes in between are unknown: it replaces everything.
        """
        known = 0  # the revision up to which the reader has been told everything
        failures = 0
        while True:
            try:
                if known == 0:
                    listing = await self.list(prefix)
                    known = listing.revision
                    self._reached()
                    yield listing
                async with aclosing(self._watch(prefix, known)) as updates:
                    async for changes in updates:
                        self._reached()
                        failures = 0
                        known = changes.revision
                        if changes.events:
                            yield changes
            except _HistoryGone:
                known = 0
            except EtcdError as error:
                failures += 1
                if failures >= len(self._links):  # every endpoint had its turn
                    self._lost(error)
                await self._pause()

    async def _watch(self, prefix: str, known: int) -> AsyncGenerator[Changes, None]:
        """Yield changes after `known` from one connection, and empty ones as signs of life."""
        link = self._links[self._at]
        call = link.watch()
        reading: asyncio.Task[Any] | None = None
        try:
            create = self._rpc.WatchCreateRequest(
                key=prefix.encode(), range_end=_end_of(prefix), start_revision=known + 1
            )
            await self._heartbeat(link, prefix, known)
            await call.write(self._rpc.WatchRequest(create_request=create))
            while True:
                reading = reading or asyncio.create_task(call.read())
                done, _ = await asyncio.wait({reading}, timeout=self._heartbeat_s)
                if not done:
                    await self._heartbeat(link, prefix, known)
                    yield Changes(known, ())
                    continue
                answer, reading = reading.result(), None
                if answer is grpc.aio.EOF:
                    raise self._failed(link, None)
                if answer.canceled:
                    if answer.compact_revision:
                        raise _HistoryGone
                    raise self._failed(link, None, answer.cancel_reason)
                # The answer's header may be ahead of its events: a long backlog comes in parts.
                events = tuple(_event(one) for one in answer.events)
                known = events[-1].mod_revision if events else known
                yield Changes(known, events)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise self._failed(link, error) from error
        finally:
            call.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _heartbeat(self, link: _Link, prefix: str, known: int) -> None:
        """Ask this very connection for a linearizable read."""
        request = self._rpc.RangeRequest(key=prefix.encode(), limit=1, keys_only=True)
        try:
            answer = await link.range(request, timeout=ATTEMPT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._failed(link, error) from error
        if answer.header.revision < known:  # restored from a backup, or another etcd altogether
            raise _HistoryGone

    def _reached(self) -> None:
        self.connected = True
        if self._loss_told:
            self._loss_told = False
            _LOG.info("etcd_back", endpoint=self._links[self._at].endpoint)

    def _lost(self, error: EtcdError) -> None:
        self.connected = False
        if not self._loss_told:
            self._loss_told = True
            endpoints = [link.endpoint for link in self._links]
            _LOG.warning("etcd_out_of_reach", endpoints=endpoints, reason=str(error))

    # Asking

    async def _read(self, request: Any) -> Any:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._change("range", request)
            except EtcdUnavailable:
                if attempt >= READ_ATTEMPTS:
                    raise
                await self._pause()

    async def _change(self, method: str, request: Any) -> Any:
        """Ask the current endpoint once."""
        link = self._links[self._at]
        ask: Callable[..., Any] = getattr(link, method)
        try:
            return await ask(request, timeout=ATTEMPT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._failed(link, error) from error

    def _failed(self, link: _Link, error: Exception | None, reason: str = "") -> EtcdError:
        """Say what a failure means; for a matter of reach, move on to the next endpoint."""
        if isinstance(error, grpc.aio.AioRpcError):
            code, reason = error.code(), error.details() or ""
            if code not in _OUT_OF_REACH:
                return EtcdRefused(code, reason)
            reason = f"{code.name} {reason}"
        if link is self._links[self._at]:  # else somebody has moved on already
            self._at = (self._at + 1) % len(self._links)
        return EtcdUnavailable(f"{link.endpoint}: {reason or 'the connection ended'}")

    async def _pause(self) -> None:
        await asyncio.sleep(self._rng.uniform(PAUSE_MIN_S, PAUSE_MAX_S))


def _credentials(tls: EtcdTls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        tls.ca.read_bytes(),
        tls.key.read_bytes() if tls.key else None,
        tls.cert.read_bytes() if tls.cert else None,
    )


def _end_of(prefix: str) -> bytes:
    """Return the end of the range of keys that begin with an ASCII prefix."""
    raw = prefix.encode()
    return raw[:-1] + bytes((raw[-1] + 1,))


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision)


def _event(event: Any) -> KeyValue | Deleted:
    if event.type == event.DELETE:
        return Deleted(event.kv.key.decode(), event.kv.mod_revision)
    return _key_value(event.kv)
