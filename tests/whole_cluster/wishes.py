"""What clients want: transfers and groups among a few accounts, drawn, and packed as routers do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.packed import BODY_BYTES, MEMBER, MEMBER_BODY
from doubloon import Transfer, TransferType
from tests.simulation.clients import Intent
from tests.whole_cluster.oracle import CODES

if TYPE_CHECKING:
    import random

    from cluster.topology import Topology

BANK_FLOOR_MINOR: Final = -(10**9)
"""No run comes near it."""

AMOUNT_MAX_MINOR: Final = 40
"""About what a player has, so that funds do run out."""

GROUP_MAX: Final = 4


@dataclass(frozen=True)
class Accounts:
    """The accounts of a run.

    Attributes:
        topology: says where they live.
        banks: one for each shard; these may go negative.
        players: the others.
    """

    topology: Topology
    banks: list[int]
    players: list[int]

    @classmethod
    def of(cls, topology: Topology, players: int) -> Accounts:
        """A bank and so many players for each shard: the first ids that live there."""
        found: dict[int, list[int]] = {each: [] for each in topology.shards}
        account_id = 0
        while any(len(each) <= players for each in found.values()):
            account_id += 1
            mine = found[topology.shard_of(account_id)]
            if len(mine) <= players:
                mine.append(account_id)
        return cls(
            topology,
            [each[0] for each in found.values()],
            [one for each in found.values() for one in each[1:]],
        )

    def all(self) -> list[int]:
        """Banks and players."""
        return [*self.banks, *self.players]

    def home(self, account_id: int) -> int:
        """Its shard."""
        return self.topology.shard_of(account_id)


@dataclass(eq=False)
class Wish(Intent):
    """An intent as the SDK takes it.

    Attributes:
        transfers: what to ask for.
        may_have_happened: whether an answer to it was ever lost.
    """

    transfers: list[Transfer] = field(default_factory=list)
    may_have_happened: bool = False

    @property
    def transfer_id(self) -> bytes:
        """Its id, or its group's."""
        return self.transfers[0].transfer_id


class Wishes:
    """Draws what clients want.

    Args:
        rng: all chance.
        accounts: among which.

    Attributes:
        all: everything that was ever wanted.
    """

    def __init__(self, rng: random.Random, accounts: Accounts) -> None:
        self._rng = rng
        self._accounts = accounts
        self.all: list[Wish] = []

    def transfer(self) -> Wish:
        """One transfer."""
        return self._make([self._pair()], is_group=False)

    def group(self) -> Wish:
        """One group."""
        count = self._rng.randint(1, GROUP_MAX)
        return self._make([self._pair() for _ in range(count)], is_group=True)

    def differing(self, wish: Wish) -> Wish:
        """Another body under the same key."""
        moves = [(each.source, each.destination, each.amount_minor) for each in wish.transfers]
        source, destination, amount = moves[0]
        moves[0] = (source, destination, amount + 1)
        return self._make(moves, is_group=wish.is_group, again=wish)

    def _pair(self) -> tuple[int, int, int]:
        rng, accounts = self._rng, self._accounts
        source = rng.choice(accounts.players if rng.random() < 0.7 else accounts.banks)
        destination = source
        while destination == source:
            destination = rng.choice(accounts.players if rng.random() < 0.8 else accounts.banks)
        return source, destination, rng.randint(1, AMOUNT_MAX_MINOR)

    def _make(
        self, moves: list[tuple[int, int, int]], *, is_group: bool, again: Wish | None = None
    ) -> Wish:
        rng, number = self._rng, len(self.all) + 1
        transfer_id = again.transfer_id if again else number.to_bytes(16, "big")
        currency = rng.choice(list(CODES))
        metadata = rng.randbytes(rng.choice((0, 0, 0, 5)))
        members, transfers = [], []
        for index, (source, destination, amount) in enumerate(moves):
            size = len(moves) if is_group else 0
            fields = transfer_id, source, destination, amount, number, 0, currency, len(metadata)
            body = MEMBER_BODY.pack(*fields, TransferType.TRANSFER, index, size)
            homes = self._accounts.home(source), self._accounts.home(destination)
            members.append(MEMBER.pack(body, *homes))
            transfers.append(
                Transfer(
                    source,
                    destination,
                    CODES[currency],
                    amount,
                    reference=number,
                    metadata=metadata,
                    transfer_id=transfer_id,
                )
            )
        name = f"{'group' if is_group else 'transfer'} {number}"
        wish = Wish(name, b"".join(members), metadata * len(moves), is_group, transfers=transfers)
        assert len(wish.bodies[0]) == BODY_BYTES
        self.all.append(wish)
        return wish
