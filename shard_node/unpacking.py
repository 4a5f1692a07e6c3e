"""Packed groups and transactions taken apart; what other processes send is checked, not trusted.

The ledger takes what it is given to be well-formed: whatever it could stumble over is caught here,
with the field's name, before anything changes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

from librt.strings import read_i64_le

from cluster.packed import (
    AMOUNT_AT,
    BATCH_TRANSFERS_MAX,
    BODY_BYTES,
    CURRENCY_AT,
    DECISION,
    DECISION_BYTES,
    DESTINATION_AT,
    GROUP_SIZE_AT,
    GROUP_SIZE_MAX,
    GROUPS_MAX,
    HEADER_BYTES,
    IMPORT_AT,
    INDEX_AT,
    MEMBER_BODY,
    MEMBER_BYTES,
    METADATA_BYTES_MAX,
    METADATA_LENGTH_AT,
    SHARDS_AT,
    SOURCE_AT,
    TRANSACTION_ID_BYTES,
    TRANSFER_ID_BYTES,
    VOTE_BYTES,
    Vote,
)
from cluster.refusals import RefusalReason
from shard_node.faults import bad_request
from shard_node.legs import local_members, shards_of
from shard_node.transactions import DEADLINE_AHEAD_MAX_US, NO_TRANSACTION, Header, Request
from shard_node.work import CALL_RECORDS_MAX, RECORDS_PER_MEMBER

if TYPE_CHECKING:
    from shard_node.legs import Member
    from shard_node.transactions import Transactions

TURN_REQUESTS_MAX: Final = 128
"""Transactions taken apart in one turn of the event loop: 1 ms, in each of the calls under way."""

_SIGN_BYTE_MAX: Final = 0x7F
"""The most in the highest byte of a number of 63 bits."""

_REASONS: Final = frozenset(int(reason) for reason in RefusalReason)
_YES: Final = int(Vote.YES)
_NO: Final = int(Vote.NO)


class Share(NamedTuple):
    """Of the items of a call, as many as one turn may have.

    Attributes:
        start, end: the first, and where the next share begins.
        records: how many they make at the most.
    """

    start: int
    end: int
    records: int


def check_transfers(bodies: bytes, metadata: bytes) -> None:
    """Raises unless these are the packed transfers of a call."""
    count, rest = divmod(len(bodies), BODY_BYTES)
    if rest or not 1 <= count <= BATCH_TRANSFERS_MAX:
        raise bad_request("bodies", f"{len(bodies)} bytes are not 1 … {BATCH_TRANSFERS_MAX} bodies")
    check_bodies(bodies, metadata)


def check_bodies(bodies: bytes, metadata: bytes) -> None:
    """Checks what the ledger reads of bodies as signed numbers, and the length of their metadata.

    Column by column over all bodies at once: one by one it would cost as much as to decide them.
    """
    _check_signs(bodies, BODY_BYTES, "bodies")
    low, high = bodies[METADATA_LENGTH_AT::BODY_BYTES], bodies[METADATA_LENGTH_AT + 1 :: BODY_BYTES]
    if any(high) and any((b << 8 | a) > METADATA_BYTES_MAX for a, b in zip(low, high, strict=True)):
        raise bad_request("bodies", f"one has more than {METADATA_BYTES_MAX} bytes of metadata")
    if len(metadata) != sum(low) + (sum(high) << 8):
        raise bad_request("metadata", "does not have the length that the bodies say")


def groups_of(bodies: bytes, metadata: bytes, shard_id: int) -> list[list[Member]]:
    """The groups of a packed call, all of whose accounts are on this shard."""
    count, rest = divmod(len(bodies), BODY_BYTES)
    if rest or not 1 <= count <= BATCH_TRANSFERS_MAX:
        raise bad_request("bodies", f"{len(bodies)} bytes are not 1 … {BATCH_TRANSFERS_MAX} bodies")
    check_bodies(bodies, metadata)
    members, groups = local_members(bodies, metadata, shard_id), []
    at = 0
    while at < len(members):
        size = members[at].body[GROUP_SIZE_AT]
        if not 1 <= size <= min(len(members) - at, GROUP_SIZE_MAX):
            raise bad_request("bodies", f"a group cannot have {size} transfers")
        group = members[at : at + size]
        rows = [MEMBER_BODY.unpack(each.body) for each in group]
        if any(
            (each[0], each[9], each[10]) != (rows[0][0], n, size) for n, each in enumerate(rows)
        ):
            raise bad_request("bodies", "a group's transfers do not stand one behind the other")
        groups.append(group)
        at += size
    if len(groups) > GROUPS_MAX:
        raise bad_request("bodies", f"has more than {GROUPS_MAX} groups")
    return groups


async def requests_to_prepare(
    headers: bytes, members: bytes, metadata: bytes, shard_id: int
) -> list[Request]:
    """The transactions of a packed call to one of their participants."""
    return await _requests(headers, members, metadata, shard_id, 0)


async def requests_to_decide(
    headers: bytes, members: bytes, metadata: bytes, shard_id: int, clock_us: int
) -> list[Request]:
    """The transactions of a packed call to their home, whose clock stands at `clock_us`."""
    assert clock_us, "the clock has been set"
    return await _requests(headers, members, metadata, shard_id, clock_us)


def _check_participant(request: Request, shard_id: int) -> None:
    if request.header.home in (0, shard_id):
        raise bad_request("headers", "one does not have another shard as its home")
    own = request.members
    for at in range(0, len(own), MEMBER_BYTES):
        source_shard, destination_shard = shards_of(own, at)
        if shard_id not in (source_shard, destination_shard):
            raise bad_request("members", "one does not touch this shard")


def _check_home(request: Request, shard_id: int, clock_us: int) -> None:
    header, own = request.header, request.members
    if not header.home == shards_of(own, 0)[0] == shard_id:
        raise bad_request("headers", "one does not have its first source's shard as its home")
    if header.first_source != read_i64_le(own, SOURCE_AT):
        raise bad_request("headers", "one does not name its first member's source account")
    if header.deadline_us > clock_us + DEADLINE_AHEAD_MAX_US:
        raise bad_request("headers", "one has a deadline that lies too far ahead")
    if max(own[GROUP_SIZE_AT], 1) != header.members_count:
        raise bad_request("members", "some of a transaction's are missing")
    for at in range(0, len(own), MEMBER_BYTES):
        if shards_of(own, at) != (shard_id, shard_id):
            return
    raise bad_request("members", "those of a transaction touch no other shard")


def check_votes(packed: bytes, requests: list[Request]) -> None:
    """Checks the participants' votes, one for each request."""
    if len(packed) != VOTE_BYTES * len(requests):
        raise bad_request("votes", "must be one for each header")
    at = 0
    for request in requests:
        vote, reason, index = packed[at], packed[at + 1], packed[at + 2]
        at += VOTE_BYTES
        if vote not in (_YES, _NO):
            raise bad_request("votes", "must be YES or NO")
        if vote == _NO and reason not in _REASONS:
            raise bad_request("votes", f"{reason} is no reason for a refusal")
        if index >= request.header.members_count:
            raise bad_request("votes", f"there is no transfer {index} to refuse")


