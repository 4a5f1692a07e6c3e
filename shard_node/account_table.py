"""The accounts in memory, by id: a hash table whose entries are the accounts.

To find one of a hundred thousand in a dictionary costs three cache misses before the account is
seen at all: the dictionary's index, its entry, and the key, which is an object of its own. Here it
costs one, a slot, since an account has its id in itself. A busy node spent a quarter of its time on
that.

Open addressing with linear probing (Knuth, The Art of Computer Programming, vol. 3, 6.4, algorithms
L and R). The table is in parts that grow and shrink by themselves, so that neither holds up the
event loop for longer than it takes to move one part's accounts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_extensions import i64

    from shard_node.books import Account

PARTS: Final = 256
"""A part of a node's 200,000 accounts has some 800, and takes 0.1 ms to grow."""

PART_SLOTS_MIN: Final = 8
"""Slots of a part at first; a power of two, and doubled whenever half of them are in use."""

PART_SLOTS_PER_ACCOUNT_MAX: Final = 8
"""A part with more is made smaller, or the hand would come upon too few accounts."""

_MULTIPLIER: Final = 0x1E3779B97F4A7C15
"""Odd, and near 2^61 times the golden ratio: spreads ids that follow each other (Knuth, 6.4)."""

_LOW_63: Final = 2**63 - 1
_PART_SHIFT: Final = 55
_SLOT_SHIFT: Final = 24


class AccountTable:
    """Accounts by id, and a hand that goes round them, for who has to let some of them go."""

    def __init__(self) -> None:
        self._parts: list[list[Account | None]] = [[None] * PART_SLOTS_MIN for _ in range(PARTS)]
        self._counts = [0] * PARTS
        self._count = 0
        self._hand_part = self._hand_slot = 0

    def __len__(self) -> int:
        """How many there are."""
        return self._count

    @property
    def round_steps(self) -> int:
        """In how many steps the hand goes round once: all slots, and from part to part."""
        return sum(map(len, self._parts)) + PARTS

    def __iter__(self) -> Iterator[Account]:
        """Every account, in no order."""
        for part in self._parts:
            for account in part:
                if account is not None:
                    yield account

    def get(self, account_id: i64) -> Account | None:
        """The account with an id of 0 … 2^63 − 1; None = it is not here."""
        hashed: i64 = _hash(account_id)
        part = self._parts[hashed >> _PART_SHIFT]
        last: i64 = len(part) - 1
        slot: i64 = (hashed >> _SLOT_SHIFT) & last
        account = part[slot]
        while account is not None and account.account_id != account_id:
            slot = (slot + 1) & last
            account = part[slot]
        return account

    def add(self, account: Account) -> None:
        """Puts in an account whose id is not here yet."""
        number: i64 = _hash(account.account_id) >> _PART_SHIFT
        part = self._parts[number]
        if 2 * self._counts[number] >= len(part):
            part = self._parts[number] = _resized(part, 2 * len(part))
        _put(part, account)
        self._counts[number] += 1
        self._count += 1

    def review(self, steps: int, accounts_max: int, committed_epoch: int) -> None:
        """Moves the hand; who it comes upon leaves if he may, while there are too many.

        Args:
            steps: of the hand, at most.
            accounts_max: so many may stay.
            committed_epoch: what changed later, or is pinned, must stay (see `Memory`).
        """
        while steps > 0 and self._count > accounts_max:
            part = self._parts[self._hand_part]
            if self._hand_slot >= len(part):
                self._fit(self._hand_part)
                self._hand_part, self._hand_slot = (self._hand_part + 1) % PARTS, 0
                steps -= 1
                continue
            account = part[self._hand_slot]
            if account is None or account.pins or account.touched_epoch > committed_epoch:
                self._hand_slot += 1
                steps -= 1
                continue
            account.cached = False
            _clear(part, self._hand_slot)  # the hand stays, for another may have moved there
            self._counts[self._hand_part] -= 1
            self._count -= 1

    def _fit(self, number: int) -> None:
        """Makes a part smaller that had far more accounts once."""
        part, wanted = self._parts[number], self._counts[number] * PART_SLOTS_PER_ACCOUNT_MAX
        slots = len(part)
        while slots > max(wanted, PART_SLOTS_MIN):
            slots //= 2
        if slots < len(part):
            self._parts[number] = _resized(part, slots)


def _hash(account_id: i64) -> i64:
    """63 bits: the highest name the part, some in the middle the slot."""
    return (account_id * _MULTIPLIER) & _LOW_63


def _home(account: Account, last: i64) -> i64:
    """The slot that an account is looked for in first."""
    return (_hash(account.account_id) >> _SLOT_SHIFT) & last


def _put(part: list[Account | None], account: Account) -> None:
    last: i64 = len(part) - 1
    slot: i64 = _home(account, last)
    while part[slot] is not None:
        slot = (slot + 1) & last
    part[slot] = account


def _resized(part: list[Account | None], slots: int) -> list[Account | None]:
    resized: list[Account | None] = [None] * slots
    for account in part:
        if account is not None:
            _put(resized, account)
    return resized


def _clear(part: list[Account | None], gap: i64) -> None:
    """Empties a slot, and closes the gap for those that were put further on because of it."""
    last: i64 = len(part) - 1
    part[gap] = None
    slot: i64 = (gap + 1) & last
    account = part[slot]
    while account is not None:
        # Whoever has come at least as far from home as the gap is behind would be missed there.
        if ((slot - _home(account, last)) & last) >= ((slot - gap) & last):
            part[gap], part[slot] = account, None
            gap = slot
        slot = (slot + 1) & last
        account = part[slot]
