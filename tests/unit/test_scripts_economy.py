"""The month of a game's economy: the same for a seed, within its bounds, and shaped as promised."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from doubloon import Group, Transfer, TransferType
from scripts.economy import GEMS, GOLD, HOUSE, Economy, EconomyConfig, Played
from scripts.naive import DAY_US, HOUR_US, Books
from scripts.schedule import WINDOW_SPAN_US

END_US = 1_795_000_000_123_456


def config_of(seed: int, players: int = 300, events: int = 6_000) -> EconomyConfig:
    return EconomyConfig(seed, END_US, players=players, events=events)


def transfers_in(month: Sequence[Played]) -> list[Transfer]:
    return [transfer for played in month for transfer in played.transfers]


@pytest.fixture(scope="module")
def config(pytestconfig: pytest.Config) -> EconomyConfig:
    return config_of(7)


@pytest.fixture(scope="module")
def month(config: EconomyConfig) -> Sequence[Played]:
    return list(Economy(config).play())


def test_the_month_of_the_demo_is_long_enough() -> None:
    transfers = transfers_in(list(Economy(EconomyConfig(1993, END_US)).play()))
    assert 200_000 <= len(transfers) <= 260_000


def test_a_seed_gives_one_month(config: EconomyConfig, month: Sequence[Played]) -> None:
    economy = Economy(config)
    assert list(economy.play()) == month
    assert list(economy.play()) == month, "an economy plays its month as often as asked"
    assert list(Economy(config_of(8)).play()) != month


def test_transfers_are_in_order_of_time_and_within_the_month(
    config: EconomyConfig, month: Sequence[Played]
) -> None:
    times_us = [transfer.import_time_us for transfer in transfers_in(month)]
    assert all(earlier <= later for earlier, later in pairwise(times_us))
    assert config.end_us - config.start_us == 30 * DAY_US
    assert config.start_us <= times_us[0]
    assert times_us[-1] < config.end_us


def test_players_meet_at_random(config: EconomyConfig, month: Sequence[Played]) -> None:
    players = Economy(config).players
    pairs = Counter(
        (transfer.source % 3, transfer.destination % 3)
        for transfer in transfers_in(month)
        if {transfer.source, transfer.destination} <= set(players)
    )
    assert len(pairs) == 9
    assert min(pairs.values()) > sum(pairs.values()) / 20
    assert all(transfer.source != transfer.destination for transfer in transfers_in(month))


def test_there_is_one_house(config: EconomyConfig) -> None:
    economy = Economy(config)
    assert economy.hubs == set(HOUSE)
    assert not economy.hubs & set(economy.players)


def test_a_sale_is_a_group_of_price_and_fee(month: Sequence[Played]) -> None:
    groups = [played.item for played in month if isinstance(played.item, Group)]
    assert len(groups) > 500
    for group in groups:
        price, fee = group.transfers
        assert (price.type, fee.type) == (TransferType.SALE, TransferType.FEE)
        assert (fee.source, fee.destination) == (price.destination, HOUSE.fees)
        assert 1 <= fee.amount_minor <= max(1, price.amount_minor // 20)
        assert (fee.reference, fee.import_time_us) == (price.reference, price.import_time_us)


def test_keys_are_unique_and_ordered_by_time(month: Sequence[Played]) -> None:
    ids = [item.group_id if isinstance(item, Group) else item.transfer_id for item, _ in month]
    assert len(set(ids)) == len(ids)
    for id_bytes, played in zip(ids, month, strict=True):
        id_ = int.from_bytes(id_bytes, "big")
        assert id_ >> 80 == played.transfers[0].import_time_us // 1_000
        assert (id_ >> 76 & 0xF, id_ >> 62 & 0b11) == (7, 0b10)


def test_the_books_say_what_completes(config: EconomyConfig, month: Sequence[Played]) -> None:
    books = Books(Economy(config).floors_minor)
    assert [books.apply(*played.transfers) for played in month] == [p.completes for p in month]
    refused = sum(not played.completes for played in month)
    assert 0 < refused < len(month) * 0.03


def test_the_economy_is_shaped_as_promised(config: EconomyConfig, month: Sequence[Played]) -> None:
    transfers = transfers_in(month)
    types = Counter(transfer.type for transfer in transfers)
    assert set(types) == set(TransferType) - {TransferType.UNSPECIFIED, TransferType.ADJUSTMENT}
    assert {transfer.currency for transfer in transfers} == {GOLD, GEMS}

    entries: Counter[int] = Counter()
    for transfer in transfers:
        entries.update((transfer.source, transfer.destination))
    economy = Economy(config)
    busiest, median = economy.busiest, economy.players[len(economy.players) // 2]
    assert entries[busiest] == max(entries[player] for player in economy.players)
    assert entries[busiest] > 5 * entries[median] > 0

    hours = Counter(transfer.import_time_us // HOUR_US % 24 for transfer in transfers)
    assert hours[20] > 3 * hours[5]


def test_a_hub_is_never_refused_whatever_the_order_within_a_window(
    config: EconomyConfig, month: Sequence[Played]
) -> None:
    """Within a window a hub may pay everything before it receives anything."""
    economy = Economy(config)
    out: Counter[tuple[int, str, int]] = Counter()
    for transfer in transfers_in(month):
        if transfer.source in economy.hubs:
            window = transfer.import_time_us // WINDOW_SPAN_US
            out[transfer.source, transfer.currency, window] += transfer.amount_minor
    for (hub, _, _), paid_minor in out.items():
        assert paid_minor * 1_000 < -economy.floors_minor[hub]
