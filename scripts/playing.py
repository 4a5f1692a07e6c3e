"""Sending many transfers in order through the SDK, and counting what became of them."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from doubloon import FaultCode, FaultError, RefusalReason, Transfer, TransferResult

SAMPLES_MAX = 10
"""How many refusals and faults are kept as examples: what fits a screen."""

Send = Callable[[Sequence[Transfer]], Awaitable[Sequence[TransferResult]]]
"""Makes one batch: a result for each transfer, in order, or FaultError."""


@dataclass
class Tally:
    """What became of transfers.

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
    samples: list[tuple[Transfer, str]] = field(default_factory=list)
    stopped: str = ""

    @property
    def sent(self) -> int:
        """How many have been answered, whatever the answer."""
        return self.completed + self.repeats + self.refused.total() + self.faulted.total()

    def include(self, other: "Tally") -> None:
        """Add all that another one has counted."""
        self.completed += other.completed
        self.repeats += other.repeats
        self.refused += other.refused
        self.faulted += other.faulted
        self.samples = (self.samples + other.samples)[:SAMPLES_MAX]
        self.stopped = self.stopped or other.stopped

    def add(self, transfer: Transfer, result: TransferResult) -> None:
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
            self.samples.append((transfer, why))
        if result.repeat:
            self.repeats += 1
        elif result.refusal is not None:
            self.refused[result.refusal.reason] += 1
        elif result.fault is None:
            self.completed += 1


async def play(
    send: Send,
    batches: Iterable[Sequence[Transfer]],
    tally: Tally,
    on_batch: Callable[[int], None] = lambda _count: None,
) -> None:
    """Send batches one after the other, counting as they are answered.

    Stops after a batch in which anything is in doubt: what follows may depend on it. Sending
    everything again later goes on from there, since each transfer's id stays the same. A definite
    fault of one transfer stops nothing.
    """
    for batch in batches:
        try:
            results = await send(batch)
        except FaultError as error:
            tally.stopped = str(error)
            return
        for transfer, result in zip(batch, results, strict=True):
            tally.add(transfer, result)
            if result.fault is not None and result.fault.indefinite:
                tally.stopped = f"{result.fault.code.name}: {result.fault.message}"
        on_batch(len(batch))
        if tally.stopped:
            return
