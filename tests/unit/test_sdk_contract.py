"""The SDK mirrors the contract: same numbers, and no field of a message is forgotten."""

from dataclasses import fields
from enum import IntEnum
from typing import Any

import pytest
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from msgspec import Struct, structs

import doubloon
from doubloon.enums import member
from doubloon.v1 import admin_service_pb2 as admin
from doubloon.v1 import coordinator_service_pb2 as coordinator
from doubloon.v1 import types_pb2 as types
from doubloon.v1 import wallet_service_pb2 as wallet

ENUMS: list[tuple[type[IntEnum], EnumDescriptor, str]] = [
    (doubloon.AccountKind, types.AccountKind.DESCRIPTOR, "ACCOUNT_KIND_"),
    (doubloon.AccountStatus, types.AccountStatus.DESCRIPTOR, "ACCOUNT_STATUS_"),
    (doubloon.TransferType, types.TransferType.DESCRIPTOR, "TRANSFER_TYPE_"),
    (doubloon.TransferStatus, types.TransferStatus.DESCRIPTOR, "TRANSFER_STATUS_"),
    (doubloon.RefusalReason, types.RefusalReason.DESCRIPTOR, "REFUSAL_REASON_"),
    (doubloon.RetryClass, types.RetryClass.DESCRIPTOR, "RETRY_CLASS_"),
    (doubloon.FaultCode, types.FaultCode.DESCRIPTOR, "FAULT_CODE_"),
    (doubloon.OpenAccountStatus, wallet.OpenAccountStatus.DESCRIPTOR, "OPEN_ACCOUNT_STATUS_"),
    (doubloon.EntryOrder, wallet.EntryOrder.DESCRIPTOR, "ENTRY_ORDER_"),
    (doubloon.EntryDirection, wallet.EntryDirection.DESCRIPTOR, "ENTRY_DIRECTION_"),
    (doubloon.TransactionState, coordinator.TransactionState.DESCRIPTOR, "TRANSACTION_STATE_"),
    (doubloon.TransactionFate, admin.TransactionFate.DESCRIPTOR, "TRANSACTION_FATE_"),
]

# Ours, the wire's, and what has another name here or is put elsewhere on purpose.
RENAMED = {
    "source_account_id": "source",
    "destination_account_id": "destination",
    "counterparty_account_id": "counterparty",
}
MESSAGES: list[tuple[type[Any], type[Message], set[str]]] = [
    (doubloon.Transfer, types.Transfer, set()),
    (doubloon.Refusal, types.Refusal, set()),
    (doubloon.Fault, types.Fault, {"topology_version"}),  # for our own processes
    (doubloon.TransferResult, types.TransferResult, set()),
    (doubloon.Account, types.Account, set()),
    (doubloon.AccountSpec, wallet.AccountSpec, set()),
    (doubloon.OpenAccountResult, wallet.OpenAccountResult, set()),
    (doubloon.Balance, wallet.Balance, set()),
    (doubloon.Balances, wallet.GetBalancesResponse, set()),
    (doubloon.RecordName, wallet.RecordName, set()),
    (doubloon.RecordedTransfer, wallet.GetTransferResponse, set()),
    (doubloon.Entry, wallet.Entry, set()),
    (doubloon.EntryPage, wallet.ListEntriesResponse, set()),
    (doubloon.Flows, wallet.Flows, set()),
    (doubloon.FlowsWindow, wallet.GetFlowsResponse, set()),
    (doubloon.HourPoint, wallet.HourPoint, set()),
    (doubloon.BalanceSeries, wallet.GetBalanceSeriesResponse, set()),
    (doubloon.Currency, admin.Currency, set()),
    (doubloon.AccountChange, admin.ChangeAccountStatusResponse, set()),
    (doubloon.MemberStatus, admin.MemberStatus, set()),
    (doubloon.ShardStatus, admin.ShardStatus, set()),
    (doubloon.ClusterStatus, admin.GetClusterStatusResponse, set()),
    (doubloon.HealthCheck, admin.HealthCheck, set()),
    (doubloon.ProcessHealth, admin.GetProcessHealthResponse, set()),
    (doubloon.ShardBooks, admin.ShardBooks, set()),
    (doubloon.ConservationReport, admin.CheckConservationResponse, set()),
    (doubloon.Group, wallet.Group, set()),
    (doubloon.GroupResult, wallet.GroupResult, set()),
    (doubloon.ShardPairAudit, admin.ShardPairAudit, set()),
    (doubloon.AuditReport, admin.AuditResponse, set()),
    (doubloon.TransactionInfo, coordinator.TransactionInfo, set()),
]


@pytest.mark.parametrize(("ours", "wires", "prefix"), ENUMS)
def test_enums_have_the_wires_numbers(
    ours: type[IntEnum], wires: EnumDescriptor, prefix: str
) -> None:
    assert {prefix + each.name: each.value for each in ours} == {
        each.name: each.number for each in wires.values
    }


@pytest.mark.parametrize(("ours", "wires", "prefix"), ENUMS)
def test_a_number_of_a_newer_cluster_is_unspecified(
    ours: type[IntEnum], wires: EnumDescriptor, prefix: str
) -> None:
    assert member(ours, 1_000) == 0
    assert all(member(ours, each.value) is each for each in ours)


@pytest.mark.parametrize(("ours", "wires", "left_out"), MESSAGES)
def test_values_have_every_field_of_their_message(
    ours: type[Any], wires: type[Message], left_out: set[str]
) -> None:
    names = {RENAMED.get(field.name, field.name) for field in wires.DESCRIPTOR.fields}
    is_struct = issubclass(ours, Struct)
    mine = {field.name for field in (structs.fields(ours) if is_struct else fields(ours))}
    assert names - left_out <= mine


@pytest.mark.parametrize("ours", [ours for ours, _, _ in MESSAGES])
def test_values_are_frozen_and_small(ours: type[Any]) -> None:
    if issubclass(ours, Struct):
        assert ours.__struct_config__.frozen
    else:
        assert ours.__dataclass_params__.frozen
        assert "__slots__" in vars(ours)


def test_everything_public_is_listed() -> None:
    assert doubloon.__all__ == sorted(doubloon.__all__)
    assert all(hasattr(doubloon, name) for name in doubloon.__all__)
