"""Records that come back from a log, checked before they are applied.

A block's hash says that it is what was written, not that what was written can be true: that is for
whoever could write it to spoil, be it a defect of ours. So replay believes a record only as far as
it fits to what came before it. What it finds wrong is a `DamagedLogError` that names the record, as
for any other damage; what it applies keeps the promises. It decides nothing: a record is never
refused because of what should have been decided instead.

Why no check can refuse what a command recorded, which would keep a healthy shard from starting and
so be worse than all that the checks find. Each asks for no more than what held when the record was
made, and there are four kinds of reason why it did:

- *It was checked before the point of no return.* Floors, caps, amounts, open accounts and times of
  imports by the ledger; the forms of ids, sizes, shards, reasons, texts and metadata by `unpacking`
  and `service`, before the ledger sees them. So whatever is asked for here and is not the ledger's
  to check has its twin there, in the same terms; who adds a check here adds the twin first.
- *It was checked as a reservation.* Legs of what was prepared are posted later, but every entry in
  between kept clear of what they reserve, so each point of their course still fits.
- *Nothing else changes it.* A balance, its latest entry and its time are what the record before
  made them, in memory and, by a checkpoint, in the state; floors, caps and kinds never change, and
  accounts stay for ever. What may have changed since is not asked for: no account's status, no
  reservation, no deadline, not whether a key or a transaction is new.
- *It is the shape of a block.* All of its records bear its one time, which is later than those of
  all before it; and a command is recorded within one block, so legs that stay on this shard come
  to zero in it. Checkpoints, too, stand between blocks.

Tests hold it: whatever their random commands record, the stateful ones replay from the first block
on and from checkpoints, and the fuzzer of calls does so with everything `unpacking` lets pass.

Entries, of which there are millions, are checked where they are applied (here, and in `posting`)
in one expression each, and `wrong_entry` says afterwards what was wrong. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from librt.strings import read_i64_le

from cluster.packed import (
    AMOUNT_AT,
    BODY_BYTES,
    CURRENCY_AT,
    DESTINATION_AT,
    GROUP_SIZE_AT,
    GROUP_SIZE_MAX,
    KEY_BYTES,
    MEMBER,
    MEMBER_BODY,
    METADATA_BYTES_MAX,
    METADATA_LENGTH_AT,
    SOURCE_AT,
    TRANSACTION_ID_BYTES,
)
from cluster.refusals import RefusalReason, is_recorded
from shard_node.legs import balance_of, split_members
from shard_node.records import (
    ACCOUNT,
    COMMITTED,
    EFFECTS,
    EPOCH,
    GROUP,
    PREPARED,
    DamagedLogError,
)
from shard_node.transactions import Header

if TYPE_CHECKING:
    from shard_node.books import Account, Balance
    from shard_node.legs import Member
    from shard_node.memory import Memory
    from shard_node.records import BlockDraft
    from shard_node.transactions import StoredPrepared

PROMISE_AHEAD_MAX_US: Final = 1_000_000
"""How far ahead of a block's stamp its promise may lie (see `instants`). A node that takes over at
once may stamp so far ahead of its wall clock, which is as far as peers follow."""

RECORDED: Final = frozenset(int(reason) for reason in RefusalReason if is_recorded(reason))
"""The reasons that a record may give."""

# Where a transfer's record has what `EFFECTS` describes; the second of a pair 8 bytes further.
_REASON_AT: Final = BODY_BYTES + 1
_BALANCES_AT: Final = BODY_BYTES + 8
_PREVIOUS_AT: Final = BODY_BYTES + 24
_TIMES_AT: Final = BODY_BYTES + 40

_ACCOUNT_ID_MAX: Final = 2**63 - 1
_PLAYER, _SYSTEM = 1, 2
_ACTIVE, _CLOSED = 1, 3


def damaged(sequence: int, what: str) -> DamagedLogError:
    """The error for a record that cannot be true."""
    return DamagedLogError(f"record {sequence} {what}")


def known_account(memory: Memory, account_id: int) -> Account | None:
    """The account, if any; what is no account's id at all cannot even be looked up."""
    return memory.account(account_id) if 1 <= account_id <= _ACCOUNT_ID_MAX else None


def heap_part(sequence: int, heap: bytes, offset: int, length: int) -> bytes:
    """What a record points to in its block's heap."""
    if offset + length > len(heap):
        raise damaged(sequence, f"points past the heap of its block ({len(heap)} bytes)")
    return heap[offset : offset + length]


def check_metadata(sequence: int, heap: bytes, offset: int, length: int) -> None:
    """Raises unless a transfer's or leg's metadata is there."""
    if length > METADATA_BYTES_MAX or offset + length > len(heap):
        raise damaged(sequence, f"has {length} bytes of metadata at {offset}, which are not there")