def records_to_prepare(requests: list[Request]) -> list[int]:
    """How many records each makes at the most, what it adds to the heap counted as records."""
    return [1 + each.header.members_count for each in requests]


def records_to_decide(requests: list[Request]) -> list[int]:
    """As `records_to_prepare`. A plain transfer has one leg here, and adds nothing to the heap."""
    return [
        1 + RECORDS_PER_MEMBER * each.header.members_count if each.members[GROUP_SIZE_AT] else 2
        for each in requests
    ]


def records_to_post(decisions: bytes, table: Transactions) -> list[int]:
    """As `records_to_prepare`, of decisions.

    Raises when a home cannot have decided what is prepared here at the time that is told.
    """
    check_decisions(decisions, "decisions")
    found: list[int] = []
    for at in range(0, len(decisions), DECISION_BYTES):
        prepared = table.prepared.get(decisions[at : at + TRANSACTION_ID_BYTES])
        if prepared is None:
            found.append(1)
            continue
        if read_i64_le(decisions, at + TRANSACTION_ID_BYTES) >= prepared.header.deadline_us:
            raise bad_request("decisions", "one was decided when its deadline was over")
        found.append(1 + len(prepared.legs))
    return found


def shares(records: list[int]) -> list[Share]:
    """Cuts the items of a call, given how many records each makes at the most, into shares."""
    found: list[Share] = []
    start = total = 0
    for at, count in enumerate(records):
        if total + count > CALL_RECORDS_MAX and at > start:
            found.append(Share(start, at, total))
            start, total = at, 0
        total += count
    found.append(Share(start, len(records), total))
    return found


def check_decisions(packed: bytes, field: str) -> None:
    """Checks transactions' ids, each with the time of its decision or its deadline."""
    count, rest = divmod(len(packed), DECISION_BYTES)
    if rest or not 1 <= count <= BATCH_TRANSFERS_MAX:
        raise bad_request(field, f"must be 1 … {BATCH_TRANSFERS_MAX} of {DECISION_BYTES} bytes")
    for at in range(TRANSACTION_ID_BYTES, len(packed), DECISION_BYTES):
        if read_i64_le(packed, at) <= 0:
            raise bad_request(field, "one has no time")


def decisions_of(packed: bytes, field: str) -> list[tuple[bytes, int]]:
    """Transactions' ids, each with the time of its decision or its deadline."""
    check_decisions(packed, field)
    return list(DECISION.iter_unpack(packed))


