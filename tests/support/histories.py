"""Accounts with a past, for tests of questions: a rig and the naive ledger, told the same."""

import random
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from shard_node.books import PERIOD_ENTRIES_MAX
from tests.support.ledgers import BANK, Rig, body_of, transfer_id
from tests.support.naive_ledger import COMPLETED, HOUR_US, SYSTEM, Ask, Entry, NaiveLedger

DAY_US = 24 * HOUR_US
HOT, MIXED, SILENT, UNUSED, HOUSE = 10, 11, 12, 13, 14
PLAYERS = (HOT, MIXED, SILENT, UNUSED)
FOR_EVER_US = 2**63 - 1
HOT_ENTRIES = 100_000


class World:
    """A rig and the naive ledger, told the same."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.rig = Rig(accounts_max=50)
        self.naive = NaiveLedger()
        self.rig.open_bank()
        self.rig.open(HOUSE, SYSTEM, floor_minor=1 - 2**62)
        self.naive.open_account(BANK, SYSTEM, 1 - 2**63)
        self.naive.open_account(HOUSE, SYSTEM, 1 - 2**62)
        for each in PLAYERS:
            self.rig.open(each)
            self.naive.open_account(each, 1)
        self._ids = 0

    def transfer(self, source: int, destination: int, amount: int, currency: int = 1) -> None:
        self._ids += 1
        ask = Ask(transfer_id(self._ids), source, destination, amount, currency)
        assert self.rig.transfer(ask) == [self.naive.transfer(ask, self.rig.stamp_us)]

    def live(self, hours: int) -> None:
        """Some hours of play, with several transfers of one stamp and some at an hour's edge."""
        rig, rng = self.rig, self.rng
        for _ in range(hours):
            for _ in range(rng.choice((0, 1, 3, 12))):
                for _ in range(rng.choice((1, 2, 5))):
                    currency = rng.choice((1, 1, 1, 2))
                    self.transfer(BANK, HOT, rng.randrange(1, 100), currency)
                    if rng.random() < 0.3:
                        self.transfer(HOT, MIXED, 1, currency)
                    if rng.random() < 0.2:
                        self.transfer(BANK, MIXED, rng.randrange(1, 9), 2)
                rig.seal()
                rig.wall.advance(rng.choice((1, 1_000, HOUR_US // 12)))
            now_us = rig.wall.now_us()
            to_edge_us = HOUR_US - now_us % HOUR_US
            rig.wall.advance(to_edge_us + rng.choice((-1, 0, 1, HOUR_US // 2)))

    def entries(self, account_id: int, currency: int | None = None) -> list[Entry]:
        return self.naive.entries_of(account_id, currency)


def grown_world(rng: random.Random, *, released: bool) -> World:
    """History in the state, closed in memory, in current periods, and sealed but not durable.

    Memory has only what came since the latest checkpoint, or (not `released`) still what it wrote.
    """
    world = World(rng)
    rig = world.rig
    world.transfer(BANK, SILENT, 500)
    world.live(12)
    rig.checkpoint()
    world.live(8)
    rig.wall.advance(HOUR_US - rig.wall.now_us() % HOUR_US)
    world.transfer(BANK, HOT, 1)
    world.transfer(BANK, MIXED, 1)
    rig.begin_checkpoint()
    world.transfer(BANK, HOT, 1)  # of the same period: its row in the state is out of date
    rig.commit_checkpoint()
    if released:
        rig.finish_checkpoint()
    world.transfer(HOT, MIXED, 1)
    world.live(6)
    rig.sync()
    for _ in range(PERIOD_ENTRIES_MAX + 30):  # a period that ends by its entries
        world.transfer(BANK, HOT, 1)
    world.live(1)
    rig.seal()
    assert rig.store.sealed
    balance = rig.account(HOT).balances[1]
    first = balance.closed[0]
    assert rig.state.periods(HOT, 1, first.start_us, 0, 1) == ([] if released else [first])
    stored = rig.state.load_account(HOT)
    assert stored
    current = stored.balances[1].current()
    assert current
    assert current not in balance.closed
    assert current[:2] in [each[:2] for each in balance.closed]
    return world


@dataclass
class Heat:
    """An account with 100,000 entries in an hour, after a quiet entry a day before."""

    rig: Rig
    times_us: list[int]
    incoming: list[int]  # lifetime sums behind each entry, for the naive answer by bisection
    outgoing: list[int]

    def totals_at(self, instant_us: int) -> tuple[int, int, int]:
        """Incoming, outgoing, count."""
        count = bisect_left(self.times_us, instant_us + 1)
        return (self.incoming[count - 1], self.outgoing[count - 1], count) if count else (0, 0, 0)


def heated() -> Heat:
    """Half of it in the state, half closed in memory; every third entry pays."""
    rig = Rig()
    rig.open_bank()
    rig.open(HOT)
    times_us, amounts = [], []
    rig.transfer(Ask(transfer_id(0), BANK, HOT, 1_000))
    times_us.append(rig.stamp_us)
    amounts.append(1_000)
    rig.seal()
    rig.wall.advance(DAY_US)
    blocks = 1_000
    paid, paying = (body_of(Ask(bytes(16), *each, 1)) for each in ((BANK, HOT), (HOT, BANK)))
    for number in range(blocks):
        first = 1 + number * (HOT_ENTRIES // blocks)
        numbers = range(first, first + HOT_ENTRIES // blocks)
        bodies = b"".join(
            transfer_id(each) + (paying if each % 3 == 0 else paid)[16:] for each in numbers
        )
        results = rig.run(bodies)
        assert all(each.status == COMPLETED for each in results)
        times_us += [rig.stamp_us] * len(results)
        amounts += [-1 if each % 3 == 0 else 1 for each in numbers]
        rig.seal()
        rig.wall.advance(HOUR_US // blocks - 1)
        if number == blocks // 2:
            rig.checkpoint()
    rig.sync()
    assert times_us[1] // HOUR_US == times_us[-1] // HOUR_US
    incoming = list(accumulate(max(each, 0) for each in amounts))
    outgoing = list(accumulate(max(-each, 0) for each in amounts))
    return Heat(rig, times_us, incoming, outgoing)
