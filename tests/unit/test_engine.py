"""The engine on a log and a state in memory: durability, instants, bounds, checkpoints, the end."""

import asyncio
import random
from functools import partial

import pytest

from cluster.packed import RESOLUTION, Fate
from shard_node import engine as engine_module
from shard_node.engine import CHECKPOINT_BACKLOG
from shard_node.errors import (
    AccountNotFoundError,
    BadRequestError,
    OverloadedError,
    StoppingError,
    TransferNotFoundError,
)
from shard_node.ledger import COMPLETED
from shard_node.legs import STATUS_FROZEN
from shard_node.limits import Limits
from shard_node.records import BLOCK_BYTES_MAX
from tests.support import eventually
from tests.support.engines import Result, bodies_of, body, results_of, running, settle

SEALED_BLOCKS_MAX = engine_module.SEALED_BYTES_MAX // BLOCK_BYTES_MAX


# --- durability -------------------------------------------------------------------------------


async def test_an_answer_waits_for_its_append() -> None:
    async with running() as it:
        begun = await it.hold_log()
        answer = it.begin(body(1, 1, 2))
        await settle()
        assert not answer.done()
        it.log.let_one_go()
        await it.log.begun(begun + 1)
        await settle()
        assert bodies_of(it.log.appends[-1][0]) == [body(1, 1, 2)]
        assert not answer.done()
        it.log.let_go()
        assert (await answer)[0].status == COMPLETED


async def test_a_lone_command_gets_one_append() -> None:
    async with running() as it:
        for number in range(1, 4):
            before = len(it.log.appends)
            await it.execute(body(number, 1, 2))
            assert len(it.log.appends) == before + 1
            assert [draft.count for draft in it.log.appends[-1]] == [1]


async def test_a_batch_that_fills_no_block_gets_one_append_however_many_turns_it_takes() -> None:
    async with running() as it:
        before = len(it.log.appends)
        count = 5 * engine_module.TURN_TRANSFERS_MAX + 1
        await it.execute(*(body(number, 1, 2) for number in range(1, count + 1)))
        assert len(it.log.appends) == before + 1
        assert [draft.count for draft in it.log.appends[-1]] == [count]


async def test_what_somebody_waits_for_is_appended_though_a_long_batch_is_not_decided_yet() -> None:
    async with running() as it:
        before = len(it.log.appends)
        alone = it.begin(body(1, 1, 2))
        count = 20 * engine_module.TURN_TRANSFERS_MAX
        batch = it.begin(*(body(number, 1, 2) for number in range(2, count + 2)))
        await alone
        await batch
        assert sum(draft.count for draft in it.log.appends[before]) < count


async def test_commands_that_come_during_an_append_share_the_next() -> None:
    async with running() as it:
        begun = await it.hold_log()
        answers = [it.begin(body(number, 1, 2)) for number in range(1, 100)]
        await settle()
        it.log.let_go()
        await asyncio.gather(*answers)
        assert len(it.log.appends) == begun + 1
        assert sum(draft.count for draft in it.log.appends[-1]) == 99


async def test_a_read_of_what_is_not_durable_waits() -> None:
    async with running() as it:
        begun = await it.hold_log()
        it.begin(body(1, 1, 2, 5))
        await settle()
        account_asked = asyncio.ensure_future(it.engine.settle_account(2))
        transfer_asked = asyncio.ensure_future(it.engine.find_transfer(1, (1).to_bytes(16, "big")))
        untouched = await it.engine.settle_account(9)
        await settle()
        it.log.let_one_go()
        await it.log.begun(begun + 1)
        await settle()
        assert untouched.account_id == 9
        assert not account_asked.done()
        assert not transfer_asked.done()
        it.log.let_go()
        await asyncio.gather(account_asked, transfer_asked)
        account, (_, record, _) = account_asked.result(), transfer_asked.result()
        assert account.balances[1].last_sequence <= it.engine.committer.durable_sequence
        assert record.amount_minor == 5


async def test_a_change_of_status_is_not_shown_before_it_is_durable() -> None:
    async with running() as it:
        begun = await it.hold_log()
        change = asyncio.ensure_future(it.engine.change_status(5, STATUS_FROZEN, "asked to"))
        await settle()
        asked = asyncio.ensure_future(it.engine.settle_account(5))
        it.log.let_one_go()
        await it.log.begun(begun + 1)
        await settle()
        assert not change.done()
        assert not asked.done()
        it.log.let_go()
        assert (await asked).status == STATUS_FROZEN
        assert (await change)[1] is False


