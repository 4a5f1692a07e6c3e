"""Streams of transfers through a router: order, window, ends."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import BODY, BODY_BYTES
from doubloon.v1 import types_pb2
from doubloon.v1 import wallet_service_pb2 as wallet
from router.service import Deadlines
from tests.support.routers import (
    Call,
    completed,
    faults_of,
    now_s,
    router,
    settle,
    transfer,
)
from tests.support.virtual_time import virtual_time

UNAVAILABLE = types_pb2.FAULT_CODE_UNAVAILABLE


def request_of(*numbers: int, shard_id: int = 2) -> wallet.StreamTransfersRequest:
    return wallet.StreamTransfersRequest(
        transfers=[transfer(shard_id, number) for number in numbers]
    )


async def stream_of(
    *requests: wallet.StreamTransfersRequest,
) -> AsyncIterator[wallet.StreamTransfersRequest]:
    for request in requests:
        yield request


@virtual_time
async def test_a_stream_answers_in_order_whatever_order_shards_answer_in() -> None:
    async with router() as it:
        slow = asyncio.Event()

        async def wait(_: str) -> None:
            await slow.wait()

        it.cluster.node(1).before = wait
        requests = stream_of(request_of(1, 2, shard_id=1), request_of(3), request_of(4, 5))
        answers = it.wallet.StreamTransfers(requests, Call())
        first = asyncio.ensure_future(anext(answers))
        await settle()
        assert len(it.cluster.node(2).recorded) == 3
        assert not first.done()
        slow.set()
        assert list((await first).results) == [completed(1), completed(2)]
        rest = [list(answer.results) async for answer in answers]
        assert rest == [[completed(3)], [completed(4), completed(5)]]


@virtual_time
async def test_the_batches_of_a_stream_are_sent_in_order_however_long_each_is() -> None:
    async with router() as it:
        requests = stream_of(request_of(*range(1, 5_001)), request_of(6_001), request_of(6_002))
        answers = it.wallet.StreamTransfers(requests, Call())
        results = [result async for answer in answers for result in answer.results]
        assert results == [completed(n) for n in (*range(1, 5_001), 6_001, 6_002)]
        sent = b"".join(request.bodies for _, request in it.cluster.node(2).asked)
        assert len(sent) == 5_002 * BODY_BYTES
        references = [row[4] for row in BODY.iter_unpack(sent)]
        assert references == [*range(1, 5_001), 6_001, 6_002]


@virtual_time
async def test_a_stream_is_read_only_as_far_as_its_window_allows() -> None:
    async with router(stream_window=3) as it:
        read = 0

        async def requests() -> AsyncIterator[wallet.StreamTransfersRequest]:
            nonlocal read
            for number in range(1, 11):
                read += 1
                yield request_of(number)

        answers = it.wallet.StreamTransfers(requests(), Call())
        for answered in range(1, 8):
            answer = await anext(answers)  # nothing more is asked for, so nothing more is written
            assert list(answer.results) == [completed(answered)]
            await settle()
            assert read == answered + 2
        assert [list(answer.results) async for answer in answers] == [
            [completed(number)] for number in (8, 9, 10)
        ]


@pytest.mark.parametrize("count", [0, 8_193])
@virtual_time
async def test_a_malformed_batch_ends_a_stream_after_the_earlier_results(count: int) -> None:
    async with router() as it:
        malformed = wallet.StreamTransfersRequest(transfers=[transfer(2, 9)] * count)
        requests = stream_of(request_of(1), request_of(2), malformed, request_of(3))
        answers = it.wallet.StreamTransfers(requests, Call())
        assert list((await anext(answers)).results) == [completed(1)]
        assert list((await anext(answers)).results) == [completed(2)]
        with pytest.raises(Fault) as caught:
            await anext(answers)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.field == "transfers"
        assert len(it.cluster.node(2).recorded) == 2


@pytest.mark.parametrize("timeout_s", [None, 60.0])
@virtual_time
async def test_what_would_fail_a_call_faults_the_items_of_a_stream(
    timeout_s: float | None,
) -> None:
    async with router(deadlines=Deadlines(default_s=2)) as it:
        it.cluster.node(1).gone.set()
        requests = stream_of(request_of(1, 2, shard_id=1), request_of(3))
        stream = it.wallet.StreamTransfers(requests, Call(timeout_s))
        answers = [list(answer.results) async for answer in stream]
        assert faults_of(answers[0]) == [(UNAVAILABLE, "", 0, False), (UNAVAILABLE, "", 1, False)]
        assert answers[1] == [completed(3)]
        assert now_s() == pytest.approx(2, abs=0.011)


@virtual_time
async def test_a_stopping_router_answers_what_it_has_begun_and_no_more() -> None:
    async with router() as it:
        never = asyncio.Event()

        async def requests() -> AsyncIterator[wallet.StreamTransfersRequest]:
            yield request_of(1)
            yield request_of(2)
            await never.wait()

        answers = it.wallet.StreamTransfers(requests(), Call())
        assert list((await anext(answers)).results) == [completed(1)]
        await settle()
        it.wallet.stop_streams()
        assert list((await anext(answers)).results) == [completed(2)]
        with pytest.raises(Fault, match="stopping") as caught:
            await anext(answers)
        assert not caught.value.indefinite
        with pytest.raises(Fault, match="stopping"):
            await anext(it.wallet.StreamTransfers(stream_of(request_of(3)), Call()))


@virtual_time
async def test_a_client_that_leaves_a_stream_leaves_nothing_running() -> None:
    async with router() as it:
        node = it.cluster.node(2)

        async def hang(_: str) -> None:
            await asyncio.Event().wait()

        async def requests() -> AsyncIterator[wallet.StreamTransfersRequest]:
            yield request_of(2)
            await settle()
            node.before = hang
            yield request_of(3)
            yield request_of(4)

        before = asyncio.all_tasks()
        answers = it.wallet.StreamTransfers(requests(), Call())
        await anext(answers)
        await settle()
        assert len(asyncio.all_tasks()) > len(before)
        await answers.aclose()  # type: ignore[attr-defined] # an async generator, typed as its contract is
        node.gone.set()  # what was sent goes on until the shard answers or the deadline comes
        it.cluster.end_lease("shard2:1")
        await asyncio.sleep(Deadlines().default_s)
        await settle()
        assert asyncio.all_tasks() == before
