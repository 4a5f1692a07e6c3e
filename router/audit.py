"""Whether what every two shards owe each other cancels, as of a logical time, while traffic runs.

Pure: the arithmetic of an audit, and what makes it exact.

Each shard keeps a position with each other one: what crossed the border, plus when an account of
its own paid. A leg counts by the time at which its home decided it, on both sides, so as of any
instant T the two positions cancel but for legs that were decided before T and are not posted yet.
Those are prepared on the shard that has yet to post them, and what became of them only their home
can tell.

It takes three looks at every shard, each at all of them:

1. The first moves every shard's clock past T: from then on nothing is decided before T any more.
2. The second finds what is prepared. A leg decided before T is posted by now, or prepared now. Then
   each leg's home is asked what became of its transaction.
3. The third takes the positions, and again what is prepared. A leg that is gone since the second is
   in the positions if it was decided before T. A leg that is in both was there all the while its
   home was asked, and a home forgets no decision before all have posted it: so the answer is true,
   and the leg counts if it was decided before T. A leg that only the third has was prepared when
   nothing could be decided before T any more, and does not count.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

SECOND_US: Final = 1_000_000
DIFFERING_MAX: Final = 100
"""The most transactions named for one pair: the contract's bound."""


class Leg(NamedTuple):
    """A leg that is prepared and not posted.

    Attributes:
        transaction_id: its transaction.
        home: the shard that decides it.
        deadline_us: when it is given up.
        peer: the other account's shard.
        currency: code.
        amount_minor: what posting it adds to the position with that shard.
    """

    transaction_id: bytes
    home: int
    deadline_us: int
    peer: int
    currency: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one shard said at one moment.

    Attributes:
        positions: (other shard, currency) → what that shard owes this one, minor units, of what was
            decided before the audit's time and is posted.
        legs: what is prepared and not posted.
    """

    positions: Mapping[tuple[int, str], int]
    legs: Sequence[Leg]


class Pair(NamedTuple):
    """Two shards and a currency; the first is the lower."""

    shard_id: int
    peer: int
    currency: str


@dataclass(frozen=True, slots=True)
class PairAudit:
    """What two shards owe each other in one currency.

    Attributes:
        pair: which.
        position_minor: what the second owes the first by the first's books.
        peer_position_minor: what the first owes the second by the second's books.
        unposted_minor: how much of these was decided in time and is not posted yet, both sides'
            amounts added up whatever their signs.
        unposted: the transactions that are so, on either side.
    """

    pair: Pair
    position_minor: int
    peer_position_minor: int
    unposted_minor: int
    unposted: frozenset[bytes]

    @property
    def balanced(self) -> bool:
        """Whether the two cancel."""
        return self.position_minor + self.peer_position_minor == 0


@dataclass(frozen=True, slots=True)
class Findings:
    """An audit.

    Attributes:
        pairs: every pair with a position, in order.
        in_doubt: transactions that are prepared somewhere and were not decided in time.
    """

    pairs: tuple[PairAudit, ...]
    in_doubt: int


class Fate(NamedTuple):
    """What the home said of a transaction.

    Attributes:
        decided_us: when it was committed; 0 = it was not.
        aborted: whether it never will be.
    """

    decided_us: int
    aborted: bool


def whole_second(time_us: int) -> int:
    """Return the last whole second up to an instant."""
    return time_us // SECOND_US * SECOND_US


def audit(
    second: Mapping[int, Snapshot],
    third: Mapping[int, Snapshot],
    fates: Mapping[bytes, Fate],
    as_of_us: int,
) -> Findings:
    """Add up the positions; see the module's docstring.

    Args:
        second: the second look, by shard.
        third: the third look, by shard.
        fates: of every transaction with a leg in the second look, asked between the two.
        as_of_us: the audit's time; what was decided at it or later does not count.
    """
    positions: Counter[tuple[int, int, str]] = Counter()
    unposted_minor: Counter[Pair] = Counter()
    unposted: dict[Pair, set[bytes]] = {}
    in_doubt: set[bytes] = set()
    for shard_id, snapshot in third.items():
        for (peer, currency), amount_minor in snapshot.positions.items():
            positions[shard_id, peer, currency] += amount_minor
        earlier = Counter(second[shard_id].legs) if shard_id in second else Counter()
        for leg in snapshot.legs:
            if not earlier[leg]:
                continue
            earlier[leg] -= 1
            fate = fates[leg.transaction_id]
            if 0 < fate.decided_us < as_of_us:
                pair = _pair(shard_id, leg.peer, leg.currency)
                positions[shard_id, leg.peer, leg.currency] += leg.amount_minor
                unposted_minor[pair] += abs(leg.amount_minor)
                unposted.setdefault(pair, set()).add(leg.transaction_id)
            elif not fate.aborted:
                in_doubt.add(leg.transaction_id)
    pairs = sorted({_pair(*key) for key in positions})
    return Findings(
        tuple(
            PairAudit(
                pair,
                positions[pair.shard_id, pair.peer, pair.currency],
                positions[pair.peer, pair.shard_id, pair.currency],
                unposted_minor[pair],
                frozenset(unposted.get(pair, ())),
            )
            for pair in pairs
        ),
        len(in_doubt),
    )


def _pair(shard_id: int, peer: int, currency: str) -> Pair:
    return Pair(min(shard_id, peer), max(shard_id, peer), currency)


class Crossing(NamedTuple):
    """A leg that was posted: what it added to its shard's position.

    Attributes:
        transaction_id: its transaction.
        group_index: which transfer of its group it is of.
        amount_minor: may be negative.
    """

    transaction_id: bytes
    group_index: int
    amount_minor: int


def differing(
    ours: Iterable[Crossing], theirs: Iterable[Crossing], unposted: frozenset[bytes]
) -> dict[bytes, int]:
    """Return the transactions whose legs on two shards do not cancel, and by how much.

    Args:
        ours: the legs that one shard posted towards the other.
        theirs: the legs that the other posted towards it.
        unposted: transactions known to be posted on one side only, so far.
    """
    sums: Counter[tuple[bytes, int]] = Counter()
    for crossing in (*ours, *theirs):
        sums[crossing.transaction_id, crossing.group_index] += crossing.amount_minor
    found: Counter[bytes] = Counter()
    wrong: set[bytes] = set()
    for (transaction_id, _), sum_minor in sums.items():
        if sum_minor and transaction_id not in unposted:
            found[transaction_id] += sum_minor
            wrong.add(transaction_id)
    return {transaction_id: found[transaction_id] for transaction_id in wrong}
