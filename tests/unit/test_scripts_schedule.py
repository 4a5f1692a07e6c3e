"""The order in which scripts send transfers: large batches that keep every account's order."""

import random
from collections.abc import Sequence

import pytest

from doubloon import Group, Transfer
from scripts.schedule import Item, batches, transfers_of

HUB = 1


def line_of(*pairs: tuple[int, int], time_us: int = 0) -> list[Transfer]:
    return [
        Transfer(source, destination, "GOLD", 1, reference=index, import_time_us=time_us)
        for index, (source, destination) in enumerate(pairs)
    ]


def references(cut: Sequence[Sequence[Transfer]]) -> list[list[int]]:
    return [[transfer.reference for transfer in batch] for batch in cut]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([(2, 3), (4, 5)], [[0, 1]], id="strangers together"),
        pytest.param([(2, 3), (2, 4)], [[0], [1]], id="same source waits"),
        pytest.param([(2, 3), (4, 3)], [[0], [1]], id="same destination waits"),
        pytest.param([(2, 3), (3, 4)], [[0], [1]], id="what was received is spent later"),
        pytest.param([(2, 2), (3, 3)], [[0, 1]], id="an account with itself"),
        pytest.param([(HUB, 2), (HUB, 3), (2, HUB)], [[0, 1], [2]], id="a hub waits for nobody"),
        pytest.param([(2, 3), (3, 4), (5, 6), (6, 2)], [[0, 2], [1, 3]], id="behind the latest"),
    ],
)
def test_batches(pairs: list[tuple[int, int]], expected: list[list[int]]) -> None:
    assert references(list(batches(line_of(*pairs), {HUB}))) == expected


def test_a_group_waits_for_all_its_accounts_and_all_wait_for_it() -> None:
    first, second, alone, behind, last = transfers_of_pairs(
        [(2, 3)], [(4, 5), (5, HUB)], [(6, 7)], [(8, 9), (9, 3)], [(8, 4)]
    )
    cut = list(batches([first, second, alone, behind, last], {HUB}))
    assert cut == [[first, second, alone], [behind], [last]]


def transfers_of_pairs(*items: list[tuple[int, int]]) -> list[Item]:
    """A transfer for each single pair, a group for several."""
    made = [transfers_of_pair(pairs) for pairs in items]
    return [each[0] if len(each) == 1 else Group(each) for each in made]


def transfers_of_pair(pairs: list[tuple[int, int]]) -> list[Transfer]:
    return [Transfer(source, destination, "GOLD", 1) for source, destination in pairs]


def test_an_items_transfers() -> None:
    single, grouped = transfers_of_pairs([(2, 3)], [(2, 3), (3, 4)])
    assert transfers_of(single) == (single,)
    assert [each.source for each in transfers_of(grouped)] == [2, 3]


def test_batches_are_no_larger_than_asked() -> None:
    pairs = [(HUB, account) for account in range(2, 12)]
    cut = references(list(batches(line_of(*pairs), {HUB}, batch_max=4)))
    assert cut == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_nothing_overtakes_what_stands_so_many_places_before_it() -> None:
    pairs = [(HUB, 2), (HUB, 2), (HUB, 3), (HUB, 4)]
    assert references(list(batches(line_of(*pairs), {HUB}, window_max=2))) == [
        [0],
        [1, 2],
        [3],
    ]


def test_what_waits_in_a_line_holds_up_nobody_behind_it() -> None:
    pairs = [(HUB, 2), (HUB, 2), (HUB, 2), (HUB, 3), (HUB, 3)]
    assert references(list(batches(line_of(*pairs), {HUB}))) == [[0, 3], [1, 4], [2]]


@pytest.mark.parametrize(
    ("times_us", "expected"),
    [
        pytest.param([10, 20, 30], [[0, 1, 2]], id="within the span"),
        pytest.param([10, 30, 31], [[0, 1], [2]], id="past the span"),
        pytest.param([30, 9, 10], [[0], [1, 2]], id="backwards"),
        pytest.param([10, 100, 120], [[0], [1, 2]], id="a window counts from its own first"),
    ],
)
def test_nothing_overtakes_what_is_so_much_earlier(
    times_us: list[int], expected: list[list[int]]
) -> None:
    made = [
        Transfer(HUB, 2 + index, "GOLD", 1, reference=index, import_time_us=time_us)
        for index, time_us in enumerate(times_us)
    ]
    assert references(list(batches(made, {HUB}, window_span_us=20))) == expected


def test_every_account_keeps_its_order(rng: random.Random) -> None:
    time_us = 1_000
    made = []
    for reference in range(3_000):
        time_us += rng.randrange(3)
        source, destination = rng.randrange(1, 60), rng.randrange(1, 60)
        made.append(Transfer(source, destination, "GOLD", 1, reference=reference,
                             import_time_us=time_us))  # fmt: skip
    cut = list(batches(made, {HUB}, batch_max=7, window_max=500, window_span_us=400))

    assert sorted(t.reference for batch in cut for t in batch) == list(range(3_000))
    seen: dict[int, int] = {}
    for batch in cut:
        assert 1 <= len(batch) <= 7
        busy: set[int] = set()
        for transfer in batch:
            for account in {transfer.source, transfer.destination} - {HUB}:
                assert account not in busy, "two dependent transfers in one batch"
                assert transfer.reference > seen.get(account, -1), "out of order"
                busy.add(account)
                seen[account] = transfer.reference
