"""Legs: what a group or a transaction does to the accounts of one shard, checked as a whole.

Legs apply to each account in the order of the group's transfers, so what has to fit is not their
sum but the lowest and the highest point on the way. That is also what must be reserved, so that the
legs can be posted later whatever happens in between: the depth of the lowest point out of what can
be spent, the height of the highest out of what can be taken in.

Where a check fails only because of what others have reserved, the answer is *busy* and not a
refusal: reservations are gone in a moment, and a refusal would be recorded for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from librt.strings import read_i32_le, read_i64_le
from mypy_extensions import mypyc_attr

from cluster.packed import (
    AMOUNT_AT,
    BODY_BYTES,
    CURRENCY_AT,
    DESTINATION_AT,
    IMPORT_AT,
    INDEX_AT,
    MEMBER_BYTES,
    METADATA_LENGTH_AT,
    SHARDS_AT,
    SOURCE_AT,
)
from cluster.refusals import RefusalReason
from shard_node.books import HOUR_US, Account, Balance

if TYPE_CHECKING:
    from shard_node.memory import Memory

IMPORT_SHIFT_MAX_US: Final = HOUR_US
"""How far an import may be moved forward to stand behind the account's latest entry."""

STATUS_ACTIVE: Final = 1
STATUS_FROZEN: Final = 2
STATUS_CLOSED: Final = 3

EMPTY: Final = Balance(0, 0)
"""What an account has in a currency that it never held; never changed."""

_UNKNOWN: Final = (RefusalReason.SOURCE_UNKNOWN, RefusalReason.DESTINATION_UNKNOWN)
_CLOSED: Final = (RefusalReason.SOURCE_CLOSED, RefusalReason.DESTINATION_CLOSED)
_FROZEN: Final = (RefusalReason.SOURCE_FROZEN, RefusalReason.DESTINATION_FROZEN)


# Of the values below a transaction makes a dozen. A frozen dataclass sets its fields one by one
# through `object`, which takes longer than all the checks; so they have initialisers of their own.
# Acyclic: see `transactions`.


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Member:
    """One transfer of a group or transaction. Never changed.

    Attributes:
        body: 64 bytes.
        source_shard, destination_shard: of its two accounts.
        metadata: its metadata.
    """

    body: bytes
    source_shard: int
    destination_shard: int
    metadata: bytes

    def __init__(
        self, body: bytes, source_shard: int, destination_shard: int, metadata: bytes
    ) -> None:
        self.body = body
        self.source_shard = source_shard
        self.destination_shard = destination_shard
        self.metadata = metadata


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Leg:
    """One account's side of a transfer. But for `account`, never changed.

    Attributes:
        body, metadata: of the transfer.
        incoming: whether the account is paid.
        account_id, currency, amount_minor, import_us, index: of the body.
        peer: the other account's shard.
        account: the account, where it is certain to be the one in memory until the leg is posted:
            it stays there (`reserve`), or nothing else is looked up before. None = look it up.
    """

    body: bytes
    metadata: bytes
    incoming: bool
    account_id: int
    currency: int
    amount_minor: int
    import_us: int
    index: int
    peer: int
    account: Account | None = field(init=False, compare=False, repr=False)

    def __init__(self, body: bytes, metadata: bytes, *, incoming: bool, peer: int) -> None:
        self.body = body
        self.metadata = metadata
        self.incoming = incoming
        self.account_id = read_i64_le(body, DESTINATION_AT if incoming else SOURCE_AT)
        self.currency = body[CURRENCY_AT] | body[CURRENCY_AT + 1] << 8
        self.amount_minor = read_i64_le(body, AMOUNT_AT)
        self.import_us = read_i64_le(body, IMPORT_AT)
        self.index = body[INDEX_AT]
        self.peer = peer
        self.account = None

    @property
    def signed_minor(self) -> int:
        """What it adds to the balance."""
        return self.amount_minor if self.incoming else -self.amount_minor


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Reservation:
    """What stays free in a balance for legs to be posted later, minor units. Never changed.

    Attributes:
        account, balance: whose, and which; the account stays in memory.
        outgoing: not to be spent.
        incoming: not to be filled up.
    """

    account: Account = field(compare=False, repr=False)
    balance: Balance = field(compare=False, repr=False)
    outgoing: int
    incoming: int

    def __init__(self, account: Account, balance: Balance, outgoing: int, incoming: int) -> None:
        self.account = account
        self.balance = balance
        self.outgoing = outgoing
        self.incoming = incoming


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Verdict:
    """What a check found; fine when there is neither a refusal nor busyness. Never changed.

    Attributes:
        refusal: the final refusal of highest precedence; None = there is none.
        index: of the transfer that it is about.
        busy: whether only others' reservations stand in the way.
    """

    refusal: RefusalReason | None
    index: int
    busy: bool

    def __init__(self, refusal: RefusalReason | None, index: int, *, busy: bool) -> None:
        self.refusal = refusal
        self.index = index
        self.busy = busy