def transaction_ids_of(packed: bytes, field: str) -> list[bytes]:
    """Transactions' ids."""
    count, rest = divmod(len(packed), TRANSACTION_ID_BYTES)
    if rest or not 1 <= count <= BATCH_TRANSFERS_MAX:
        raise bad_request(field, f"must be 1 … {BATCH_TRANSFERS_MAX} of 16 bytes")
    starts = range(0, len(packed), TRANSACTION_ID_BYTES)
    return [packed[at : at + TRANSACTION_ID_BYTES] for at in starts]


async def _requests(
    headers: bytes, members: bytes, metadata: bytes, shard_id: int, clock_us: int
) -> list[Request]:
    """Takes a call apart in slices, each request checked; nothing is done before all are.

    With a clock this shard is their home, else (0) a participant.
    """
    count, rest = divmod(len(headers), HEADER_BYTES)
    if rest or not 1 <= count <= BATCH_TRANSFERS_MAX:
        raise bad_request("headers", f"must be 1 … {BATCH_TRANSFERS_MAX} of {HEADER_BYTES} bytes")
    _check_columns(members)
    found: list[Request] = []
    at = metadata_at = 0
    for start in range(0, len(headers), HEADER_BYTES):
        header = Header.unpack(headers, start)
        if header.transaction_id == NO_TRANSACTION:  # the legs of groups that needed none have it
            raise bad_request("headers", "one has no transaction id")
        if not 0 < header.first_source < 2**63:
            raise bad_request("headers", "one names no account as its first source")
        end = at + header.members_count * MEMBER_BYTES
        if not 1 <= header.members_count <= GROUP_SIZE_MAX or end > len(members):
            raise bad_request("headers", "one has more members than there are, or none")
        own = members[at:end]
        length = _check_members(own)
        request = Request(header, own, metadata[metadata_at : metadata_at + length])
        at, metadata_at = end, metadata_at + length
        if clock_us:
            _check_home(request, shard_id, clock_us)
        else:
            _check_participant(request, shard_id)
        found.append(request)
        if len(found) % TURN_REQUESTS_MAX == 0:
            await asyncio.sleep(0)
    if at != len(members):
        raise bad_request("members", "there are more than the headers say")
    if metadata_at != len(metadata):
        raise bad_request("metadata", "does not have the length that the members say")
    return found


def _check_signs(packed: bytes, stride: int, field: str) -> None:
    """Checks, over all bodies at once, what the ledger reads of them as signed numbers."""
    for name, at in (("source", SOURCE_AT), ("destination", DESTINATION_AT), ("time", IMPORT_AT)):
        if max(packed[at + 7 :: stride], default=0) > _SIGN_BYTE_MAX:
            raise bad_request(field, f"one has a {name} of more than 63 bits")


def _check_columns(members: bytes) -> None:
    """Checks, over all members at once, their accounts, times and shards: 0 is no shard.

    A leg whose other side is nowhere would be posted, and be damage when the log is replayed.
    """
    if len(members) % MEMBER_BYTES:
        raise bad_request("members", f"{len(members)} bytes are not members of {MEMBER_BYTES}")
    _check_signs(members, MEMBER_BYTES, "members")
    for at in (SHARDS_AT, SHARDS_AT + 2):
        low, high = members[at::MEMBER_BYTES], members[at + 1 :: MEMBER_BYTES]
        if 0 in low and any(not a | b for a, b in zip(low, high, strict=True)):
            raise bad_request("members", "one has an account on no shard")


def _check_members(own: bytes) -> int:
    """Checks the members of one transaction, all of them or those that touch one shard.

    Returns how long their metadata is.
    """
    size, index_before, metadata_bytes = own[GROUP_SIZE_AT], -1, 0
    if size > GROUP_SIZE_MAX or len(own) > max(size, 1) * MEMBER_BYTES:
        raise bad_request("members", f"a group cannot have {size} transfers")
    for at in range(0, len(own), MEMBER_BYTES):
        index = own[at + INDEX_AT]
        same_id = not at or own[at : at + TRANSFER_ID_BYTES] == own[:TRANSFER_ID_BYTES]
        same_size = own[at + GROUP_SIZE_AT] == size
        if not (same_id and same_size and index_before < index < max(size, 1)):
            raise bad_request("members", "those of a transaction do not belong together")
        index_before = index
        same_account = read_i64_le(own, at + SOURCE_AT) == read_i64_le(own, at + DESTINATION_AT)
        has_currency = own[at + CURRENCY_AT] or own[at + CURRENCY_AT + 1]
        if read_i64_le(own, at + AMOUNT_AT) <= 0 or same_account or not has_currency:
            raise bad_request("members", "one is to be refused before it becomes a transaction")
        length = own[at + METADATA_LENGTH_AT] | own[at + METADATA_LENGTH_AT + 1] << 8
        if length > METADATA_BYTES_MAX:
            raise bad_request("metadata", f"one has more than {METADATA_BYTES_MAX} bytes")
        metadata_bytes += length
    return metadata_bytes