def check_refusal(sequence: int, reason: int) -> None:
    """Raises unless the reason of a recorded refusal is one that is recorded."""
    if reason not in RECORDED:
        raise damaged(sequence, f"refuses for the reason {reason}, which no record may give")


def wrong_entry(
    sequence: int, account: Account | None, balance: Balance | None, amount_minor: int, place: str
) -> DamagedLogError:
    """The error for an entry that does not go on where its account's last one ended."""
    if account is None:
        return damaged(sequence, f"is about an account that is not open ({place})")
    minor = balance.minor if balance else 0
    return damaged(
        sequence,
        f"cannot move {amount_minor} at the {place} of account {account.account_id}, whose balance "
        f"before it was {minor}: a balance, a bound, a time or the entry before is another",
    )


def apply_transfer(
    memory: Memory, log_id: int, sequence: int, record: bytes, block: BlockDraft
) -> None:
    """Applies TRANSFER."""
    # Number by number: compiled, that costs a part of unpacking by format.
    memory.add_key(record[:KEY_BYTES], sequence)
    if length := record[METADATA_LENGTH_AT] | record[METADATA_LENGTH_AT + 1] << 8:
        check_metadata(sequence, block.heap, EFFECTS.unpack_from(record, BODY_BYTES)[2], length)
    if reason := record[_REASON_AT]:
        check_refusal(sequence, reason)
        return
    source_id: int = read_i64_le(record, SOURCE_AT)
    destination_id: int = read_i64_le(record, DESTINATION_AT)
    amount: int = read_i64_le(record, AMOUNT_AT)
    currency = record[CURRENCY_AT] | record[CURRENCY_AT + 1] << 8
    source, destination = known_account(memory, source_id), known_account(memory, destination_id)
    if source is None or destination is None or source is destination or not currency:
        raise damaged(sequence, f"pays {destination_id} from {source_id}, or in no currency")
    memory.touch(source)
    memory.touch(destination)
    paying = balance_of(source, currency, log_id)
    paid = balance_of(destination, currency, log_id)
    source_minor: int = read_i64_le(record, _BALANCES_AT)
    destination_minor: int = read_i64_le(record, _BALANCES_AT + 8)
    source_us: int = read_i64_le(record, _TIMES_AT)
    destination_us: int = read_i64_le(record, _TIMES_AT + 8)
    # One expression each: this is done for every transfer of a replay.
    if not (
        paying.minor - amount == source_minor >= source.floor_minor
        and paying.last_sequence == read_i64_le(record, _PREVIOUS_AT)
        and paying.last_time_us <= source_us
        and 0 < source_us <= block.time_us
        and amount > 0
    ):
        raise wrong_entry(sequence, source, paying, amount, "source")
    if not (
        paid.minor + amount == destination_minor <= destination.cap_minor
        and paid.last_sequence == read_i64_le(record, _PREVIOUS_AT + 8)
        and paid.last_time_us <= destination_us
        and 0 < destination_us <= block.time_us
    ):
        raise wrong_entry(sequence, destination, paid, amount, "destination")
    paying.post_outgoing(amount, source_minor, sequence, source_us)
    paid.post_incoming(amount, destination_minor, sequence, destination_us)


def promise_of(sequence: int, body: bytes, stamp_us: int) -> int:
    """What EPOCH_BEGAN promises. Raises: DamagedLogError: it lies further ahead than any may."""
    until_us: int = EPOCH.unpack(body)[2]
    if not 0 <= until_us <= stamp_us + PROMISE_AHEAD_MAX_US:
        raise damaged(sequence, f"promises a time, {until_us}, that lies too far ahead")
    return until_us


def check_opened(sequence: int, body: bytes, memory: Memory) -> None:
    """Raises unless ACCOUNT_OPENED opens an account that can be."""
    account_id, floor_minor, cap_minor, _, _, kind, status = ACCOUNT.unpack(body)
    if not 1 <= account_id <= _ACCOUNT_ID_MAX or kind not in (_PLAYER, _SYSTEM):
        raise damaged(sequence, f"opens account {account_id} of kind {kind}")
    if floor_minor > 0 or (floor_minor and kind == _PLAYER) or cap_minor < 1 or status != _ACTIVE:
        raise damaged(sequence, f"opens account {account_id} with bounds or a status of no account")
    if memory.account(account_id) is not None:
        raise damaged(sequence, f"opens account {account_id} again")


