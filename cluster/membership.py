"""Who is in the cluster, who owns what: the seam behind which etcd stands.

A `Membership` is one process's handle. It keeps the last known state of the whole cluster as one
immutable `ClusterView`, follows every change to it, and changes it by compare-and-swap only. Three
kinds of answer are never confused:

- a value: what is, or whether this process won a race (False, or epoch 0, = lost it);
- `MembershipUnavailable`: the store could not be asked, so nothing is known about the outcome;
- `MembershipConflict`: what was asked contradicts what is registered, and always will.

While the store is away `view` stays what it was and `connected` is False. A handle finds its way
back by itself: the lease is granted again, the member registered again, the watch resumed.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Protocol

import structlog

from cluster.topology import SHARD_ID_MAX, Topology

SHARD_NODE_ROLE = "shard_node"
COORDINATOR_ROLE = "coordinator"

CURRENCY_NUMBER_MAX = 0xFFFF
"""Currency numbers are 1 … 65,535; 0 means none."""
CURRENCY_SCALE_MAX = 18
"""More decimals than that leave an int64 not even one major unit."""
CURRENCY_NAME_BYTES_MAX = 64
"""A few words for people; the whole list of currencies stays small."""
_CURRENCY_CODE = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
# Roles and ids are segments of etcd keys.
_NUMBER_MAX = 2**63 - 1  # blocks and messages carry them in 64 bits
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

# A person who starts processes in the wrong order does not notice this; a store that is busy does.
JOIN_RETRY_S = 0.5

_LOG = structlog.stdlib.get_logger("membership")


class MembershipUnavailable(Exception):  # noqa: N818 - named for what it tells the caller
    """The store could not be asked in time. Whether a change took effect is not known."""


class MembershipConflict(Exception):  # noqa: N818 - as above
    """The request contradicts what is registered; asking again cannot help."""


class CurrencyConflict(MembershipConflict):
    """The code is registered with other attributes, or no currency number is left."""


@dataclass(frozen=True)
class Member:
    """A running process, known for as long as its lease lives.

    Attributes:
        role: `shard_node`, `router`, `coordinator`.
        id: unique within its role.
        address: `host:port` where its gRPC services are reached.
        version: of the software.
        started_us: when the process started.
    """

    role: str
    id: str
    address: str
    version: str
    started_us: int

    def __post_init__(self) -> None:
        for name, text in (("role", self.role), ("id", self.id)):
            if _SEGMENT.fullmatch(text) is None:
                raise ValueError(f"{name}: 1 … 63 letters, digits, '.', '_' or '-', not {text!r}")
        if not self.address:
            raise ValueError("address: must not be empty")
        for name, text in (("address", self.address), ("version", self.version)):
            if not text.isprintable():
                raise ValueError(f"{name}: must be printable, is {text!r:.100}")
        if not 0 <= self.started_us <= _NUMBER_MAX:
            raise ValueError(f"started_us: must be 0 … 2^63 − 1, is {self.started_us}")


@dataclass(frozen=True)
class ShardInfo:
    """Who writes a shard.

    Attributes:
        shard_id: 1 … 65,535.
        epoch: 1, 2, 3 …; each claim is the next one, and fences the ones before.
        primary: id of the member (role `shard_node`) that holds the epoch; it may be gone.
        standbys: ids of members that follow.
    """

    shard_id: int
    epoch: int
    primary: str
    standbys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.shard_id <= SHARD_ID_MAX:
            raise ValueError(f"shard_id: must be 1 … {SHARD_ID_MAX}, is {self.shard_id}")
        if not 1 <= self.epoch <= _NUMBER_MAX:
            raise ValueError(f"epoch: must be 1 … 2^63 − 1, is {self.epoch}")
        for member_id in (self.primary, *self.standbys):
            if not member_id.isprintable():
                raise ValueError(f"primary, standbys: {member_id!r:.100} is no member's id")

    def claimed_by(self, member_id: str) -> "ShardInfo":
        """Return what the shard becomes when the member claims it."""
        standbys = tuple(one for one in self.standbys if one != member_id)
        return ShardInfo(self.shard_id, self.epoch + 1, member_id, standbys)


@dataclass(frozen=True)
class Currency:
    """A registered currency; it never changes and is never removed.

    Attributes:
        code: as the API spells it, `GOLD`.
        number: 1 … 65,535, as records store it.
        scale: how many decimal digits of an amount are behind the point, 0 … 18.
        name: for people, at most 64 bytes of UTF-8.

    Raises:
        ValueError: on construction; the message begins with the field's name.
    """

    code: str
    number: int
    scale: int
    name: str

    def __post_init__(self) -> None:
        if _CURRENCY_CODE.fullmatch(self.code) is None:
            raise ValueError(f"code: 1 … 16 of A-Z, 0-9 and _, a letter first, not {self.code!r}")
        if not 1 <= self.number <= CURRENCY_NUMBER_MAX:
            raise ValueError(f"number: must be 1 … {CURRENCY_NUMBER_MAX}, is {self.number}")
        if not 0 <= self.scale <= CURRENCY_SCALE_MAX:
            raise ValueError(f"scale: must be 0 … {CURRENCY_SCALE_MAX}, is {self.scale}")
        if len(self.name.encode()) > CURRENCY_NAME_BYTES_MAX:
            raise ValueError(f"name: longer than {CURRENCY_NAME_BYTES_MAX} bytes")


@dataclass(frozen=True)
class ClusterView:
    """One immutable snapshot of the cluster.

    Attributes:
        revision: grows with every change; 0 = nothing has been read yet.
        topology: slot → shard; None until one is proposed.
        members: by (role, id).
        shards: by shard id.
        currencies: by code.
    """

    revision: int = 0
    topology: Topology | None = None
    members: Mapping[tuple[str, str], Member] = field(default_factory=lambda: MappingProxyType({}))
    shards: Mapping[int, ShardInfo] = field(default_factory=lambda: MappingProxyType({}))
    currencies: Mapping[str, Currency] = field(default_factory=lambda: MappingProxyType({}))

    def address_of_shard(self, shard_id: int) -> str | None:
        """Return the primary's address; None when the shard is unclaimed or its member gone."""
        shard = self.shards.get(shard_id)
        if shard is None:
            return None
        member = self.members.get((SHARD_NODE_ROLE, shard.primary))
        return None if member is None else member.address

    def members_of(self, role: str) -> tuple[Member, ...]:
        """Return the members of a role in the order of their ids."""
        return tuple(m for _, m in sorted(self.members.items()) if m.role == role)


