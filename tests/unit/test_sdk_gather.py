"""Concurrent single transfers become few calls, within bounds, and nobody is left waiting."""

import asyncio
from collections.abc import Sequence

import pytest

import doubloon
from doubloon.gather import Gatherer, GatherLimits
from tests.support.virtual_time import pass_time, virtual_time

TIMEOUT_S = 8.0
DENIED = doubloon.Fault(doubloon.FaultCode.PERMISSION_DENIED, "denied")
LOST = doubloon.Fault(doubloon.FaultCode.UNAVAILABLE, "lost", indefinite=True, index=5)


class Calls:
    """Stands behind the gatherer: shows each call, and answers it when told."""

    def __init__(self) -> None:
        self.made: list[tuple[Sequence[doubloon.Transfer], float]] = []
        self.answers: list[asyncio.Future[None]] = []
        self.called = asyncio.Event()
        self.now_s = 100.0
        self.fault: doubloon.Fault | None = None

    async def settle(
        self, transfers: Sequence[doubloon.Transfer], deadline_s: float
    ) -> list[doubloon.TransferResult]:
        self.made.append((transfers, deadline_s))
        answer = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        self.called.set()
        await answer
        status = doubloon.TransferStatus.COMPLETED
        if self.fault is not None:
            status = doubloon.TransferStatus.FAULT
        return [
            doubloon.TransferResult(transfer.transfer_id, status, fault=self.fault)
            for transfer in transfers
        ]

    def gatherer(self, limits: GatherLimits) -> Gatherer:
        return Gatherer(self.settle, lambda: self.now_s, TIMEOUT_S, limits)

    @property
    def sizes(self) -> list[int]:
        return [len(transfers) for transfers, _ in self.made]


def transfer() -> doubloon.Transfer:
    return doubloon.Transfer(1, 2, "GOLD", 5)


