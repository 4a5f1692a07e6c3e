"""The one place that asks again: its bounds, its pauses, and what it raises in the end."""

from collections.abc import Sequence

import pytest

import doubloon
from doubloon.faults import fault_error
from doubloon.retry import Retrier, can_be_asked_again
from tests.support.wallet import StandingTime

Code = doubloon.FaultCode
AWAY = doubloon.Fault(Code.UNAVAILABLE, "away", indefinite=True)
LOST = doubloon.Fault(Code.DEADLINE_EXCEEDED, "lost", indefinite=True)
FULL = doubloon.Fault(Code.RESOURCE_EXHAUSTED, "full")
DENIED = doubloon.Fault(Code.PERMISSION_DENIED, "denied")


class Attempts:
    """Fails with each of the faults in turn, then succeeds."""

    def __init__(self, faults: Sequence[doubloon.Fault]) -> None:
        self.faults = list(faults)
        self.timeouts_s: list[float] = []

    async def __call__(self, timeout_s: float) -> str:
        self.timeouts_s.append(timeout_s)
        if self.faults:
            raise fault_error(self.faults.pop(0))
        return "answer"


def retrier(time: StandingTime, **policy: float) -> Retrier:
    return Retrier(doubloon.RetryPolicy(**policy), time.timing())  # type: ignore[arg-type] # attempts_max is an int


@pytest.mark.parametrize(
    ("fault", "again"),
    [
        (AWAY, True),
        (LOST, True),
        (FULL, True),
        (doubloon.Fault(Code.UNAVAILABLE), True),
        (doubloon.Fault(Code.INTERNAL, indefinite=True), True),
        (DENIED, False),
        (doubloon.Fault(Code.INVALID_ARGUMENT), False),
        (doubloon.Fault(Code.FAILED_PRECONDITION), False),
        (doubloon.Fault(Code.NOT_FOUND), False),
        (doubloon.Fault(Code.OUT_OF_RANGE), False),
        (doubloon.Fault(Code.UNIMPLEMENTED), False),
    ],
)
def test_what_is_asked_again(*, fault: doubloon.Fault, again: bool) -> None:
    assert can_be_asked_again(fault) == again


async def test_it_asks_until_there_is_an_answer_with_growing_pauses() -> None:
    time = StandingTime()
    attempts = Attempts([AWAY, FULL, LOST, AWAY])
    policy = retrier(time, backoff_first_s=0.1, backoff_max_s=0.5)
    assert await policy.run(attempts, policy.deadline_s(60)) == "answer"
    assert time.slept_s == pytest.approx([0.05, 0.1, 0.2, 0.25])  # half of 0.1, 0.2, 0.4, 0.5


async def test_each_attempt_has_a_deadline_within_the_calls() -> None:
    time = StandingTime()
    attempts = Attempts([AWAY, AWAY, AWAY])
    policy = retrier(time, attempt_timeout_s=3, backoff_first_s=2, backoff_max_s=2)
    assert await policy.run(attempts, policy.deadline_s(5)) == "answer"
    assert attempts.timeouts_s == pytest.approx([3, 3, 3, 2])


async def test_the_deadline_ends_it() -> None:
    time = StandingTime()
    attempts = Attempts([AWAY] * 100)
    policy = retrier(time, backoff_first_s=1, attempts_max=100)
    with pytest.raises(doubloon.Unavailable):
        await policy.run(attempts, policy.deadline_s(3))
    assert sum(time.slept_s) < 3


@pytest.mark.parametrize(
    ("fault", "timeout_s", "attempts"),
    [
        (FULL, 1.0, 1),  # the pause would leave 0.3 s, and 0.2 s is what the first took
        (FULL, 1.2, 2),
        (LOST, 1.0, 2),  # in doubt already: nothing to lose
    ],
)
async def test_what_is_known_is_not_put_in_doubt_by_an_attempt_without_time(
    fault: doubloon.Fault, timeout_s: float, attempts: int
) -> None:
    time = StandingTime()
    asked = Attempts([fault] * 100)

    async def attempt(timeout_s: float) -> str:
        time.now_s += 0.2
        return await asked(timeout_s)

    policy = retrier(time, backoff_first_s=1, backoff_max_s=1)
    with pytest.raises(doubloon.FaultError):
        await policy.run(attempt, policy.deadline_s(timeout_s))
    assert len(asked.timeouts_s) == attempts


async def test_the_number_of_attempts_ends_it() -> None:
    attempts = Attempts([AWAY] * 100)
    policy = retrier(StandingTime(), attempts_max=4)
    with pytest.raises(doubloon.Unavailable):
        await policy.run(attempts, policy.deadline_s(1_000))
    assert len(attempts.timeouts_s) == 4


async def test_past_its_deadline_nothing_is_asked() -> None:
    attempts = Attempts([])
    policy = retrier(StandingTime())
    with pytest.raises(doubloon.DefiniteFault) as caught:
        await policy.run(attempts, policy.deadline_s(0))
    assert caught.value.fault.code is Code.DEADLINE_EXCEEDED
    assert not attempts.timeouts_s


@pytest.mark.parametrize(
    ("faults", "has_effect", "raised"),
    [
        ([DENIED], True, doubloon.PermissionDenied),
        ([FULL, DENIED], True, doubloon.PermissionDenied),
        ([LOST, DENIED], True, doubloon.DeadlineExceeded),  # the first may have happened
        ([LOST, FULL, DENIED], True, doubloon.DeadlineExceeded),
        ([LOST, DENIED], False, doubloon.PermissionDenied),  # a question has no effect
    ],
)
async def test_a_definite_fault_after_a_lost_answer_leaves_doubt(
    *, faults: list[doubloon.Fault], has_effect: bool, raised: type[doubloon.FaultError]
) -> None:
    policy = retrier(StandingTime())
    with pytest.raises(doubloon.FaultError) as caught:
        await policy.run(Attempts(faults), policy.deadline_s(60), has_effect=has_effect)
    assert type(caught.value) is raised
