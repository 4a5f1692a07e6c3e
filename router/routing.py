"""Takes batches of transfers apart by shard, as packed records.

Pure: messages in, bytes out. This is the router's hot path, one pass over up to 8,192 transfers, so
the loop below binds what it uses to local names, tests a whole transfer in one expression, and
calls the slow explanation only once something is wrong with it.

What is decided here and nowhere else: whether an item is well-formed, and which shard it belongs
to. A malformed item is answered alone, with a definite fault that names its field and index.
Business refusals are the shard's to decide, in the order of their precedence, so an item that is
sure to be refused still travels to its source's shard. Only when its accounts live on two shards
are BAD_AMOUNT and UNKNOWN_CURRENCY decided here, before anything is prepared anywhere: they come
before all others and leave no record. (SAME_ACCOUNT need not be: one account lives on one shard.)

What crosses goes to a coordinator as one part, in request order. The same key twice in it is a
retry like any other: two transactions, of which the home commits the first that asks and tells the
second what became of the key; neither is at fault.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from zlib import crc32

from cluster.packed import BODY, MEMBER, METADATA_BYTES_MAX, TRANSFER_ID_BYTES
from cluster.refusals import RefusalReason
from cluster.topology import SLOTS, Topology
from doubloon.v1 import types_pb2, wallet_service_pb2
from router.results import Outcome, Row

ACCOUNT_ID_MAX: Final = 2**63 - 1
FLOOR_MIN_MINOR: Final = -(2**63 - 1)

CURRENCY_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
"""What a currency's code looks like, whether it is registered or not."""

_SLOT_MASK: Final = SLOTS - 1
# The known types are 1 … 7; a test holds that they have no gaps.
_TYPE_END: Final = max(types_pb2.TransferType.values()) + 1
_REFUSED: Final = types_pb2.TRANSFER_STATUS_REFUSED

OutcomeT = TypeVar("OutcomeT")