def allot(currencies: Mapping[str, Currency], code: str, scale: int, name: str) -> Currency:
    """Decide what registering a currency comes to: the one that is there, or a new one.

    Raises:
        CurrencyConflict: registered with other attributes, or no number is left.
        ValueError: an attribute is out of its bounds; the message begins with its name.
    """
    known = currencies.get(code)
    if known is None:
        number = 1 + max((one.number for one in currencies.values()), default=0)
        if number > CURRENCY_NUMBER_MAX:
            raise CurrencyConflict(f"all {CURRENCY_NUMBER_MAX} currency numbers are taken")
        return Currency(code, number, scale, name)
    for what, there, asked in (("scale", known.scale, scale), ("name", known.name, name)):
        if there != asked:
            raise CurrencyConflict(f"{code} is registered with {what} {there!r}, not {asked!r}")
    return known


class Membership(Protocol):
    """One process's handle on the cluster. All methods belong to one event loop.

    After a change succeeded the handle's own `view` shows it, unless the store went away just then.
    """

    @property
    def view(self) -> ClusterView:
        """The last known snapshot; kept while the store is away."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the store answered when last asked; `view` is current while this is True."""
        ...

    async def join(self, member: Member) -> None:
        """Register this process under a lease that is kept alive until `leave` or `close`.

        Returns once the registration is in the store. A handle joins once. From then on a lost
        lease is granted and the member registered again, for as long as it takes.

        Raises:
            MembershipUnavailable: nothing keeps trying; call again.
        """
        ...

    async def leave(self) -> None:
        """Take the registration back at once; without effect when not joined.

        When the store cannot be asked the lease runs out by itself.
        """
        ...

    def watch(self) -> AsyncGenerator[ClusterView, None]:
        """Yield the current snapshot, then newer ones as they come, until the handle is closed.

        The first is never the empty one of a handle that has not read anything yet: it waits. A
        slow reader skips to the newest, so nothing queues up.
        """
        ...

    async def wait_for(
        self, predicate: Callable[[ClusterView], bool], timeout_s: float
    ) -> ClusterView:
        """Return the first snapshot (from the current one on) for which the predicate holds.

        Raises:
            TimeoutError: it did not hold in time, and the store was there to say so.
            MembershipUnavailable: it did not hold in time, and the store is away.
        """
        ...

    async def claim_shard(self, shard_id: int, member_id: str) -> int:
        """Make the member primary of a shard under the next epoch; return that epoch.

        0 = lost the race: somebody else changed the shard in between. Look at `view` and decide.

        Raises:
            MembershipUnavailable: whether the claim was made is not known.
        """
        ...

    async def propose_topology(self, topology: Topology) -> bool:
        """Put a topology in place of the one whose version is one less (or of none, for version 1).

        False = lost the race, or the version is not the next one.

        Raises:
            MembershipUnavailable: whether it was put in place is not known.
        """
        ...

    async def register_currency(self, code: str, scale: int, name: str) -> Currency:
        """Register a currency, or return it when it is registered with these attributes already.

        Raises:
            CurrencyConflict: registered with other attributes, or no number is left.
            ValueError: an attribute is out of its bounds; the message begins with its name.
            MembershipUnavailable: not known; ask again.
        """
        ...

    async def close(self) -> None:
        """Leave, stop every background task and end every watch. Idempotent."""
        ...


async def join_patiently(membership: Membership, member: Member) -> None:
    """Join as soon as the store can be asked; say once what this process is waiting for."""
    told = False
    while True:
        try:
            await membership.join(member)
        except MembershipUnavailable as error:
            if not told:
                told = True
                _LOG.warning("waiting_to_join", role=member.role, id=member.id, reason=str(error))
            await asyncio.sleep(JOIN_RETRY_S)
        else:
            return


