"""etcd as the processes of a cluster see it: watches that lag, leases that run out, and absence.

One store, one handle for each life of a process. Views arrive a moment after a change; a change is
made a moment after it was asked for, if nobody else was first; and an answer can be lost when the
change was made. A lease lives while its holder can be heard. That is decided when something changes
about it, and not by keep-alives, which would be most of what happens in a quiet hour.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cluster.membership import (
    ClusterView,
    Currency,
    Member,
    MembershipUnavailable,
    ShardInfo,
    ViewCell,
    allot,
)
from tests.whole_cluster.loop import LIFE, check_alive

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from cluster.topology import Topology
    from tests.whole_cluster.loop import Life
    from tests.whole_cluster.world import Process, World

NAME: Final = "etcd"
"""What the network calls it, to be cut off from."""

LEASE_TTL_S: Final = 6.0
"""As `cluster.etcd_membership` has it."""

KEEP_ALIVE_S: Final = 2.0
"""A holder that falls silent was last heard up to so long ago."""

LATENCY_S: Final = 0.0005, 0.005
"""What etcd takes, with its own sync, at the least and at the most."""

TIMEOUT_S: Final = 1.0
"""How long who asks in vain waits."""

MemberKey = tuple[str, str]


class SimStore:
    """What etcd holds.

    Attributes:
        is_away: whether nobody can ask it, nor be heard by it.
        lost: the chance of a change to be made and its answer lost.
        handles: of all living processes.
    """

    def __init__(self, world: World, cut: Callable[[], set[tuple[str, str]]]) -> None:
        self.world = world
        self.view = ClusterView(revision=1)
        self.is_away = False
        self.lost = 0.0
        self.handles: dict[SimMembership, None] = {}
        self._cut = cut
        self._leases: dict[MemberKey, SimMembership] = {}
        self._silent: dict[MemberKey, int] = {}
        self._silences = 0

    def reaches(self, process: Process) -> bool:
        """Whether the two hear each other."""
        cut = self._cut()
        return not (
            self.is_away or (cut and ((process.name, NAME) in cut or (NAME, process.name) in cut))
        )

    def change(self, **fields: Any) -> None:
        """Replaces fields of the view, under the next revision, and lets every handle know."""
        self.view = replace(self.view, revision=self.view.revision + 1, **fields)
        self.world.note(f"etcd revision {self.view.revision}: {', '.join(fields)}")
        self.show()

    def show(self) -> None:
        """Lets handles know of the newest view, soon."""
        for handle in list(self.handles):
            self.world.after(self.world.rng.uniform(*LATENCY_S), handle.show, self.view)

    def register(self, handle: SimMembership, member: Member) -> None:
        """Puts a member in, under the handle's lease."""
        key = (member.role, member.id)
        self._leases[key] = handle
        self._silent.pop(key, None)
        self.change(members=MappingProxyType({**self.view.members, key: member}))

    def unregister(self, key: MemberKey) -> None:
        """Takes a member out."""
        self._leases.pop(key, None)
        self._silent.pop(key, None)
        members = {each: one for each, one in self.view.members.items() if each != key}
        if len(members) != len(self.view.members):
            self.change(members=MappingProxyType(members))

    def listen(self) -> None:
        """Who could be heard, or not, may have changed: looks at every lease and every handle."""
        if self.is_away:
            self._silent.clear()  # it counts no time while it is away, and grants all of it anew
            return
        for key, handle in list(self._leases.items()):
            if handle.is_heard:
                self._silent.pop(key, None)
            elif key not in self._silent:
                self._silences += 1
                self._silent[key] = self._silences
                left_s = LEASE_TTL_S - self.world.rng.uniform(0.0, KEEP_ALIVE_S)
                self.world.after(left_s, self._expire, key, self._silences)
        for handle in list(self.handles):
            if handle.is_heard:
                self.world.after(self.world.rng.uniform(*LATENCY_S), handle.catch_up)

    def _expire(self, key: MemberKey, silence: int) -> None:
        if self._silent.get(key) == silence:
            self.world.note(f"lease of {key[1]} ends")
            self.world.counts["leases lost"] += 1
            self.unregister(key)


