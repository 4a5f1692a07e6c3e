"""Targets: messages of public and internal services: batches taken apart, results and faults read.

Bytes are parsed as the message first. What protobuf itself refuses never reaches us, so that is no
finding; whatever it lets through has to be dealt with.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from cluster import packed, rpc
from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX, RESULT_BYTES
from cluster.topology import Topology
from coordinator.transactions import take_apart
from doubloon import wire
from doubloon.faults import FaultError, error_from_rpc
from doubloon.transfers import Transfer
from doubloon.v1 import admin_service_pb2, types_pb2, wallet_service_pb2
from doubloon.wire_transfers import recorded_from_message, result_from_message
from router.groups import split_groups
from router.results import (
    MalformedResults,
    unpack,
    unpack_groups,
    with_doubt,
    write_group_results,
    write_results,
)
from router.routing import Rules, split, split_accounts
from shard_node.errors import BadRequestError
from shard_node.queries import StatementRequest, statement
from shard_node.unpacking import check_transfers, groups_of
from tests.hostile.stored import rehearse
from tests.hostile.target import Target, join_parts, split_parts
from tests.support.crossing import ANN

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.crossing import CrossingRig

MessageT = TypeVar("MessageT", bound=Message)

RULES = Rules(Topology.even([1, 2, 3]), {"GOLD": 1, "GEMS": 2}, allow_imports=True)


def parsed(kind: type[MessageT], data: bytes) -> MessageT | None:
    """The message that bytes are, if they are one."""
    try:
        return kind.FromString(data)
    except DecodeError:
        return None


# --- the router's requests ----------------------------------------------------------------------


def check_batch(data: bytes) -> None:
    """A batch: every transfer answered or packed, once, and shards take what was packed."""
    request = parsed(wallet_service_pb2.TransferBatchRequest, data)
    if request is None:
        return
    parts = split(enumerate(request.transfers), RULES, "transfers")
    _check_positions(parts, len(request.transfers))
    for own in parts.batches.values():
        check_transfers(own.records, own.metadata)
    _check_crossing(parts.crossing)
    response = wallet_service_pb2.TransferBatchResponse()
    write_results(parts.answered.values(), response.results.add)


def check_groups(data: bytes) -> None:
    """As `check_batch`, of groups."""
    request = parsed(wallet_service_pb2.TransferGroupBatchRequest, data)
    if request is None:
        return
    parts = split_groups(enumerate(request.groups), RULES, "groups")
    _check_positions(parts, len(request.groups))
    for shard, own in parts.batches.items():
        assert len(groups_of(own.records, own.metadata, shard)) == len(own.positions)
    _check_crossing(parts.crossing)
    response = wallet_service_pb2.TransferGroupBatchResponse()
    write_group_results(parts.answered.values(), response.results.add)


def check_accounts(data: bytes) -> None:
    """Accounts to open: every one faulted or sorted, once."""
    request = parsed(wallet_service_pb2.OpenAccountsRequest, data)
    if request is None:
        return
    count = len(request.accounts)
    found = split_accounts(request.accounts, range(count), RULES.topology, "accounts")
    positions = [each for own in found.positions.values() for each in own]
    assert sorted([*positions, *found.answered]) == list(range(count))


def _check_positions(parts: Any, count: int) -> None:
    own = [*parts.batches.values(), *([parts.crossing] if parts.crossing else [])]
    positions = [position for each in own for position in each.positions]
    assert sorted([*positions, *parts.answered]) == list(range(count))


def _check_crossing(crossing: Any) -> None:
    if crossing is not None and len(crossing.records) <= BATCH_TRANSFERS_MAX * packed.MEMBER.size:
        assert len(take_apart(crossing.records, crossing.metadata)) == len(crossing.positions)


def _transfer(number: int, **fields: Any) -> types_pb2.Transfer:
    transfer = types_pb2.Transfer(
        transfer_id=number.to_bytes(16, "big"),
        source_account_id=number,
        destination_account_id=number + 1,
        currency="GOLD",
        amount_minor=100,
        type=types_pb2.TRANSFER_TYPE_SALE,
    )
    for name, value in fields.items():
        setattr(transfer, name, value)
    return transfer


def batch_seeds() -> list[bytes]:
    """Batches of transfers within shards and between them."""
    transfers = [
        _transfer(1),
        _transfer(2, metadata=b"note", reference=2**64 - 1),
        _transfer(3, import_time_us=1_700_000_000_000_000, amount_minor=2**63 - 1),
        _transfer(2**62, amount_minor=-1),
        _transfer(5, currency="NONE"),
        _transfer(6, destination_account_id=6),
    ]
    request = wallet_service_pb2.TransferBatchRequest
    return [request(transfers=some).SerializeToString() for some in (transfers, transfers[:1])]


def group_seeds() -> list[bytes]:
    """Groups within shards and between them."""
    members = [_transfer(each, transfer_id=b"") for each in range(1, 17)]
    here = [_transfer(7, transfer_id=b"", destination_account_id=7 + each) for each in (1, 9, 80)]
    groups = [
        wallet_service_pb2.Group(group_id=b"g" * 16, transfers=some)
        for some in (members, members[:2], here)
    ]
    request = wallet_service_pb2.TransferGroupBatchRequest
    return [request(groups=some).SerializeToString() for some in (groups, groups[1:])]


def account_seeds() -> list[bytes]:
    """Accounts of both kinds."""
    specs = [
        wallet_service_pb2.AccountSpec(account_id=1, kind=types_pb2.ACCOUNT_KIND_PLAYER),
        wallet_service_pb2.AccountSpec(
            account_id=2**63 - 1, kind=types_pb2.ACCOUNT_KIND_SYSTEM, floor_minor=1 - 2**63
        ),
    ]
    return [wallet_service_pb2.OpenAccountsRequest(accounts=specs).SerializeToString()]


# --- results ------------------------------------------------------------------------------------


def check_results(data: bytes) -> None:
    """Packed results of a shard or coordinator: read and written, or MalformedResults."""
    count = len(data) // RESULT_BYTES
    positions = range(count)
    transfers = wallet_service_pb2.TransferBatchResponse()
    groups = wallet_service_pb2.TransferGroupBatchResponse()
    try:
        write_results(unpack(data, positions), transfers.results.add)
        assert len(with_doubt(data)) == len(data)
    except MalformedResults:
        pass
    try:
        write_group_results(unpack_groups(data, positions), groups.results.add)
    except MalformedResults:
        return
    for message in transfers.results:
        result_from_message(Transfer(1, 2, "GOLD", 1), message)


def result_seeds() -> list[bytes]:
    """Every status."""
    rows = [
        packed.GROUP_RESULT.pack(*fields)
        for fields in (
            (1, 0, 0, 0, 0, 0, 5, 6),
            (2, 0, 0, 1, 0, 0, 5, -6),
            (3, 11, 0, 0, 3, 0, 5, 6),
            (4, 3, 0, 0, 0, 1, 0, 0),
        )
    ]
    return [b"".join(rows), *rows]


# --- faults -------------------------------------------------------------------------------------


def rpc_error(code: grpc.StatusCode, detail: bytes | str) -> grpc.aio.AioRpcError:
    """A failed call with a fault's detail in its trailing metadata."""
    trailing = grpc.aio.Metadata((rpc.FAULT_KEY, detail))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details="as told")