def status_reason(sequence: int, record: bytes, heap: bytes, memory: Memory) -> bytes:
    """The reason of ACCOUNT_STATUS_CHANGED, once it can be applied."""
    account_id, _, _, _, length, _, status = ACCOUNT.unpack_from(record)
    text = heap_part(sequence, heap, EFFECTS.unpack_from(record, BODY_BYTES)[2], length)
    if not _ACTIVE <= status <= _CLOSED or known_account(memory, account_id) is None:
        raise damaged(sequence, f"sets account {account_id} to status {status}")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise damaged(sequence, f"gives a reason that is no text: {error}") from error
    return text


def check_group(sequence: int, record: bytes, heap: bytes) -> None:
    """Raises unless GROUP tells an outcome and has all of its bodies."""
    _, reason, index, size, offset, _, _ = GROUP.unpack_from(record, BODY_BYTES)
    if reason:
        check_refusal(sequence, reason)
    if not 1 <= size <= GROUP_SIZE_MAX or index >= size:
        raise damaged(sequence, f"is of transfer {index} of a group of {size}")
    bodies = heap_part(sequence, heap, offset, size * BODY_BYTES)
    lengths = [fields[7] for fields in MEMBER_BODY.iter_unpack(bodies)]
    heap_part(sequence, heap, offset + len(bodies), sum(lengths))
    if not bodies.startswith(record[:BODY_BYTES]) or max(lengths) > METADATA_BYTES_MAX:
        raise damaged(sequence, "does not begin with the group that it is of")


def prepared_content(sequence: int, record: bytes, heap: bytes) -> tuple[Header, bytes, bytes]:
    """The header, members and metadata of PREPARED, as long as they are all there."""
    header = Header.unpack(record)
    _, offset, length = PREPARED.unpack_from(record, BODY_BYTES)
    content = heap_part(sequence, heap, offset, length)
    members_bytes = header.members_count * MEMBER.size
    if members_bytes > length:
        raise damaged(sequence, "has fewer members than its header says")
    return header, content[:members_bytes], content[members_bytes:]


def wrong_with_prepared(stored: StoredPrepared, shard_id: int, memory: Memory) -> str | None:
    """Why a record or row cannot be that of a transaction prepared on this shard; None = it can."""
    header, members, metadata = stored.header, stored.members, stored.metadata
    if len(members) != header.members_count * MEMBER.size or not (
        1 <= header.members_count <= GROUP_SIZE_MAX
    ):
        return f"has {len(members)} bytes of members, not {header.members_count} members"
    if header.home in (0, shard_id):
        return f"has shard {header.home} as its home"
    if not 0 < header.first_source <= _ACCOUNT_ID_MAX:
        return f"names {header.first_source}, which is no account, as its first source"
    length = 0
    for body, *shards in MEMBER.iter_unpack(members):
        fields = MEMBER_BODY.unpack(body)
        length += fields[7]
        if fields[3] <= 0 or shard_id not in shards or fields[7] > METADATA_BYTES_MAX:
            return "has a member that is nothing to prepare here"
        for account_id, shard in zip(fields[1:3], shards, strict=True):
            if shard == shard_id and known_account(memory, account_id) is None:
                return f"touches account {account_id}, which is not open"
    return None if length == len(metadata) else "does not have its members' metadata"


def committed_members(sequence: int, record: bytes, heap: bytes) -> list[Member]:
    """The members of a group's COMMITTED; none = it is of a plain transfer."""
    _, size, _, offset, _, _ = COMMITTED.unpack_from(record, BODY_BYTES)
    body = record[:BODY_BYTES]
    if not size:
        check_metadata(sequence, heap, offset, MEMBER_BODY.unpack(body)[7])
        return []
    packed = heap_part(sequence, heap, offset, size * MEMBER.size)
    lengths = [MEMBER_BODY.unpack(each)[7] for each, _, _ in MEMBER.iter_unpack(packed)]
    heap_part(sequence, heap, offset + len(packed), sum(lengths))
    if size > GROUP_SIZE_MAX or not packed.startswith(body) or body[GROUP_SIZE_AT] != size:
        raise damaged(sequence, f"commits a group of {size} that is another's")
    return split_members(packed, b"")


def check_participants(sequence: int, participants: tuple[int, ...], shard_id: int) -> None:
    """Raises unless a transaction has participants, and this home is none of them."""
    if not participants or 0 in participants or shard_id in participants:
        raise damaged(sequence, f"commits with the participants {participants}")


def check_ids(sequence: int, ids: bytes) -> None:
    """Raises unless these are transactions' ids."""
    if len(ids) % TRANSACTION_ID_BYTES:
        raise damaged(sequence, f"ends transactions whose ids are {len(ids)} bytes")