async def turns() -> None:
    """Let everything run that can run now."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_lone_transfer_goes_out_at_once() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits())
    answer = gatherer.submit(transfer())
    await turns()
    assert calls.sizes == [1]
    calls.answers[0].set_result(None)
    assert (await answer).completed


async def test_one_turn_of_the_loop_goes_out_together() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits())
    for _ in range(7):
        gatherer.submit(transfer())
    await turns()
    assert calls.sizes == [7]


async def test_what_arrives_while_all_calls_are_out_goes_with_the_next() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(calls_max=2))
    for _ in range(2):
        gatherer.submit(transfer())
        await turns()
    later = [gatherer.submit(transfer()) for _ in range(5)]
    await turns()
    assert calls.sizes == [1, 1]
    calls.answers[1].set_result(None)
    await turns()
    assert calls.sizes == [1, 1, 5]
    calls.answers[2].set_result(None)
    assert [result.transfer_id for result in await asyncio.gather(*later)] == [
        sent.transfer_id for sent in calls.made[2][0]
    ]


async def test_who_asks_again_on_being_answered_goes_along() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(calls_max=1))

    async def caller() -> None:
        for _ in range(3):
            await gatherer.submit(transfer())

    callers = asyncio.gather(*(caller() for _ in range(4)))
    for number in range(3):
        await turns()
        calls.answers[number].set_result(None)
    await callers
    assert calls.sizes == [4, 4, 4]


async def test_a_call_is_bounded_and_so_is_the_queue() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(batch_max=3, calls_max=1, queue_max=5))
    answers = [gatherer.submit(transfer()) for _ in range(5)]
    refused = transfer()
    with pytest.raises(doubloon.ResourceExhausted) as caught:
        gatherer.submit(refused)
    assert caught.value.transfer_id == refused.transfer_id
    for number in range(2):
        await turns()
        calls.answers[number].set_result(None)
    await asyncio.gather(*answers)
    assert calls.sizes == [3, 2]


async def test_a_linger_waits_for_company_but_not_once_full() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(batch_max=3, linger_s=3_600))
    for _ in range(2):
        gatherer.submit(transfer())
    await turns()
    assert calls.sizes == []
    gatherer.submit(transfer())
    await turns()
    assert calls.sizes == [3]


async def test_a_linger_ends() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(linger_s=0.001))
    answer = gatherer.submit(transfer())
    await calls.called.wait()
    calls.answers[0].set_result(None)
    await answer


async def test_a_calls_deadline_is_its_oldests_and_the_young_do_not_share_it() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(calls_max=1))
    gatherer.submit(transfer())
    await turns()
    gatherer.submit(transfer())
    calls.now_s += TIMEOUT_S / 8
    gatherer.submit(transfer())
    calls.now_s += TIMEOUT_S / 2
    gatherer.submit(transfer())
    for number in range(2):
        calls.answers[number].set_result(None)
        await turns()
    assert calls.sizes == [1, 2, 1]
    assert [deadline_s for _, deadline_s in calls.made] == [108.0, 108.0, 113.0]


async def test_what_queued_past_its_deadline_was_never_sent() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(calls_max=1))
    gatherer.submit(transfer())
    await turns()
    late = gatherer.submit(transfer())
    calls.now_s += TIMEOUT_S
    calls.answers[0].set_result(None)
    with pytest.raises(doubloon.DefiniteFault, match="never sent"):
        await late
    assert calls.sizes == [1]


async def test_who_was_cancelled_in_the_queue_is_not_sent() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(calls_max=1))
    gatherer.submit(transfer())
    await turns()
    gatherer.submit(transfer()).cancel()
    kept = transfer()
    gatherer.submit(kept)
    calls.answers[0].set_result(None)
    await turns()
    assert [list(sent) for sent, _ in calls.made[1:]] == [[kept]]


async def test_who_is_cancelled_in_flight_disturbs_nobody() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits())
    cancelled, kept = gatherer.submit(transfer()), gatherer.submit(transfer())
    await turns()
    cancelled.cancel()
    calls.answers[0].set_result(None)
    assert (await kept).completed


async def test_each_caller_gets_an_error_of_its_own() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits())
    asked = [transfer(), transfer()]
    answers = [gatherer.submit(each) for each in asked]
    await turns()
    calls.answers[0].set_exception(doubloon.PermissionDenied(DENIED))
    errors = await asyncio.gather(*answers, return_exceptions=True)
    assert [type(error) for error in errors] == [doubloon.PermissionDenied] * 2
    assert errors[0] is not errors[1]
    assert [error.transfer_id for error in errors if isinstance(error, doubloon.FaultError)] == [
        each.transfer_id for each in asked
    ]


async def test_a_fault_of_one_item_is_raised_to_its_caller_without_an_index() -> None:
    calls = Calls()
    calls.fault = LOST
    gatherer = calls.gatherer(GatherLimits())
    answer = gatherer.submit(transfer())
    await turns()
    calls.answers[0].set_result(None)
    with pytest.raises(doubloon.Unavailable) as caught:
        await answer
    assert caught.value.fault.index == -1


async def test_a_defect_reaches_the_callers_too() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits())
    answer = gatherer.submit(transfer())
    await turns()
    calls.answers[0].set_exception(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await answer


async def test_closing_waits_for_what_was_taken_and_takes_no_more() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(calls_max=1, linger_s=3_600))
    answers = [gatherer.submit(transfer()) for _ in range(2)]
    closing = asyncio.create_task(gatherer.close())
    await turns()
    with pytest.raises(doubloon.ClientClosed):
        gatherer.submit(transfer())
    assert calls.sizes == [2]
    assert not closing.done()
    calls.answers[0].set_result(None)
    await closing
    assert [answer.result().completed for answer in answers] == [True, True]


async def test_beside_a_few_calls_what_gathers_waits_for_one_to_end() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(few_calls=1, patience_s=3_600.0))
    gatherer.submit(transfer())
    await turns()
    for _ in range(5):
        gatherer.submit(transfer())
        await turns()
    assert calls.sizes == [1]
    calls.answers[0].set_result(None)
    await turns()
    assert calls.sizes == [1, 5]


async def test_a_full_call_does_not_wait_for_one_to_end() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(batch_max=3, few_calls=1, patience_s=3_600.0))
    gatherer.submit(transfer())
    await turns()
    for _ in range(3):
        gatherer.submit(transfer())
        await turns()
    assert calls.sizes == [1, 3]


@virtual_time
async def test_when_no_call_ends_for_a_while_a_further_one_goes_out() -> None:
    calls = Calls()
    limits = GatherLimits(calls_max=3, few_calls=1, patience_s=0.5)
    gatherer = calls.gatherer(limits)
    for _ in range(4):
        gatherer.submit(transfer())
        await pass_time(0.4)
    assert calls.sizes == [1, 2]
    await pass_time(0.4)
    assert calls.sizes == [1, 2, 1]
    gatherer.submit(transfer())
    await pass_time(60.0)
    assert calls.sizes == [1, 2, 1]  # as many as allowed
    for answer in calls.answers:
        answer.set_result(None)
    await turns()
    calls.answers[3].set_result(None)
    await gatherer.close()


async def test_closing_waits_for_no_call_to_end() -> None:
    calls = Calls()
    gatherer = calls.gatherer(GatherLimits(few_calls=1, patience_s=3_600.0))
    gatherer.submit(transfer())
    await turns()
    gatherer.submit(transfer())
    closing = asyncio.ensure_future(gatherer.close())
    await turns()
    assert calls.sizes == [1, 1]
    for answer in calls.answers:
        answer.set_result(None)
    await closing