class ViewCell:
    """The newest snapshot, and everybody who waits for a newer one."""

    def __init__(self) -> None:
        self.view = ClusterView()
        self._closed = False
        self._changed = asyncio.Event()

    def show(self, view: ClusterView) -> None:
        """Make it the newest."""
        self.view = view
        self._wake()

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self) -> AsyncGenerator[ClusterView, None]:
        """See Membership.watch."""
        shown = ClusterView()
        while not self._closed:
            if self.view.revision and self.view is not shown:
                shown = self.view
                yield shown
            else:
                await self._changed.wait()

    async def wait_for(
        self, predicate: Callable[[ClusterView], bool], timeout_s: float
    ) -> ClusterView | None:
        """Return the first snapshot that satisfies; None when none did in time."""
        try:
            async with asyncio.timeout(timeout_s):
                async for view in self.watch():
                    if predicate(view):
                        return view
        except TimeoutError:
            return None
        raise MembershipUnavailable("the membership handle was closed")


class MemoryStore:
    """What etcd would hold, in memory: share one among the handles of a simulated cluster."""

    def __init__(self) -> None:
        self.view = ClusterView(revision=1)
        self.handles: list[MemoryMembership] = []

    def expire(self, role: str, member_id: str) -> None:
        """Let a member's lease run out, as when its keep-alives did not arrive.

        Its handle registers again at once when it can reach the store, else when it can.
        """
        members = {key: one for key, one in self.view.members.items() if key != (role, member_id)}
        self.change(members=MappingProxyType(members))
        for handle in tuple(self.handles):
            handle.renew()

    def change(self, **fields: object) -> None:
        """Replace fields of the view, under the next revision, and show it to every handle."""
        self.view = replace(self.view, revision=self.view.revision + 1, **fields)  # type: ignore[arg-type] # fields of several types, by name
        for handle in tuple(self.handles):
            handle.refresh()


class MemoryMembership:
    """A handle on a MemoryStore. `cut` and `mend` take the store away and give it back."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._cell = ViewCell()
        self._member: Member | None = None
        self._connected = True
        self._store.handles.append(self)
        self.refresh()

    def cut(self) -> None:
        """Lose the store: the view stands still and every change raises."""
        self._connected = False

    def mend(self) -> None:
        """Find the store again: register again if need be, and catch up."""
        self._connected = True
        self.renew()
        self.refresh()

    def refresh(self) -> None:
        """Show what the store has, if it can be reached."""
        if self._connected and self._cell.view is not self._store.view:
            self._cell.show(self._store.view)

    def renew(self) -> None:
        """Register again when the registration is gone and the store can be reached."""
        member, members = self._member, self._store.view.members
        if member and self._connected and (member.role, member.id) not in members:
            self._store.change(
                members=MappingProxyType({**members, (member.role, member.id): member})
            )

    @property
    def view(self) -> ClusterView:
        """See Membership."""
        return self._cell.view

    @property
    def connected(self) -> bool:
        """See Membership."""
        return self._connected

    async def join(self, member: Member) -> None:
        """See Membership."""
        view = self._ask()
        assert self._member is None, "a handle joins once"
        self._member = member
        key = (member.role, member.id)
        self._store.change(members=MappingProxyType({**view.members, key: member}))

    async def leave(self) -> None:
        """See Membership."""
        member, self._member = self._member, None
        if member is not None and self._connected:
            self._store.expire(member.role, member.id)

    def watch(self) -> AsyncGenerator[ClusterView, None]:
        """See Membership."""
        return self._cell.watch()

    async def wait_for(
        self, predicate: Callable[[ClusterView], bool], timeout_s: float
    ) -> ClusterView:
        """See Membership."""
        view = await self._cell.wait_for(predicate, timeout_s)
        if view is None:
            self._ask()
            raise TimeoutError(f"not so within {timeout_s} s")
        return view

    async def claim_shard(self, shard_id: int, member_id: str) -> int:
        """See Membership. Never loses: nothing here comes between the look and the change."""
        shards = self._ask().shards
        old = shards.get(shard_id)
        new = old.claimed_by(member_id) if old else ShardInfo(shard_id, 1, member_id)
        self._store.change(shards=MappingProxyType({**shards, shard_id: new}))
        return new.epoch

    async def propose_topology(self, topology: Topology) -> bool:
        """See Membership."""
        current = self._ask().topology
        if topology.version != (current.version if current else 0) + 1:
            return False
        self._store.change(topology=topology)
        return True

    async def register_currency(self, code: str, scale: int, name: str) -> Currency:
        """See Membership."""
        currencies = self._ask().currencies
        currency = allot(currencies, code, scale, name)
        if code not in currencies:
            self._store.change(currencies=MappingProxyType({**currencies, code: currency}))
        return currency

    async def close(self) -> None:
        """See Membership."""
        await self.leave()
        if self in self._store.handles:
            self._store.handles.remove(self)
        self._cell.close()

    def _ask(self) -> ClusterView:
        if not self._connected:
            raise MembershipUnavailable("the store is cut off")
        return self._store.view
