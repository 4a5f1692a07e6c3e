"""A batch is asked for until every item's fate is known, and no item's answer is a guess."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

import doubloon
from doubloon.batches import Batches
from doubloon.faults import fault_error
from doubloon.retry import Retrier
from tests.support.wallet import StandingTime

Code = doubloon.FaultCode
LOST = doubloon.Fault(Code.UNAVAILABLE, "lost", indefinite=True)
FULL = doubloon.Fault(Code.RESOURCE_EXHAUSTED, "full")
DENIED = doubloon.Fault(Code.PERMISSION_DENIED, "denied")


@dataclass(frozen=True)
class Answer:
    said: str
    fault: doubloon.Fault | None = None


DONE = Answer("done")
NO_RECORD = Answer("refused, and no record left")


def asking(
    ask: Callable[[Sequence[int], float], Sequence[Answer]], attempts_max: int = 5
) -> Batches[int, Answer]:
    async def ask_async(items: Sequence[int], timeout_s: float) -> Sequence[Answer]:
        return ask(items, timeout_s)

    policy = doubloon.RetryPolicy(attempts_max=attempts_max)
    return Batches(
        Retrier(policy, StandingTime().timing()),
        ask_async,
        lambda _, fault: Answer("fault", fault),
        lambda result: result != NO_RECORD,
    )


def scripted(
    *attempts: Sequence[Answer] | doubloon.Fault,
) -> tuple[Batches[int, Answer], list[list[int]]]:
    """Each attempt in turn: the answers to what is asked, or the fault of the whole call."""
    todo, asked = list(attempts), []

    def ask(items: Sequence[int], _timeout_s: float) -> Sequence[Answer]:
        asked.append(list(items))
        attempt = todo.pop(0) if len(todo) > 1 else todo[0]
        if isinstance(attempt, doubloon.Fault):
            raise fault_error(attempt)
        return attempt

    return asking(ask), asked


def faulted(fault: doubloon.Fault, index: int) -> Answer:
    numbered = doubloon.Fault(fault.code, fault.message, fault.field, fault.indefinite, index)
    return Answer("fault", numbered)


async def test_only_what_is_open_is_asked_for_again() -> None:
    batches, asked = scripted(
        [DONE, Answer("", LOST), Answer("", DENIED), Answer("", FULL)], [DONE, DONE]
    )
    results = await batches.settle([10, 11, 12, 13], 2_000)
    assert results == [DONE, DONE, faulted(DENIED, 2), DONE]
    assert asked == [[10, 11, 12, 13], [11, 13]]


async def test_no_items_ask_for_nothing() -> None:
    batches, asked = scripted(DENIED)
    assert await batches.settle([], 2_000) == []
    assert asked == []


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        # An item whose answer was lost stays in doubt until an answer speaks for its key.
        ([[Answer("", LOST)], [DONE]], DONE),
        ([[Answer("", LOST)], [NO_RECORD], [DONE]], DONE),
        ([[Answer("", LOST)], [NO_RECORD]], faulted(LOST, 0)),
        ([[Answer("", LOST)], [Answer("", DENIED)]], faulted(LOST, 0)),
        ([[Answer("", LOST)], DENIED], faulted(LOST, 0)),
        ([LOST, [NO_RECORD]], faulted(LOST, 0)),
        ([LOST, [Answer("", FULL)]], faulted(LOST, 0)),
        ([LOST], faulted(LOST, 0)),
        # Without doubt the same answers are final.
        ([[NO_RECORD]], NO_RECORD),
        ([FULL, [NO_RECORD]], NO_RECORD),
        ([[Answer("", DENIED)]], faulted(DENIED, 0)),
        ([[Answer("", FULL)]], faulted(FULL, 0)),
    ],
)
async def test_doubt(attempts: list[Sequence[Answer] | doubloon.Fault], expected: Answer) -> None:
    # The second item is settled at the first chance, so that no call raises for the first one.
    def ask(items: Sequence[int], _timeout_s: float) -> Sequence[Answer]:
        attempt = attempts.pop(0) if len(attempts) > 1 else attempts[0]
        if isinstance(attempt, doubloon.Fault):
            raise fault_error(attempt)
        return [*attempt, DONE][: len(items)]

    results = await asking(ask).settle([0, 1], 2_000)
    assert results[0] == expected


@pytest.mark.parametrize("fault", [DENIED, FULL])
async def test_it_raises_when_nothing_happened(fault: doubloon.Fault) -> None:
    batches, _ = scripted(fault)
    with pytest.raises(doubloon.DefiniteFault) as caught:
        await batches.settle([1, 2], 2_000)
    assert caught.value.fault.code is fault.code


async def test_earlier_doubts_count() -> None:
    batches, _ = scripted([NO_RECORD, NO_RECORD], [NO_RECORD])
    results = await batches.settle([1, 2], 2_000, {1: LOST})
    assert results == [NO_RECORD, faulted(LOST, 1)]


class Ledger:
    """Executes each key at most once, at any time after it was asked, over a line that loses."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.records: dict[int, Answer] = {}
        self.late: list[int] = []

    def ask(self, items: Sequence[int], _timeout_s: float) -> Sequence[Answer]:
        for item in self.late:  # what was on its way arrives, whatever was said since
            if self.rng.random() < 0.5:
                self.records.setdefault(item, DONE)
        match self.rng.randrange(5):
            case 0:
                raise fault_error(FULL)
            case 1:
                self.late.extend(items)
                raise fault_error(LOST)
        return [self._one(item) for item in items]

    def _one(self, item: int) -> Answer:
        match self.rng.randrange(6):
            case 0:
                return Answer("", FULL)
            case 1:
                self.late.append(item)
                return Answer("", LOST)
            case 2:
                return NO_RECORD
            case 3 if item not in self.records:
                self.records[item] = Answer("refused on record")
        return self.records.setdefault(item, DONE)


async def test_a_definite_answer_is_never_contradicted_later(rng: random.Random) -> None:
    for _ in range(500):
        ledger = Ledger(rng)
        items = list(range(rng.randrange(1, 6)))
        try:
            results = await asking(ledger.ask).settle(items, 2_000)
        except doubloon.DefiniteFault:
            assert not ledger.records
            assert not ledger.late
            continue
        for item in ledger.late:
            ledger.records.setdefault(item, DONE)
        for item, result in zip(items, results, strict=True):
            if result.fault is not None and result.fault.indefinite:
                continue
            happened = result == DONE
            assert happened == (ledger.records.get(item) == DONE), (item, result)
