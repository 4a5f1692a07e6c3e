"""The order in which to make many transfers and groups, *items* together.

Pure. Items in flight together are unordered, so who wants an account's transfers to happen in a
given order must wait for each before sending the next. `batches` turns an ordered sequence into
batches that keep that promise and are still large: no account appears twice in one batch, and the
batches are to be sent one after the other. Accounts whose order does not matter (a treasury that
can always pay) are named as *hubs* and may appear as often as they like.
"""

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from doubloon import Group, Transfer

Item = Transfer | Group
"""What is made in one go, and named by one id."""

ItemT = TypeVar("ItemT", bound=Item)

BATCH_TRANSFERS_MAX = 8_192
"""The wire contract's limit for one call."""

WINDOW_TRANSFERS_MAX = 65_536
"""How many transfers are looked at together: bounds memory, and is eight full batches."""

WINDOW_SPAN_US = 3_420_000_000
"""57 minutes: a hub's imports arrive out of order by at most this, and the cluster takes up to an
hour of it. The wider it is, the fewer batches there are."""


def transfers_of(item: Item) -> Sequence[Transfer]:
    """Return an item's transfers, in order."""
    return item.transfers if isinstance(item, Group) else (item,)


def batches(
    items: Iterable[ItemT],
    hubs: Collection[int] = (),
    batch_max: int = BATCH_TRANSFERS_MAX,
    window_max: int = WINDOW_TRANSFERS_MAX,
    window_span_us: int = WINDOW_SPAN_US,
) -> Iterator[list[ItemT]]:
    """Cut an ordered sequence into batches to be sent one after the other.

    Sent so, every account but the hubs sees its transfers in the sequence's order. An item is never
    sent before one that stands `window_max` places or `window_span_us` of import time ahead of it,
    so a hub sees its transfers out of order by no more than that.

    Args:
        items: in the wanted order; imports in order of time, or nearly.
        hubs: account ids whose order does not matter.
        batch_max: the most items in a batch.
        window_max: how many items may be looked at together.
        window_span_us: how much import time, microseconds.

    Yields:
        Batches of 1 … `batch_max`; together every item exactly once.
    """
    waves: _Waves[ItemT] = _Waves(frozenset(hubs))
    # Of the items in the window: the wave of each, and its time.
    window: deque[tuple[int, int]] = deque()
    for item in items:
        time_us = transfers_of(item)[0].import_time_us
        while window and (
            len(window) >= window_max or abs(time_us - window[0][1]) > window_span_us
        ):
            waves.close(window.popleft()[0])
        for wave in waves.take_closed():
            yield from _cut(wave, batch_max)
        window.append((waves.put(item), time_us))
    for wave in waves.take_all():
        yield from _cut(wave, batch_max)


def _cut(wave: list[ItemT], batch_max: int) -> Iterator[list[ItemT]]:
    for start in range(0, len(wave), batch_max):
        yield wave[start : start + batch_max]


class _Waves(Generic[ItemT]):
    """Waves of items, to be sent one after the other.

    An item goes one wave behind the latest earlier one that shares an account with it, and behind
    every wave that is closed.
    """

    def __init__(self, free: frozenset[int]) -> None:
        self._free = free
        self._waves: deque[list[ItemT]] = deque()
        self._first = 0  # the number of the first of them
        self._open_from = 0
        self._next: dict[int, int] = {}  # by account: the first wave that its next item may join

    def put(self, item: ItemT) -> int:
        """Adds an item; returns its wave's number."""
        accounts = {
            account
            for transfer in transfers_of(item)
            for account in (transfer.source, transfer.destination)
        } - self._free
        number = max((self._next.get(account, 0) for account in accounts), default=0)
        number = max(number, self._open_from)
        for account in accounts:
            self._next[account] = number + 1
        while number >= self._first + len(self._waves):
            self._waves.append([])
        self._waves[number - self._first].append(item)
        return number

    def close(self, number: int) -> None:
        """Lets nothing more join this wave or one before it."""
        self._open_from = max(self._open_from, number + 1)

    def take_closed(self) -> Iterator[list[ItemT]]:
        """The waves that are complete, in order."""
        while self._waves and self._first < self._open_from:
            self._first += 1
            yield self._waves.popleft()

    def take_all(self) -> Iterator[list[ItemT]]:
        """All waves that are left, in order."""
        self._open_from = self._first + len(self._waves)
        return self.take_closed()
