"""Sending many transfers and groups in order through the SDK, and counting what became of them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain

from doubloon import (
    AsyncClient,
    FaultCode,
    FaultError,
    Group,
    GroupResult,
    RefusalReason,
    Transfer,
    TransferResult,
)
from scripts.schedule import Item, ItemT

SAMPLES_MAX = 10
"""How many refusals and faults are kept as examples: what fits a screen."""

GROUPS_MAX = 1_024
"""The wire contract's limit of groups in one call."""

Result = TransferResult | GroupResult

Send = Callable[[Sequence[ItemT]], Awaitable[Sequence[Result]]]
"""Makes one batch: a result for each item, in order, or FaultError."""


@dataclass
class Tally:
    """What became of transfers and groups.

    Attributes:
        completed: for the first time.
        repeats: had their outcome from earlier, completed or refused.
        refused: by reason, for the first time.
        faulted: by code.
        samples: the first few that were refused or faulted now, each with why.
        stopped: why the rest was not sent; "" when all was.
    """

    completed: int = 0
    repeats: int = 0
    refused: Counter[RefusalReason] = field(default_factory=Counter)
    faulted: Counter[FaultCode] = field(default_factory=Counter)
    samples: list[tuple[Item, str]] = field(default_factory=list)
    stopped: str = ""

    @property
    def sent(self) -> int:
        """How many have been answered, whatever the answer."""
        return self.completed + self.repeats + self.refused.total() + self.faulted.total()

    def add(self, item: Item, result: Result) -> None:
        """Count one."""
        why = ""
        if result.fault is not None:
            self.faulted[result.fault.code] += 1
            why = f"{result.fault.code.name} {result.fault.field} {result.fault.message}"
        elif result.refusal is not None:
            why = result.refusal.reason.name
            if result.refusal.differing_field:
                why += f" ({result.refusal.differing_field} differs)"
        if why and not result.repeat and len(self.samples) < SAMPLES_MAX:
            self.samples.append((item, why))
        if result.repeat:
            self.repeats += 1
        elif result.refusal is not None:
            self.refused[result.refusal.reason] += 1
        elif result.fault is None:
            self.completed += 1


async def make(wallet: AsyncClient, batch: Sequence[Item]) -> list[Result]:
    """Make a batch of transfers and groups, all at once; one result for each, in order.

    Raises:
        FaultError: one of its calls failed whole; what became of the others is not told.
    """
    singles = [item for item in batch if isinstance(item, Transfer)]
    groups = [item for item in batch if isinstance(item, Group)]
    of_groups = asyncio.gather(
        *(
            wallet.transfer_group_batch(groups[start : start + GROUPS_MAX])
            for start in range(0, len(groups), GROUPS_MAX)
        )
    )
    of_singles, grouped = await asyncio.gather(wallet.transfer_batch(singles), of_groups)
    single, group = iter(of_singles), chain.from_iterable(grouped)
    return [next(group) if isinstance(item, Group) else next(single) for item in batch]


async def play(
    send: Send[ItemT],
    batches: Iterable[Sequence[ItemT]],
    tally: Tally,
    on_batch: Callable[[int], None] = lambda _count: None,
) -> None:
    """Send batches one after the other, counting as they are answered.

    Stops after a batch in which anything is in doubt: what follows may depend on it. Sending
    everything again later goes on from there, since each transfer's id stays the same. A definite
    fault of one item stops nothing.
    """
    for batch in batches:
        try:
            results = await send(batch)
        except FaultError as error:
            tally.stopped = str(error)
            return
        for item, result in zip(batch, results, strict=True):
            tally.add(item, result)
            if result.fault is not None and result.fault.indefinite:
                tally.stopped = f"{result.fault.code.name}: {result.fault.message}"
        on_batch(len(batch))
        if tally.stopped:
            return
