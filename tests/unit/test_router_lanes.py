"""Gathering what is on its way to a shard: sizes, order, bounds, deadlines, callers who leave."""

import asyncio

import grpc
import pytest

from cluster.faults import Fault
from cluster.packed import BATCH_TRANSFERS_MAX, BODY_BYTES, RESULT_BYTES
from router.lanes import Lanes
from tests.support.virtual_time import virtual_time

SHARD = 4


def body(number: int) -> bytes:
    return number.to_bytes(BODY_BYTES, "big")


def result(number: int) -> bytes:
    return number.to_bytes(RESULT_BYTES, "big")


class Shard:
    """Answers each body with its number, once told to."""

    def __init__(
        self,
        calls_max: int = 2,
        queued_max: int = 1_000_000,
        small_below: int = 0,
        small_calls_max: int = 1,
        items_max: int = BATCH_TRANSFERS_MAX,
    ) -> None:
        self.lanes = Lanes(
            self.send, calls_max, queued_max, small_below, small_calls_max, items_max
        )
        self.calls: list[tuple[list[int], bytes, int]] = []
        self.deadlines_s: list[float] = []
        self.answers: list[asyncio.Future[bytes]] = []
        self.in_flight = 0
        self.in_flight_most = 0

    async def send(
        self, shard_id: int, bodies: bytes, metadata: bytes, version: int, deadline_s: float
    ) -> bytes:
        assert shard_id == SHARD
        numbers = [
            int.from_bytes(bodies[at : at + BODY_BYTES], "big")
            for at in range(0, len(bodies), BODY_BYTES)
        ]
        self.calls.append((numbers, metadata, version))
        self.deadlines_s.append(deadline_s)
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        try:
            return await answer
        finally:
            self.in_flight -= 1

    def answer(self, call: int) -> None:
        self.answers[call].set_result(b"".join(map(result, self.calls[call][0])))

    def execute(
        self,
        *numbers: int,
        metadata: bytes = b"",
        version: int = 1,
        deadline_s: float = 10.0,
    ) -> asyncio.Task[bytes]:
        bodies = b"".join(map(body, numbers))
        return asyncio.ensure_future(
            self.lanes.execute(SHARD, bodies, metadata, len(numbers), version, deadline_s)
        )

    def sent(self) -> list[list[int]]:
        return [numbers for numbers, _, _ in self.calls]


async def settle() -> None:
    """Let everything run that is ready to."""
    for _ in range(10):
        await asyncio.sleep(0)


@virtual_time
async def test_a_lone_transfer_leaves_at_once_without_a_timer() -> None:
    shard = Shard()
    work = shard.execute(7, metadata=b"m")
    await settle()
    assert shard.calls == [([7], b"m", 1)]
    shard.answer(0)
    assert await work == result(7)
    assert asyncio.get_running_loop().time() == 0


@virtual_time
async def test_what_arrives_in_one_turn_goes_together() -> None:
    shard = Shard()
    works = [shard.execute(n, metadata=b"%d" % n) for n in range(5)]
    await settle()
    assert shard.calls == [([0, 1, 2, 3, 4], b"01234", 1)]
    shard.answer(0)
    assert await asyncio.gather(*works) == [result(n) for n in range(5)]


@virtual_time
async def test_what_arrives_while_calls_are_in_flight_goes_with_the_next() -> None:
    shard = Shard(calls_max=2)
    works = []
    for number in range(6):
        works.append(shard.execute(number))
        await settle()
    assert shard.sent() == [[0], [1]]
    shard.answer(1)
    await settle()
    assert shard.sent() == [[0], [1], [2, 3, 4, 5]]
    shard.answer(0)
    shard.answer(2)
    assert await asyncio.gather(*works) == [result(n) for n in range(6)]
    assert shard.in_flight_most == 2


