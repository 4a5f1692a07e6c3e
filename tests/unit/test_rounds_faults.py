"""Transactions in trouble: lost calls, shards away, money in doubt, coordinators that die."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cluster.packed import HEADER, Vote
from cluster.refusals import RefusalReason
from cluster.topology import Topology
from coordinator.actions import FaultKind, Status
from coordinator.rounds import CALL_TIMEOUT_S
from tests.support.memory_shards import LATENCY_S, MemoryShards
from tests.support.rounds import (
    A1,
    A2,
    A3,
    ALWAYS,
    AMPLE_S,
    BALANCE,
    TOPOLOGY,
    TOTAL,
    Coordinator,
    Result,
    Trouble,
    coordinator,
    group,
    open_shards,
    running,
    settle_doubt,
    transfer,
)
from tests.support.transaction_shards import START_US, TransactionShard, read_orders
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


class Held:
    """A transaction of nobody, prepared, that reserves nearly all that an account has."""

    def __init__(self, it: Coordinator, account: int) -> None:
        self._shard = it.shards.shards[TOPOLOGY.shard_of(account)]
        self._id = b"held" * 4
        home = next(each for each in (A1, A2, A3) if account not in each)[7]
        member = transfer(999, account, home, BALANCE - 5)
        header = HEADER.pack(self._id, START_US + 4_000_000, account, 1, 1)
        (order,) = read_orders(header, member, b"")
        assert self._shard.prepare(order)[0] == Vote.YES

    def abort(self) -> None:
        self._shard.abort(self._id)


@asynccontextmanager
async def holding(it: Coordinator, account: int) -> AsyncIterator[Held]:
    """Keep an account's money in doubt for a while."""
    held = Held(it, account)
    yield held
    held.abort()


# --- what goes wrong ------------------------------------------------------------------------------

Hurt = Callable[[MemoryShards, Trouble], None]


def before(shards: MemoryShards, trouble: Trouble) -> None:
    shards.before = trouble


def after(shards: MemoryShards, trouble: Trouble) -> None:
    shards.after = trouble


@pytest.mark.parametrize("hurt", [before, after])
@pytest.mark.parametrize("method", ["Prepare", "CommitHome", "CommitPrepared", "Finish"])
@pytest.mark.parametrize("members", [transfer(1, A1[0], A2[0], 30), SALE])
@virtual_time
async def test_a_lost_call_is_made_good(members: bytes, method: str, hurt: Hurt) -> None:
    async with running() as it:
        trouble = Trouble(method)
        hurt(it.shards, trouble)
        (result,) = await it.execute(members)
        await pass_time(1)
        assert trouble.seen
        assert outcome(result) == COMPLETED


@pytest.mark.parametrize("members", [transfer(1, A1[0], A2[0], 30), SALE])
@virtual_time
async def test_repeated_messages_change_nothing(members: bytes) -> None:
    async with running() as it:
        it.shards.twice = True
        (result,) = await it.execute(members)
        assert outcome(result) == COMPLETED


@virtual_time
async def test_what_is_in_doubt_is_waited_for_and_never_recorded_as_a_refusal() -> None:
    async with running() as it, holding(it, A2[0]) as held:
        asked = asyncio.ensure_future(it.execute(transfer(2, A2[0], A3[0], 10)))
        group_asked = asyncio.ensure_future(
            it.execute(group(3, (A1[1], A3[1], 1), (A2[0], A3[0], 10)))
        )
        await pass_time(0.5)
        assert not asked.done()
        assert not group_asked.done()
        assert not any(
            known.reason for each in it.shards.shards.values() for known in each.keys.values()
        )
        held.abort()
        assert outcome((await asked)[0]) == COMPLETED
        assert outcome((await group_asked)[0]) == COMPLETED


