"""Routes: what begins when, in which order, and what is taken out again."""

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from coordinator.routes import ROUTES_MAX, TURN_MAX, Routes
from coordinator.transactions import Item
from coordinator.window import Ending, WindowRules
from tests.support.virtual_time import pass_time, virtual_time

LIFE_S = 16.0


def item(home: int = 1, participants: tuple[int, ...] = (2,), size: int = 1) -> Item:
    made = Item(home, participants, 0, size, b"", b"", None)
    made.deadline_s = 1e9
    return made


@dataclass
class Begun:
    """Routes, and what they have begun, in order."""

    size: int = 2
    begun: list[Item] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rules = WindowRules(LIFE_S, first=self.size, least=self.size, most=self.size)
        self.routes = Routes(self._begin, rules)

    def _begin(self, items: list[Item]) -> None:
        self.begun += items
        self.turns.append(len(items))

    async def end(self, *items: Item) -> None:
        for each in items:
            self.routes.leave(each, Ending.DONE)
        await asyncio.sleep(0)


@virtual_time
async def test_what_has_no_room_waits_and_begins_in_order() -> None:
    it = Begun()
    items = [item() for _ in range(5)]
    it.routes.offer(items)
    assert it.begun == items[:2]
    await it.end(items[0])
    assert it.begun == items[:3]
    it.routes.offer([items[0]])
    await it.end(items[1], items[2])
    assert it.begun == items[:5], "what is offered again waits behind the others"
    await it.end(items[3])
    assert it.begun == [*items, items[0]]


@virtual_time
async def test_routes_do_not_hold_each_other_up() -> None:
    it = Begun()
    slow = [item(1, (3,)) for _ in range(9)]
    quick = [item(home, participants) for home, participants in [(1, (2,)), (3, (1,)), (1, (2, 3))]]
    it.routes.offer(slow)
    it.routes.offer(quick)
    assert it.begun == slow[:2] + quick


@virtual_time
async def test_a_large_one_passes_alone_and_what_is_behind_it_waits() -> None:
    it = Begun()
    first, large, last = items = [item(), item(size=16), item()]
    it.routes.offer(items)
    assert it.begun == [first]
    await it.end(first)
    assert it.begun == [first, large]
    await it.end(large)
    assert it.begun == [first, large, last]


@virtual_time
async def test_what_waits_and_leaves_is_never_begun_and_makes_way() -> None:
    it = Begun()
    first, large, last = items = [item(), item(size=16), item()]
    it.routes.offer(items)
    await it.end(large)
    assert it.begun == [first, last]
    await it.end(large)
    await it.end(first, last)
    assert it.begun == [first, last], "leaving again is nothing"


@virtual_time
async def test_what_would_end_too_late_for_its_client_is_passed_over() -> None:
    it = Begun()
    first, second, short, long = items = [item() for _ in range(4)]
    it.routes.offer(items)
    short.deadline_s = 2.0
    await pass_time(1.5)
    await it.end(first)
    assert it.begun == [first, second, long]
    await it.end(short)
    assert it.begun == [first, second, long]


@virtual_time
async def test_a_lone_one_begins_however_little_time_it_has() -> None:
    it = Begun()
    items = [item(size=2), item()]
    it.routes.offer(items)
    items[1].deadline_s = 1.6
    await pass_time(1.5)
    await it.end(items[0])
    assert it.begun == items


@virtual_time
async def test_much_begins_in_turns_and_routes_take_turns() -> None:
    it = Begun(size=3 * TURN_MAX)
    large = [item(size=3 * TURN_MAX), item(2, (3,), size=3 * TURN_MAX)]
    one, other = [item() for _ in range(2 * TURN_MAX)], [item(2, (3,)) for _ in range(9)]
    it.routes.offer([*large, *one, *other])
    it.turns.clear()
    await it.end(*large)
    await pass_time(1)
    assert it.turns == [TURN_MAX, TURN_MAX, 9]
    assert it.begun.index(other[0]) < it.begun.index(one[-1])


@virtual_time
async def test_closed_they_give_back_what_waits_and_begin_nothing() -> None:
    it = Begun()
    items = [item() for _ in range(5)]
    it.routes.offer(items)
    it.routes.leave(items[0], Ending.DONE)
    assert it.routes.close() == items[2:]
    await pass_time(1)
    assert it.begun == items[:2]


@virtual_time
async def test_idle_routes_are_forgotten_beyond_a_bound() -> None:
    it = Begun()
    busy = [item(1, (number,)) for number in range(2, 12)]
    it.routes.offer(busy)
    for number in range(3 * ROUTES_MAX):
        passing = item(2, (number,))
        it.routes.offer([passing])
        await it.end(passing)
        assert it.routes.count <= ROUTES_MAX
    more = [item(1, (number,), size=2) for number in range(2, 12)]
    begun = len(it.begun)
    it.routes.offer(more)
    assert len(it.begun) == begun, "what is under way is not forgotten"


@pytest.mark.parametrize("seed", range(20))
@virtual_time
async def test_never_more_is_under_way_than_the_window_and_all_of_it_begins(seed: int) -> None:
    rng = random.Random(seed)
    it = Begun(size=rng.randint(1, 20))
    offered: list[Item] = []
    ended: set[Item] = set()
    while len(ended) < 300:
        if len(offered) < 300:
            new = [
                item(rng.randint(1, 2), (3,), rng.choice([1, 1, 1, rng.randint(2, 16)]))
                for _ in range(rng.randint(0, 9))
            ]
            offered += new
            it.routes.offer(new)
        under_way = [each for each in it.begun if each not in ended]
        for home in (1, 2):
            sizes = [each.size for each in under_way if each.home == home]
            assert sum(sizes) <= it.size or len(sizes) == 1, f"seed {seed}"
        going = rng.sample(under_way, rng.randint(0, len(under_way)))
        ended |= set(going)
        await it.end(*going)
        await pass_time(rng.random())
    assert len(set(it.begun)) == len(it.begun), f"seed {seed}: each begins once"
