"""Every way a call can fail becomes the error that tells the truth about it."""

import grpc
import pytest

import doubloon
from doubloon import faults
from doubloon.v1 import types_pb2 as types

S = grpc.StatusCode

# Without our detail: the status, and the class it becomes.
BARE = {
    S.CANCELLED: doubloon.IndefiniteFault,
    S.UNKNOWN: doubloon.IndefiniteFault,
    S.INVALID_ARGUMENT: doubloon.InvalidArgument,
    S.DEADLINE_EXCEEDED: doubloon.DeadlineExceeded,
    S.NOT_FOUND: doubloon.NotFound,
    S.ALREADY_EXISTS: doubloon.AlreadyExists,
    S.PERMISSION_DENIED: doubloon.PermissionDenied,
    S.RESOURCE_EXHAUSTED: doubloon.ResourceExhausted,
    S.FAILED_PRECONDITION: doubloon.FailedPrecondition,
    S.ABORTED: doubloon.IndefiniteFault,
    S.OUT_OF_RANGE: doubloon.OutOfRange,
    S.UNIMPLEMENTED: doubloon.Unimplemented,
    S.INTERNAL: doubloon.InternalFault,
    S.UNAVAILABLE: doubloon.Unavailable,
    S.DATA_LOSS: doubloon.IndefiniteFault,
    S.UNAUTHENTICATED: doubloon.Unauthenticated,
}


def rpc_error(status: S, *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*metadata)
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), trailing, "details")


def test_the_table_is_complete() -> None:
    assert set(BARE) == set(S) - {S.OK}


@pytest.mark.parametrize("status", BARE)
def test_a_status_without_detail(status: S) -> None:
    error = faults.error_from_rpc(rpc_error(status))
    assert type(error) is BARE[status]
    assert error.fault.indefinite == isinstance(error, doubloon.IndefiniteFault)
    assert error.fault.code is not doubloon.FaultCode.UNSPECIFIED
    assert "details" in str(error)


@pytest.mark.parametrize("indefinite", [False, True])
@pytest.mark.parametrize("code", doubloon.FaultCode)
def test_the_detail_decides_whether_it_is_definite(
    *, code: doubloon.FaultCode, indefinite: bool
) -> None:
    error = faults.fault_error(doubloon.Fault(code, "m", indefinite=indefinite), b"id")
    wanted = doubloon.IndefiniteFault if indefinite else doubloon.DefiniteFault
    assert isinstance(error, wanted)
    assert error.transfer_id == b"id"


def test_the_detail_carries_field_and_index() -> None:
    detail = types.Fault(
        code=types.FAULT_CODE_INVALID_ARGUMENT,
        field="transfers.currency",
        message="too long",
        index=3,
    )
    error = faults.error_from_rpc(
        rpc_error(S.INVALID_ARGUMENT, ("doubloon-fault-bin", detail.SerializeToString()))
    )
    assert isinstance(error, doubloon.InvalidArgument)
    assert (error.fault.field, error.fault.index) == ("transfers.currency", 3)
    assert str(error) == "INVALID_ARGUMENT at transfers.currency of item 3: too long"


def test_a_status_finer_than_its_code_gives_the_finer_class() -> None:
    detail = types.Fault(code=types.FAULT_CODE_FAILED_PRECONDITION, index=-1)
    error = faults.error_from_rpc(
        rpc_error(S.ALREADY_EXISTS, ("doubloon-fault-bin", detail.SerializeToString()))
    )
    assert type(error) is doubloon.AlreadyExists


def test_a_status_that_grpc_has_lost_is_that_of_a_broken_connection() -> None:
    lost = grpc.aio.AioRpcError(
        S.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core"
    )
    error = faults.error_from_rpc(lost)
    assert type(error) is doubloon.Unavailable
    assert error.fault.code is doubloon.FaultCode.UNAVAILABLE


def test_a_detail_that_is_not_ours_is_ignored() -> None:
    error = faults.error_from_rpc(rpc_error(S.UNAVAILABLE, ("doubloon-fault-bin", b"\xff\xff")))
    assert type(error) is doubloon.Unavailable


def test_the_docstring_draws_the_whole_tree() -> None:
    todo: list[type[BaseException]] = [doubloon.DoubloonError]
    while todo:
        kind = todo.pop()
        assert f" {kind.__name__} " in f"{faults.__doc__} ".replace("\n", " "), kind
        todo.extend(kind.__subclasses__())
