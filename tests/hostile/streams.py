"""Target: a stream of calls, from a caller that may write anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cluster.call_streams import CallServicer, UnaryMethod
from cluster.faults import Fault
from doubloon.v1 import call_service_pb2 as pb
from doubloon.v1 import wallet_service_pb2 as wallet
from tests.hostile.target import Target, join_parts, split_parts

_MESSAGES = 4
_CALLS_MAX = 3
_TURNS = 5
"""Of the event loop, for a task that was cancelled to end: more than enough."""
_METHODS = ("/doubloon.v1.WalletService/GetAccount", "/doubloon.v1.WalletService/GetFlows")


class _Line:
    """A stream's context in memory: so many messages, then the end."""

    def __init__(self, messages: list[pb.StreamCallsRequest]) -> None:
        self.messages = messages
        self.answers: list[pb.CallAnswer] = []

    async def read(self) -> object:
        await asyncio.sleep(0)
        return self.messages.pop(0) if self.messages else grpc.aio.EOF

    async def write(self, message: pb.StreamCallsResponse) -> None:
        await asyncio.sleep(0)
        self.answers += pb.StreamCallsResponse.FromString(message.SerializeToString()).answers


async def _handle(request: wallet.GetAccountRequest, context: Any) -> wallet.GetAccountResponse:
    context.invocation_metadata()
    left_s = context.time_remaining()
    assert left_s is None or left_s >= 0, left_s
    await asyncio.sleep(0)
    if request.account_id % 2:
        raise Fault(grpc.StatusCode.NOT_FOUND, "never opened", "account_id")
    return wallet.GetAccountResponse()


def _find(path: str) -> UnaryMethod | None:
    if path not in _METHODS:
        return None
    return UnaryMethod(
        wallet.GetAccountRequest.FromString, _handle, wallet.GetAccountResponse.SerializeToString
    )


def _fault_of(error: Exception, _: str) -> Fault:
    if not isinstance(error, Fault):
        raise error
    return error


def check_stream(data: bytes) -> None:
    """Messages of `StreamCalls`: each call begun is answered once, or given up at its deadline; or
    INVALID_ARGUMENT ends the stream, naming the field."""
    messages = []
    for part in split_parts(data, _MESSAGES):
        try:
            messages.append(pb.StreamCallsRequest.FromString(part))
        except DecodeError:  # gRPC itself refuses what is no message
            continue
    sent = [call for message in messages for call in message.calls]
    asyncio.run(_serve(messages, sent))


async def _serve(messages: list[pb.StreamCallsRequest], sent: list[pb.Call]) -> None:
    servicer, line = CallServicer(_find, _fault_of, _CALLS_MAX), _Line(messages)
    grows = all(one.call_id < other.call_id for one, other in pairwise(sent))
    is_lawful = grows and all(call.call_id for call in sent)
    try:
        await servicer.StreamCalls(None, line)
    except Fault as fault:
        assert (fault.code, fault.field) == (grpc.StatusCode.INVALID_ARGUMENT, "calls.call_id")
        assert not is_lawful
    else:
        assert is_lawful
    for _ in range(_TURNS):  # those that were cut short with the stream
        await asyncio.sleep(0)
    assert not servicer.calls
    times = Counter(answer.call_id for answer in line.answers)
    assert all(count == 1 for count in times.values()), times
    assert times.keys() <= {call.call_id for call in sent}
    for answer in line.answers:
        assert answer.HasField("response") or answer.fault.code, answer
    if is_lawful:
        patient = {call.call_id for call in sent if not call.timeout_us}
        assert patient <= times.keys()


def stream_seeds() -> list[bytes]:
    """Calls of one turn and of several, in time and not, known and unknown."""
    request = wallet.GetAccountRequest(account_id=2).SerializeToString()
    odd = wallet.GetAccountRequest(account_id=3).SerializeToString()
    pairs = [pb.CallMetadata(key="doubloon-shard", value="1"), pb.CallMetadata()]
    calls = [
        pb.Call(call_id=1, method=_METHODS[0], request=request, metadata=pairs),
        pb.Call(call_id=2, method=_METHODS[1], request=odd, timeout_us=10**7),
        pb.Call(call_id=7, method="/none", request=request, timeout_us=2**63 - 1),
        pb.Call(call_id=8, method=_METHODS[0], request=b"\xff", timeout_us=-1),
        pb.Call(call_id=2**64 - 1, method=_METHODS[0], timeout_us=1),
    ]
    one = [pb.StreamCallsRequest(calls=calls).SerializeToString()]
    several = [pb.StreamCallsRequest(calls=[call]).SerializeToString() for call in calls[:4]]
    return [join_parts(one), join_parts(several), join_parts([*one, *one])]


TARGETS = (Target("call-stream", check_stream, stream_seeds),)