@virtual_time
async def test_a_second_small_call_waits_for_the_first_and_a_large_one_does_not() -> None:
    shard = Shard(calls_max=3, small_below=4)
    works = [shard.execute(0)]
    await settle()
    works.append(shard.execute(1, 2, 3))
    await settle()
    assert shard.sent() == [[0]]
    works.append(shard.execute(4))
    await settle()
    assert shard.sent() == [[0], [1, 2, 3, 4]]
    works.append(shard.execute(5))
    await settle()
    shard.answer(1)
    await settle()
    assert len(shard.sent()) == 2
    shard.answer(0)
    await settle()
    assert shard.sent()[2:] == [[5]]
    shard.answer(2)
    await asyncio.gather(*works)


@virtual_time
async def test_a_small_call_does_not_wait_for_a_large_one() -> None:
    shard = Shard(calls_max=2, small_below=4)
    large = shard.execute(0, 1, 2, 3)
    await settle()
    small = shard.execute(4)
    await settle()
    shard.answer(1)
    assert await small == result(4)
    shard.answer(0)
    await large


@virtual_time
async def test_each_caller_gets_its_own_part() -> None:
    shard = Shard(calls_max=1)
    first = shard.execute(0)
    await settle()
    works = [shard.execute(1, 2, 3), shard.execute(4), shard.execute(5, 6)]
    await settle()
    shard.answer(0)
    await settle()
    shard.answer(1)
    await first
    assert await asyncio.gather(*works) == [
        result(1) + result(2) + result(3),
        result(4),
        result(5) + result(6),
    ]


@virtual_time
async def test_a_call_carries_at_most_a_full_batch_of_one_topology() -> None:
    shard = Shard(calls_max=1)
    half = BATCH_TRANSFERS_MAX // 2
    works = [shard.execute(0)]
    await settle()
    for size, version in ((half, 1), (half, 1), (1, 1), (1, 2), (half, 2), (half, 2)):
        works.append(shard.execute(*range(size), version=version))
    for call in range(5):
        await settle()
        shard.answer(call)
    await asyncio.gather(*works)
    sizes = [(len(numbers), version) for numbers, _, version in shard.calls]
    assert sizes == [(1, 1), (2 * half, 1), (1, 1), (1 + half, 2), (half, 2)]


@virtual_time
async def test_a_full_queue_refuses_early_and_definitely() -> None:
    shard = Shard(calls_max=1, queued_max=10)
    works = [shard.execute(0)]
    await settle()
    works.append(shard.execute(*range(8)))
    await settle()
    with pytest.raises(Fault) as caught:
        await shard.execute(1, 2, 3)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert not caught.value.indefinite
    works.append(shard.execute(1, 2))
    await settle()
    shard.answer(0)
    await settle()
    shard.answer(1)
    await asyncio.gather(*works)
    assert len(shard.calls) == 2


@virtual_time
async def test_who_leaves_the_queue_makes_room() -> None:
    shard = Shard(calls_max=1, queued_max=10)
    works = [shard.execute(0)]
    await settle()
    gone = shard.execute(*range(8))
    works.append(shard.execute(1, 2))
    await settle()
    gone.cancel()
    await settle()
    works.append(shard.execute(*range(8)))
    await settle()
    shard.answer(0)
    await settle()
    shard.answer(1)
    await asyncio.gather(*works)


@virtual_time
async def test_an_empty_queue_takes_a_batch_of_any_size() -> None:
    shard = Shard(queued_max=1)
    work = shard.execute(1, 2, 3)
    await settle()
    shard.answer(0)
    assert len(await work) == 3 * RESULT_BYTES


@virtual_time
async def test_what_waits_until_its_deadline_was_certainly_not_sent() -> None:
    shard = Shard(calls_max=1)
    first = shard.execute(0, deadline_s=10)
    await settle()
    late = shard.execute(1, deadline_s=2)
    other = shard.execute(2, deadline_s=10)
    with pytest.raises(Fault) as caught:
        await late
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    assert not caught.value.indefinite
    shard.answer(0)
    await settle()
    shard.answer(1)
    await asyncio.gather(first, other)
    assert shard.sent() == [[0], [2]]


