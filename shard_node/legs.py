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
    SOURCE_AT,
)
from cluster.refusals import RefusalReason
from shard_node.books import HOUR_US, Account, Balance

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """One account's side of a member. Never changed.

    Attributes:
        member: the transfer.
        incoming: whether the account is paid.
        account_id, currency, amount_minor, import_us, index: of the member's body.
        peer: the other account's shard.
    """

    member: Member
    incoming: bool
    account_id: int
    currency: int
    amount_minor: int
    import_us: int
    index: int
    peer: int

    def __init__(self, member: Member, *, incoming: bool, peer: int) -> None:
        body = member.body
        self.member = member
        self.incoming = incoming
        self.account_id = read_i64_le(body, DESTINATION_AT if incoming else SOURCE_AT)
        self.currency = body[CURRENCY_AT] | body[CURRENCY_AT + 1] << 8
        self.amount_minor = read_i64_le(body, AMOUNT_AT)
        self.import_us = read_i64_le(body, IMPORT_AT)
        self.index = body[INDEX_AT]
        self.peer = peer

    @property
    def signed_minor(self) -> int:
        """What it adds to the balance."""
        return self.amount_minor if self.incoming else -self.amount_minor


@mypyc_attr(acyclic=True)
@dataclass(slots=True, init=False)
class Reservation:
    """What must stay free in a balance for legs to be posted later, minor units.

    Attributes:
        account_id, currency: which balance.
        outgoing: not to be spent.
        incoming: not to be filled up.
        account: the account, from `reserve` until `release`: it stays in memory for so long.
    """

    account_id: int
    currency: int
    outgoing: int
    incoming: int
    account: Account | None = field(init=False, compare=False, repr=False)

    def __init__(self, account_id: int, currency: int, outgoing: int, incoming: int) -> None:
        self.account_id = account_id
        self.currency = currency
        self.outgoing = outgoing
        self.incoming = incoming
        self.account = None


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


def split_members(members: bytes, metadata: bytes) -> list[Member]:
    """Unpacks members."""
    found: list[Member] = []
    at = 0
    for start in range(0, len(members), MEMBER_BYTES):
        body = members[start : start + BODY_BYTES]
        shards = read_i32_le(members, start + BODY_BYTES)
        length = body[METADATA_LENGTH_AT] | body[METADATA_LENGTH_AT + 1] << 8
        own = metadata[at : at + length] if length else b""
        found.append(Member(body, shards & 0xFFFF, shards >> 16 & 0xFFFF, own))
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
    for member in members:
        if member.source_shard == shard_id:
            legs.append(Leg(member, incoming=False, peer=member.destination_shard))
        if member.destination_shard == shard_id:
            legs.append(Leg(member, incoming=True, peer=member.source_shard))
    return legs


def check_legs(memory: Memory, legs: list[Leg], stamp_us: int) -> Verdict:
    """Whether all legs can be posted, one after the other, beside everything that is reserved."""
    refusals: list[tuple[RefusalReason, int]] = []
    courses: dict[tuple[int, int], int] = {}
    several, busy = len(legs) > 1, False
    for leg in legs:
        account = memory.account(leg.account_id)
        if account is None or account.status != STATUS_ACTIVE or leg.import_us:
            refusal = _account_refusal(account, leg, stamp_us)
            if refusal is not None or account is None:
                refusals.append((refusal or _UNKNOWN[leg.incoming], leg.index))
                continue
        balance = account.balance(leg.currency) or EMPTY
        course = leg.signed_minor
        if several:
            place = leg.account_id, leg.currency
            course = courses[place] = courses.get(place, 0) + course
        if leg.incoming:
            cap_minor: int = account.cap_minor  # no i64: what a group adds up to may pass 63 bits
            if balance.minor + course > cap_minor:
                refusals.append((RefusalReason.BALANCE_CAP_EXCEEDED, leg.index))
            elif balance.minor + balance.reserved_incoming + course > cap_minor:
                busy = True
        elif balance.minor + course < account.floor_minor:
            refusals.append((RefusalReason.INSUFFICIENT_FUNDS, leg.index))
        elif balance.minor - balance.reserved_outgoing + course < account.floor_minor:
            busy = True
    if refusals:
        reason, index = min(refusals)
        return Verdict(reason, index, busy=False)
    return _BUSY if busy else _FINE


def reservations_for(legs: Sequence[Leg]) -> tuple[Reservation, ...]:
    """What legs that passed the check need to stay possible.

    That is how far each balance goes down and up under them, at the most, on the way.
    """
    if len(legs) == 1:  # as nearly always
        leg = legs[0]
        outgoing, incoming = (0, leg.amount_minor) if leg.incoming else (leg.amount_minor, 0)
        return (Reservation(leg.account_id, leg.currency, outgoing, incoming),)
    courses: dict[tuple[int, int], tuple[int, int, int]] = {}
    for leg in legs:
        place = leg.account_id, leg.currency
        now, lowest, highest = courses.get(place, (0, 0, 0))
        now += leg.signed_minor
        courses[place] = now, min(lowest, now), max(highest, now)
    return tuple(
        Reservation(account_id, currency, -lowest, highest)
        for (account_id, currency), (_, lowest, highest) in courses.items()
    )


def posting_time_us(account: Account, import_us: int, stamp_us: int) -> int:
    """When an entry is posted: at the block's stamp, unless it is imported.

    An import is posted at the later of its own time and the account's latest entry.
    """
    return max(import_us, account.latest_time_us()) if import_us else stamp_us


def balance_of(account: Account, currency: int, log_id: int) -> Balance:
    """The account's balance in a currency, made when this is the first of it."""
    return account.balance(currency) or account.open_balance(currency, log_id)


def reserve(memory: Memory, reservations: tuple[Reservation, ...], log_id: int) -> None:
    """Reserves what a check asked for. The accounts stay in memory until it is released."""
    for each in reservations:
        account = memory.account(each.account_id)
        assert account, "it was checked"
        balance = balance_of(account, each.currency, log_id)
        balance.reserved_outgoing += each.outgoing
        balance.reserved_incoming += each.incoming
        memory.pin(account)
        each.account = account


def release(memory: Memory, reservations: tuple[Reservation, ...]) -> None:
    """Undoes `reserve`."""
    for each in reservations:
        account, each.account = each.account, None
        assert account, "it was reserved, and is released once"
        balance = account.balance(each.currency)
        assert balance, "to reserve made it"
        balance.reserved_outgoing -= each.outgoing
        balance.reserved_incoming -= each.incoming
        memory.unpin(account)


def status_refusal(status: int, *, incoming: bool) -> RefusalReason | None:
    """Why an account of this status takes no part, if so."""
    if status == STATUS_CLOSED:
        return _CLOSED[incoming]
    return _FROZEN[incoming] if status == STATUS_FROZEN else None


def _account_refusal(account: Account | None, leg: Leg, stamp_us: int) -> RefusalReason | None:
    if account is None:
        return _UNKNOWN[leg.incoming]
    if refusal := status_refusal(account.status, incoming=leg.incoming):
        return refusal
    if not leg.import_us:
        return None
    if leg.import_us > stamp_us:
        return RefusalReason.IMPORT_IN_FUTURE
    late_us = posting_time_us(account, leg.import_us, stamp_us) - leg.import_us
    return RefusalReason.IMPORT_TOO_OLD if late_us > IMPORT_SHIFT_MAX_US else None
