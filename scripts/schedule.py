"""The order in which to make many transfers and groups, *items* together.

Pure. Items in flight together are unordered, so who wants an account's transfers to happen in a
given order must wait for each before sending the next. `batches` turns an ordered sequence into
batches that keep that promise and are still large: no account appears twice in one batch, and the
batches are to be sent one after the other. Accounts whose order does not matter (a treasury that
can always pay) are named as *hubs* and may appear as often as they like.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from doubloon import Group, Transfer

Item = Transfer | Group
"""What is made in one go, and named by one id."""

ItemT = TypeVar("ItemT", bound=Item)

BATCH_TRANSFERS_MAX = 8_192
"""The wire contract's limit for one call."""

WINDOW_TRANSFERS_MAX = 65_536
"""How many transfers are looked at together: bounds memory, and is eight full batches."""

WINDOW_SPAN_US = 3_000_000_000
"""Fifty minutes. Inside a window a hub's imports arrive out of order by at most this, and the
cluster takes up to an hour of it."""


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

    Sent so, every account but the hubs sees its transfers in the sequence's order. Batches never
    reach across a window of `window_max` items or of `window_span_us` of import time, so a hub
    sees its transfers out of order by no more than that.

    Args:
        items: in the wanted order; imports in order of time, or nearly.
        hubs: account ids whose order does not matter.
        batch_max: the most items in a batch.
        window_max: the most items in a window.
        window_span_us: the most import time in a window, microseconds.

    Yields:
        Batches of 1 … `batch_max`; together every item exactly once.
    """
    free = frozenset(hubs)
    for window in _windows(items, window_max, window_span_us):
        for wave in _waves(window, free):
            for start in range(0, len(wave), batch_max):
                yield wave[start : start + batch_max]


def _windows(items: Iterable[ItemT], window_max: int, window_span_us: int) -> Iterator[list[ItemT]]:
    """Cut into runs that are short enough, both in number and in import time."""
    window: list[ItemT] = []
    first_us = last_us = 0
    for item in items:
        time_us = transfers_of(item)[0].import_time_us
        low_us, high_us = min(first_us, time_us), max(last_us, time_us)
        if window and (len(window) >= window_max or high_us - low_us > window_span_us):
            yield window
            window = []
        if not window:
            low_us = high_us = time_us
        first_us, last_us = low_us, high_us
        window.append(item)
    if window:
        yield window


def _waves(window: list[ItemT], free: frozenset[int]) -> Iterator[list[ItemT]]:
    """Put each item one wave behind the latest earlier one that shares an account with it."""
    waves: list[list[ItemT]] = []
    next_wave: dict[int, int] = {}
    for item in window:
        accounts = {
            account
            for transfer in transfers_of(item)
            for account in (transfer.source, transfer.destination)
        } - free
        index = max((next_wave.get(account, 0) for account in accounts), default=0)
        for account in accounts:
            next_wave[account] = index + 1
        if index == len(waves):
            waves.append([])
        waves[index].append(item)
    yield from waves
