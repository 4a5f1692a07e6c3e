"""Election over etcd: at most one of those who campaign under a prefix leads at a time.

The usual recipe: each campaigner puts a key under its own lease; the oldest key leads; each waits
for the keys older than its own to go. A lease is no mutual exclusion: a leader that stalls past its
lease does not know that it has been replaced. So `campaign` returns a *token* that only grows from
leader to leader, and whatever the leader changes must refuse a smaller one.
"""

from contextlib import aclosing

from cluster.etcd import Deleted, Etcd, Listing, Unchanged


class LeaseGone(Exception):  # noqa: N818 - named for what happened
    """The campaigner's key vanished: its lease ran out. Grant another and campaign anew."""


class Election:
    """One campaigner. The lease is the caller's to keep alive."""

    def __init__(self, etcd: Etcd, prefix: str, lease: int) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._lease = lease
        self._key = f"{prefix}{lease:016x}"

    async def campaign(self, value: bytes) -> int:
        """Wait until elected; return the token. Campaigning again with the same lease is safe.

        Raises:
            LeaseGone: while waiting.
            EtcdError: the candidacy could not be entered; it may have been.
        """
        await self._etcd.swap([Unchanged(self._key, 0)], self._key, value, self._lease)
        rivals: dict[str, int] = {}  # key → create revision
        async with aclosing(self._etcd.follow(self._prefix)) as updates:
            async for update in updates:
                if isinstance(update, Listing):
                    rivals = {kv.key: kv.create_revision for kv in update.items}
                else:
                    for event in update.events:
                        if isinstance(event, Deleted):
                            rivals.pop(event.key, None)
                        else:
                            rivals[event.key] = event.create_revision
                if self._key not in rivals:
                    break
                if rivals[self._key] == min(rivals.values()):
                    return rivals[self._key]
        raise LeaseGone(f"{self._key} is gone")

    async def leader(self) -> bytes | None:
        """Return what the leader campaigned with; None when there is none. Raises: EtcdError."""
        items = (await self._etcd.list(self._prefix)).items
        return min(items, key=lambda kv: kv.create_revision).value if items else None

    async def resign(self) -> None:
        """Withdraw, leading or not. Raises: EtcdError (then the lease's end will)."""
        await self._etcd.delete(self._key)
