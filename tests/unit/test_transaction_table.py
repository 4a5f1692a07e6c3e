"""The table of transactions: rows, what they say, and what is remembered of the ended."""

import random

import pytest

from cluster.packed import KEY_BYTES
from shard_node.memory import Draft
from shard_node.transactions import (
    REMEMBERED_US,
    Decided,
    Header,
    Prepared,
    Row,
    StoredPrepared,
    Transactions,
    read_transaction_row,
    transaction_row,
)

NOW_US = 1_700_000_000_000_000


def header(number: int) -> Header:
    return Header(number.to_bytes(16, "big"), NOW_US, 2**63 - 1, 65_535, 2)


def prepared(number: int, since_us: int = NOW_US) -> Prepared:
    members, metadata = bytes(range(144)), b"order 7"
    return Prepared(header(number), since_us, members, metadata, (), ())


def rows_of(table: Transactions) -> list[Row]:
    return [transaction_row(*each) for each in table.take_changed()]


def decided(number: int, decided_us: int = NOW_US) -> Decided:
    return Decided(header(number), decided_us, b"k" * KEY_BYTES, 2, tuple(range(1, 33)))


def test_headers_are_what_was_packed() -> None:
    assert Header.unpack(header(3).pack() + b"more") == header(3)
    assert len(header(3).pack()) == 40


def test_rows_say_what_was_entered() -> None:
    table = Transactions()
    table.add_prepared(prepared(1))
    table.add_decided(decided(2))
    rows = {key: read_transaction_row(value) for key, value in rows_of(table) if value}
    one = prepared(1)
    stored = StoredPrepared(one.header, one.since_us, one.members, one.metadata)
    assert rows == {header(1).transaction_id: stored, header(2).transaction_id: decided(2)}
    assert rows_of(table) == []


def test_a_row_is_deleted_exactly_when_the_state_has_it() -> None:
    table = Transactions()
    ids = [header(each).transaction_id for each in range(4)]
    table.add_prepared(prepared(0))
    table.add_decided(decided(1))
    table.end(ids[0], NOW_US, 0, NOW_US)  # before any checkpoint
    assert [key for key, _ in rows_of(table)] == [ids[1]]
    table.end(ids[1], NOW_US, NOW_US, NOW_US)
    assert rows_of(table) == [(ids[1], None)]
    table.add_prepared(prepared(2))
    table.mark_stored()
    table.add_prepared(prepared(3))
    table.end(ids[2], NOW_US, 0, NOW_US)
    assert [key for key, value in rows_of(table) if value is None] == [ids[2]]
    table.end(ids[3], NOW_US, 0, NOW_US)
    assert rows_of(table) == [(ids[3], None)]
    for number in range(100):  # nothing gathers of what no state ever had
        table.end(header(1_000 + number).transaction_id, NOW_US, 0, NOW_US)
    assert rows_of(table) == []
    assert not table._gone


def test_rows_are_of_what_was_when_a_checkpoint_began() -> None:
    """They are made later, in slices, while transactions go on."""
    table = Transactions()
    table.add_prepared(prepared(1))
    changed = table.take_changed()
    table.end(header(1).transaction_id, NOW_US, NOW_US, NOW_US)
    table.add_decided(decided(1))
    ((_, value),) = [transaction_row(*each) for each in changed]
    assert value
    assert isinstance(read_transaction_row(value), StoredPrepared)
    ((_, value),) = rows_of(table)
    assert value
    assert read_transaction_row(value) == decided(1)


def test_a_drafts_rows_come_in_slices() -> None:
    draft, table = Draft(1, 1, 1, []), Transactions()
    for number in range(10):
        table.add_prepared(prepared(number))
    draft.transactions = table.take_changed()
    slices = []
    while some := draft.take_transactions(4):
        slices.append(some)
    assert [len(some) for some in slices] == [4, 4, 2]
    assert {key for some in slices for key, _ in some} == set(table.prepared)


def test_the_oldest() -> None:
    table = Transactions()
    assert table.oldest_us() == 0
    table.add_decided(decided(1, NOW_US + 5))
    assert table.oldest_us() == NOW_US + 5
    table.add_prepared(prepared(2, NOW_US + 3))
    table.add_prepared(prepared(3, NOW_US + 9))
    assert table.oldest_us() == NOW_US + 3
    table.end(header(2).transaction_id, NOW_US, 0, NOW_US)
    assert table.oldest_us() == NOW_US + 5


@pytest.mark.parametrize(("deadline_us", "until_us"), [(NOW_US + 7, NOW_US + 7), (1, NOW_US)])
def test_the_ended_are_remembered_past_their_deadline(deadline_us: int, until_us: int) -> None:
    table = Transactions()
    one, another = header(1).transaction_id, header(2).transaction_id
    table.end(one, deadline_us, NOW_US - 1, NOW_US)
    table.end(another, 0, 0, until_us + REMEMBERED_US)
    assert table.ended(one) == NOW_US - 1
    assert table.ended(another) == 0
    table.end(header(3).transaction_id, 0, 0, until_us + REMEMBERED_US + 1)
    assert table.ended(one) is None


def test_the_ended_do_not_gather(rng: random.Random) -> None:
    table, now_us = Transactions(), NOW_US
    alive: dict[bytes, int] = {}
    for number in range(3_000):
        now_us += rng.randint(0, 20_000)
        transaction_id = header(rng.choice((number, max(0, number - 3)))).transaction_id
        if table.ended(transaction_id) is None:
            deadline_us = now_us + rng.randint(-5_000_000, 5_000_000)
            table.end(transaction_id, deadline_us, 0, now_us)
            alive[transaction_id] = max(deadline_us, now_us) + REMEMBERED_US
        alive = {each: until_us for each, until_us in alive.items() if until_us >= now_us}
        assert all(table.ended(each) == 0 for each in alive), "forgotten too early"
    # Eight seconds' worth at 100 a second, and what waits behind one that ends later.
    assert len(table._ended) < 1_000
