"""Totals, flows and series against a fold of all entries, and how little is read for them."""

import random
from dataclasses import replace
from itertools import product

import pytest

from shard_node.books import PERIOD_ENTRIES_MAX
from shard_node.hours import Hour
from shard_node.queries import (
    StatementRequest,
    Totals,
    statement,
)
from tests.support.histories import (
    DAY_US,
    FOR_EVER_US,
    HOT,
    HOT_ENTRIES,
    HOUSE,
    PLAYERS,
    UNUSED,
    Heat,
    World,
    grown_world,
    heated,
)
from tests.support.ledgers import BANK, START_US, Reads, Rig, transfer_id
from tests.support.naive_ledger import HOUR_US, Ask, Entry, fold
from tests.support.naive_ledger import series as naive_series


@pytest.fixture(params=["held", "released"])
def world(rng: random.Random, request: pytest.FixtureRequest) -> World:
    return grown_world(rng, released=request.param == "released")


def instants(world: World, entries: list[Entry], count: int) -> list[int]:
    """Edges of everything, and some at random."""
    now_us = world.rig.clock.last_us
    edges = {0, 1, START_US - 1, now_us, -DAY_US, FOR_EVER_US}
    for entry in world.rng.sample(entries, min(count, len(entries))):
        hour_us = entry.time_us - entry.time_us % HOUR_US
        edges |= {entry.time_us + each for each in (-1, 0, 1)}
        edges |= {hour_us + each for each in (-1, 0, 1)}
    return [*sorted(edges), *(world.rng.randrange(START_US, now_us) for _ in range(count))]


def naive_totals(entries: list[Entry], instant_us: int) -> Totals:
    return Totals(*fold(entries, instant_us))


# --- totals and flows ---------------------------------------------------------------------------


def test_totals_are_a_fold(world: World) -> None:
    for account_id, currency in product(PLAYERS, (1, 2, 3)):
        check_totals(world, account_id, currency)


def check_totals(world: World, account_id: int, currency: int) -> None:
    entries = world.entries(account_id, currency)
    history, reads = world.rig.history(account_id, currency), world.rig.reads
    for instant_us in instants(world, entries, 25):
        reads.forget()
        totals = history.totals_at(instant_us)
        assert totals == naive_totals(entries, instant_us)
        assert totals.balance_minor == sum(
            each.amount_minor for each in entries if each.time_us <= instant_us
        )
        assert reads.seeks <= 1
        assert reads.entries <= PERIOD_ENTRIES_MAX


def test_flows_are_exact_over_any_window(world: World) -> None:
    """The window is (t − length, t]: an entry at its end counts, one at its beginning does not."""
    entries = world.entries(HOT, 1)
    history = world.rig.history(HOT, 1)
    chosen = instants(world, entries, 12)
    for to_us in chosen:
        for length_us in (1, HOUR_US, DAY_US, to_us - entries[3].time_us, 2**62):
            if length_us <= 0:
                continue
            start, end = history.totals_at(to_us - length_us), history.totals_at(to_us)
            inside = [each for each in entries if to_us - length_us < each.time_us <= to_us]
            incoming = [each.amount_minor for each in inside if each.amount_minor > 0]
            outgoing = [-each.amount_minor for each in inside if each.amount_minor < 0]
            assert end.incoming - start.incoming == sum(incoming)
            assert end.outgoing - start.outgoing == sum(outgoing)
            assert end.incoming_count - start.incoming_count == len(incoming)
            assert end.outgoing_count - start.outgoing_count == len(outgoing)