def check_fault(data: bytes) -> None:
    """A fault in trailing metadata: whatever it says, a fault for the caller, here and in the SDK.

    A server passes on what it heard from another, so it must be possible to send it again.
    """
    code = list(grpc.StatusCode)[1 + (data[0] if data else 0) % (len(grpc.StatusCode) - 1)]
    error = rpc_error(code, data[1:])
    fault = rpc.fault_from_rpc_error(error)
    fault.to_message().SerializeToString()
    str(fault)
    assert isinstance(error_from_rpc(error), FaultError)


def fault_seeds() -> list[bytes]:
    """Faults as servers send them, and none."""
    faults = [
        Fault(grpc.StatusCode.INVALID_ARGUMENT, "must be 16 bytes", "transfers.id", 3),
        Fault(grpc.StatusCode.FAILED_PRECONDITION, "another", topology_version=7),
        Fault(grpc.StatusCode.UNAVAILABLE, "away", indefinite=True),
    ]
    return [b"\3" + each.to_message().SerializeToString() for each in faults] + [b"\0"]


# --- page tokens --------------------------------------------------------------------------------


@cache
def _shard() -> CrossingRig:
    return rehearse()


def check_token(data: bytes) -> None:
    """A page token, also one that was sealed by whoever sends it: a page, or BadRequestError."""
    (token,) = split_parts(data, 1)
    which = data[-1] if data else 0
    wanted = StatementRequest(
        ANN, which & 2, (0, 2**63 - 1)[which >> 2 & 1], 2**63 - 1, bool(which & 1), 3, token
    )
    if which & 8 and len(token) == 24:
        seal = wanted.token_after(
            int.from_bytes(token[:8], "big", signed=True), int.from_bytes(token[8:16], "big")
        )
        wanted = dataclasses.replace(wanted, page_token=seal)
    try:
        statement([_shard().history(ANN)], wanted)
    except BadRequestError:
        return


