"""Everything that can be raised, and how a failed call becomes one of these.

A refusal (a business "no") is a value in a result and is raised only by `raise_for_refusal()`. A
fault is anything else that went wrong, and its class says whether you know what happened:

    DoubloonError
    ├── Refused                   a business "no"; only by raise_for_refusal()
    │   ├── TransferRefused           has .result, a TransferResult
    │   ├── GroupRefused              has .result, a GroupResult
    │   └── AccountRefused            has .result, an OpenAccountResult
    ├── ClientClosed              the client was closed before the call
    └── FaultError                has .fault (code, field, index, message) and .transfer_id
        ├── DefiniteFault         nothing happened (for an answer that was due: there is none)
        │   ├── InvalidArgument       malformed; .fault.field and .fault.index say where
        │   ├── FailedPrecondition    the cluster's state does not allow it now
        │   │   └── AlreadyExists         it exists with other attributes
        │   ├── NotFound              what was asked for does not exist
        │   ├── OutOfRange            a result does not fit its field
        │   ├── ResourceExhausted     a bound was reached, here or in the cluster
        │   ├── PermissionDenied      the caller may not do this
        │   │   └── Unauthenticated       the caller did not say who it is
        │   └── Unimplemented         this cluster cannot do it (yet)
        └── IndefiniteFault       it may or may not have happened: ask again with the same id
            ├── Unavailable           a process could not be reached
            ├── DeadlineExceeded      no answer in time
            └── InternalFault         a defect, or a stopping process

A fault without a class of its own is a plain DefiniteFault or IndefiniteFault. What the client can
ask again it has asked again, with the same ids, before it raises. A definite "no" that follows a
lost answer does not say what became of the first question, so it is raised as an IndefiniteFault.
"""
# ruff: noqa: N818 - exceptions are named for what happened, as the contract names it

from dataclasses import dataclass
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from doubloon.enums import FaultCode, member
from doubloon.v1 import types_pb2

FAULT_METADATA_KEY: Final = "doubloon-fault-bin"
"""Trailing metadata that carries a serialized `doubloon.v1.Fault`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What went wrong, with one item of a call or with the whole call."""

    code: FaultCode
    """The kind; programs branch on this."""
    message: str = ""
    """For people; programs never branch on this."""
    field: str = ""
    """The request's field at fault, as a path such as `transfers.currency`; "" when none."""
    indefinite: bool = False
    """True: it may or may not have happened; ask again with the same id. False: it did not."""
    index: int = -1
    """The index of the item at fault in the list you passed; -1 when there is no list."""


class DoubloonError(Exception):
    """The root of all that this package raises on purpose."""


class ClientClosed(DoubloonError):
    """The client was closed before the call, which therefore was not made."""


class Refused(DoubloonError):
    """A business "no", for those who prefer an exception to looking at the result."""


class FaultError(DoubloonError):
    """A call, or the only transfer of one, failed for another reason than a refusal.

    Attributes:
        fault: what went wrong.
        transfer_id: the id of the single transfer (or group) that failed, 16 bytes, with which to
            ask again or to look it up; b"" when the call was not about one.
    """

    def __init__(self, fault: Fault, transfer_id: bytes = b"") -> None:
        super().__init__(fault, transfer_id)
        self.fault = fault
        self.transfer_id = transfer_id

    def __str__(self) -> str:
        place = f" at {self.fault.field}" if self.fault.field else ""
        index = f" of item {self.fault.index}" if self.fault.index >= 0 else ""
        return f"{self.fault.code.name}{place}{index}: {self.fault.message}"


class DefiniteFault(FaultError):
    """Nothing happened."""


class InvalidArgument(DefiniteFault):
    """The request is malformed: `fault.field` and `fault.index` say where."""


class FailedPrecondition(DefiniteFault):
    """The cluster's state does not allow it now."""


class AlreadyExists(FailedPrecondition):
    """What was to be made exists with other attributes."""


class NotFound(DefiniteFault):
    """What was asked for does not exist."""


