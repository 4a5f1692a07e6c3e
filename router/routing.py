"""Takes batches apart by shard, and puts the shards' answers together again in request order.

Pure: messages and packed bytes in, packed bytes and messages out. This is the router's hot path,
one pass in each direction over up to 8,192 transfers, so the loops below bind what they use to
local names, test a whole transfer in one expression, and call the slow explanation only once
something is wrong with it.

What is decided here and nowhere else: whether an item is well-formed, and which shard it belongs
to. A malformed item is answered alone, with a definite fault that names its field and index.
Business refusals are the shard's to decide, in the order of their precedence, so an item that is
sure to be refused still travels to its source's shard. Only when its accounts live on two shards,
where no shard would see it, is BAD_AMOUNT decided here. (SAME_ACCOUNT need not be: one account
lives on one shard.)
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from cluster.packed import BODY, METADATA_BYTES_MAX, RESULT, RESULT_BYTES, DifferingField
from cluster.refusals import RefusalReason, retry_class
from cluster.topology import SLOTS, Topology
from doubloon.v1 import types_pb2, wallet_service_pb2

ACCOUNT_ID_MAX: Final = 2**63 - 1
TRANSFER_ID_BYTES: Final = 16
FLOOR_MIN_MINOR: Final = -(2**63 - 1)

CURRENCY_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,15}")
"""What a currency's code looks like, whether it is registered or not."""

_SLOT_MASK: Final = SLOTS - 1
# The known types are 1 … 7; a test holds that they have no gaps.
_TYPE_END: Final = max(types_pb2.TransferType.values()) + 1
_COMPLETED: Final = types_pb2.TRANSFER_STATUS_COMPLETED
_REFUSED: Final = types_pb2.TRANSFER_STATUS_REFUSED

Row = tuple[int, int, int, int, int, int]
"""One unpacked result: the fields of `cluster.packed.RESULT` in their order."""

Outcome = Row | types_pb2.Fault
"""How one transfer of a batch ended, before it becomes a message."""

_BAD_AMOUNT: Final[Row] = (_REFUSED, RefusalReason.BAD_AMOUNT, DifferingField.NONE, 0, 0, 0)


class MalformedResults(ValueError):  # noqa: N818 - named for what was received
    """A shard's packed results are not what the batch called for."""


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


@dataclass(slots=True)
class ShardBatch:
    """The transfers of one batch that belong to one shard.

    Attributes:
        positions: where each of them stands in the request, ascending.
        bodies: their packed bodies, 64 bytes each, in that order.
        metadata: the metadata of those that have any, in that order.
    """

    positions: list[int]
    bodies: bytes
    metadata: bytes


@dataclass(slots=True)
class Split:
    """A batch taken apart. Every position is in exactly one of the three.

    Attributes:
        batches: by shard id, what is for one shard alone.
        crossing: the positions whose accounts live on two shards.
        answered: position → what the router itself has to say.
    """

    batches: dict[int, ShardBatch] = field(default_factory=dict)
    crossing: list[int] = field(default_factory=list)
    answered: dict[int, Outcome] = field(default_factory=dict)


