"""Messages with every number at every edge, made from the contract's own descriptors.

Each message has one field at an edge and the others as they should be, so an answer tells how that
field was taken. A server may answer, or refuse with a definite status; INTERNAL or UNKNOWN would
mean that it stumbled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message_factory import GetMessageClass

from doubloon.v1 import (
    admin_service_pb2,
    coordinator_service_pb2,
    shard_service_pb2,
    wallet_service_pb2,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

BYTES = (0, 1, 15, 16, 17, 1_000_000)
SIGNED = (0, 1, -1, 2**63 - 1, -(2**63))
UNSIGNED = (0, 1, 2**63 - 1, 2**63, 2**64 - 1)
SIGNED_32 = (0, 1, -1, 2**31 - 1, -(2**31))
UNSIGNED_32 = (0, 1, 2**31, 2**32 - 1)
TEXTS = ("", "GOLD", "gold", "A" * 17, "\0", "é" * 1_000, "x" * 100_000)
NUMBERS: dict[int, tuple[int, ...]] = {
    Field.TYPE_INT64: SIGNED,
    Field.TYPE_UINT64: UNSIGNED,
    Field.TYPE_INT32: SIGNED_32,
    Field.TYPE_UINT32: UNSIGNED_32,
    Field.TYPE_ENUM: (*SIGNED_32, 99),
}

SERVICES = {
    "wallet": wallet_service_pb2.DESCRIPTOR.services_by_name["WalletService"],
    "admin": admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"],
    "shard": shard_service_pb2.DESCRIPTOR.services_by_name["ShardService"],
    "coordinator": coordinator_service_pb2.DESCRIPTOR.services_by_name["CoordinatorService"],
}

STUMBLED = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN})
EXPENSIVE = frozenset({"CheckConservation", "Audit"})  # asked once each: they look at everything

USUAL: dict[str, Any] = {
    "transfer_id": b"e" * 16,
    "group_id": b"g" * 16,
    "currency": "GOLD",
    "code": "GOLD",
    "reason": "hostile",
    "type": 1,
    "kind": 1,
}
"""What fields hold while another is at its edge. No account 1 or 2 that a test pays with is named
by it, so nothing can be moved."""


def usual(message: Message, depth: int = 0) -> Message:
    """Fill a message as it should be: one of everything that repeats."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None:
            if depth < 3:
                child = getattr(message, field.name)
                usual(child.add() if field.is_repeated else child, depth + 1)
        elif field.name in USUAL and not field.is_repeated:
            setattr(message, field.name, USUAL[field.name])
    return message


def at_edges(message: Message) -> Iterator[tuple[str, Message]]:
    """Yield (path, the message with that field at an edge); the message itself changes."""
    yield "", message
    for path, owner, field in list(_fields(message)):
        was = getattr(owner, field.name)
        for edge in _edges(field):
            setattr(owner, field.name, edge)
            yield path, message
        setattr(owner, field.name, was)


def _edges(field: Any) -> tuple[Any, ...]:
    if field.type == Field.TYPE_BYTES:
        return tuple(b"b" * size for size in BYTES)
    if field.type == Field.TYPE_STRING:
        return TEXTS
    return NUMBERS.get(field.type, ())


def _fields(message: Message, path: str = "") -> Iterator[tuple[str, Message, Any]]:
    for field in message.DESCRIPTOR.fields:
        place = f"{path}.{field.name}".lstrip(".")
        if field.message_type is not None:
            value = getattr(message, field.name)
            for child in value if field.is_repeated else [value]:
                yield from _fields(child, place)
        elif not field.is_repeated:
            yield place, message, field


def requests(service: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (method, path of the field at its edge, request) for all unary methods of a service."""
    descriptor = SERVICES[service]
    for method in descriptor.methods:
        if method.client_streaming or method.server_streaming:
            continue
        name = f"/{descriptor.full_name}/{method.name}"
        message = usual(GetMessageClass(method.input_type)())
        for count, (path, each) in enumerate(at_edges(message)):
            if count and method.name in EXPENSIVE:
                break
            yield name, path, each.SerializeToString()
        if method.name not in EXPENSIVE:
            yield name, "(unknown fields)", b"\xf8\x7f\x01" * 1_000
            yield name, "(nothing)", b""
