"""The month of a game's economy: the same for a seed, within its bounds, and shaped as promised."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest

from doubloon import TransferType
from scripts.economy import GEMS, GOLD, Economy, EconomyConfig, Played
from scripts.naive import DAY_US, HOUR_US, Books
from scripts.schedule import WINDOW_SPAN_US

END_US = 1_795_000_000_123_456
SHARDS = (1, 2, 3)


def shard_of(account_id: int) -> int:
    return account_id * 7_919 % 3 + 1


def config_of(seed: int, players: int = 300, events: int = 6_000) -> EconomyConfig:
    return EconomyConfig(seed, END_US, SHARDS, shard_of, players=players, events=events)


@pytest.fixture(scope="module")
def config(pytestconfig: pytest.Config) -> EconomyConfig:
    return config_of(7)


@pytest.fixture(scope="module")
def month(config: EconomyConfig) -> Sequence[Played]:
    return list(Economy(config).play())


def test_the_month_of_the_demo_is_long_enough() -> None:
    played = sum(1 for _ in Economy(EconomyConfig(1993, END_US, SHARDS, shard_of)).play())
    assert 200_000 <= played <= 260_000


def test_a_seed_gives_one_month(config: EconomyConfig, month: Sequence[Played]) -> None:
    economy = Economy(config)
    assert list(economy.play()) == month
    assert list(economy.play()) == month, "an economy plays its month as often as asked"
    assert list(Economy(config_of(8)).play()) != month


def test_transfers_are_in_order_of_time_and_within_the_month(
    config: EconomyConfig, month: Sequence[Played]
) -> None:
    times_us = [played.transfer.import_time_us for played in month]
    assert all(earlier <= later for earlier, later in pairwise(times_us))
    assert config.end_us - config.start_us == 30 * DAY_US
    assert config.start_us <= times_us[0]
    assert times_us[-1] < config.end_us


def test_every_transfer_stays_on_its_shard(month: Sequence[Played]) -> None:
    for played in month:
        transfer = played.transfer
        assert shard_of(transfer.source) == shard_of(transfer.destination)
        assert transfer.source != transfer.destination


def test_every_shard_has_a_house_of_its_own(config: EconomyConfig) -> None:
    economy = Economy(config)
    assert set(economy.houses) == set(SHARDS)
    for shard_id, house in economy.houses.items():
        assert {shard_of(account) for account in house} == {shard_id}
    assert len(economy.hubs) == 9
    assert not economy.hubs & set(economy.players)


def test_keys_are_unique_and_ordered_by_time(month: Sequence[Played]) -> None:
    ids = [played.transfer.transfer_id for played in month]
    assert len(set(ids)) == len(ids)
    for played in month:
        id_ = int.from_bytes(played.transfer.transfer_id, "big")
        assert id_ >> 80 == played.transfer.import_time_us // 1_000
        assert (id_ >> 76 & 0xF, id_ >> 62 & 0b11) == (7, 0b10)


def test_the_books_say_what_completes(config: EconomyConfig, month: Sequence[Played]) -> None:
    books = Books(Economy(config).floors_minor)
    assert [books.apply(played.transfer) for played in month] == [p.completes for p in month]
    refused = sum(not played.completes for played in month)
    assert 0 < refused < len(month) * 0.03


def test_the_economy_is_shaped_as_promised(config: EconomyConfig, month: Sequence[Played]) -> None:
    types = Counter(played.transfer.type for played in month)
    assert set(types) == set(TransferType) - {TransferType.UNSPECIFIED, TransferType.ADJUSTMENT}
    assert {played.transfer.currency for played in month} == {GOLD, GEMS}

    entries: Counter[int] = Counter()
    for played in month:
        entries.update((played.transfer.source, played.transfer.destination))
    economy = Economy(config)
    busiest, median = economy.busiest, economy.players[len(economy.players) // 2]
    assert entries[busiest] == max(entries[player] for player in economy.players)
    assert entries[busiest] > 5 * entries[median] > 0

    hours = Counter(p.transfer.import_time_us // HOUR_US % 24 for p in month)
    assert hours[20] > 3 * hours[5]


def test_a_hub_is_never_refused_whatever_the_order_within_a_window(
    config: EconomyConfig, month: Sequence[Played]
) -> None:
    """Within a window a hub may pay everything before it receives anything."""
    economy = Economy(config)
    out: Counter[tuple[int, str, int]] = Counter()
    for played in month:
        transfer = played.transfer
        if transfer.source in economy.hubs:
            window = transfer.import_time_us // WINDOW_SPAN_US
            out[transfer.source, transfer.currency, window] += transfer.amount_minor
    for (hub, _, _), paid_minor in out.items():
        assert paid_minor * 1_000 < -economy.floors_minor[hub]