_FINE: Final = Verdict(None, 0, busy=False)
_BUSY: Final = Verdict(None, 0, busy=True)
_IS_FINE: Final = 0
_IS_BUSY: Final = -1
_INSUFFICIENT: Final = int(RefusalReason.INSUFFICIENT_FUNDS)
_CAP_EXCEEDED: Final = int(RefusalReason.BALANCE_CAP_EXCEEDED)
_OF_BALANCES: Final = (_INSUFFICIENT, _CAP_EXCEEDED)


def split_members(members: bytes, metadata: bytes) -> list[Member]:
    """Unpacks members."""
    found: list[Member] = []
    at = 0
    for start in range(0, len(members), MEMBER_BYTES):
        body = members[start : start + BODY_BYTES]
        source_shard, destination_shard = shards_of(members, start)
        length = body[METADATA_LENGTH_AT] | body[METADATA_LENGTH_AT + 1] << 8
        own = metadata[at : at + length] if length else b""
        found.append(Member(body, source_shard, destination_shard, own))
        at += length
    return found


def local_members(bodies: bytes, metadata: bytes, shard_id: int) -> list[Member]:
    """Members whose accounts are both on one shard, from bodies."""
    found: list[Member] = []
    at = 0
    for start in range(0, len(bodies), BODY_BYTES):
        body = bodies[start : start + BODY_BYTES]
        length = body[METADATA_LENGTH_AT] | body[METADATA_LENGTH_AT + 1] << 8
        found.append(Member(body, shard_id, shard_id, metadata[at : at + length]))
        at += length
    return found


def legs_on(members: list[Member], shard_id: int) -> list[Leg]:
    """The legs of accounts of this shard, in the order in which they apply."""
    legs: list[Leg] = []
    for each in members:
        body, metadata = each.body, each.metadata
        if each.source_shard == shard_id:
            legs.append(Leg(body, metadata, incoming=False, peer=each.destination_shard))
        if each.destination_shard == shard_id:
            legs.append(Leg(body, metadata, incoming=True, peer=each.source_shard))
    return legs


def legs_of(members: bytes, metadata: bytes, shard_id: int) -> list[Leg]:
    """`legs_on`, of packed members."""
    if len(members) != MEMBER_BYTES:
        return legs_on(split_members(members, metadata), shard_id)
    # As nearly always: one transfer, and one of its accounts.
    source_shard, destination_shard = shards_of(members, 0)
    if source_shard == destination_shard:
        return legs_on(split_members(members, metadata), shard_id)
    incoming = destination_shard == shard_id
    peer = source_shard if incoming else destination_shard
    return [Leg(members[:BODY_BYTES], metadata, incoming=incoming, peer=peer)]


def shards_of(members: bytes, at: int) -> tuple[int, int]:
    """The shards of a packed member's source and destination accounts."""
    shards = read_i32_le(members, at + SHARDS_AT)
    return shards & 0xFFFF, shards >> 16 & 0xFFFF


def check_legs(memory: Memory, legs: list[Leg], stamp_us: int) -> Verdict:
    """Whether all legs can be posted, one after the other, beside everything that is reserved."""
    if len(legs) == 1:  # as nearly always
        leg = legs[0]
        account = leg.account = memory.account(leg.account_id)
        found = _check_leg(account, leg, leg.signed_minor, stamp_us)
        if found > 0:
            return Verdict(RefusalReason(found), leg.index, busy=False)
        return _FINE if found == _IS_FINE else _BUSY
    refusals: list[tuple[int, int]] = []
    courses: dict[tuple[int, int], int] = {}
    busy = False
    for leg in legs:
        place = leg.account_id, leg.currency
        course = courses.get(place, 0) + leg.signed_minor
        found = _check_leg(memory.account(leg.account_id), leg, course, stamp_us)
        if found <= 0 or found in _OF_BALANCES:
            courses[place] = course
        if found > 0:
            refusals.append((found, leg.index))
        elif found == _IS_BUSY:
            busy = True
    if refusals:
        reason, index = min(refusals)
        return Verdict(RefusalReason(reason), index, busy=False)
    return _BUSY if busy else _FINE