def split(items: Iterable[tuple[int, types_pb2.Transfer]], rules: Rules, path: str) -> Split:
    """Check, pack and sort transfers by shard.

    Args:
        items: (position in the request, transfer), ascending.
        rules: see there.
        path: the request's field that holds the transfers, for the paths in faults.
    """
    out = Split()
    answered, crossing = out.answered, out.crossing
    shard_of_slot = rules.topology.shard_of_slot
    number_of, allow_imports = rules.currency_numbers.get, rules.allow_imports
    is_code, pack, crc, mask = CURRENCY_CODE.fullmatch, BODY.pack, crc32, _SLOT_MASK
    id_max, type_end, metadata_max = ACCOUNT_ID_MAX, _TYPE_END, METADATA_BYTES_MAX
    by_shard: dict[int, tuple[list[int], list[bytes], list[bytes]]] = {}
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
            answered[position] = _malformed(transfer, position, path)
            continue
        shard = shard_of_slot[crc(source.to_bytes(8, "big")) & mask]
        amount_minor = transfer.amount_minor
        if shard != shard_of_slot[crc(destination.to_bytes(8, "big")) & mask]:
            if amount_minor > 0:
                crossing.append(position)
            else:
                answered[position] = _BAD_AMOUNT
            continue
        parts = by_shard.get(shard)
        if parts is None:
            parts = by_shard[shard] = ([], [], [])
        parts[0].append(position)
        parts[1].append(
            pack(
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
        )
        if metadata:
            parts[2].append(metadata)
    for shard, (positions, bodies, metadatas) in by_shard.items():
        out.batches[shard] = ShardBatch(positions, b"".join(bodies), b"".join(metadatas))
    return out


def _malformed(transfer: types_pb2.Transfer, index: int, path: str) -> types_pb2.Fault:
    """Say what is wrong with a transfer that `split` found malformed: the first field, in order."""

    def fault(
        name: str, message: str, code: types_pb2.FaultCode.ValueType = _INVALID
    ) -> types_pb2.Fault:
        return definite_fault(code, message, f"{path}.{name}", index)

    if len(transfer.transfer_id) != TRANSFER_ID_BYTES:
        return fault("transfer_id", f"must be 16 bytes, is {len(transfer.transfer_id)}")
    for name in ("source_account_id", "destination_account_id"):
        if not is_account_id(getattr(transfer, name)):
            return fault(name, _ACCOUNT_ID_RULE)
    # A registered code passes whatever its shape, as it does in `split`; all registered codes do.
    if CURRENCY_CODE.fullmatch(transfer.currency) is None:
        return fault("currency", "must be 1 … 16 of A-Z, 0-9 and _, a letter first")
    if not 0 < transfer.type < _TYPE_END:
        return fault("type", f"must be a known type, is {transfer.type}")
    if len(transfer.metadata) > METADATA_BYTES_MAX:
        length = len(transfer.metadata)
        return fault("metadata", f"must be at most {METADATA_BYTES_MAX} bytes, is {length}")
    if transfer.import_time_us < 0:
        return fault("import_time_us", "must not be negative")
    return fault(
        "import_time_us",
        "imports are not allowed on this router",
        types_pb2.FAULT_CODE_PERMISSION_DENIED,
    )


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


def crossing_fault(index: int, path: str, *, indefinite: bool) -> types_pb2.Fault:
    """Return the answer for a transfer between two shards while those cannot be made.

    Indefinite only when an earlier attempt under another topology may have made it.
    """
    fault = definite_fault(
        types_pb2.FAULT_CODE_UNIMPLEMENTED,
        "the accounts live on different shards, and transfers between shards are not available",
        path,
        index,
    )
    fault.indefinite = indefinite
    return fault


def unpack(results: bytes, count: int) -> list[Row]:
    """Read a shard's packed results.

    Raises:
        MalformedResults: they are not for `count` transfers.
    """
    if len(results) != count * RESULT_BYTES:
        raise MalformedResults(f"{len(results)} bytes of results for {count} transfers")
    return list(RESULT.iter_unpack(results))


def write_results(outcomes: Iterable[Outcome], add: Callable[[], types_pb2.TransferResult]) -> None:
    """Write outcomes, in their order, as `TransferResult` messages.

    Args:
        outcomes: one for each transfer, in request order.
        add: appends an empty result to the response and returns it (`response.results.add`).
            Setting fields on it costs half of what building a message and copying it in would.

    Raises:
        MalformedResults: a status or a reason that no shard may send.
    """
    completed = _COMPLETED
    for outcome in outcomes:
        result = add()
        if isinstance(outcome, tuple):
            status, reason, differing, repeat, time_us, balance_minor = outcome
            result.status = status  # type: ignore[assignment] # checked just below
            if status != completed:
                result.refusal.CopyFrom(_refusal(status, reason, differing))
            if repeat:
                result.repeat = True
            result.time_us = time_us
            result.source_balance_after_minor = balance_minor
        else:
            result.status = types_pb2.TRANSFER_STATUS_FAULT
            result.fault.CopyFrom(outcome)


def _refusal(status: int, reason: int, differing: int) -> types_pb2.Refusal:
    refusal = _REFUSALS.get((reason, differing)) if status == _REFUSED else None
    if refusal is None:
        raise MalformedResults(f"status {status}, reason {reason}, differing field {differing}")
    return refusal


def _refusals() -> dict[tuple[int, int], types_pb2.Refusal]:
    """Every refusal that a shard can send, by (reason, differing field)."""
    return {
        (reason, differing): types_pb2.Refusal(
            reason=types_pb2.RefusalReason.ValueType(reason),
            retry_class=types_pb2.RetryClass.ValueType(retry_class(reason)),
            differing_field=differing.name.lower() if differing else "",
        )
        for reason in RefusalReason
        for differing in DifferingField
        if (reason is RefusalReason.KEY_REUSED) == bool(differing)
    }


_REFUSALS: Final = _refusals()


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