@virtual_time
async def test_what_was_sent_is_indefinite_past_its_deadline() -> None:
    shard = Shard()
    early = shard.execute(1, deadline_s=2)
    late = shard.execute(2, deadline_s=5)
    with pytest.raises(Fault) as caught:
        await early
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.indefinite
    assert shard.deadlines_s == [5]  # the last of those that share the call
    shard.answer(0)
    assert await late == result(2)


@virtual_time
async def test_a_caller_who_leaves_takes_back_what_waits_and_nothing_else() -> None:
    shard = Shard(calls_max=1)
    sent = shard.execute(0)
    await settle()
    waiting, other = shard.execute(1), shard.execute(2)
    await settle()
    sent.cancel()
    waiting.cancel()
    await settle()
    shard.answer(0)
    await settle()
    shard.answer(1)
    assert await other == result(2)
    assert shard.sent() == [[0], [2]]


@virtual_time
async def test_a_fault_reaches_every_caller_of_the_call_and_no_other() -> None:
    shard = Shard(calls_max=2)
    one, other = shard.execute(1), shard.execute(2)
    await settle()
    lucky = shard.execute(3)
    await settle()
    shard.answers[0].set_exception(Fault(grpc.StatusCode.UNAVAILABLE, "gone"))
    shard.answer(1)
    for work in (one, other):
        with pytest.raises(Fault, match="gone"):
            await work
    assert await lucky == result(3)


@virtual_time
async def test_results_of_another_length_are_a_fault_for_all() -> None:
    shard = Shard()
    works = [shard.execute(1), shard.execute(2)]
    await settle()
    shard.answers[0].set_result(result(1))
    for work in works:
        with pytest.raises(Fault) as caught:
            await work
        assert caught.value.code is grpc.StatusCode.INTERNAL
        assert caught.value.indefinite


@virtual_time
async def test_closing_waits_for_what_is_in_flight_within_its_grace() -> None:
    shard = Shard()
    done = shard.execute(1)
    await settle()
    hung = shard.execute(2)
    await settle()
    done.cancel()
    hung.cancel()
    closing = asyncio.ensure_future(shard.lanes.close(grace_s=3))
    await settle()
    shard.answer(0)
    await settle()
    assert not closing.done()
    await closing
    assert asyncio.get_running_loop().time() == pytest.approx(3)
    assert shard.in_flight == 0


@virtual_time
async def test_as_many_small_calls_as_allowed() -> None:
    shard = Shard(calls_max=8, small_below=3, small_calls_max=2)
    works = []
    for number in range(5):
        works.append(shard.execute(number))
        await settle()
    assert shard.sent() == [[0], [1], [2, 3, 4]]
    for call in range(3):
        shard.answer(call)
    assert await asyncio.gather(*works) == [result(n) for n in range(5)]


@virtual_time
async def test_a_call_has_no_more_items_than_allowed() -> None:
    shard = Shard(calls_max=1, items_max=2)
    works = [shard.execute(number) for number in range(5)]
    await settle()
    for call in range(3):
        shard.answer(call)
        await settle()
    assert shard.sent() == [[0, 1], [2, 3], [4]]
    await asyncio.gather(*works)


@virtual_time
async def test_a_lane_in_which_nothing_is_left_is_forgotten() -> None:
    shard = Shard(calls_max=1)
    works = [shard.execute(1)]
    await settle()
    works.append(shard.execute(2, deadline_s=0.5))
    assert list(shard.lanes.keys()) == [SHARD]
    with pytest.raises(Fault):
        await works[1]
    assert list(shard.lanes.keys()) == [SHARD]
    shard.answer(0)
    await works[0]
    await settle()
    assert not shard.lanes.keys()
