"""A batch of independent items, asked for until each has its own final result.

Only the items that can still change are asked for again. What makes this more than a loop is doubt:
when an answer was lost, the item may have happened. From then on only an answer that speaks for the
item's *key* settles it (it happened; it is refused on record; it could never happen). A definite
fault, or a refusal that left no record, speaks for the latest attempt alone: after it the earlier
one may still take effect, so the item stays in doubt, and is reported so.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from doubloon.faults import Fault, FaultError, fault_error
from doubloon.retry import Retrier, can_be_asked_again


class _HasFault(Protocol):
    @property
    def fault(self) -> Fault | None: ...


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT", bound=_HasFault)


@dataclass(frozen=True, slots=True)
class Batches(Generic[ItemT, ResultT]):
    """How one kind of batch is asked for."""

    retrier: Retrier
    ask: Callable[[Sequence[ItemT], float], Awaitable[Sequence[ResultT]]]
    """Makes one attempt within the seconds given: one result per item, in order, or FaultError."""
    faulted: Callable[[ItemT, Fault], ResultT]
    """Makes the result of an item that ended in a fault."""
    speaks_for_key: Callable[[ResultT], bool]
    """Whether a result without a fault tells what became of every attempt with that key."""

    async def settle(
        self,
        items: Sequence[ItemT],
        deadline_s: float,
        doubts: Mapping[int, Fault] | None = None,
    ) -> list[ResultT]:
        """Return one result per item, in order; what could not be settled is a fault in its result.

        Args:
            items: what to ask for.
            deadline_s: when to stop, on the retrier's clock.
            doubts: items (by index) that were asked for before, and how that answer was lost.

        Raises:
            FaultError: a definite one, when nothing of the batch can have happened.
        """
        if not items:
            return []
        asking = _Asking(self, items, doubts or {})
        try:
            await self.retrier.run(asking.attempt, deadline_s)
        except FaultError as error:
            if asking.nothing_happened and not error.fault.indefinite:
                raise
            asking.give_up(error.fault)
        return asking.results()


class _Asking(Generic[ItemT, ResultT]):
    """The state of one batch: what is settled, what is open, what is in doubt."""

    def __init__(
        self, kind: Batches[ItemT, ResultT], items: Sequence[ItemT], doubts: Mapping[int, Fault]
    ) -> None:
        self._kind = kind
        self._items = items
        self._settled: dict[int, ResultT] = {}
        self._open: Sequence[int] = range(len(items))
        self._doubts = dict(doubts)
        self._latest: dict[int, Fault] = {}
        self._all: Sequence[ResultT] | None = None

    @property
    def nothing_happened(self) -> bool:
        return not self._settled and not self._doubts

    def results(self) -> list[ResultT]:
        if self._all is not None:
            return list(self._all)
        return [self._settled[index] for index in range(len(self._items))]

    async def attempt(self, timeout_s: float) -> None:
        """Ask for what is open; raise a fault that can be asked again while anything stays open."""
        whole = len(self._open) == len(self._items)
        asked = self._items if whole else [self._items[index] for index in self._open]
        try:
            results = await self._kind.ask(asked, timeout_s)
        except FaultError as error:
            same = dict.fromkeys(self._open, error.fault)
            self._latest.update(same)
            if error.fault.indefinite:
                self._doubts.update(same)
            raise
        if whole and not self._doubts and all(result.fault is None for result in results):
            self._all = results  # as nearly always: nothing to look at one by one
            return
        self._take(results)
        if self._open:
            raise fault_error(self._latest[self._open[-1]])

    def give_up(self, fault: Fault) -> None:
        """Settle what is open: in doubt, or with the latest fault it met."""
        for index in self._open:
            final = self._doubts.get(index) or self._latest.get(index) or fault
            self._settle_with_fault(index, final)
        self._open = ()

    def _take(self, results: Sequence[ResultT]) -> None:
        still_open = []
        for index, result in zip(self._open, results, strict=True):
            fault = result.fault
            doubt = self._doubts.get(index)
            if fault is None:
                if doubt is None or self._kind.speaks_for_key(result):
                    self._settled[index] = result
                    continue
                self._latest[index] = doubt  # no record was left: ask until there is one
                still_open.append(index)
            elif can_be_asked_again(fault):
                self._latest[index] = fault
                if fault.indefinite:
                    self._doubts[index] = fault
                still_open.append(index)
            else:
                self._settle_with_fault(index, doubt or fault)
        self._open = still_open

    def _settle_with_fault(self, index: int, fault: Fault) -> None:
        numbered = replace(fault, index=index)
        self._settled[index] = self._kind.faulted(self._items[index], numbered)