class OutOfRange(DefiniteFault):
    """A result does not fit its field."""


class ResourceExhausted(DefiniteFault):
    """A bound was reached, in this client (its queue) or in the cluster."""


class PermissionDenied(DefiniteFault):
    """The caller may not do this."""


class Unauthenticated(PermissionDenied):
    """The caller did not say, or could not prove, who it is."""


class Unimplemented(DefiniteFault):
    """This cluster cannot do it (yet)."""


class IndefiniteFault(FaultError):
    """It may or may not have happened; asking again with the same id is safe and tells."""


class Unavailable(IndefiniteFault):
    """A process could not be reached, or was lost while it worked."""


class DeadlineExceeded(IndefiniteFault):
    """No answer in time."""


class InternalFault(IndefiniteFault):
    """A defect, or a process that was stopping."""


_DEFINITE: Final[dict[grpc.StatusCode, type[FaultError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRange,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.UNIMPLEMENTED: Unimplemented,
}
_INDEFINITE: Final[dict[grpc.StatusCode, type[FaultError]]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.INTERNAL: InternalFault,
}
# Statuses that the contract has no code for: gRPC makes them by itself.
_CODE_OF_OTHER_STATUS: Final = {
    grpc.StatusCode.CANCELLED: FaultCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED: FaultCode.UNAVAILABLE,
}


def fault_error(fault: Fault, transfer_id: bytes = b"") -> FaultError:
    """Return the exception whose class fits the fault."""
    return _error_class(grpc.StatusCode[_status_name(fault.code)], fault)(fault, transfer_id)


def invalid_argument(field: str, message: str) -> InvalidArgument:
    """Return the error for an argument that this package itself finds malformed."""
    return InvalidArgument(Fault(FaultCode.INVALID_ARGUMENT, message, field))


def fault_from_message(message: types_pb2.Fault) -> Fault:
    """Read a fault from the wire; its index is the request's, not yet that of the caller's list."""
    code = member(FaultCode, message.code)
    return Fault(code, message.message, message.field, message.indefinite, message.index)


def error_from_rpc(error: grpc.aio.AioRpcError) -> FaultError:
    """Read a failed call: our detail in the trailing metadata, else what the status alone says."""
    status = grpc.StatusCode.UNAVAILABLE if hides_status(error) else error.code()
    detail = _detail(error)
    if detail is None:
        # Without our detail the answer came from gRPC itself. It refuses before a handler runs
        # (no such method, too many calls, a message above the limit) with statuses that our own
        # processes use for definite faults only; any other may have cut off work in progress.
        code = _CODE_OF_OTHER_STATUS.get(status) or _code_of(status)
        fault = Fault(code, error.details() or status.name, indefinite=status not in _DEFINITE)
    else:
        fault = fault_from_message(detail)
    return _error_class(status, fault)(fault)


def hides_status(error: grpc.aio.AioRpcError) -> bool:
    """Whether a stream's true status was lost: gRPC writes its own over it.

    It does so when a write meets the end of the stream, however that came (grpc/grpc#36066).
    """
    return (
        error.code() is grpc.StatusCode.INTERNAL and error.details() == "Internal error from Core"
    )


def _detail(error: grpc.aio.AioRpcError) -> types_pb2.Fault | None:
    for key, value in error.trailing_metadata() or ():
        if key == FAULT_METADATA_KEY and isinstance(value, bytes):
            try:
                return types_pb2.Fault.FromString(value)
            except DecodeError:
                return None  # something between us and the router has its own use for the key
    return None


def _error_class(status: grpc.StatusCode, fault: Fault) -> type[FaultError]:
    if fault.indefinite:
        return _INDEFINITE.get(status, IndefiniteFault)
    return _DEFINITE.get(status, DefiniteFault)


def _status_name(code: FaultCode) -> str:
    return "UNKNOWN" if code is FaultCode.UNSPECIFIED else code.name


def _code_of(status: grpc.StatusCode) -> FaultCode:
    return FaultCode.__members__.get(status.name, FaultCode.INTERNAL)