@virtual_time
async def test_what_stays_in_doubt_until_the_deadline_is_a_definite_fault() -> None:
    async with running() as it, holding(it, A2[0]):
        results = await it.execute(
            group(3, (A1[1], A3[1], 1), (A2[0], A3[0], 10)),
            transfer(4, A1[0], A3[0]),
            timeout_s=1,
        )
        assert [outcome(each) for each in results] == [NOT_IN_TIME, COMPLETED]
        assert now_s() == pytest.approx(1, abs=0.1)
        assert it.rounds.counters.busy > 3


@virtual_time
async def test_a_participant_that_is_away_is_a_definite_fault_at_the_deadline() -> None:
    async with running() as it:
        it.shards.before = Trouble(shard_id=2, times=ALWAYS)
        results = await it.execute(
            transfer(1, A1[0], A2[0]), transfer(2, A1[0], A3[0]), timeout_s=1
        )
        assert [outcome(each) for each in results] == [NOT_IN_TIME, COMPLETED]
        it.shards.before = None
        assert [outcome(each) for each in await it.execute(transfer(1, A1[0], A2[0]))] == [
            COMPLETED
        ]


@pytest.mark.parametrize("hurt", [before, after])
@virtual_time
async def test_a_home_that_is_away_leaves_it_open_and_the_retry_hears_the_truth(
    hurt: Hurt,
) -> None:
    async with running() as it:
        hurt(it.shards, Trouble("CommitHome", times=ALWAYS))
        (result,) = await it.execute(transfer(1, A1[0], A2[0], 30), timeout_s=1)
        assert outcome(result) == NOT_KNOWN
        assert now_s() == pytest.approx(1, abs=0.1)
        it.shards.before = it.shards.after = None
        (again,) = await it.execute(transfer(1, A1[0], A2[0], 30))
        assert again[0] == Status.COMPLETED
        assert it.shards.balance(A2[0]) == BALANCE + 30


@virtual_time
async def test_a_participant_away_after_the_decision_is_committed_and_still_posting() -> None:
    async with running() as it:
        it.shards.before = Trouble("CommitPrepared", times=ALWAYS)
        (result,) = await it.execute(transfer(1, A1[0], A2[0], 30), timeout_s=1)
        assert outcome(result) == (Status.COMMITTED_POSTING, 0, 0, False)
        assert result[6:] == (result[6], BALANCE - 30)
        # Also a retry that cannot even prepare there learns that it has happened.
        it.shards.before = Trouble(shard_id=2, times=ALWAYS)
        (again,) = await it.execute(transfer(1, A1[0], A2[0], 30), timeout_s=1)
        assert outcome(again) == (Status.COMMITTED_POSTING, 0, 1, False)
        # And one that waits long enough hears COMPLETED, once both accounts show it.
        waiting = asyncio.ensure_future(it.execute(transfer(1, A1[0], A2[0], 30)))
        await pass_time(2)
        assert not waiting.done()
        it.shards.before = None
        assert outcome((await waiting)[0]) == REPEATED
        assert it.shards.balance(A2[0]) == BALANCE + 30


@virtual_time
async def test_a_retry_beside_its_own_first_try_takes_effect_once() -> None:
    async with running() as it:
        other = coordinator(it.shards, seed=8)
        one, two = await asyncio.gather(
            it.execute(transfer(1, A1[0], A2[0], 600)),
            other.execute(transfer(1, A1[0], A2[0], 600)),
        )
        assert sorted([outcome(one[0]), outcome(two[0])]) == [COMPLETED, REPEATED]
        assert it.shards.balance(A2[0]) == BALANCE + 600
        await other.rounds.close(AMPLE_S)


@virtual_time
async def test_transactions_go_on_when_their_caller_goes_away() -> None:
    async with running() as it:
        asked = asyncio.ensure_future(it.execute(transfer(1, A1[0], A2[0], 30)))
        await pass_time(1.5 * LATENCY_S)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        await pass_time(1)
        assert it.rounds.in_progress == 0
        assert it.shards.in_doubt == 0
        assert it.shards.balance(A2[0]) == BALANCE + 30


