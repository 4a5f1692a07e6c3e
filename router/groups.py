"""Takes batches of groups apart by shard, as packed records.

Pure: messages in, bytes out. A group whose accounts all live on one shard is that shard's alone and
never sees a coordinator; any other is a transaction. A malformed transfer makes its whole group
malformed, and the fault names it as `transfers[i].field`.

Here, unlike with single transfers, the refusals that depend on the request alone (BAD_AMOUNT,
SAME_ACCOUNT) or on what this router knows (UNKNOWN_CURRENCY) are answered on either path: they come
before all others and leave no record, so nobody else need be asked, and a group that pays itself is
refused the same wherever its accounts live.
"""

from collections.abc import Iterable
from typing import Final

from cluster.packed import GROUP_SIZE_MAX, MEMBER, MEMBER_BODY, TRANSFER_ID_BYTES
from cluster.refusals import RefusalReason
from doubloon.v1 import types_pb2, wallet_service_pb2
from router.results import GroupOutcome
from router.routing import (
    Packing,
    Rules,
    Split,
    definite_fault,
    gathered,
    wrong_with_transfer,
)

_REFUSED: Final = types_pb2.TRANSFER_STATUS_REFUSED
_INVALID: Final = types_pb2.FAULT_CODE_INVALID_ARGUMENT


def split_groups(
    items: Iterable[tuple[int, wallet_service_pb2.Group]], rules: Rules, path: str
) -> Split[GroupOutcome]:
    """Check, pack and sort groups by shard.

    Args:
        items: (position in the request, group), ascending.
        rules: see there.
        path: the request's field that holds the groups, for the paths in faults.
    """
    answered: dict[int, GroupOutcome] = {}
    crossing = Packing()
    by_shard: dict[int, Packing] = {}
    for position, group in items:
        answer = _fault(group, rules, path, position) or _refusal(group, rules)
        if answer is not None:
            answered[position] = answer
            continue
        shards = [
            (
                rules.topology.shard_of(transfer.source_account_id),
                rules.topology.shard_of(transfer.destination_account_id),
            )
            for transfer in group.transfers
        ]
        touched = {shard for pair in shards for shard in pair}
        bodies = _bodies(group, rules)
        if len(touched) == 1:
            (shard,) = touched
            packing = by_shard.setdefault(shard, Packing())
            packing.records += bodies
        else:
            packing = crossing
            packing.records += [
                MEMBER.pack(body, *pair) for body, pair in zip(bodies, shards, strict=True)
            ]
        packing.shards |= touched
        packing.positions.append(position)
        packing.metadata += [each.metadata for each in group.transfers if each.metadata]
    return gathered(by_shard, crossing, answered)


def _bodies(group: wallet_service_pb2.Group, rules: Rules) -> list[bytes]:
    size = len(group.transfers)
    return [
        MEMBER_BODY.pack(
            group.group_id,
            transfer.source_account_id,
            transfer.destination_account_id,
            transfer.amount_minor,
            transfer.reference,
            transfer.import_time_us,
            rules.currency_numbers[transfer.currency],
            len(transfer.metadata),
            transfer.type,
            index,
            size,
        )
        for index, transfer in enumerate(group.transfers)
    ]


def _fault(
    group: wallet_service_pb2.Group, rules: Rules, path: str, position: int
) -> types_pb2.Fault | None:
    """Say what is malformed, the first in order; None = nothing is."""

    def fault(
        name: str, message: str, code: types_pb2.FaultCode.ValueType = _INVALID
    ) -> types_pb2.Fault:
        return definite_fault(code, message, f"{path}.{name}", position)

    if len(group.group_id) != TRANSFER_ID_BYTES:
        return fault("group_id", f"must be 16 bytes, is {len(group.group_id)}")
    size = len(group.transfers)
    if not 1 <= size <= GROUP_SIZE_MAX:
        return fault("transfers", f"must be 1 … {GROUP_SIZE_MAX} of them, are {size}")
    for index, transfer in enumerate(group.transfers):
        wrong = wrong_with_transfer(transfer, rules, in_group=True)
        if wrong is not None:
            name, message, code = wrong
            return fault(f"transfers[{index}].{name}", message, code)
        if transfer.import_time_us != group.transfers[0].import_time_us:
            message = "must be the same in all transfers of a group"
            return fault(f"transfers[{index}].import_time_us", message)
    return None


def _refusal(group: wallet_service_pb2.Group, rules: Rules) -> GroupOutcome | None:
    """Refuse what needs no ledger to be refused: the reason that comes first, where it is first."""
    found = [
        (reason, index)
        for index, transfer in enumerate(group.transfers)
        for reason, applies in (
            (RefusalReason.BAD_AMOUNT, transfer.amount_minor <= 0),
            (
                RefusalReason.SAME_ACCOUNT,
                transfer.source_account_id == transfer.destination_account_id,
            ),
            (
                RefusalReason.UNKNOWN_CURRENCY,
                transfer.currency not in rules.currency_numbers,
            ),
        )
        if applies
    ]
    if not found:
        return None
    reason, index = min(found)
    return _REFUSED, reason, 0, 0, index, 0, 0, 0
