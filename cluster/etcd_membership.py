"""Membership over etcd: one process's handle on the cluster, kept current by a watch.

Two background tasks per handle. One follows every key of the cluster and turns what it hears into
the next immutable view. The other, once joined, keeps the lease alive and registers anew when the
lease is gone. Both outlast any absence of etcd; changes are asked for once and, when the answer is
lost, judged by reading again.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing, suppress
from types import MappingProxyType
from typing import Any, Self

import structlog

from cluster import membership_codec as codec
from cluster.config import EtcdTls
from cluster.etcd import (
    HEARTBEAT_S,
    Changes,
    Deleted,
    Etcd,
    EtcdError,
    EtcdUnavailable,
    KeyValue,
    Listing,
    NoneAfter,
    Unchanged,
)
from cluster.membership import (
    ClusterView,
    Currency,
    CurrencyConflict,
    Member,
    MembershipConflict,
    MembershipUnavailable,
    ShardInfo,
    ViewCell,
    allot,
)
from cluster.topology import Topology, TopologyError

# A process that died is forgotten after this; one that stalls for less stays. A shard node's turns
# are milliseconds, and a new primary needs an epoch of its own anyhow, so this is no safety bound.
LEASE_TTL_S = 6
# Three keep-alives fit into a lease, so two may get lost.
KEEP_ALIVES_PER_TTL = 3
# While etcd does not answer, the lease is tried more often: its life is running out.
KEEP_ALIVE_RETRY_S = 0.3
# How long a change waits to appear in the own view: a watch delivers in milliseconds or is broken.
OWN_CHANGE_TIMEOUT_S = 1.0
# Registrations of currencies race only while a cluster is set up, and each lost race means that
# another registration succeeded.
REGISTER_ATTEMPTS = 32

_LOG = structlog.stdlib.get_logger("membership")


class EtcdMembership:
    """See Membership. Make one with `open`, end it with `close`."""

    def __init__(self, etcd: Etcd, cluster: str, lease_ttl_s: int = LEASE_TTL_S) -> None:
        self._etcd = etcd
        self._cluster = cluster
        self._lease_ttl_s = lease_ttl_s
        self._cell = ViewCell()
        self._lease = 0
        self._following: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        endpoints: Sequence[str],
        cluster: str,
        tls: EtcdTls | None = None,
        *,
        lease_ttl_s: int = LEASE_TTL_S,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> Self:
        """Start following the cluster. Does not wait for etcd: see `connected` and `wait_for`."""
        made = cls(Etcd(endpoints, tls, heartbeat_s=heartbeat_s), cluster, lease_ttl_s)
        made._following = made._begin(made._follow(), "membership-follow")
        return made

    @property
    def view(self) -> ClusterView:
        """See Membership."""
        return self._cell.view

    @property
    def connected(self) -> bool:
        """See Membership."""
        return self._etcd.connected

    def watch(self) -> AsyncGenerator[ClusterView, None]:
        """See Membership."""
        return self._cell.watch()

    async def wait_for(
        self, predicate: Callable[[ClusterView], bool], timeout_s: float
    ) -> ClusterView:
        """See Membership."""
        view = await self._cell.wait_for(predicate, timeout_s)
        if view is not None:
            return view
        if not self.connected:
            raise MembershipUnavailable(f"etcd is out of reach (waited {timeout_s} s)")
        raise TimeoutError(f"not so within {timeout_s} s")

    # Registration

    async def join(self, member: Member) -> None:
        """See Membership."""
        assert self._keeping is None, "a handle joins once"
        try:
            # A read is retried over the endpoints; what follows then begins at a living one.
            await self._etcd.get(codec.member_key(self._cluster, member.role, member.id))
            revision = await self._register(member)
        except EtcdError as error:
            raise MembershipUnavailable(f"cannot register: {error}") from error
        self._keeping = self._begin(self._keep(member), "membership-lease")
        await self._seen(revision)

    async def leave(self) -> None:
        """See Membership."""
        keeping, self._keeping = self._keeping, None
        if keeping is None:
            return
        await _end(keeping)
        with suppress(EtcdError):  # then the lease runs out by itself
            await self._etcd.lease_revoke(self._lease)

    async def _register(self, member: Member) -> int:
        self._lease = await self._etcd.lease_grant(self._lease_ttl_s)
        key = codec.member_key(self._cluster, member.role, member.id)
        return await self._etcd.put(key, codec.encode_member(member), self._lease)

    async def _keep(self, member: Member) -> None:
        """Keep the registration, for ever: alive while the lease lives, anew when it is gone."""
        pause_s = self._lease_ttl_s / KEEP_ALIVES_PER_TTL
        registered = answered = True
        while True:
            await asyncio.sleep(pause_s if answered else KEEP_ALIVE_RETRY_S)
            try:
                registered = registered and await self._etcd.lease_keep_alive(self._lease) > 0
                if not registered:
                    await self._register(member)
                    registered = True
                    _LOG.warning("registered_again", role=member.role, id=member.id)
                answered = True
            except EtcdError:  # the task that follows tells of the loss
                answered = False

    # Following

    async def _follow(self) -> None:
        mirror = Mirror(self._cluster)
        async with aclosing(self._etcd.follow(codec.prefix(self._cluster))) as updates:
            async for update in updates:
                self._cell.show(mirror.apply(update))

    async def _seen(self, revision: int) -> None:
        """Wait, within a bound, until the own view shows a change that was made at `revision`."""
        await self._cell.wait_for(lambda view: view.revision >= revision, OWN_CHANGE_TIMEOUT_S)

    def _begin(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a background task that ends only with this handle: a defect in it must show."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.critical("membership_task_failed", task=task.get_name(), exc_info=error)
            self._cell.close()  # every watch ends, which no reader takes for business as usual

    # Changes

    async def claim_shard(self, shard_id: int, member_id: str) -> int:
        """See Membership."""
        key = codec.shard_key(self._cluster, shard_id)
        old = await self._get(key)
        claim = ShardInfo(shard_id, 1, member_id)
        if old is not None:
            claim = self._shard(old).claimed_by(member_id)
        if not await self._swap(old, key, codec.encode_shard(claim)):
            return 0
        return claim.epoch

    async def propose_topology(self, topology: Topology) -> bool:
        """See Membership."""
        key = codec.topology_key(self._cluster)
        old = await self._get(key)
        try:
            version = 0 if old is None else Topology.from_json(old.value).version
        except TopologyError as error:
            raise MembershipConflict(f"{key} cannot be read: {error}") from error
        if topology.version != version + 1:
            return False
        return await self._swap(old, key, topology.to_json())

    async def register_currency(self, code: str, scale: int, name: str) -> Currency:
        """See Membership.

        The number comes from a listing of all currencies, and is taken only if none was registered
        since. A lost race and a lost answer are handled alike: list again, which shows who won.
        """
        for _ in range(REGISTER_ATTEMPTS):
            try:
                listing = await self._etcd.list(codec.currencies_prefix(self._cluster))
                known = self._currencies(listing)
                currency = allot(known, code, scale, name)
                if code in known:
                    await self._seen(listing.revision)
                    return currency
                swap = await self._etcd.swap(
                    [NoneAfter(codec.currencies_prefix(self._cluster), listing.revision)],
                    codec.currency_key(self._cluster, code),
                    codec.encode_currency(currency),
                )
            except EtcdUnavailable:
                continue
            except EtcdError as error:
                raise MembershipUnavailable(f"cannot register {code}: {error}") from error
            if swap.won:
                await self._seen(swap.revision)
                return currency
        raise MembershipUnavailable(f"cannot register {code}: {REGISTER_ATTEMPTS} attempts failed")

    async def close(self) -> None:
        """See Membership."""
        await self.leave()
        following, self._following = self._following, None
        if following is not None:
            await _end(following)
        self._cell.close()
        await self._etcd.close()

    async def _get(self, key: str) -> KeyValue | None:
        try:
            return await self._etcd.get(key)
        except EtcdError as error:
            raise MembershipUnavailable(f"cannot read {key}: {error}") from error

    async def _swap(self, old: KeyValue | None, key: str, value: bytes) -> bool:
        """Replace exactly `old`; False = somebody else changed the key first.

        When the answer is lost the key itself tells: our value means won (values carry an epoch or
        a version, so nobody else writes the same), another's means lost, and while `old` still
        stands the request may yet arrive: not known.
        """
        before = 0 if old is None else old.mod_revision
        try:
            swap = await self._etcd.swap([Unchanged(key, before)], key, value)
        except EtcdUnavailable as error:
            now = await self._get(key)
            if (0 if now is None else now.mod_revision) == before:
                raise MembershipUnavailable(f"no answer about {key}: {error}") from error
            return now is not None and now.value == value
        except EtcdError as error:
            raise MembershipUnavailable(f"cannot change {key}: {error}") from error
        if swap.won:
            await self._seen(swap.revision)
        return swap.won

    def _shard(self, kv: KeyValue) -> ShardInfo:
        try:
            return codec.decode_shard(kv.key.rpartition("/")[2], kv.value)
        except codec.UnreadableRecord as error:
            raise MembershipConflict(f"{kv.key} cannot be read: {error}") from error

    def _currencies(self, listing: Listing) -> dict[str, Currency]:
        found: dict[str, Currency] = {}
        for kv in listing.items:
            code = kv.key.rpartition("/")[2]
            try:
                found[code] = codec.decode_currency(code, kv.value)
            except codec.UnreadableRecord as error:  # its number may be the one we would take
                raise CurrencyConflict(f"{kv.key} cannot be read: {error}") from error
        return found


class Mirror:
    """The cluster's records as last heard of, each decoded once, and the view they make.

    A value that cannot be read is logged and leaves what was known under its key, so one bad record
    does not take a working cluster down.
    """

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._records: dict[str, codec.Record] = {}

    def apply(self, update: Listing | Changes) -> ClusterView:
        """Return the view after an update."""
        if isinstance(update, Listing):
            listed = {kv.key for kv in update.items}
            self._records = {key: one for key, one in self._records.items() if key in listed}
        events = update.items if isinstance(update, Listing) else update.events
        for event in events:
            if isinstance(event, Deleted):
                self._records.pop(event.key, None)
            else:
                self._put(event)
        records = self._records.values()
        members = {(one.role, one.id): one for one in records if isinstance(one, Member)}
        shards = {one.shard_id: one for one in records if isinstance(one, ShardInfo)}
        currencies = {one.code: one for one in records if isinstance(one, Currency)}
        return ClusterView(
            revision=update.revision,
            topology=next((one for one in records if isinstance(one, Topology)), None),
            members=MappingProxyType(members),
            shards=MappingProxyType(shards),
            currencies=MappingProxyType(currencies),
        )

    def _put(self, kv: KeyValue) -> None:
        try:
            record = codec.decode(self._cluster, kv.key, kv.value)
        except codec.UnreadableRecord as error:
            _LOG.error("record_unreadable", key=kv.key, reason=str(error))
            return
        if record is not None:
            self._records[kv.key] = record


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
