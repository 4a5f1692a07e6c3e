"""The table of accounts, held against a dictionary."""

import random

from shard_node.account_table import PART_SLOTS_MIN, PARTS, AccountTable
from shard_node.books import Account
from shard_node.memory import REVIEW_STEPS

PLAYER, ACTIVE = 1, 1
COMMITTED = 7


def account(account_id: int, touched_epoch: int = COMMITTED, pins: int = 0) -> Account:
    made = Account(account_id, PLAYER, ACTIVE, 0, 2**63 - 1, 1)
    made.touched_epoch, made.pins, made.cached = touched_epoch, pins, True
    return made


def check(table: AccountTable, model: dict[int, Account]) -> None:
    assert len(table) == len(model)
    assert {each.account_id: each for each in table} == model
    for account_id, each in model.items():
        assert table.get(account_id) is each


def random_id(rng: random.Random) -> int:
    """Small ones, that follow each other; large ones; and ids that differ in a few bits alone."""
    return rng.choice(
        (rng.randint(1, 3_000), rng.getrandbits(63), rng.randint(1, 3_000) << rng.randint(0, 50))
    )


def test_random_changes(rng: random.Random) -> None:
    table, model = AccountTable(), dict[int, Account]()
    for _ in range(40):
        for _ in range(rng.randint(0, 400)):
            account_id = random_id(rng)
            assert table.get(account_id) is model.get(account_id)
            if account_id not in model:
                epoch, pins = COMMITTED + rng.randint(-1, 1), rng.choice((0, 0, 0, 1))
                model[account_id] = account(account_id, epoch, pins)
                table.add(model[account_id])
        limit, before = rng.randint(0, len(model)), len(model)
        table.review(rng.choice((8, 100, table.round_steps)), limit, COMMITTED)
        gone = [each for each in model.values() if not each.cached]
        for each in gone:
            assert each.pins == 0
            assert each.touched_epoch <= COMMITTED
            del model[each.account_id]
        assert len(table) >= min(limit, before)
        check(table, model)
        for each in model.values():
            each.touched_epoch, each.pins = COMMITTED + rng.randint(-1, 1), rng.choice((0, 0, 1))


def test_one_round_lets_everybody_go_who_may(rng: random.Random) -> None:
    table = AccountTable()
    ids = rng.sample(range(1, 100_000), 3_000)
    for number, account_id in enumerate(ids):
        table.add(account(account_id, touched_epoch=COMMITTED + number % 2))
    table.review(rng.randint(0, 1_000), 0, COMMITTED)  # the hand may stand anywhere
    table.review(table.round_steps, 0, COMMITTED)
    assert sorted(each.account_id for each in table) == sorted(ids[1::2])


def test_a_table_shrinks_once_its_accounts_have_left(rng: random.Random) -> None:
    table, ids = AccountTable(), rng.sample(range(1, 2**40), 20_000)
    model = {account_id: account(account_id, touched_epoch=COMMITTED + 1) for account_id in ids}
    for each in model.values():
        table.add(each)
    for account_id in ids[2_000:]:
        model.pop(account_id).touched_epoch = COMMITTED
    table.review(table.round_steps, 0, COMMITTED)
    check(table, model)
    assert table.round_steps <= 9 * 2_000 + 2 * PARTS * PART_SLOTS_MIN


def test_a_full_cache_stays_as_it_is_however_many_come_by(rng: random.Random) -> None:
    table = AccountTable()
    for account_id in range(1, 20_001):
        table.add(account(account_id))
    table.review(table.round_steps, 1_000, COMMITTED)
    for account_id in rng.sample(range(20_001, 2**40), 20_000):
        table.review(REVIEW_STEPS, 999, COMMITTED)
        table.add(account(account_id))
        assert len(table) <= 1_100


def test_no_more_leave_than_there_are_too_many() -> None:
    table = AccountTable()
    for account_id in range(1, 101):
        table.add(account(account_id))
    table.review(table.round_steps, 90, COMMITTED)
    assert len(table) == 90


def test_the_hand_goes_no_further_than_it_is_told() -> None:
    table = AccountTable()
    for account_id in range(1, 1_001):
        table.add(account(account_id))
    table.review(10, 0, COMMITTED)
    assert len(table) >= 990


def test_ids_that_follow_each_other_are_spread() -> None:
    table = AccountTable()
    for account_id in range(1, 100_001):
        table.add(account(account_id))
    assert table.round_steps <= 4 * 100_000, "no part had to be much larger than the others"
