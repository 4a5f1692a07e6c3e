"""A month of a game's economy: a seeded, time-ordered sequence of transfers and groups.

Pure, and the same for the same configuration. Ten thousand players of Zipf-shaped activity play by
the hour of the day; a treasury pays for logins and quests, a shop sells, players sell to each other
and give to each other whoever they are, and a few whales buy gems. A sale is a group: the price to
the seller and, out of it, the fee to the house. Nothing here knows of shards.

The game keeps naive books while it goes, as a game does, so that players mostly buy what they can
pay for; now and then one tries what he cannot, and the books say so beside the transfer.
"""

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from doubloon import Group, Transfer, TransferType
from scripts.naive import DAY_US, HOUR_US, Books
from scripts.schedule import Item

GOLD = "GOLD"
GEMS = "GEMS"
SCALES = {GOLD: 2, GEMS: 0}
"""The currencies, and how many decimals each has."""

TREASURY_FLOOR_MINOR = -(10**15)
SHOP_FLOOR_MINOR = -(10**12)  # refunds may come before the purchases that pay for them
FEE_FLOOR_MINOR = 0

_PLAYER_FIRST_ID = 1_000_000

_ZIPF_EXPONENT = 0.6  # the busiest of 10,000 does one percent of everything
_WHALE_EVERY = 400  # ranks 3, 403, 803 …: rich is not the same as busy

# Players awake by hour of the day, UTC: low at five in the morning, high at eight in the evening.
_RHYTHM = (5, 4, 3, 2, 2, 2, 3, 4, 5, 6, 7, 8, 9, 8, 8, 8, 10, 12, 15, 17, 18, 16, 12, 8)
_WEEKEND_FACTOR = 1.4

_GOLD_PRICES_MINOR = (500, 1_200, 2_500, 4_000, 7_500, 15_000, 40_000)
_GEM_PRICES_MINOR = (5, 20, 50, 120)
_GEM_PACKS_MINOR = (80, 500, 1_200, 6_500)
_FEE_PERCENT = 5
_BLIND_PURCHASE = 0.02  # how often a player tries to buy without looking into the wallet
_OPENING_GRANTS_SPAN_US = 60_000_000
_EVENT_SPACING_US = 8  # an event makes up to two items, a microsecond apart

_ACTIONS = ("quest", "purchase", "sale", "gift", "gem_pack", "gem_purchase", "refund")
_PLAYER_SHARES = (32, 40, 14, 6, 1, 5, 2)
_WHALE_SHARES = (10, 30, 10, 5, 20, 24, 1)


@dataclass(frozen=True)
class EconomyConfig:
    """What month to play.

    Attributes:
        seed: the same seed and configuration give the same transfers.
        end_us: every transfer happens before this instant, microseconds.
        players: how many players, 2 or more.
        events: how many times a player does something; each makes one to three transfers.
        days: how long a "month" is.
    """

    seed: int
    end_us: int
    players: int = 10_000
    events: int = 104_000
    days: int = 30

    @property
    def start_us(self) -> int:
        """No transfer happens before this instant."""
        return self.end_us - self.days * DAY_US


class House(NamedTuple):
    """The game's own accounts."""

    treasury: int
    shop: int
    fees: int


HOUSE = House(1_000, 2_000, 3_000)


class Played(NamedTuple):
    """A transfer or a group, and whether the game's books had the funds for it."""

    item: Item
    completes: bool

    @property
    def transfers(self) -> Sequence[Transfer]:
        """Its transfers, in order."""
        return self.item.transfers if isinstance(self.item, Group) else (self.item,)


class Economy:
    """The accounts of the month, and the month.

    Attributes:
        players: account ids, busiest first.
        floors_minor: floor of every account that has one below 0.
    """

    def __init__(self, config: EconomyConfig) -> None:
        self._config = config
        players = list(range(_PLAYER_FIRST_ID, _PLAYER_FIRST_ID + config.players))
        random.Random(config.seed).shuffle(players)
        self.players = tuple(players)
        self.floors_minor = {HOUSE.treasury: TREASURY_FLOOR_MINOR, HOUSE.shop: SHOP_FLOOR_MINOR}

    @property
    def busiest(self) -> int:
        """The player who does most."""
        return self.players[0]

    @property
    def hubs(self) -> frozenset[int]:
        """The game's accounts: each takes part in a large share of all transfers."""
        return frozenset(HOUSE)

    def play(self) -> Iterator[Played]:
        """Yield what happens in the month in order of time; each call yields the same."""
        return _Month(self._config, self).play()