@virtual_time
async def test_another_topology_ends_what_has_not_begun_to_happen() -> None:
    async with running() as it:
        began, it.shards.topology = it.shards.topology, Topology(2, TOPOLOGY.shard_of_slot)
        (result,) = await it.execute(transfer(1, A1[0], A2[0]))
        assert outcome(result) == NOT_IN_TIME
        assert now_s() < CALL_TIMEOUT_S
        it.shards.topology = began


@pytest.mark.parametrize("method", ["Prepare", "CommitHome"])
@virtual_time
async def test_an_answer_of_another_length_is_no_answer(method: str) -> None:
    async with running() as it:
        real = getattr(it.shards, method)
        cut: list[int] = []

        def cutting(shard: TransactionShard, request: Any) -> Any:
            response = real(shard, request)
            if not cut:
                cut.append(1)
                response.ClearField({"Prepare": "votes", "CommitHome": "answers"}[method])
            return response

        setattr(it.shards, method, cutting)
        (result,) = await it.execute(transfer(1, A1[0], A2[0]))
        assert outcome(result) == COMPLETED


@virtual_time
async def test_a_home_that_breaks_the_protocol_is_a_fault_and_nobody_else_suffers() -> None:
    async with running() as it:
        real = it.shards.shards[1].commit_home

        def broken(order: Any, vote: Any) -> bytes:
            said = real(order, vote)
            return bytes(len(said)) if order.first_source == A1[0] else said

        it.shards.shards[1].commit_home = broken  # type: ignore[method-assign] # one node's defect
        results = await it.execute(transfer(1, A1[0], A2[0]), transfer(2, A1[1], A2[1]))
        internal = (Status.FAULT, FaultKind.INTERNAL, 0, True)
        assert [outcome(each) for each in results] == [internal, COMPLETED]


# --- crashes --------------------------------------------------------------------------------------


class Crash:
    """Ends a coordinator at its nth call, before or after the call takes effect."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.calls = 0
        self.crashed = asyncio.Event()

    async def __call__(self, _shard_id: int, _method: str) -> None:
        self.calls += 1
        if self.calls >= self.at:
            self.crashed.set()
            await asyncio.Event().wait()


async def run_until_crash(it: Coordinator, members: bytes, crash: Crash) -> bool:
    """Run a transaction until the coordinator crashes; False = it did not."""
    asked = asyncio.ensure_future(it.execute(members))
    crashed = asyncio.ensure_future(crash.crashed.wait())
    await asyncio.wait([asked, crashed], return_when=asyncio.FIRST_COMPLETED)
    await pass_time(1)  # for what it does behind the client's back
    asked.cancel()
    crashed.cancel()
    await asyncio.gather(asked, crashed, return_exceptions=True)
    await it.rounds.close(0)
    return crash.crashed.is_set()


@pytest.mark.parametrize("retry_at_once", [True, False])
@pytest.mark.parametrize("hurt", [before, after])
@pytest.mark.parametrize("members", [transfer(1, A1[0], A2[0], 30), SALE])
@virtual_time
async def test_every_plan_is_taken_up_from_every_point_at_which_it_may_be_interrupted(
    members: bytes, hurt: Callable[[MemoryShards, Any], None], *, retry_at_once: bool
) -> None:
    for at in range(1, 30):
        shards = open_shards()
        crash = Crash(at)
        hurt(shards, crash)
        crashed = await run_until_crash(coordinator(shards), members, crash)
        shards.before = shards.after = None
        one, two = coordinator(shards, seed=100 + at), coordinator(shards, seed=200 + at)
        if not retry_at_once:
            await settle_doubt(one, two)
            assert shards.in_doubt == 0
        (result,) = await one.execute(members)
        assert result[0] == Status.COMPLETED
        assert shards.balance(A2[0]) != BALANCE
        await settle_doubt(one, two)
        await one.rounds.close(AMPLE_S)
        shards.check(TOTAL)
        if not crashed:
            assert at > 3, "every call was a point of interruption"
            return
    pytest.fail("it never ends")