class SimMembership:
    """A `Membership`."""

    def __init__(self, store: SimStore, process: Process) -> None:
        life = LIFE.get()
        assert life, "a handle is a process's"
        self._store = store
        self._process = process
        self._life: Life = life
        self._cell = ViewCell()
        self._member: Member | None = None
        store.handles[self] = None
        life.at_end.append(self._end)
        store.world.after(store.world.rng.uniform(*LATENCY_S), self.catch_up)

    @property
    def is_heard(self) -> bool:
        """Whether the store hears it."""
        life = self._life
        return not (life.is_over or life.hangs) and self._store.reaches(self._process)

    @property
    def view(self) -> ClusterView:
        """See Membership."""
        return self._cell.view

    @property
    def connected(self) -> bool:
        """See Membership."""
        return self._store.reaches(self._process)

    def show(self, view: ClusterView) -> None:
        """A view has arrived, if it has."""
        if self.is_heard and view.revision > self._cell.view.revision:
            self._cell.show(view)

    def catch_up(self) -> None:
        """It is in touch (again): sees what is newest, and registers again if need be."""
        if not self.is_heard:
            return
        self.show(self._store.view)
        member = self._member
        if member and (member.role, member.id) not in self._store.view.members:
            self._store.register(self, member)

    async def join(self, member: Member) -> None:
        """See Membership."""
        assert self._member is None, "a handle joins once"
        await self._ask()
        self._store.register(self, member)
        await self._tell()
        self._member = member

    async def leave(self) -> None:
        """See Membership."""
        member, self._member = self._member, None
        if member is not None and self._store.reaches(self._process):
            check_alive()
            self._store.unregister((member.role, member.id))

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
            raise MembershipUnavailable("the store is out of reach")
        raise TimeoutError(f"not so within {timeout_s} s")

    async def claim_shard(self, shard_id: int, member_id: str) -> int:
        """See Membership."""
        await self._ask()
        before = self._store.view.shards.get(shard_id)
        await self._ask()
        shards = self._store.view.shards
        if shards.get(shard_id) != before:
            return 0
        new = before.claimed_by(member_id) if before else ShardInfo(shard_id, 1, member_id)
        self._store.change(shards=MappingProxyType({**shards, shard_id: new}))
        await self._tell()
        return new.epoch

    async def propose_topology(self, topology: Topology) -> bool:
        """See Membership."""
        await self._ask()
        current = self._store.view.topology
        if topology.version != (current.version if current else 0) + 1:
            return False
        self._store.change(topology=topology)
        await self._tell()
        return True

    async def register_currency(self, code: str, scale: int, name: str) -> Currency:
        """See Membership."""
        await self._ask()
        currencies = self._store.view.currencies
        currency = allot(currencies, code, scale, name)
        if code not in currencies:
            self._store.change(currencies=MappingProxyType({**currencies, code: currency}))
        await self._tell()
        return currency

    async def close(self) -> None:
        """See Membership."""
        await self.leave()
        self._end()
        self._cell.close()

    async def _ask(self) -> None:
        """Gets as far as the store.

        Raises:
            MembershipUnavailable: or not.
        """
        check_alive()
        if self._store.reaches(self._process):
            await asyncio.sleep(self._store.world.rng.uniform(*LATENCY_S))
            if self._store.reaches(self._process):
                return
        await asyncio.sleep(TIMEOUT_S)
        raise MembershipUnavailable("the store does not answer")

    async def _tell(self) -> None:
        """Hears what came of a change, and sees it."""
        if self._store.world.chance(self._store.lost) or not self._store.reaches(self._process):
            await asyncio.sleep(TIMEOUT_S)
            raise MembershipUnavailable("the store's answer was lost")
        self._cell.show(self._store.view)

    def _end(self) -> None:
        self._store.handles.pop(self, None)
        self._store.world.after(0.0, self._store.listen)
