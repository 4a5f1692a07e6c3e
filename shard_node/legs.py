"""Legs: what a group or a transaction does to the accounts of one shard, checked as a whole.

Legs apply to each account in the order of the group's transfers, so what has to fit is not their
sum but the lowest and the highest point on the way. That is also what must be reserved, so that the
legs can be posted later whatever happens in between: the depth of the lowest point out of what can
be spent, the height of the highest out of what can be taken in.

Where a check fails only because of what others have reserved, the answer is *busy* and not a
refusal: reservations are gone in a moment, and a refusal would be recorded for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cluster.packed import BODY_BYTES, MEMBER, MEMBER_BODY
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


@dataclass(frozen=True, slots=True)
class Member:
    """One transfer of a group or transaction.

    Attributes:
        body: 64 bytes.
        source_shard, destination_shard: of its two accounts.
        metadata: its metadata.
    """

    body: bytes
    source_shard: int
    destination_shard: int
    metadata: bytes


@dataclass(frozen=True, slots=True)
class Leg:
    """One account's side of a member.

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


@dataclass(frozen=True, slots=True)
class Reservation:
    """What must stay free in a balance for legs to be posted later, minor units.

    Attributes:
        account_id, currency: which balance.
        outgoing: not to be spent.
        incoming: not to be filled up.
    """

    account_id: int
    currency: int
    outgoing: int
    incoming: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a check found; fine when there is neither a refusal nor busyness.

    Attributes:
        refusal: the final refusal of highest precedence; None = there is none.
        index: of the transfer that it is about.
        busy: whether only others' reservations stand in the way.
    """

    refusal: RefusalReason | None
    index: int
    busy: bool


def split_members(members: bytes, metadata: bytes) -> list[Member]:
    """Unpacks members."""
    found: list[Member] = []
    at = 0
    for body, source_shard, destination_shard in MEMBER.iter_unpack(members):
        length = MEMBER_BODY.unpack(body)[7]
        found.append(Member(body, source_shard, destination_shard, metadata[at : at + length]))
        at += length
    return found


def local_members(bodies: bytes, metadata: bytes, shard_id: int) -> list[Member]:
    """Members whose accounts are both on one shard, from bodies."""
    found: list[Member] = []
    at = 0
    for start in range(0, len(bodies), BODY_BYTES):
        body = bodies[start : start + BODY_BYTES]
        length = MEMBER_BODY.unpack(body)[7]
        found.append(Member(body, shard_id, shard_id, metadata[at : at + length]))
        at += length
    return found


def legs_on(members: list[Member], shard_id: int) -> list[Leg]:
    """The legs of accounts of this shard, in the order in which they apply."""
    legs: list[Leg] = []
    for member in members:
        if member.source_shard == shard_id:
            legs.append(leg_of(member, incoming=False, peer=member.destination_shard))
        if member.destination_shard == shard_id:
            legs.append(leg_of(member, incoming=True, peer=member.source_shard))
    return legs


def check_legs(memory: Memory, legs: list[Leg], stamp_us: int) -> Verdict:
    """Whether all legs can be posted, one after the other, beside everything that is reserved."""
    refusals: list[tuple[RefusalReason, int]] = []
    courses: dict[tuple[int, int], int] = {}
    busy = False
    for leg in legs:
        account = memory.account(leg.account_id)
        refusal = _account_refusal(account, leg, stamp_us)
        if refusal is not None or account is None:
            refusals.append((refusal or _UNKNOWN[leg.incoming], leg.index))
            continue
        balance = account.balance(leg.currency) or EMPTY
        place = leg.account_id, leg.currency
        if leg.incoming:
            course = courses[place] = courses.get(place, 0) + leg.amount_minor
            if balance.minor + course > account.cap_minor:
                refusals.append((RefusalReason.BALANCE_CAP_EXCEEDED, leg.index))
            busy |= balance.minor + balance.reserved_incoming + course > account.cap_minor
        else:
            course = courses[place] = courses.get(place, 0) - leg.amount_minor
            if balance.minor + course < account.floor_minor:
                refusals.append((RefusalReason.INSUFFICIENT_FUNDS, leg.index))
            busy |= balance.minor - balance.reserved_outgoing + course < account.floor_minor
    if refusals:
        reason, index = min(refusals)
        return Verdict(reason, index, busy=False)
    return Verdict(None, 0, busy)


def reservations_for(legs: Sequence[Leg]) -> tuple[Reservation, ...]:
    """What legs that passed the check need to stay possible.

    That is how far each balance goes down and up under them, at the most, on the way.
    """
    courses: dict[tuple[int, int], tuple[int, int, int]] = {}
    for leg in legs:
        place = leg.account_id, leg.currency
        now, lowest, highest = courses.get(place, (0, 0, 0))
        now += leg.amount_minor if leg.incoming else -leg.amount_minor
        courses[place] = now, min(lowest, now), max(highest, now)
    return tuple(
        Reservation(*place, -lowest, highest) for place, (_, lowest, highest) in courses.items()
    )


def posting_time_us(account: Account, import_us: int, stamp_us: int) -> int:
    """When an entry is posted: at the block's stamp, unless it is imported.

    An import is posted at the later of its own time and the account's latest entry.
    """
    return max(import_us, account.latest_time_us()) if import_us else stamp_us


def balance_of(account: Account, currency: int, log_id: int) -> Balance:
    """The account's balance in a currency, made when this is the first of it."""
    balance = account.balance(currency)
    if balance is None:
        balance = account.balances[currency] = Balance(currency, log_id)
    return balance


def reserve(memory: Memory, reservations: tuple[Reservation, ...], log_id: int) -> None:
    """Reserves what a check asked for. The accounts stay in memory until it is released."""
    for each in reservations:
        account = memory.account(each.account_id)
        assert account, "it was checked"
        balance = balance_of(account, each.currency, log_id)
        balance.reserved_outgoing += each.outgoing
        balance.reserved_incoming += each.incoming
        memory.pin(account)


def release(memory: Memory, reservations: tuple[Reservation, ...]) -> None:
    """Undoes `reserve`."""
    for each in reservations:
        account = memory.accounts[each.account_id]
        balance = account.balances[each.currency]
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


def leg_of(member: Member, *, incoming: bool, peer: int) -> Leg:
    """One account's side of a member."""
    _, source, destination, amount, _, import_us, currency, _, _, index, _ = MEMBER_BODY.unpack(
        member.body
    )
    account_id = destination if incoming else source
    return Leg(member, incoming, account_id, currency, amount, import_us, index, peer)