def _check_leg(account: Account | None, leg: Leg, course: int, stamp_us: int) -> int:
    """Whether a leg can be posted that leaves a balance changed by `course`.

    Returns its refusal, `_IS_BUSY` or `_IS_FINE`.
    """
    if account is None:
        return int(_UNKNOWN[leg.incoming])
    if account.status != STATUS_ACTIVE or leg.import_us:
        refusal = _account_refusal(account, leg, stamp_us)
        if refusal is not None:
            return int(refusal)
    balance = account.balance(leg.currency) or EMPTY
    minor = balance.minor + course
    if leg.incoming:
        cap_minor: int = account.cap_minor  # no i64: what a group adds up to may pass 63 bits
        if minor > cap_minor:
            return _CAP_EXCEEDED
        return _IS_BUSY if minor + balance.reserved_incoming > cap_minor else _IS_FINE
    if minor < account.floor_minor:
        return _INSUFFICIENT
    return _IS_BUSY if minor - balance.reserved_outgoing < account.floor_minor else _IS_FINE


def posting_time_us(account: Account, import_us: int, stamp_us: int) -> int:
    """When an entry is posted: at the block's stamp, unless it is imported.

    An import is posted at the later of its own time and the account's latest entry.
    """
    return max(import_us, account.latest_time_us()) if import_us else stamp_us


def balance_of(account: Account, currency: int, log_id: int) -> Balance:
    """The account's balance in a currency, made when this is the first of it."""
    return account.balance(currency) or account.open_balance(currency, log_id)


def reserve(memory: Memory, legs: list[Leg], log_id: int) -> tuple[Reservation, ...]:
    """Reserves what legs that passed the check need to stay possible.

    That is how far each balance goes down and up under them, at the most, on the way. The accounts
    stay in memory until it is released.
    """
    if len(legs) == 1:  # as nearly always
        leg = legs[0]
        outgoing, incoming = (0, leg.amount_minor) if leg.incoming else (leg.amount_minor, 0)
        reservation = _reserve(memory, leg, outgoing, incoming, log_id)
        leg.account = reservation.account
        return (reservation,)
    courses: dict[tuple[int, int], tuple[Leg, int, int, int]] = {}
    for leg in legs:
        place = leg.account_id, leg.currency
        _, now, lowest, highest = courses.get(place, (leg, 0, 0, 0))
        now += leg.signed_minor
        courses[place] = leg, now, min(lowest, now), max(highest, now)
    return tuple(
        _reserve(memory, leg, -lowest, highest, log_id)
        for leg, _, lowest, highest in courses.values()
    )


def _reserve(memory: Memory, leg: Leg, outgoing: int, incoming: int, log_id: int) -> Reservation:
    account = leg.account or memory.account(leg.account_id)
    assert account, "it was checked"
    balance = balance_of(account, leg.currency, log_id)
    balance.reserved_outgoing += outgoing
    balance.reserved_incoming += incoming
    memory.pin(account)
    return Reservation(account, balance, outgoing, incoming)


def release(memory: Memory, reservations: tuple[Reservation, ...]) -> None:
    """Undoes `reserve`."""
    for each in reservations:
        each.balance.reserved_outgoing -= each.outgoing
        each.balance.reserved_incoming -= each.incoming
        memory.unpin(each.account)


def status_refusal(status: int, *, incoming: bool) -> RefusalReason | None:
    """Why an account of this status takes no part, if so."""
    if status == STATUS_CLOSED:
        return _CLOSED[incoming]
    return _FROZEN[incoming] if status == STATUS_FROZEN else None


def _account_refusal(account: Account, leg: Leg, stamp_us: int) -> RefusalReason | None:
    if refusal := status_refusal(account.status, incoming=leg.incoming):
        return refusal
    if not leg.import_us:
        return None
    if leg.import_us > stamp_us:
        return RefusalReason.IMPORT_IN_FUTURE
    late_us = posting_time_us(account, leg.import_us, stamp_us) - leg.import_us
    return RefusalReason.IMPORT_TOO_OLD if late_us > IMPORT_SHIFT_MAX_US else None