class _Month:
    """One run through the month: the dice, the books, who logged in when."""

    def __init__(self, config: EconomyConfig, economy: Economy) -> None:
        self._config = config
        self._economy = economy
        self._random = random.Random(config.seed + 1)
        self._books = Books(economy.floors_minor)
        weights = [(rank + 1) ** -_ZIPF_EXPONENT for rank in range(config.players)]
        self._crowd = _Crowd(economy.players, weights)
        self._whales = frozenset(economy.players[3::_WHALE_EVERY])
        self._login_day: dict[int, int] = {}
        self._streak: dict[int, int] = {}
        self._reference = 0

    def play(self) -> Iterator[Played]:
        step_us = max(1, _OPENING_GRANTS_SPAN_US // self._config.players)
        for index, player in enumerate(self._economy.players):
            time_us = self._config.start_us + min(index * step_us, _OPENING_GRANTS_SPAN_US)
            amount = self._random.randrange(5_000, 50_000)
            yield self._reward(time_us, player, amount)
        for time_us in self._event_times():
            yield from self._event(time_us, self._crowd.pick(self._random))

    def _event_times(self) -> list[int]:
        """Draw instants by the hour's weight; at least `_EVENT_SPACING_US` apart, ascending."""
        first_us = self._config.start_us + _OPENING_GRANTS_SPAN_US
        end_us = self._config.end_us - HOUR_US // 60
        hours = range(first_us // HOUR_US, end_us // HOUR_US + 1)
        spans = [(max(first_us, h * HOUR_US), min(end_us, (h + 1) * HOUR_US)) for h in hours]
        weights = [
            (hi - lo) * _RHYTHM[hour % 24] * (_WEEKEND_FACTOR if _is_weekend(hour) else 1.0)
            for hour, (lo, hi) in zip(hours, spans, strict=True)
        ]
        drawn = self._random.choices(spans, weights, k=self._config.events)
        times = sorted(lo + int(self._random.random() * (hi - lo)) for lo, hi in drawn)
        previous_us = 0
        for index, time_us in enumerate(times):
            previous_us = times[index] = max(time_us, previous_us + _EVENT_SPACING_US)
        return times

    def _event(self, time_us: int, player: int) -> Iterator[Played]:
        """Let a player do something; the first time in a day he is paid for logging in."""
        day = time_us // DAY_US
        last_day = self._login_day.get(player)
        if last_day != day:
            streak = min(self._streak.get(player, 0) + 1, 7) if last_day == day - 1 else 1
            self._login_day[player], self._streak[player] = day, streak
            yield self._reward(time_us, player, 1_000 + 200 * streak)
        shares = _WHALE_SHARES if player in self._whales else _PLAYER_SHARES
        action = self._random.choices(_ACTIONS, shares)[0]
        yield self._act(action, time_us + 1, player)

    def _act(self, action: str, time_us: int, player: int) -> Played:
        dice, kinds = self._random, TransferType
        if action == "sale":
            return self._sale(time_us, player)
        if action == "gift":
            amount = dice.randrange(1, self._gold(player) // 10 + 2)
            friend = self._other_than(player)
            return self._make(time_us, player, friend, GOLD, amount, kinds.TRANSFER)
        if action == "gem_pack":
            amount = dice.choice(_GEM_PACKS_MINOR)
            return self._make(time_us, HOUSE.treasury, player, GEMS, amount, kinds.TRANSFER)
        if action == "refund":
            amount = dice.choice(_GOLD_PRICES_MINOR)
            return self._make(time_us, HOUSE.shop, player, GOLD, amount, kinds.REFUND)
        if action == "purchase":
            return self._purchase(time_us, player, GOLD, _GOLD_PRICES_MINOR)
        if action == "gem_purchase":
            return self._purchase(time_us, player, GEMS, _GEM_PRICES_MINOR)
        return self._reward(time_us, player, dice.randrange(300, 2_500))

    def _purchase(self, time_us: int, player: int, currency: str, prices: Sequence[int]) -> Played:
        """Buy what the wallet holds, or go on a quest; rarely, try without looking."""
        if self._random.random() >= _BLIND_PURCHASE:
            balance = self._books.balance_minor(player, currency)
            prices = prices[: bisect.bisect_right(prices, balance)]
        if not prices:
            return self._reward(time_us, player, self._random.randrange(300, 2_500))
        price = self._random.choice(prices)
        return self._make(time_us, player, HOUSE.shop, currency, price, TransferType.PURCHASE)

    def _sale(self, time_us: int, buyer: int) -> Played:
        """Buy from another player, who pays the house its share out of the price."""
        self._reference += 1
        seller = self._other_than(buyer)
        price = self._random.randrange(1, max(2, self._gold(buyer) // 2))
        fee = max(1, price * _FEE_PERCENT // 100)
        transfers = tuple(
            Transfer(source, destination, GOLD, amount, type_, self._reference, b"", time_us, b"")
            for source, destination, amount, type_ in (
                (buyer, seller, price, TransferType.SALE),
                (seller, HOUSE.fees, fee, TransferType.FEE),
            )
        )
        return self._played(Group(transfers, _uuid7(time_us, self._random)))

    def _reward(self, time_us: int, player: int, amount: int) -> Played:
        return self._make(time_us, HOUSE.treasury, player, GOLD, amount, TransferType.REWARD)

    def _make(
        self,
        time_us: int,
        source: int,
        destination: int,
        currency: str,
        amount: int,
        type_: TransferType,
    ) -> Played:
        self._reference += 1
        id_ = _uuid7(time_us, self._random)
        return self._played(
            Transfer(
                source, destination, currency, amount, type_, self._reference, b"", time_us, id_
            )
        )

    def _played(self, item: Item) -> Played:
        played = Played(item, completes=False)
        return played._replace(completes=self._books.apply(*played.transfers))

    def _gold(self, player: int) -> int:
        return self._books.balance_minor(player, GOLD)

    def _other_than(self, player: int) -> int:
        other = self._crowd.pick(self._random)
        while other == player:
            other = self._crowd.pick(self._random)
        return other


class _Crowd:
    """Players to pick from by weight."""

    def __init__(self, players: Sequence[int], weights: Sequence[float]) -> None:
        self._players = players
        self._cumulative = list(accumulate(weights))

    def pick(self, dice: random.Random) -> int:
        point = dice.random() * self._cumulative[-1]
        return self._players[bisect.bisect_right(self._cumulative, point)]


def _is_weekend(hour: int) -> bool:
    return (hour // 24 + 3) % 7 >= 5  # day 0 was a Thursday


def _uuid7(time_us: int, dice: random.Random) -> bytes:
    """Return a UUIDv7 of that time whose random bits come from the dice."""
    bits = dice.getrandbits(74)
    value = (time_us // 1_000) << 80 | 0x7 << 76 | (bits >> 62) << 64
    value |= 0b10 << 62 | (bits & ((1 << 62) - 1))
    return value.to_bytes(16, "big")