def test_imports_are_counted_at_the_time_they_were_posted_at(world: World) -> None:
    then_us = START_US - 100 * DAY_US
    for number, (shift_us, amount) in enumerate(((0, 5), (HOUR_US, 7), (HOUR_US, 2), (DAY_US, 1))):
        ask = Ask(
            transfer_id(10**6 + number), HOUSE, UNUSED, amount, import_time_us=then_us + shift_us
        )
        assert world.rig.transfer(ask) == [world.naive.transfer(ask, world.rig.stamp_us)]
    world.rig.seal()
    entries, history = world.entries(UNUSED), world.rig.history(UNUSED)
    for instant_us in instants(world, entries, 10):
        assert history.totals_at(instant_us) == naive_totals(entries, instant_us)
    _, hours = history.series(then_us - 2 * HOUR_US, then_us + DAY_US + 5 * HOUR_US)
    assert_series(hours, naive_series(entries, hours[0].start_us, then_us + DAY_US + 5 * HOUR_US))


# --- series -------------------------------------------------------------------------------------


def assert_series(hours: list[Hour], expected: list[tuple[int, int, int, int]]) -> None:
    assert shown(hours) == expected


def shown(hours: list[Hour]) -> list[tuple[int, int, int, int]]:
    return [(each.start_us, each.balance_minor, each.incoming, each.outgoing) for each in hours]


def test_a_series_is_a_fold_of_each_hour(world: World) -> None:
    for account_id, currency in product(PLAYERS, (1, 2)):
        check_series(world, account_id, currency)


def check_series(world: World, account_id: int, currency: int) -> None:
    entries = world.entries(account_id, currency)
    history, reads = world.rig.history(account_id, currency), world.rig.reads
    now_us = world.rig.clock.last_us
    ends = [now_us, now_us - now_us % HOUR_US, now_us - now_us % HOUR_US - 1, START_US]
    ends += [each.time_us for each in world.rng.sample(entries, min(3, len(entries)))]
    for to_us in ends:
        for count in (1, 2, 24):
            first_us = to_us - to_us % HOUR_US - (count - 1) * HOUR_US
            reads.forget()
            opening, hours = history.series(first_us, to_us)
            assert opening == naive_totals(entries, first_us - 1).balance_minor
            assert_series(hours, naive_series(entries, first_us, to_us))
            assert_series_is_bounded(reads, count)


def assert_series_is_bounded(reads: Reads, hours: int) -> None:
    """Two totals at the ends, and a row of each hour."""
    assert reads.rows <= hours + 2
    assert reads.entries <= 2 * PERIOD_ENTRIES_MAX


def test_the_series_of_all_time_begins_at_nothing() -> None:
    rig = Rig(start_us=5 * HOUR_US)
    rig.open_bank()
    rig.open(HOT)
    rig.transfer(Ask(transfer_id(1), BANK, HOT, 5, import_time_us=1))
    rig.seal()
    opening, hours = rig.history(HOT).series(0, 2 * HOUR_US)
    assert opening == 0
    assert_series(hours, [(0, 5, 5, 0), (HOUR_US, 5, 0, 0), (2 * HOUR_US, 5, 0, 0)])


# --- closed hours -------------------------------------------------------------------------------


def test_closed_hours_never_change(world: World) -> None:
    rig = world.rig
    closed_us = rig.wall.now_us() - rig.wall.now_us() % HOUR_US - 1
    rig.wall.advance(1)
    first_us = closed_us + 1 - 30 * HOUR_US
    chosen = [each for each in instants(world, world.entries(HOT), 10) if each <= closed_us]

    def told() -> list[object]:
        answers: list[object] = []
        for account_id in PLAYERS:
            for currency in (1, 2):
                history = rig.history(account_id, currency)
                opening, hours = history.series(first_us, closed_us)
                answers += [opening, shown(hours)]
                answers.append([history.totals_at(each) for each in chosen])
        return answers

    before = told()
    for step in (rig.finish_checkpoint, rig.seal, rig.sync, rig.crash, rig.checkpoint):
        world.live(3)
        assert told() == before
        if step == rig.crash:
            rig.seal()
            rig.sync()
        step()
        assert told() == before
    world.live(30)
    rig.checkpoint()
    assert told() == before


