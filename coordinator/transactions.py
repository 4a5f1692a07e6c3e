"""Packed requests taken apart into transactions, which keep the bytes that messages to shards need.

Pure. What is malformed here was malformed by a router, so the whole call is refused and the message
says where.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from mypy_extensions import mypyc_attr

from cluster.packed import BATCH_TRANSFERS_MAX, GROUP_SIZE_MAX, HEADER, MEMBER
from coordinator.two_phase import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from coordinator.actions import Actions
    from coordinator.window import Route

# Of a member: source account, metadata length, index, size, source's shard, destination's shard.
_MEMBER_FIELDS: Final = struct.Struct("<16xQ34xHx2Bx2H4x")
_ID_BYTES: Final = 16
_MEMBER_BYTES: Final = MEMBER.size

Legs = tuple[int, bytes, bytes]
"""What one shard gets of a transaction: how many members, those, and their metadata."""

assert _MEMBER_FIELDS.size == _MEMBER_BYTES


class MalformedRequest(ValueError):  # noqa: N818 - named for what was received
    """A request that cannot be executed.

    Attributes:
        field: of the request.
        message: what is wrong with it.
        index: of the member at fault; -1 when it is not one of them.
    """

    def __init__(self, field: str, message: str, index: int = -1) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
        self.index = index


class Job:
    """The transactions of one call, and the results that it still waits for.

    Attributes:
        results: packed, in request order; b"" = not yet.
        left: how many are missing.
    """

    __slots__ = ("_done", "left", "results")

    def __init__(self, count: int, done: Callable[[], None]) -> None:
        self.results = [b""] * count
        self.left = count
        self._done = done  # called when none is missing any more

    def answer(self, position: int, result: bytes) -> None:
        """Take one result."""
        assert not self.results[position], "a transaction is answered once"
        self.results[position] = result
        self.left -= 1
        if not self.left:
            self._done()


@mypyc_attr(acyclic=True)  # see `Transaction`
class Item(Transaction):
    """A transaction with the bytes that its messages are made of.

    Attributes:
        size: how many members.
        members, metadata: all of them, packed.
        header: of the attempt under way, as it goes to the home.
        vote_asked, decision: what the home, and the participants, are being told, packed.
        job, position: who waits for the result, and where it goes.
        topology_version: by which its members name their shards.
        deadline_s: when its client waits no longer, in the running loop's time.
        attempts: begun so far.
        route, began_s: where it waits or is under way, and since when it is; -1 = it waits.
        is_settled: whether nothing more will be done.
    """

    __slots__ = (
        "_first_source",
        "_legs",
        "attempts",
        "began_s",
        "deadline_s",
        "decision",
        "header",
        "is_settled",
        "job",
        "members",
        "metadata",
        "position",
        "route",
        "size",
        "topology_version",
        "vote_asked",
    )

    def __init__(
        self,
        home: int,
        participants: tuple[int, ...],
        first_source: int,
        size: int,
        members: bytes,
        metadata: bytes,
        legs: dict[int, Legs] | None,
    ) -> None:
        super().__init__(home, participants)
        self._first_source = first_source
        self._legs = legs  # None: every shard gets everything
        self.size = size
        self.members = members
        self.metadata = metadata
        self.header = b""
        self.vote_asked = b""
        self.decision = b""
        self.job: Job | None = None
        self.position = 0
        self.topology_version = 0
        self.deadline_s = 0.0
        self.attempts = 0
        self.route: Route | None = None
        self.began_s = -1.0
        self.is_settled = False

    def begin(self, transaction_id: bytes, deadline_us: int) -> Actions:
        """A new attempt; see `Transaction`."""
        actions = super().begin(transaction_id, deadline_us)
        self.attempts += 1
        self.header = HEADER.pack(
            transaction_id, deadline_us, self._first_source, self.home, self.size
        )
        return actions

    def for_participant(self, shard: int) -> tuple[bytes, bytes, bytes]:
        """Return header, members and metadata of a PREPARE to a participant."""
        if self._legs is None:
            return self.header, self.members, self.metadata
        count, members, metadata = self._legs[shard]
        header = HEADER.pack(
            self.transaction_id, self.deadline_us, self._first_source, self.home, count
        )
        return header, members, metadata


def take_apart(members: bytes, metadata: bytes) -> list[Item]:
    """Return the transactions of a request, in its order.

    Raises:
        MalformedRequest: they are not 1 … 8,192 members of whole transactions over two shards or
            more, with their metadata.
    """
    count, rest = divmod(len(members), _MEMBER_BYTES)
    if rest or not 1 <= count <= BATCH_TRANSFERS_MAX:
        raise MalformedRequest(
            "members", f"{len(members)} bytes are not 1 … {BATCH_TRANSFERS_MAX} members"
        )
    rows = list(_MEMBER_FIELDS.iter_unpack(members))
    items = []
    alone: dict[int, tuple[int, ...]] = {}  # each shard as the only participant
    at = metadata_at = 0
    while at < count:
        source, metadata_bytes, index, size, home, other = rows[at]
        if size <= 1:
            if index or home == other or not home or not other:
                raise _malformed(at, "is not a transfer between two shards")
            end = metadata_at + metadata_bytes
            start = at * _MEMBER_BYTES
            own = members[start : start + _MEMBER_BYTES]
            participants = alone.setdefault(other, (other,))
            item = Item(home, participants, source, 1, own, metadata[metadata_at:end], None)
            at, metadata_at = at + 1, end
        else:
            own_rows = rows[at : at + size]
            end = metadata_at + sum(row[1] for row in own_rows)
            start = at * _MEMBER_BYTES
            own = members[start : start + size * _MEMBER_BYTES]
            _check_group(at, size, own_rows, own)
            item = _group(own_rows, own, metadata[metadata_at:end])
            at, metadata_at = at + size, end
        items.append(item)
    if metadata_at != len(metadata):
        raise MalformedRequest("metadata", "its length is not what the members say")
    return items


def _group(rows: list[tuple[int, ...]], members: bytes, metadata: bytes) -> Item:
    home = rows[0][4]
    # In the order in which the members name them; home apart, each once.
    shards = dict.fromkeys(shard for row in rows for shard in row[4:])
    del shards[home]
    legs = {shard: _legs_on(shard, rows, members, metadata) for shard in shards}
    return Item(home, tuple(shards), rows[0][0], len(rows), members, metadata, legs)


def _legs_on(shard: int, rows: list[tuple[int, ...]], members: bytes, metadata: bytes) -> Legs:
    """Return what of a group touches a shard."""
    own, own_metadata = [], []
    metadata_at = 0
    for index, row in enumerate(rows):
        end = metadata_at + row[1]
        if shard in row[4:]:
            own.append(members[index * _MEMBER_BYTES : (index + 1) * _MEMBER_BYTES])
            own_metadata.append(metadata[metadata_at:end])
        metadata_at = end
    return len(own), b"".join(own), b"".join(own_metadata)


def _check_group(at: int, size: int, rows: list[tuple[int, ...]], members: bytes) -> None:
    if size > GROUP_SIZE_MAX or len(rows) != size:
        raise _malformed(at, f"is of a group of {size}, and {len(rows)} members are left")
    shards: set[int] = set()
    for index, (_, _, own_index, own_size, source_shard, destination_shard) in enumerate(rows):
        start = index * _MEMBER_BYTES
        same_id = members[start : start + _ID_BYTES] == members[:_ID_BYTES]
        if own_index != index or own_size != size or not same_id:
            raise _malformed(at + index, f"is not the {index}th of the group that began before it")
        shards |= {source_shard, destination_shard}
    if 0 in shards or len(shards) == 1:
        raise _malformed(at, "begins a group that is not of two shards or more")


def _malformed(index: int, message: str) -> MalformedRequest:
    return MalformedRequest("members", f"members[{index}] {message}", index)
