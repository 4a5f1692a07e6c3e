"""What goes wrong, as every role says it: one exception, and its message on the wire."""

from typing import Self

import grpc

from doubloon.v1 import types_pb2

_STATUS_OF_CODE = {
    types_pb2.FAULT_CODE_INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    types_pb2.FAULT_CODE_FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    types_pb2.FAULT_CODE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    types_pb2.FAULT_CODE_DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    types_pb2.FAULT_CODE_RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    types_pb2.FAULT_CODE_UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    types_pb2.FAULT_CODE_PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    types_pb2.FAULT_CODE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    types_pb2.FAULT_CODE_OUT_OF_RANGE: grpc.StatusCode.OUT_OF_RANGE,
    types_pb2.FAULT_CODE_INTERNAL: grpc.StatusCode.INTERNAL,
    types_pb2.FAULT_CODE_UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    types_pb2.FAULT_CODE_ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
}
_CODE_OF_STATUS = {
    **{status: code for code, status in _STATUS_OF_CODE.items()},
    # Statuses that gRPC makes by itself and that the contract has no code for.
    grpc.StatusCode.CANCELLED: types_pb2.FAULT_CODE_UNAVAILABLE,
    grpc.StatusCode.ABORTED: types_pb2.FAULT_CODE_UNAVAILABLE,
    grpc.StatusCode.UNKNOWN: types_pb2.FAULT_CODE_INTERNAL,
    grpc.StatusCode.DATA_LOSS: types_pb2.FAULT_CODE_INTERNAL,
}
# When our own code raises one of these without saying so, something may have happened.
_INDEFINITE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Fault(Exception):  # noqa: N818 - the contract's word
    """Something other than a business "no" went wrong. Never changed after construction.

    (Not a frozen dataclass: Python itself sets `__traceback__` on what is raised.)

    Attributes:
        code: what kind; programs branch on this.
        message: for people.
        field: the request's field at fault, as a path; "" when there is none.
        index: of the item at fault in the request's list; -1 when the whole call is at fault.
        topology_version: the answering process's, when the caller's was another; else 0.
        indefinite: it may or may not have happened. By default what the code suggests.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        field: str = "",
        index: int = -1,
        topology_version: int = 0,
        *,
        indefinite: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.index = index
        self.topology_version = topology_version
        self.indefinite = code in _INDEFINITE if indefinite is None else indefinite

    def __str__(self) -> str:
        place = f" ({self.field})" if self.field else ""
        return f"{self.code.name}{place}: {self.message}"

    def to_message(self) -> types_pb2.Fault:
        """Return the fault as the wire contract spells it."""
        return types_pb2.Fault(
            code=_CODE_OF_STATUS[self.code],
            field=self.field,
            message=self.message,
            indefinite=self.indefinite,
            index=self.index,
            topology_version=self.topology_version,
        )

    @classmethod
    def from_message(cls, message: types_pb2.Fault) -> Self:
        """Read a fault from the wire; a code that this version does not know becomes INTERNAL."""
        return cls(
            _STATUS_OF_CODE.get(message.code, grpc.StatusCode.INTERNAL),
            message.message,
            message.field,
            message.index,
            message.topology_version,
            indefinite=message.indefinite,
        )