async def test_a_repeat_of_what_is_not_durable_waits_too() -> None:
    async with running() as it:
        begun = await it.hold_log()
        first = it.begin(body(1, 1, 2))
        await settle()
        it.log.let_one_go()
        await it.log.begun(begun + 1)
        again = it.begin(body(1, 1, 2))
        await settle()
        assert not again.done()
        it.log.let_go()
        ((one,), (two,)) = await asyncio.gather(first, again)
        assert (one.repeat, two.repeat) == (0, 1)
        assert (one.time_us, one.balance_minor) == (two.time_us, two.balance_minor)


async def test_a_failed_append_is_fatal_and_answers_nobody() -> None:
    async with running() as it:
        await it.hold_log()
        answers = [it.begin(body(number, 1, 2)) for number in range(1, 4)]
        read = asyncio.ensure_future(it.engine.settle_account(1))
        await settle()
        it.log.error = OSError("no sync")
        it.log.let_go()
        await eventually(lambda: bool(it.fatal), "the error is fatal", 5)
        it.log.error = None
        later = it.begin(body(9, 3, 4))
        await settle()
        assert [str(error) for error in it.fatal] == ["no sync"]
        assert not any(each.done() for each in (*answers, read, later))
        for each in (*answers, read, later):
            each.cancel()


# --- instants ---------------------------------------------------------------------------------


async def test_nothing_is_posted_at_or_before_an_instant_once_it_is_settled(
    rng: random.Random,
) -> None:
    async with running() as it:
        settled_us, number = 0, 0
        in_flight: list[tuple[int, asyncio.Task[list[Result]]]] = []
        for _ in range(300):
            it.wall.advance(rng.choice((0, 0, 1, 50, 900_000, -3_000_000)))
            for _ in range(rng.randrange(4)):
                number += 1
                in_flight.append((settled_us, it.begin(body(number, 1, 2))))
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            ahead_us = rng.choice((0, 0, 1, 999_999))
            wanted_us = it.wall.now_us() + ahead_us if ahead_us else 0
            settled_us = max(settled_us, it.engine.settle_instant(wanted_us, "as_of_us"))
        for settled_before_us, task in in_flight:
            assert (await task)[0].time_us > settled_before_us


async def test_commands_queued_before_a_question_are_stamped_after_its_instant() -> None:
    async with running() as it:
        await it.hold_log()
        applied = it.begin(body(1, 1, 2))
        await settle()  # in the open block, with a stamp of now
        now_us = it.engine.settle_instant(0, "as_of_us")
        late = it.begin(body(2, 1, 2))
        await settle()
        it.log.let_go()
        (one,), (two,) = await asyncio.gather(applied, late)
        assert one.time_us <= now_us < two.time_us


async def test_an_instant_in_the_future_is_refused_and_moves_nothing() -> None:
    async with running() as it:
        before = it.engine.clock_us
        with pytest.raises(BadRequestError) as caught:
            it.engine.settle_instant(it.wall.now_us() + 1_000_001, "as_of_us")
        assert caught.value.field == "as_of_us"
        assert it.engine.clock_us == before


# --- what is not there --------------------------------------------------------------------------


async def test_what_is_not_there_is_said_to_be_so() -> None:
    async with running() as it:
        with pytest.raises(AccountNotFoundError):
            await it.engine.settle_account(77)
        with pytest.raises(AccountNotFoundError):
            await it.engine.change_status(77, STATUS_FROZEN, "why")
        with pytest.raises(TransferNotFoundError):
            await it.engine.find_transfer(1, bytes(16))


# --- bounds -------------------------------------------------------------------------------------


async def test_admission_is_bounded_and_refusing_executes_nothing() -> None:
    async with running(Limits(queue_transfers_max=10)) as it:
        admitted = it.begin(*(body(number, 1, 2) for number in range(1, 9)))
        refused = it.begin(*(body(number, 1, 2) for number in range(11, 14)))
        fits = it.begin(body(21, 1, 2), body(22, 1, 2))
        with pytest.raises(OverloadedError):
            await refused
        assert len(await admitted) == 8
        assert len(await fits) == 2
        with pytest.raises(TransferNotFoundError):
            await it.engine.find_transfer(1, (11).to_bytes(16, "big"))
        # There is room again, and what was refused before was not remembered.
        assert [one.repeat for one in await it.execute(body(11, 1, 2))] == [0]


async def test_a_turn_takes_as_many_commands_as_it_may() -> None:
    async with running() as it:
        await it.hold_log()
        before, most = it.engine.ledger.sequence, engine_module.TURN_TRANSFERS_MAX
        for number in range(1, most + 1):
            it.begin(body(number, 1, 2))
        for _ in range(3):  # the calls begin, the applier wakes, and has its turn
            await asyncio.sleep(0)
        assert it.engine.ledger.sequence == before + most


