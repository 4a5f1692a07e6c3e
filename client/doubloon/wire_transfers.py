"""Transfers and their results, to and from the wire. This is the hot path of the SDK.

Building a transfer's message costs about a microsecond, and so does reading its result; what is
absent is not set, and a completed result takes the short way.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, TypeVar

from google.protobuf.message import Message

from doubloon.accounts import AccountSpec, OpenAccountResult
from doubloon.enums import (
    FaultCode,
    OpenAccountStatus,
    RefusalReason,
    RetryClass,
    TransferStatus,
    TransferType,
    member,
)
from doubloon.faults import Fault, InternalFault, fault_from_message
from doubloon.transfers import RecordedTransfer, RecordName, Refusal, Transfer, TransferResult
from doubloon.v1 import types_pb2, wallet_service_pb2

BATCH_ITEMS_MAX: Final = 8_192
"""The most transfers, or accounts to open, in one call: the contract's bound."""

ItemT = TypeVar("ItemT")
MessageT = TypeVar("MessageT", bound=Message)
MessageT_co = TypeVar("MessageT_co", bound=Message, covariant=True)
ResultT = TypeVar("ResultT")

_COMPLETED: Final = TransferStatus.COMPLETED
_COMPLETED_ON_WIRE: Final = types_pb2.TRANSFER_STATUS_COMPLETED

# Where each field of ours goes on the wire, for naming the one that does not fit.
TRANSFER_FIELDS: Final = {
    "transfer_id": "transfer_id",
    "source": "source_account_id",
    "destination": "destination_account_id",
    "currency": "currency",
    "amount_minor": "amount_minor",
    "type": "type",
    "reference": "reference",
    "metadata": "metadata",
    "import_time_us": "import_time_us",
}
_SPEC_FIELDS: Final = {
    "account_id": "account_id",
    "kind": "kind",
    "floor_minor": "floor_minor",
    "cap_minor": "cap_minor",
}


class Repeated(Protocol[MessageT_co]):
    """A repeated field of messages."""

    def add(self) -> MessageT_co:
        """Append an empty message and return it."""
        ...

    def __delitem__(self, place: int, /) -> None:
        """Remove one."""
        ...


def add_transfers(
    messages: Repeated[types_pb2.Transfer], transfers: Iterable[Transfer]
) -> dict[int, Fault]:
    """Append the transfers; return, by place, what does not fit a message and was left out."""
    return _add(messages, transfers, fill_transfer, TRANSFER_FIELDS, "transfers")


def add_specs(
    messages: Repeated[wallet_service_pb2.AccountSpec], specs: Iterable[AccountSpec]
) -> dict[int, Fault]:
    """Append the accounts; return, by place, what does not fit a message and was left out."""
    return _add(messages, specs, _fill_spec, _SPEC_FIELDS, "accounts")


def results_from_messages(
    transfers: Sequence[Transfer],
    messages: Sequence[types_pb2.TransferResult],
    left_out: dict[int, Fault],
) -> list[TransferResult]:
    """Read the results of the transfers that were sent; those left out get their fault.

    Raises:
        InternalFault: there are not as many results as transfers.
    """
    if len(messages) != len(transfers) - len(left_out):
        raise contract_broken(f"{len(messages)} results")
    if left_out:
        return with_left_out(transfers, messages, left_out, result_from_message, faulted_transfer)
    results: list[TransferResult] = []
    append = results.append
    for transfer, message in zip(transfers, messages, strict=True):
        if message.status == _COMPLETED_ON_WIRE:
            append(
                TransferResult(
                    transfer.transfer_id,
                    _COMPLETED,
                    message.time_us,
                    message.source_balance_after_minor,
                    message.repeat,
                )
            )
        else:
            append(result_from_message(transfer, message))
    return results


def result_from_message(transfer: Transfer, message: types_pb2.TransferResult) -> TransferResult:
    """Read the result of one transfer, whatever it is."""
    status = member(TransferStatus, message.status)
    if status is TransferStatus.UNSPECIFIED:
        return faulted_transfer(transfer, contract_broken(f"status {message.status}").fault)
    refused, faulted = status is TransferStatus.REFUSED, status is TransferStatus.FAULT
    return TransferResult(
        transfer.transfer_id,
        status,
        message.time_us,
        message.source_balance_after_minor,
        message.repeat,
        refusal_from_message(message.refusal) if refused else None,
        fault_from_message(message.fault) if faulted else None,
    )


def faulted_transfer(transfer: Transfer, fault: Fault) -> TransferResult:
    """Make the result of a transfer that ended in a fault."""
    return TransferResult(transfer.transfer_id, TransferStatus.FAULT, fault=fault)