# --- a hot account ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def heat() -> Heat:
    return heated()


@pytest.fixture(scope="module", params=["half in the state", "all in the state", "recovered"])
def hot(heat: Heat, request: pytest.FixtureRequest) -> Heat:
    """In the order of the parameters: each moves on from the one before."""
    if request.param == "all in the state":
        heat.rig.checkpoint()
    if request.param == "recovered":
        heat.rig.crash()
    return heat


def test_a_hot_accounts_totals_read_one_row_and_a_period_at_most(
    hot: Heat, rng: random.Random
) -> None:
    history, reads, last_us = hot.rig.history(HOT), hot.rig.reads, hot.times_us[-1]
    at_entries = [each + shift for each in rng.sample(hot.times_us, 40) for shift in (-1, 0, 1)]
    at_random = [rng.randrange(START_US, last_us + HOUR_US) for _ in range(100)]
    for instant_us in [*at_entries, *at_random, START_US - 1, last_us, last_us - 1]:
        reads.forget()
        totals = history.totals_at(instant_us)
        count = totals.incoming_count + totals.outgoing_count
        assert (totals.incoming, totals.outgoing, count) == hot.totals_at(instant_us)
        assert reads.seeks <= 1
        assert reads.rows <= 1
        assert reads.entries <= PERIOD_ENTRIES_MAX


def test_a_hot_accounts_series_reads_a_bounded_number_of_rows(hot: Heat) -> None:
    history, reads, last_us = hot.rig.history(HOT), hot.rig.reads, hot.times_us[-1]
    for to_us in (last_us, last_us + 3 * HOUR_US, hot.times_us[HOT_ENTRIES // 3]):
        for count in (1, 26, 720):
            first_us = to_us - to_us % HOUR_US - (count - 1) * HOUR_US
            reads.forget()
            _, hours = history.series(first_us, to_us)
            ends = [hot.totals_at(min(each.start_us + HOUR_US - 1, to_us)) for each in hours]
            assert [each.balance_minor for each in hours] == [each[0] - each[1] for each in ends]
            assert_series_is_bounded(reads, min(count, 3))  # no other hour has a row


@pytest.mark.parametrize("per_hour", [1, 2, 3, 4, 5, 8, 13])
def test_a_month_of_busy_hours_reads_a_bounded_number_of_rows(per_hour: int) -> None:
    """So many periods in most hours, 0 to 3 in some between them."""
    rig = Rig()
    rig.open_bank()
    rig.open(HOT)
    made = 0
    for hour in range(40):
        of_hour = hour % 4 if hour % 3 == 0 else per_hour
        entries = max(0, of_hour - 1) * PERIOD_ENTRIES_MAX + min(of_hour, 1)
        asks = (Ask(transfer_id(made + each), BANK, HOT, 1) for each in range(entries))
        if entries:
            rig.transfer(*asks)
        made += entries
        rig.seal()
        rig.wall.advance(HOUR_US)
    rig.checkpoint()
    rig.crash()
    rig.reads.forget()
    _, hours = rig.history(HOT).series(START_US, START_US + 40 * HOUR_US - 1)
    assert hours[-1].balance_minor == sum(each.incoming for each in hours) == made
    assert_series_is_bounded(rig.reads, 40)


def test_a_page_reads_little_more_than_it_shows(heat: Heat) -> None:
    history = heat.rig.history(HOT)
    for oldest_first in (False, True):
        for from_us in (0, heat.times_us[50_000]):
            request = StatementRequest(HOT, 1, from_us, FOR_EVER_US, oldest_first, 10, b"")
            for _ in range(3):
                heat.rig.reads.forget()
                legs, token = statement([history], request)
                assert len(legs) == 10
                # The period that the page begins in, and the one that it ends in.
                assert heat.rig.reads.entries <= 2 * PERIOD_ENTRIES_MAX + 11
                request = replace(request, page_token=token)