async def test_a_turn_is_bounded_in_accounts_to_load() -> None:
    async with running(Limits(accounts_max=10), accounts=3_000) as it:
        await it.engine.checkpoint()
        memory = it.engine.ledger.memory
        answers = [it.begin(body(number, number, number + 1)) for number in range(1, 2_999, 2)]
        most, loads = 0, memory.loads
        while not all(answer.done() for answer in answers):
            await asyncio.sleep(0)
            most, loads = max(most, memory.loads - loads), memory.loads
        assert 0 < most <= engine_module.TURN_TRANSFERS_MAX / engine_module.LOAD_COST + 2


async def test_the_applier_waits_for_the_checkpoint_and_goes_on_after() -> None:
    rows = 20
    async with running(Limits(checkpoint_rows=rows), accounts=100) as it:
        await it.engine.checkpoint()
        commits = len(it.writer.commits)
        it.writer.hold()
        answers = [it.begin(body(number, 1, 2)) for number in range(1, 2_000)]
        batch = it.begin(*(body(5_000 + number, 3, 4) for number in range(3_000)))
        await it.writer.begun(commits + 1)
        await eventually(it.engine._must_wait, "the applier has to wait", 10)
        stands_at = it.engine.ledger.sequence
        await settle()
        assert it.engine.ledger.sequence == stands_at, "nothing is applied meanwhile"
        assert not batch.done()
        assert await it.engine.settle_account(1), "questions are answered meanwhile"
        it.writer.let_go()
        await asyncio.gather(*answers, batch)
        most = max(
            later.sequence - earlier.sequence
            for earlier, later in zip(it.writer.commits, it.writer.commits[1:], strict=False)
        )
        assert most <= CHECKPOINT_BACKLOG * rows + engine_module.TURN_TRANSFERS_MAX
        await it.engine.checkpoint()
        assert it.state.checkpoint is not None
        assert it.state.checkpoint.sequence == it.engine.ledger.sequence


async def test_the_applier_waits_for_the_log_and_goes_on_after() -> None:
    async with running() as it:
        await it.hold_log()
        answers = []
        for number in range(1, SEALED_BLOCKS_MAX + 50):
            answers.append(it.begin(body(number, 1, 2)))
            await settle()
            it.engine.settle_instant(0, "as_of_us")  # a question seals the open block
        assert len(it.engine.store.sealed) == SEALED_BLOCKS_MAX + 1
        it.log.let_go()
        await asyncio.gather(*answers)
        assert not it.engine.store.sealed


# --- checkpoints ----------------------------------------------------------------------------------


async def test_a_checkpoint_does_not_run_ahead_of_the_log() -> None:
    async with running() as it:
        await it.hold_log()
        it.begin(body(1, 1, 2))
        await settle()
        checkpoint = asyncio.ensure_future(it.engine.checkpoint())
        await settle()
        assert not it.writer.commits
        it.log.let_go()
        await checkpoint
        assert it.state.checkpoint is not None
        assert it.state.checkpoint.sequence <= it.engine.committer.durable_sequence


async def test_a_failed_checkpoint_is_fatal() -> None:
    async with running() as it:
        it.writer.error = OSError("no commit")
        with pytest.raises(OSError, match="no commit"):
            await it.engine.checkpoint()
        assert [str(error) for error in it.fatal] == ["no commit"]


async def test_the_books_balance_while_traffic_runs(rng: random.Random) -> None:
    async with running(Limits(checkpoint_rows=50, accounts_max=20), accounts=60) as it:
        going = True

        async def traffic(lane: int) -> int:
            number = lane * 10**6
            while going:
                number += 1
                source, destination = rng.sample(range(1, 61), 2)
                currency = rng.choice((1, 2))
                (result,) = await it.execute(
                    body(number, source, destination, rng.randrange(1, 9), currency=currency)
                )
                assert result.status == COMPLETED
            return number % 10**6

        lanes = [asyncio.ensure_future(traffic(lane)) for lane in range(1, 9)]
        for _ in range(10):
            books = await it.engine.add_up()
            assert all(each.balanced for each in books.values()), books
        going = False
        assert sum(await asyncio.gather(*lanes)) >= 10, "traffic ran meanwhile"
        books = await it.engine.add_up()
        assert sorted(books) == [1, 2]
        assert all(each.balanced and each.positive_minor > 0 for each in books.values())


# --- who goes away --------------------------------------------------------------------------------