_BAD_AMOUNT: Final[Row] = (_REFUSED, RefusalReason.BAD_AMOUNT, 0, 0, 0, 0)
_UNKNOWN_CURRENCY: Final[Row] = (_REFUSED, RefusalReason.UNKNOWN_CURRENCY, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Rules:
    """What a batch is read by; one value for as long as the cluster view lasts.

    Attributes:
        topology: slot → shard.
        currency_numbers: registered code → number, 1 … 65,535.
        allow_imports: whether transfers may bring their own time.
    """

    topology: Topology
    currency_numbers: Mapping[str, int]
    allow_imports: bool


@dataclass(frozen=True, slots=True)
class Packed:
    """The items of one batch that travel together.

    Attributes:
        positions: where each of them stands in the request, ascending.
        records: for one shard, their bodies of 64 bytes each; for a coordinator, their members of
            72 bytes each; a group's one after the other.
        metadata: the metadata of those records that have any, in that order.
        shards: whose accounts they touch, ascending.
    """

    positions: list[int]
    records: bytes
    metadata: bytes
    shards: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Split(Generic[OutcomeT]):
    """A batch taken apart. Every position is in exactly one of the three.

    Attributes:
        batches: by shard id, what is for one shard alone.
        crossing: what touches several shards, for a coordinator.
        answered: position → what the router itself has to say.
    """

    batches: Mapping[int, Packed]
    crossing: Packed | None
    answered: Mapping[int, OutcomeT]


@dataclass(slots=True)
class Packing:
    """Records on their way to be `Packed`."""

    positions: list[int] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    metadata: list[bytes] = field(default_factory=list)
    shards: set[int] = field(default_factory=set)

    def packed(self) -> Packed:
        """Return what was gathered."""
        shards = tuple(sorted(self.shards))
        return Packed(self.positions, b"".join(self.records), b"".join(self.metadata), shards)


def split(
    items: Iterable[tuple[int, types_pb2.Transfer]], rules: Rules, path: str
) -> Split[Outcome]:
    """Check, pack and sort transfers by shard.

    Args:
        items: (position in the request, transfer), ascending.
        rules: see there.
        path: the request's field that holds the transfers, for the paths in faults.
    """
    answered: dict[int, Outcome] = {}
    crossing = Packing()
    shard_of_slot = rules.topology.shard_of_slot
    number_of, allow_imports = rules.currency_numbers.get, rules.allow_imports
    is_code, pack, crc, mask = CURRENCY_CODE.fullmatch, BODY.pack, crc32, _SLOT_MASK
    pack_member = MEMBER.pack
    id_max, type_end, metadata_max = ACCOUNT_ID_MAX, _TYPE_END, METADATA_BYTES_MAX
    by_shard: dict[int, Packing] = {}
    for position, transfer in items:
        transfer_id = transfer.transfer_id
        source = transfer.source_account_id
        destination = transfer.destination_account_id
        kind = transfer.type
        metadata = transfer.metadata
        import_time_us = transfer.import_time_us
        code = transfer.currency
        number = number_of(code)
        if (
            len(transfer_id) != TRANSFER_ID_BYTES
            or not 0 < source <= id_max
            or not 0 < destination <= id_max
            or (number is None and is_code(code) is None)
            or not 0 < kind < type_end
            or len(metadata) > metadata_max
            or (import_time_us and not (allow_imports and import_time_us > 0))
        ):
            answered[position] = _malformed(transfer, position, path, rules)
            continue
        shard = shard_of_slot[crc(source.to_bytes(8, "big")) & mask]
        peer = shard_of_slot[crc(destination.to_bytes(8, "big")) & mask]
        amount_minor = transfer.amount_minor
        if shard != peer and (amount_minor <= 0 or number is None):
            answered[position] = _BAD_AMOUNT if amount_minor <= 0 else _UNKNOWN_CURRENCY
            continue
        body = pack(
            transfer_id,
            source,
            destination,
            amount_minor,
            transfer.reference,
            import_time_us,
            number or 0,
            len(metadata),
            kind,
        )
        if shard != peer:
            packing = crossing
            packing.shards.update((shard, peer))
            body = pack_member(body, shard, peer)
        elif (known := by_shard.get(shard)) is not None:
            packing = known
        else:
            packing = by_shard[shard] = Packing(shards={shard})
        packing.positions.append(position)
        packing.records.append(body)
        if metadata:
            packing.metadata.append(metadata)
    return gathered(by_shard, crossing, answered)


def joined(slices: Sequence[Split[OutcomeT]]) -> Split[OutcomeT]:
    """Return the split of a batch whose slices, in their order, were split one by one."""
    if len(slices) == 1:
        return slices[0]
    by_shard: dict[int, list[Packed]] = {}
    answered: dict[int, OutcomeT] = {}
    for each in slices:
        answered.update(each.answered)
        for shard, packed in each.batches.items():
            by_shard.setdefault(shard, []).append(packed)
    crossing = [each.crossing for each in slices if each.crossing is not None]
    return Split(
        {shard: _join(parts) for shard, parts in by_shard.items()},
        _join(crossing) if crossing else None,
        answered,
    )


def _join(parts: Sequence[Packed]) -> Packed:
    return Packed(
        [position for part in parts for position in part.positions],
        b"".join([part.records for part in parts]),
        b"".join([part.metadata for part in parts]),
        tuple(sorted({shard for part in parts for shard in part.shards})),
    )


def gathered(
    by_shard: Mapping[int, Packing], crossing: Packing, answered: dict[int, OutcomeT]
) -> Split[OutcomeT]:
    """Return a batch as it was taken apart."""
    return Split(
        {shard: packing.packed() for shard, packing in by_shard.items()},
        crossing.packed() if crossing.positions else None,
        answered,
    )


def _malformed(
    transfer: types_pb2.Transfer, index: int, path: str, rules: Rules
) -> types_pb2.Fault:
    """Say what is wrong with a transfer that `split` found malformed."""
    wrong = wrong_with_transfer(transfer, rules)
    assert wrong is not None, "both tests are of the same rules"
    name, message, code = wrong
    return definite_fault(code, message, f"{path}.{name}", index)


def wrong_with_transfer(
    transfer: types_pb2.Transfer, rules: Rules, *, in_group: bool = False
) -> tuple[str, str, types_pb2.FaultCode.ValueType] | None:
    """Return (field, message, code) for the first malformed field, in order; None = there is none.

    Args:
        transfer: to be looked at.
        rules: see there.
        in_group: the group's id names it, so that it must have none of its own.
    """
    id_bytes = 0 if in_group else TRANSFER_ID_BYTES
    if len(transfer.transfer_id) != id_bytes:
        must = "must be empty in a group" if in_group else f"must be {id_bytes} bytes"
        return "transfer_id", f"{must}, is {len(transfer.transfer_id)}", _INVALID
    for name in ("source_account_id", "destination_account_id"):
        if not is_account_id(getattr(transfer, name)):
            return name, _ACCOUNT_ID_RULE, _INVALID
    # A registered code passes whatever its shape, as it does in `split`; all registered codes do.
    if CURRENCY_CODE.fullmatch(transfer.currency) is None:
        return "currency", "must be 1 … 16 of A-Z, 0-9 and _, a letter first", _INVALID
    if not 0 < transfer.type < _TYPE_END:
        return "type", f"must be a known type, is {transfer.type}", _INVALID
    if len(transfer.metadata) > METADATA_BYTES_MAX:
        message = f"must be at most {METADATA_BYTES_MAX} bytes, is {len(transfer.metadata)}"
        return "metadata", message, _INVALID
    if transfer.import_time_us < 0:
        return "import_time_us", "must not be negative", _INVALID
    if transfer.import_time_us and not rules.allow_imports:
        message = "imports are not allowed on this router"
        return "import_time_us", message, types_pb2.FAULT_CODE_PERMISSION_DENIED
    return None


_INVALID: Final = types_pb2.FAULT_CODE_INVALID_ARGUMENT
_ACCOUNT_ID_RULE: Final = "must be 1 … 2^63 - 1"


def is_account_id(account_id: int) -> bool:
    """Return whether a number can be an account's id."""
    return 0 < account_id <= ACCOUNT_ID_MAX


def definite_fault(
    code: types_pb2.FaultCode.ValueType, message: str, path: str = "", index: int = -1
) -> types_pb2.Fault:
    """Return a fault that says: nothing happened."""
    return types_pb2.Fault(code=code, field=path, message=message, index=index)


@dataclass(slots=True)
class AccountSplit:
    """A batch of accounts to open, taken apart. Every position is in exactly one of the two.

    Attributes:
        positions: by shard id, ascending.
        answered: position → the fault of a malformed item.
    """

    positions: dict[int, list[int]] = field(default_factory=dict)
    answered: dict[int, types_pb2.Fault] = field(default_factory=dict)


def split_accounts(
    specs: Sequence[wallet_service_pb2.AccountSpec],
    positions: Iterable[int],
    topology: Topology,
    path: str,
) -> AccountSplit:
    """Check the accounts at these positions and sort them by shard."""
    out = AccountSplit()
    for position in positions:
        spec = specs[position]
        wrong = _wrong_with_account(spec)
        if wrong is None:
            out.positions.setdefault(topology.shard_of(spec.account_id), []).append(position)
        else:
            name, message = wrong
            out.answered[position] = definite_fault(_INVALID, message, f"{path}.{name}", position)
    return out


def _wrong_with_account(spec: wallet_service_pb2.AccountSpec) -> tuple[str, str] | None:
    """Return (field, message) for the first malformed field, None when there is none."""
    if not is_account_id(spec.account_id):
        return "account_id", _ACCOUNT_ID_RULE
    if spec.kind not in {types_pb2.ACCOUNT_KIND_PLAYER, types_pb2.ACCOUNT_KIND_SYSTEM}:
        return "kind", f"must be PLAYER or SYSTEM, is {spec.kind}"
    if not FLOOR_MIN_MINOR <= spec.floor_minor <= 0:
        return "floor_minor", "must be -(2^63 - 1) … 0"
    if spec.kind == types_pb2.ACCOUNT_KIND_PLAYER and spec.floor_minor:
        return "floor_minor", "must be 0 for a PLAYER"
    if spec.cap_minor < 0:
        return "cap_minor", "must not be negative"
    return None
