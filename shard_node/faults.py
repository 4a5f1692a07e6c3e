"""The one place where the shard node's errors meet gRPC."""

from __future__ import annotations

from typing import Final

import grpc

from cluster.faults import Fault
from shard_node import errors

_STATUS_OF: Final = {
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SpaceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.StoppingError: grpc.StatusCode.UNAVAILABLE,
    errors.AccountNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.TransferNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.StateConflictError: grpc.StatusCode.FAILED_PRECONDITION,
}
"""A test holds it complete."""


def as_fault(error: errors.ShardNodeError) -> Fault:
    """The fault that stands for a node's error. All of them are definite: nothing happened."""
    field = error.field if isinstance(error, errors.BadRequestError) else ""
    return Fault(_STATUS_OF[type(error)], str(error), field, indefinite=False)


def bad_request(field: str, message: str) -> Fault:
    """The fault for a request that is malformed in a field."""
    return Fault(grpc.StatusCode.INVALID_ARGUMENT, f"{field} {message}", field)