def token_seeds() -> list[bytes]:
    """Tokens of real pages, in both orders, sealed rightly and not."""
    seeds = []
    for which in range(16):
        wanted = StatementRequest(ANN, which & 2, 0, 2**63 - 1, bool(which & 1), 3, b"")
        _, token = statement([_shard().history(ANN)], wanted)
        seeds += [join_parts((each,)) + bytes([which]) for each in (token, bytes(24))]
    return seeds


# --- answers, as the SDK reads them -------------------------------------------------------------

_READERS: tuple[tuple[type[Message], Callable[[Any], object]], ...] = (
    (wallet_service_pb2.GetBalancesResponse, wire.balances),
    (wallet_service_pb2.ListEntriesResponse, wire.entry_page),
    (wallet_service_pb2.GetFlowsResponse, wire.flows),
    (wallet_service_pb2.GetBalanceSeriesResponse, wire.balance_series),
    (wallet_service_pb2.GetTransferResponse, recorded_from_message),
    (types_pb2.Account, wire.account),
    (admin_service_pb2.GetClusterStatusResponse, wire.cluster_status),
    (admin_service_pb2.GetProcessHealthResponse, wire.process_health),
    (admin_service_pb2.CheckConservationResponse, wire.conservation),
    (admin_service_pb2.AuditResponse, wire.audit),
)


def check_answer(data: bytes) -> None:
    """A router's answer: read by the SDK, or a FaultError."""
    kind, read = _READERS[(data[0] if data else 0) % len(_READERS)]
    message = parsed(kind, data[1:])
    if message is None:
        return
    try:
        read(message)
    except FaultError:
        return


def answer_seeds() -> list[bytes]:
    """An answer of every kind, each of its fields set as often as it may be."""
    return [
        bytes([at]) + _filled(kind()).SerializeToString() for at, (kind, _) in enumerate(_READERS)
    ]


def _filled(message: Message, depth: int = 0) -> Message:
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None:
            if depth < 4:
                _filled(value.add() if field.is_repeated else value, depth + 1)
        elif field.is_repeated:
            value.extend([_scalar(field)])
        else:
            setattr(message, field.name, _scalar(field))
    return message


_NUMBERS = {FieldDescriptor.CPPTYPE_BOOL: True, FieldDescriptor.CPPTYPE_DOUBLE: 0.5}


def _scalar(field: Any) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        return b"\1" * 16 if field.type == field.TYPE_BYTES else "17"
    return _NUMBERS.get(field.cpp_type, 1)


TARGETS = (
    Target("batch", check_batch, batch_seeds),
    Target("groups", check_groups, group_seeds),
    Target("accounts", check_accounts, account_seeds),
    Target("results", check_results, result_seeds, RESULT_BYTES),
    Target("fault", check_fault, fault_seeds),
    Target("token", check_token, token_seeds),
    Target("answer", check_answer, answer_seeds),
)