def open_results_from_messages(
    specs: Sequence[AccountSpec],
    messages: Sequence[wallet_service_pb2.OpenAccountResult],
    left_out: dict[int, Fault],
) -> list[OpenAccountResult]:
    """As `results_from_messages`, for accounts."""
    if len(messages) != len(specs) - len(left_out):
        raise contract_broken(f"{len(messages)} results")
    return with_left_out(specs, messages, left_out, _open_result_from_message, faulted_account)


def faulted_account(spec: AccountSpec, fault: Fault) -> OpenAccountResult:
    """Make the result of an account that could not be opened for a fault."""
    return OpenAccountResult(spec.account_id, OpenAccountStatus.FAULT, fault=fault)


def recorded_from_message(message: wallet_service_pb2.GetTransferResponse) -> RecordedTransfer:
    """Read a transfer that is on record."""
    sent = message.transfer
    transfer = Transfer(
        source=sent.source_account_id,
        destination=sent.destination_account_id,
        currency=sent.currency,
        amount_minor=sent.amount_minor,
        type=member(TransferType, sent.type),
        reference=sent.reference,
        metadata=sent.metadata,
        import_time_us=sent.import_time_us,
        transfer_id=sent.transfer_id,
    )
    return RecordedTransfer(
        transfer,
        result_from_message(transfer, message.result),
        RecordName(message.record.log_id, message.record.sequence),
    )


def contract_broken(what: str) -> InternalFault:
    """Return the fault for an answer that cannot be: it tells nothing, so all may have happened."""
    message = f"the router's answer breaks the contract: {what}"
    return InternalFault(Fault(FaultCode.INTERNAL, message, indefinite=True))


def fill_transfer(message: types_pb2.Transfer, transfer: Transfer) -> None:
    """Set a message's fields.

    Raises:
        TypeError, ValueError: one does not fit; see `misfit`.
    """
    message.transfer_id = transfer.transfer_id
    message.source_account_id = transfer.source
    message.destination_account_id = transfer.destination
    message.currency = transfer.currency
    message.amount_minor = transfer.amount_minor
    message.type = transfer.type  # type: ignore[assignment] # an IntEnum of the same numbers
    if transfer.reference:
        message.reference = transfer.reference
    if transfer.metadata:
        message.metadata = transfer.metadata
    if transfer.import_time_us:
        message.import_time_us = transfer.import_time_us


def _fill_spec(message: wallet_service_pb2.AccountSpec, spec: AccountSpec) -> None:
    message.account_id = spec.account_id
    message.kind = spec.kind  # type: ignore[assignment] # an IntEnum of the same numbers
    message.floor_minor = spec.floor_minor
    message.cap_minor = spec.cap_minor


def _add(
    messages: Repeated[MessageT],
    items: Iterable[ItemT],
    fill: Callable[[MessageT, ItemT], None],
    fields: dict[str, str],
    path: str,
) -> dict[int, Fault]:
    left_out = {}
    add = messages.add
    for place, item in enumerate(items):
        message = add()
        try:
            fill(message, item)
        except (TypeError, ValueError) as error:
            del messages[-1]
            field = misfit(type(message)(), item, fields)
            left_out[place] = Fault(FaultCode.INVALID_ARGUMENT, str(error), f"{path}.{field}")
    return left_out


def misfit(message: Message, item: object, fields: dict[str, str]) -> str:
    """Return the wire's name of the first field that its message does not take; "" when none."""
    for ours, wires in fields.items():
        try:
            setattr(message, wires, getattr(item, ours))
        except (TypeError, ValueError):
            return wires
    return ""


def with_left_out(
    items: Sequence[ItemT],
    messages: Sequence[MessageT],
    left_out: dict[int, Fault],
    read: Callable[[ItemT, MessageT], ResultT],
    faulted: Callable[[ItemT, Fault], ResultT],
) -> list[ResultT]:
    """Read the results of what was sent, in order; what was left out gets its fault."""
    sent = iter(messages)
    return [
        faulted(item, left_out[place]) if place in left_out else read(item, next(sent))
        for place, item in enumerate(items)
    ]


def refusal_from_message(message: types_pb2.Refusal) -> Refusal:
    """Read why something was refused."""
    return Refusal(
        member(RefusalReason, message.reason),
        member(RetryClass, message.retry_class),
        message.differing_field,
    )


def _open_result_from_message(
    spec: AccountSpec, message: wallet_service_pb2.OpenAccountResult
) -> OpenAccountResult:
    status = member(OpenAccountStatus, message.status)
    if status is OpenAccountStatus.UNSPECIFIED:
        return faulted_account(spec, contract_broken(f"status {message.status}").fault)
    fault = fault_from_message(message.fault) if status is OpenAccountStatus.FAULT else None
    return OpenAccountResult(
        spec.account_id, status, message.repeat, message.differing_field, fault
    )
