"""Reads packed results, and writes them as messages in request order.

Pure. The other half of the router's hot path: one pass over up to 8,192 results. Faults are rare,
so a batch is first looked at for any, by its status bytes alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from cluster.packed import GROUP_RESULT, RESULT, RESULT_BYTES, DifferingField
from cluster.refusals import RefusalReason, retry_class
from doubloon.v1 import types_pb2, wallet_service_pb2

_COMPLETED: Final = types_pb2.TRANSFER_STATUS_COMPLETED
_POSTING: Final = types_pb2.TRANSFER_STATUS_COMMITTED_POSTING
_REFUSED: Final = types_pb2.TRANSFER_STATUS_REFUSED
_FAULT: Final = types_pb2.TRANSFER_STATUS_FAULT

# Of a packed result: whether the fault is indefinite.
_INDEFINITE_AT: Final = 5

Row = tuple[int, int, int, int, int, int]
"""One unpacked result: the fields of `cluster.packed.RESULT` in their order."""

Outcome = Row | types_pb2.Fault
"""How one transfer of a batch ended, before it becomes a message."""

GroupRow = tuple[int, int, int, int, int, int, int, int]
"""One unpacked result of a group: the fields of `cluster.packed.GROUP_RESULT` in their order."""

GroupOutcome = GroupRow | types_pb2.Fault
"""How one group of a batch ended, before it becomes a message."""


class MalformedResults(ValueError):  # noqa: N818 - named for what was received
    """Packed results are not what the batch called for."""


def unpack(results: bytes, positions: Sequence[int]) -> list[Outcome]:
    """Read packed results of the transfers at these positions, in their order.

    Raises:
        MalformedResults: they are not for so many transfers.
    """
    check_length(results, len(positions))
    if not has_faults(results):  # as nearly always
        return list(RESULT.iter_unpack(results))
    return [
        row[:4] + row[6:] if row[0] != _FAULT else packed_fault(row[1], row[5], position)
        for row, position in zip(GROUP_RESULT.iter_unpack(results), positions, strict=True)
    ]


def unpack_groups(results: bytes, positions: Sequence[int]) -> list[GroupOutcome]:
    """Read packed results of the groups at these positions, in their order.

    Raises:
        MalformedResults: they are not for so many groups.
    """
    check_length(results, len(positions))
    return [
        row if row[0] != _FAULT else packed_fault(row[1], row[5], position)
        for row, position in zip(GROUP_RESULT.iter_unpack(results), positions, strict=True)
    ]


def check_length(results: bytes, count: int) -> None:
    """Raise MalformedResults unless these are packed results for so many items."""
    if len(results) != count * RESULT_BYTES:
        raise MalformedResults(f"{len(results)} bytes of results for {count} items")


def has_faults(results: bytes) -> bool:
    """Return whether any of these packed results is a fault; looks at the status bytes alone."""
    return _FAULT in results[::RESULT_BYTES]


def with_doubt(results: bytes) -> bytes:
    """Return packed results in which every fault is indefinite."""
    if not has_faults(results):
        return results
    doubtful = bytearray(results)
    for at in range(0, len(results), RESULT_BYTES):
        if results[at] == _FAULT:
            doubtful[at + _INDEFINITE_AT] = 1
    return bytes(doubtful)


def packed_fault(code: int, indefinite: int, position: int) -> types_pb2.Fault:
    """Return the fault of a packed result.

    Raises:
        MalformedResults: there is no such code.
    """
    if code not in _KNOWN_CODES:
        raise MalformedResults(f"fault code {code}")
    return types_pb2.Fault(
        code=types_pb2.FaultCode.ValueType(code),
        message=_DOUBT if indefinite else _NOTHING,
        indefinite=bool(indefinite),
        index=position,
    )


_KNOWN_CODES: Final = frozenset(types_pb2.FaultCode.values()) - {0}
_DOUBT: Final = "no answer in time; it may or may not have happened"
_NOTHING: Final = "it could not be decided in time, and did not happen"


def write_results(outcomes: Iterable[Outcome], add: Callable[[], types_pb2.TransferResult]) -> None:
    """Write outcomes, in their order, as `TransferResult` messages.

    Args:
        outcomes: one for each transfer, in request order.
        add: appends an empty result to the response and returns it (`response.results.add`).
            Setting fields on it costs half of what building a message and copying it in would.

    Raises:
        MalformedResults: a status or a reason that nobody may send.
    """
    completed = _COMPLETED
    for outcome in outcomes:
        result = add()
        if isinstance(outcome, tuple):
            status, reason, differing, repeat, time_us, balance_minor = outcome
            result.status = status  # type: ignore[assignment] # checked just below
            if status != completed and status != _POSTING:  # noqa: PLR1714 - half as dear as `in`
                result.refusal.CopyFrom(refusal(status, reason, differing))
            if repeat:
                result.repeat = True
            result.time_us = time_us
            result.source_balance_after_minor = balance_minor
        else:
            result.status = types_pb2.TRANSFER_STATUS_FAULT
            result.fault.CopyFrom(outcome)


def write_group_results(
    outcomes: Iterable[GroupOutcome], add: Callable[[], wallet_service_pb2.GroupResult]
) -> None:
    """Write outcomes, in their order, as `GroupResult` messages; as `write_results`."""
    for outcome in outcomes:
        result = add()
        if not isinstance(outcome, tuple):
            result.status = types_pb2.TRANSFER_STATUS_FAULT
            result.fault.CopyFrom(outcome)
            continue
        status, reason, differing, repeat, index, _, time_us, balance_minor = outcome
        result.status = status  # type: ignore[assignment] # checked just below
        if status not in (_COMPLETED, _POSTING):
            result.refusal.CopyFrom(refusal(status, reason, differing))
            result.refused_index = index
        result.repeat = bool(repeat)
        result.time_us = time_us
        result.source_balance_after_minor = balance_minor


def refusal(status: int, reason: int, differing: int) -> types_pb2.Refusal:
    """Return the refusal of a packed result.

    Raises:
        MalformedResults: a status or a reason that nobody may send.
    """
    found = _REFUSALS.get((reason, differing)) if status == _REFUSED else None
    if found is None:
        raise MalformedResults(f"status {status}, reason {reason}, differing field {differing}")
    return found


def _refusals() -> dict[tuple[int, int], types_pb2.Refusal]:
    """Every refusal that can be sent, by (reason, differing field)."""
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
