"""However a history is cut into blocks and wherever checkpoints stand, the state is the same.

The same commands are played twice: in few large blocks, and in many small ones with restarts and
with checkpoints that are taken while commands go on. Both plays give the same answers and, but for
the microseconds that a block adds to the clock, the same rows; and each state is byte for byte the
fold of its own log, whether that fold takes one checkpoint or as many as it likes.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cluster.packed import BODY_BYTES
from shard_node.books import Account
from shard_node.memory import PASSED_PER_ROW, Memory
from shard_node.records import RecordKind, records_of
from tests.support.crossing import CrossingRig
from tests.support.ledgers import BANK, Rig, fold_of, tables, transfer_id
from tests.support.naive_ledger import HOUR_US, Ask
from tests.support.schedules import (
    FEW,
    MANY,
    filed_rig,
    history,
    play,
    restart,
    rows_in_file,
    without_stamps,
)

HISTORIES, COMMANDS = 12, 160


def test_two_ways_of_cutting_give_one_state(rng: random.Random) -> None:
    for _ in range(HISTORIES):
        commands = history(rng, COMMANDS)
        few, many = CrossingRig(), CrossingRig(accounts_max=rng.randint(1, 5))
        answers = play(few, commands, FEW, rng)
        assert play(many, commands, MANY, rng) == answers
        assert len(list(many.log.blocks(1))) > 2 * len(list(few.log.blocks(1)))
        assert without_stamps(tables(many.state)) == without_stamps(tables(few.state))
        for rig in (few, many):
            blocks = [each.number for each in rig.log.blocks(1)]
            stops = rng.sample(blocks, min(len(blocks), 9))
            assert tables(rig.state) == fold_of(rig.log)
            assert tables(rig.state) == fold_of(rig.log, checkpoints=stops)
            assert tables(rig.state) == fold_of(rig.log, checkpoints=blocks)


def test_a_history_has_records_of_every_kind(rng: random.Random) -> None:
    """Else the test above would say less than it seems to."""
    kinds = {RecordKind.EPOCH_BEGAN}  # written by a start that serves
    rig = CrossingRig()
    play(rig, history(rng, 8 * COMMANDS), MANY, rng)
    for block in rig.log.blocks(1):
        kinds |= {RecordKind(record[BODY_BYTES]) for record in records_of(block.draft)}
    assert kinds == set(RecordKind)


def test_a_file_has_the_rows_that_memory_has(rng: random.Random, tmp_path: Path) -> None:
    with filed_rig(tmp_path / "state", accounts_max=3) as rig:
        play(rig, history(rng, 3 * COMMANDS), MANY, rng)
        assert rows_in_file(rig.file) == tables(rig.state)


def test_every_key_is_known_after_every_restart(rng: random.Random) -> None:
    """From memory, from the checkpoint under way and from the state; the first of a block, too."""
    rig = Rig(accounts_max=3)
    rig.open_bank()
    rig.open(10)
    asks: list[Ask] = []
    answers = []
    for number in range(60):
        some = [Ask(transfer_id(number * 10 + each), BANK, 10, 1) for each in range(1, 4)]
        answers += rig.transfer(*some)
        asks += some
        rig.seal()
        if rng.random() < 0.2:
            rig.checkpoint()
        if rng.random() < 0.2:
            rig.sync()
            rig.crash()
        repeats = rig.transfer(*asks)
        assert repeats == [each._replace(repeat=1) for each in answers]


def test_a_checkpoint_has_what_its_very_first_record_changed(rng: random.Random) -> None:
    """A balance, an account and a status that nothing behind that record touches again."""
    rig = CrossingRig(accounts_max=1)
    rig.open_bank()
    for account in range(10, 20):
        rig.open(account)
    for account in range(10, 20):
        changes = (
            partial(rig.transfer, Ask(transfer_id(account), BANK, account, 1)),
            partial(rig.change_status, account, 2),
            partial(rig.open, account + 100),
        )
        for change in changes:
            rig.checkpoint()
            change()
            if rng.random() < 0.5:
                rig.seal()
            rig.open(account + 1_000 + len(rig.opened))
            rig.checkpoint()
            assert tables(rig.state) == fold_of(rig.log)
            restart(rig)


def test_what_changes_while_a_checkpoint_is_taken_is_not_in_it() -> None:
    rig = CrossingRig()
    rig.open_bank()
    rig.open(10)
    for number in (1, 2):  # a period that has ended, and one that goes on
        rig.transfer(Ask(transfer_id(number), BANK, 10, 5))
        rig.let_time_pass(HOUR_US)
    rig.begin_checkpoint()
    begun = rig.ledger.sequence
    for number in (3, 4, 5):  # the one that goes on ends, and others begin and end
        rig.transfer(Ask(transfer_id(number), 10, BANK, 2))
        rig.let_time_pass(HOUR_US)
    rig.seal()
    rig.sync()
    rig.commit_checkpoint()
    assert tables(rig.state) == fold_of(rig.log, begun)
    rig.finish_checkpoint()
    rig.checkpoint()
    assert tables(rig.state) == fold_of(rig.log)


def test_ended_periods_are_taken_and_forgotten_in_slices() -> None:
    """However many an account has, and also while accounts change between two slices."""
    rig, number = CrossingRig(), 0
    rig.open_bank()
    for each in range(10, 13):
        rig.open(each)

    def pay_all() -> None:
        nonlocal number
        for each in range(10, 13):
            number += 1
            rig.transfer(Ask(transfer_id(number), BANK, each, 1))
        rig.let_time_pass(HOUR_US)

    for _ in range(8):
        pay_all()
    rig.begin_checkpoint()
    begun = rig.ledger.sequence
    assert rig.draft is not None
    slices = []
    while (rows := rig.draft.take(5)) is not None:
        rig.add_rows(rows)
        slices.append(tuple(map(len, rows)))
        pay_all()  # so that the others' are set aside while one's are being taken
    assert max(map(max, slices)) == 5
    assert tuple(map(sum, zip(*slices, strict=True))) == (4, 4, 4 * 7)
    rig.seal()
    rig.sync()
    rig.commit_checkpoint()
    assert tables(rig.state) == fold_of(rig.log, begun)
    while not rig.release(5):
        pay_all()
    rig.checkpoint()
    assert tables(rig.state) == fold_of(rig.log)


def test_a_slice_passes_by_a_bounded_number_of_accounts() -> None:
    rig, players = CrossingRig(), range(10, 210)
    rig.open_bank()
    for each in players:
        rig.open(each)
    rig.checkpoint()

    def pay_all(kind: int) -> None:
        for each in players:
            rig.transfer(Ask(transfer_id(1_000 * kind + each), BANK, each, 1))

    pay_all(1)
    rig.begin_checkpoint()
    pay_all(2)  # so that all rows are taken before the first slice
    assert rig.draft is not None
    begun, slices = rig.draft.sequence, []
    while (rows := rig.draft.take(1)) is not None:
        rig.add_rows(rows)
        slices.append(sum(map(len, rows)))
    accounts, ended = 1 + len(players), 1  # the bank has more entries than one period
    passing = -(-accounts // PASSED_PER_ROW)
    assert slices == [1] * (accounts + ended) + [0] * passing
    rig.commit_checkpoint()
    assert tables(rig.state) == fold_of(rig.log, begun)


@pytest.mark.parametrize("use", [Memory.touch, Memory.pin])
def test_an_account_pushed_out_is_back_once_it_changes_or_is_pinned(
    use: Callable[[Memory, Account], None],
) -> None:
    rig = CrossingRig()
    rig.open(10)
    rig.checkpoint()
    memory = rig.ledger.memory
    account = rig.account(10)
    memory.accounts.review(memory.accounts.round_steps, 0, account.touched_epoch)
    assert memory.accounts.get(10) is None
    use(memory, account)
    assert memory.account(10) is account


def test_what_no_checkpoint_has_stays_in_memory_however_small_that_is() -> None:
    """Before any checkpoint, while one is taken, and while what it has is let go."""
    rig, players = CrossingRig(accounts_max=1), range(10, 20)
    rig.open_bank()
    for each in players:
        rig.open(each)
    paid = 0

    def pay_all() -> None:
        nonlocal paid
        paid += 1
        for each in players:
            rig.transfer(Ask(transfer_id(100 * paid + each), BANK, each, 1))
        rig.seal()
        assert [rig.balance(each) for each in players] == [paid] * len(players)

    for _ in range(3):
        pay_all()
        pay_all()
        rig.begin_checkpoint()
        pay_all()
        rig.take(3)
        pay_all()
        rig.commit_checkpoint()
        pay_all()
        while not rig.release(2):
            pay_all()
    rig.checkpoint()
    assert tables(rig.state) == fold_of(rig.log)