async def test_callers_that_go_away_break_nothing(rng: random.Random) -> None:
    async with running(Limits(checkpoint_rows=40)) as it:
        kept: list[asyncio.Task[list[Result]]] = []
        for number in range(1, 400):
            call = it.begin(body(number, 1, 2))
            others = [
                asyncio.ensure_future(it.engine.settle_account(1)),
                asyncio.ensure_future(it.engine.add_up()),
                asyncio.ensure_future(it.engine.open_accounts([(1_000 + number, 1, 0, 0)])),
            ]
            for _ in range(rng.randrange(6)):
                await asyncio.sleep(0)
            for other in others:
                other.cancel()
            if rng.random() < 0.5:
                call.cancel()
            else:
                kept.append(call)
        answers = await asyncio.gather(*kept)
        assert all(one.status == COMPLETED for (one,) in answers)
        assert not it.fatal
        # Whether what a cancelled call asked for has happened is found out by asking again.
        for number in range(1, 400):
            (result,) = await it.execute(body(number, 1, 2))
            assert result.status == COMPLETED
        account = await it.engine.settle_account(2)
        assert account.balances[1].minor == 399
        assert all(each.balanced for each in (await it.engine.add_up()).values())


async def test_a_checkpoint_goes_on_when_who_asked_for_it_goes_away() -> None:
    async with running() as it:
        it.writer.hold()
        asked = asyncio.ensure_future(it.engine.add_up())
        await it.writer.begun(1)
        asked.cancel()
        await settle()
        assert asked.cancelled()
        await it.execute(body(1, 1, 2))
        it.writer.let_go()
        books = await it.engine.add_up()
        assert books[1].balanced
        assert books[1].positive_minor == 1


# --- the end --------------------------------------------------------------------------------------


async def test_stop_finishes_what_was_admitted_and_begins_nothing_new() -> None:
    async with running(Limits(checkpoint_rows=30)) as it:
        await it.hold_log()
        answers = [it.begin(body(number, 1, 2)) for number in range(1, 50)]
        batch = it.begin(*(body(1_000 + number, 1, 2) for number in range(4_000)))
        await asyncio.sleep(0)
        stopping = asyncio.ensure_future(it.engine.stop())
        await asyncio.sleep(0)
        for late in (
            it.engine.execute(body(99, 1, 2), b""),
            it.engine.open_accounts([(99, 1, 0, 0)]),
            it.engine.change_status(1, STATUS_FROZEN, "why"),
        ):
            with pytest.raises(StoppingError):
                await late
        await settle()
        assert not stopping.done()
        it.log.let_go()
        await stopping
        assert len(await batch) == 4_000
        assert all(one.status == COMPLETED for (one,) in await asyncio.gather(*answers))
        checkpoint, last = it.state.checkpoint, it.log.last
        assert checkpoint is not None
        assert last is not None
        assert checkpoint.sequence == last.draft.last_sequence == it.engine.ledger.sequence
        it.engine.stop = _already  # type: ignore[method-assign] # stopped above


async def _already() -> None:
    """What is left to stop."""


async def test_a_batch_is_answered_in_order_across_turns_and_blocks(rng: random.Random) -> None:
    async with running(Limits(checkpoint_rows=500, accounts_max=8), accounts=40) as it:
        bodies = [
            body(number, *rng.sample(range(1, 41), 2), metadata_bytes=rng.choice((0, 0, 256)))
            for number in range(1, 8_193)
        ]
        metadata = b"".join(
            bytes([number % 251]) * int.from_bytes(each[58:60], "little")
            for number, each in lengths(bodies)
        )
        results = results_of(await it.engine.execute(b"".join(bodies), metadata))
        balances = dict.fromkeys(range(1, 41), 0)
        for each, result in zip(bodies, results, strict=True):
            source = int.from_bytes(each[16:24], "little")
            balances[source] -= 1
            balances[int.from_bytes(each[24:32], "little")] += 1
            assert (result.status, result.balance_minor) == (COMPLETED, balances[source])
        number, sample = rng.choice(list(lengths(bodies)))
        source = int.from_bytes(sample[16:24], "little")
        _, record, found = await it.engine.find_transfer(source, sample[:16])
        assert record.reference == number
        assert found == bytes([number % 251]) * record.metadata_bytes


def lengths(bodies: list[bytes]) -> list[tuple[int, bytes]]:
    """Each body with its number."""
    return list(enumerate(bodies, 1))


async def test_nothing_is_left_to_do_after_all_is_answered() -> None:
    async with running() as it:
        await it.execute(body(1, 1, 2))
        assert not it.engine._queue
        assert not it.engine.store.sealed
        assert it.engine._queued_transfers == 0


async def test_what_records_nothing_leaves_no_old_time_behind() -> None:
    async with running() as it:
        deadline_us = it.wall.now_us() + 5_000_000
        resolve = partial(it.engine.ledger.participant.resolve, bytes(15) + b"\1", deadline_us)
        (early,) = await it.engine.finish_begun([resolve], [1])
        assert RESOLUTION.unpack(early)[0] == Fate.UNDECIDED
        it.wall.advance(6_000_000)  # and nothing else happens
        (late,) = await it.engine.finish_begun([resolve], [1])
        assert RESOLUTION.unpack(late)[0] == Fate.ABORTED
