"""Transactions carried through rounds of calls, against shards that keep honest books."""

import asyncio

import grpc
import pytest

from cluster.faults import Fault
from cluster.refusals import RefusalReason
from coordinator.actions import FaultKind, Status
from tests.support.memory_shards import LATENCY_S
from tests.support.rounds import (
    A1,
    A2,
    A3,
    BALANCE,
    Result,
    counted,
    group,
    running,
    transfer,
)
from tests.support.transaction_shards import START_US
from tests.support.virtual_time import pass_time, virtual_time

SALE = group(9, (A1[0], A2[0], 50), (A1[0], A3[0], 5), (A2[0], A3[1], 7))


def now_s() -> float:
    return asyncio.get_running_loop().time()


def statuses(results: list[Result]) -> list[int]:
    return [result[0] for result in results]


def outcome(result: Result) -> tuple[int, int, int, bool]:
    """(status, reason or code, repeat, indefinite)."""
    return result[0], result[1], result[3], bool(result[5])


COMPLETED = (Status.COMPLETED, 0, 0, False)
REPEATED = (Status.COMPLETED, 0, 1, False)
NOT_IN_TIME = (Status.FAULT, FaultKind.UNAVAILABLE, 0, False)
NOT_KNOWN = (Status.FAULT, FaultKind.DEADLINE_EXCEEDED, 0, True)
NO_FUNDS = (Status.REFUSED, RefusalReason.INSUFFICIENT_FUNDS, 0, False)


# --- what clients hear ----------------------------------------------------------------------------


@virtual_time
async def test_a_transfer_is_answered_once_both_accounts_show_it() -> None:
    async with running() as it:
        (result,) = await it.execute(transfer(1, A1[0], A2[0], 30))
        assert outcome(result) == COMPLETED
        assert result[6] > START_US
        assert result[7] == BALANCE - 30
        assert (it.shards.balance(A1[0]), it.shards.balance(A2[0])) == (BALANCE - 30, BALANCE + 30)
        assert not it.shards.shards[2].prepared
        assert now_s() == pytest.approx(3 * LATENCY_S)


@virtual_time
async def test_a_group_over_three_shards_happens_whole() -> None:
    async with running() as it:
        (result,) = await it.execute(SALE)
        assert outcome(result) == COMPLETED
        assert it.shards.balance(A1[0]) == BALANCE - 55
        assert it.shards.balance(A2[0]) == BALANCE + 43
        assert (it.shards.balance(A3[0]), it.shards.balance(A3[1])) == (BALANCE + 5, BALANCE + 7)


@virtual_time
async def test_results_come_in_request_order_whatever_the_path() -> None:
    async with running() as it:
        it.shards.shards[3].frozen.add(A3[7])
        results = await it.execute(
            transfer(1, A1[0], A2[0]),
            transfer(2, A1[1], A2[1], BALANCE + 1),
            SALE,
            transfer(3, A2[2], A3[7]),
            transfer(1, A1[0], A2[0]),
            transfer(4, A3[2], A1[2]),
        )
        frozen = (Status.REFUSED, RefusalReason.DESTINATION_FROZEN, 0, False)
        assert [outcome(each) for each in results] == [
            COMPLETED, NO_FUNDS, COMPLETED, frozen, REPEATED, COMPLETED,
        ]  # fmt: skip


@virtual_time
async def test_a_repeat_and_a_reused_key_are_told_apart() -> None:
    async with running() as it:
        await it.execute(transfer(1, A1[0], A2[0], 30))
        again, other = await it.execute(
            transfer(1, A1[0], A2[0], 30), transfer(1, A1[0], A2[0], 31)
        )
        assert outcome(again) == REPEATED
        assert outcome(other) == (Status.REFUSED, RefusalReason.KEY_REUSED, 0, False)
        assert it.shards.balance(A2[0]) == BALANCE + 30


@virtual_time
async def test_a_refusal_is_recorded_and_heard_again() -> None:
    async with running() as it:
        (first,) = await it.execute(transfer(1, A1[0], A2[0], BALANCE + 1))
        await it.execute(transfer(2, A3[0], A1[0], 5))
        (second,) = await it.execute(transfer(1, A1[0], A2[0], BALANCE + 1))
        assert (first[:2], first[3], second[:2], second[3]) == (second[:2], 0, first[:2], 1)
        assert outcome(first) == NO_FUNDS
        assert second[6:] == first[6:]


