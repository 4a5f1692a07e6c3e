"""When attempts begin: at once while their route has room, else in order, as others end.

A *route* is a home with its participants. Each has a window of its own (see `window`), so that a
shard that is slow or away holds up only what concerns it. What waits has no id, no deadline at its
home and no place in any lane: it costs the shards nothing, and its client can be told for certain
that nothing of it has happened.

Nothing here has a task. What ends wakes its route, and in the loop's next turn as much begins as
there is room for, in bounded turns, the routes taking turns.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from coordinator.window import Ending, Route, WindowRules

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from coordinator.transactions import Item

# Transactions for which something is done in one turn of the loop: some 4 ms of it.
TURN_MAX: Final = 1_024
# All pairs of 32 shards. Beyond it windows of idle routes are forgotten, and learned again.
ROUTES_MAX: Final = 1_024

_NOT_BEGUN: Final = -1.0


class Routes:
    """All routes.

    Args:
        begin: begins an attempt of each of these, which have room.
        rules: of every window.
    """

    def __init__(self, begin: Callable[[list[Item]], None], rules: WindowRules) -> None:
        self._begin = begin
        self._rules = rules
        self._routes: dict[tuple[int, tuple[int, ...]], Route] = {}
        self._drop_at = ROUTES_MAX
        # Where something waits and something has ended since.
        self._woken: OrderedDict[Route, None] = OrderedDict()
        self._turn: asyncio.Handle | None = None
        # Known once something was offered. To ask for it costs a system call (CPython 3.11).
        self._loop: asyncio.AbstractEventLoop | None = None

    def offer(self, items: Iterable[Item]) -> None:
        """Begin an attempt of each as soon as there is room.

        Args:
            items: neither waiting nor under way.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        now_s = self._loop.time()
        routes = self._routes
        ready = []
        for item in items:
            assert item.route is None, "it neither waits nor is under way"
            key = item.home, item.participants
            route = routes.get(key)
            if route is None:
                route = self._add(key)
            item.route = route
            size, window = item.size, route.window
            if route.waiting or not window.has_room(size):
                route.waiting[item] = None
            else:
                window.under_way += size
                item.began_s = now_s
                ready.append(item)
        if ready:
            self._begin(ready)

    def leave(self, item: Item, ending: Ending) -> None:
        """An item's attempt has ended, or the item waits no longer; else nothing happens."""
        route = item.route
        if route is None:
            return
        item.route = None
        began_s, waiting = item.began_s, route.waiting
        if began_s == _NOT_BEGUN:
            del waiting[item]
        else:
            item.began_s = _NOT_BEGUN
            assert self._loop is not None, "it was offered"
            now_s = self._loop.time()
            route.window.end(item.size, began_s, now_s, ending, len(waiting))
        # Also when the queue's head, for which there was no room, has gone.
        if waiting:
            self._wake(route)

    @property
    def count(self) -> int:
        """How many routes are known."""
        return len(self._routes)

    def close(self) -> list[Item]:
        """Begin nothing more of what waits; return it."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        self._woken.clear()
        return [item for route in self._routes.values() for item in route.waiting]

    def _wake(self, route: Route) -> None:
        self._woken[route] = None
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._begin_waiting)

    def _begin_waiting(self) -> None:
        """Begin what there is room for, at most so much in one turn."""
        self._turn = None
        ready: list[Item] = []
        left = TURN_MAX
        while self._woken and left:
            route, _ = self._woken.popitem(last=False)
            left -= self._take(route, left, ready)
        if self._woken:
            self._turn = asyncio.get_running_loop().call_soon(self._begin_waiting)
        if ready:
            self._begin(ready)

    def _take(self, route: Route, most: int, ready: list[Item]) -> int:
        """Take what has room from a route's queue into `ready`; return how many were looked at."""
        now_s = asyncio.get_running_loop().time()
        window, waiting = route.window, route.waiting
        for looked_at in range(most):
            item = next(iter(waiting), None)
            if item is None or not window.has_room(item.size):
                return looked_at
            del waiting[item]
            if window.under_way and now_s + window.took_s > item.deadline_s:
                # It would end too late for its client, and take room from what would not. The
                # client hears so when its time is over: sooner, it would only be back sooner.
                item.route = None
                continue
            window.under_way += item.size
            item.began_s = now_s
            ready.append(item)
        if waiting:
            self._woken[route] = None
        return most

    def _add(self, key: tuple[int, tuple[int, ...]]) -> Route:
        if len(self._routes) >= self._drop_at:
            for idle in [key for key, each in self._routes.items() if each.is_idle]:
                del self._routes[idle]
            # So that looking through them stays cheap beside adding them.
            self._drop_at = max(ROUTES_MAX, 2 * len(self._routes))
        route = self._routes[key] = Route(self._rules)
        return route
