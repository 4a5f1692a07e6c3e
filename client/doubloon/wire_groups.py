"""Groups and their results, to and from the wire."""

from collections.abc import Iterable, Sequence
from typing import Final

from doubloon.enums import FaultCode, TransferStatus, member
from doubloon.faults import Fault, fault_from_message
from doubloon.groups import Group, GroupResult
from doubloon.v1 import types_pb2, wallet_service_pb2
from doubloon.wire_transfers import (
    TRANSFER_FIELDS,
    Repeated,
    contract_broken,
    fill_transfer,
    misfit,
    refusal_from_message,
    with_left_out,
)

GROUPS_MAX: Final = 1_024
"""The most groups in one call: the contract's bound; of transfers it is the same as ever."""


def add_groups(
    messages: Repeated[wallet_service_pb2.Group], groups: Iterable[Group]
) -> dict[int, Fault]:
    """Append the groups; return, by place, what does not fit a message and was left out."""
    left_out = {}
    for place, group in enumerate(groups):
        fault = _fill(messages.add(), group)
        if fault is not None:
            del messages[-1]
            left_out[place] = fault
    return left_out


def group_results_from_messages(
    groups: Sequence[Group],
    messages: Sequence[wallet_service_pb2.GroupResult],
    left_out: dict[int, Fault],
) -> list[GroupResult]:
    """Read the results of the groups that were sent; those left out get their fault.

    Raises:
        InternalFault: there are not as many results as groups.
    """
    if len(messages) != len(groups) - len(left_out):
        raise contract_broken(f"{len(messages)} results")
    return with_left_out(groups, messages, left_out, _result_from_message, faulted_group)


def faulted_group(group: Group, fault: Fault) -> GroupResult:
    """Make the result of a group that ended in a fault."""
    return GroupResult(group.group_id, TransferStatus.FAULT, fault=fault)


def _fill(message: wallet_service_pb2.Group, group: Group) -> Fault | None:
    """Set a message's fields; return what does not fit."""
    try:
        message.group_id = group.group_id
    except (TypeError, ValueError) as error:
        return Fault(FaultCode.INVALID_ARGUMENT, str(error), "groups.group_id")
    for index, transfer in enumerate(group.transfers):
        own = message.transfers.add()
        try:
            fill_transfer(own, transfer)
        except (TypeError, ValueError) as error:
            name = misfit(types_pb2.Transfer(), transfer, TRANSFER_FIELDS)
            path = f"groups.transfers[{index}].{name}"
            return Fault(FaultCode.INVALID_ARGUMENT, str(error), path)
        own.ClearField("transfer_id")  # the group's id and the index name it
    return None


def _result_from_message(group: Group, message: wallet_service_pb2.GroupResult) -> GroupResult:
    status = member(TransferStatus, message.status)
    if status is TransferStatus.UNSPECIFIED:
        return faulted_group(group, contract_broken(f"status {message.status}").fault)
    refused, faulted = status is TransferStatus.REFUSED, status is TransferStatus.FAULT
    return GroupResult(
        group.group_id,
        status,
        message.time_us,
        message.source_balance_after_minor,
        message.repeat,
        refusal_from_message(message.refusal) if refused else None,
        message.refused_index,
        fault_from_message(message.fault) if faulted else None,
    )