@virtual_time
async def test_a_groups_refusal_names_the_transfer_whoever_refuses() -> None:
    async with running() as it:
        (by_participant,) = await it.execute(
            group(1, (A1[0], A2[0], 1), (A3[0], A2[1], BALANCE + 1))
        )
        (by_home,) = await it.execute(
            group(2, (A1[0], A2[0], 1), (A2[1], A3[1], 1), (A1[1], A3[1], BALANCE + 1))
        )
        assert (outcome(by_participant), by_participant[4]) == (NO_FUNDS, 1)
        assert (outcome(by_home), by_home[4]) == (NO_FUNDS, 2)


@virtual_time
async def test_the_refusal_of_highest_precedence_is_answered() -> None:
    async with running() as it:
        it.shards.shards[3].frozen.add(A3[0])
        (result,) = await it.execute(
            group(1, (A1[0], A2[0], BALANCE + 1), (A2[1], A3[1], BALANCE + 1), (A1[1], A3[0], 1))
        )
        assert result[1] == RefusalReason.DESTINATION_FROZEN
        assert result[4] == 2


@virtual_time
async def test_a_thousand_transfers_into_one_account_are_no_slower_than_into_many() -> None:
    took_s = []
    for destinations in ([A2[0]], A2):
        async with running() as it:
            began_s = now_s()
            batch = [
                transfer(number, A1[number % 8], destinations[number % len(destinations)])
                for number in range(1_000)
            ]
            assert set(statuses(await it.execute(*batch))) == {Status.COMPLETED}
            took_s.append(now_s() - began_s)
    assert took_s[0] == pytest.approx(took_s[1])


# --- how it is batched ----------------------------------------------------------------------------


@virtual_time
async def test_calls_and_syncs_for_a_thousand_transfers() -> None:
    async with running() as it:
        batch = [
            transfer(number, pair[0][number % 8], pair[1][number % 8])
            for number in range(1_000)
            for pair in [((A1, A2), (A2, A3), (A3, A1), (A2, A1), (A3, A2), (A1, A3))[number % 6]]
        ]
        assert set(statuses(await it.execute(*batch))) == {Status.COMPLETED}
        asked = counted(it.shards, ["Prepare", "CommitHome", "CommitPrepared"])
        assert asked == [3, 3, 3], "one of each kind for each shard: nine syncs"
        assert it.rounds.counters.rounds == 1
        await pass_time(1)
        assert counted(it.shards, ["Finish", "AbortPrepared"]) == [3, 0]
        assert it.rounds.counters.shard_calls == len(it.shards.calls) == 12


@virtual_time
async def test_what_arrives_while_a_small_call_is_under_way_goes_with_the_next() -> None:
    async with running() as it:

        async def ask_later(number: int) -> list[Result]:
            await pass_time(number * LATENCY_S / 100)
            return await it.execute(transfer(number, A1[number % 8], A2[number % 8]))

        answered = await asyncio.gather(*(ask_later(number) for number in range(90)))
        assert {statuses(each)[0] for each in answered} == {Status.COMPLETED}
        prepared = [count for _, method, count in it.shards.calls if method == "Prepare"]
        assert prepared == [1, 89]


@virtual_time
async def test_a_slow_shard_holds_up_only_what_concerns_it() -> None:
    async with running() as it:

        async def hang(shard_id: int, _: str) -> None:
            if shard_id == 3:
                await pass_time(1)

        it.shards.before = hang
        slow = asyncio.ensure_future(it.execute(transfer(1, A1[0], A3[0])))
        for number in range(2, 60):
            began_s = now_s()
            assert statuses(await it.execute(transfer(number, A1[0], A2[0]))) == [1]
            assert now_s() - began_s == pytest.approx(3 * LATENCY_S)
        assert not slow.done()
        assert statuses(await slow) == [Status.COMPLETED]


@virtual_time
async def test_beyond_its_bound_a_coordinator_refuses_new_work_and_finishes_the_old() -> None:
    async with running(in_progress_max=10) as it:
        first = asyncio.ensure_future(
            it.execute(*(transfer(number, A1[0], A2[0]) for number in range(20)))
        )
        await asyncio.sleep(0)
        with pytest.raises(Fault) as caught:
            await it.execute(transfer(100, A1[0], A2[0]))
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert not caught.value.indefinite
        assert set(statuses(await first)) == {Status.COMPLETED}
        assert statuses(await it.execute(transfer(100, A1[0], A2[0]))) == [Status.COMPLETED]


@virtual_time
async def test_the_shards_clocks_are_observed() -> None:
    async with running() as it:
        it.shards.shards[2].clock.advance_past(START_US + 900_000)
        (result,) = await it.execute(transfer(1, A1[0], A2[0]))
        assert result[6] > START_US + 900_000, "the home decides after the participant prepared"
