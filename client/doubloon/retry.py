"""The one place that asks again.

Everything that is asked is safe to ask again: questions change nothing, and what changes something
carries its key (a transfer id, an account id, a currency's code, a wanted status). So a fault is
asked again when it is indefinite, or says that a process is away or full; never beyond the
deadline of the whole call, never more often than the policy allows, and after a random pause. After
a definite fault it is asked again only when twice the time is left that the last attempt took.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from doubloon.enums import FaultCode
from doubloon.faults import DefiniteFault, Fault, FaultError

T = TypeVar("T")

TIMEOUT_S: Final = 10.0
"""How long a call may take, all attempts together: a restarted process is back by then."""

_AWAY_OR_FULL: Final = frozenset({FaultCode.UNAVAILABLE, FaultCode.RESOURCE_EXHAUSTED})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to ask again. All times are in seconds."""

    attempts_max: int = 20
    """Attempts in all, ≥ 1. With the pauses below they span about 8 s: a router's restart."""
    attempt_timeout_s: float = 3.0
    """The deadline of one attempt; the rest of the call's own deadline when that is shorter."""
    backoff_first_s: float = 0.02
    """The first pause is random between 0 and this, and each next range is twice as long…"""
    backoff_max_s: float = 1.0
    """… up to this."""


@dataclass(frozen=True, slots=True)
class Timing:
    """What a client takes from the outside world besides the network; tests bring their own."""

    monotonic_s: Callable[[], float] = time.monotonic
    """A clock that never goes back, seconds."""
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)
    """Returns after that many seconds."""
    random: Callable[[], float] = random.random
    """Uniform in [0, 1)."""


def can_be_asked_again(fault: Fault) -> bool:
    """Whether the same question, with the same ids, may be answered otherwise a moment later."""
    return fault.indefinite or fault.code in _AWAY_OR_FULL


class Retrier:
    """Runs attempts until one succeeds, or it is hopeless, or the bounds are reached."""

    def __init__(self, policy: RetryPolicy, timing: Timing) -> None:
        self._policy = policy
        self._timing = timing

    def deadline_s(self, timeout_s: float) -> float:
        """Return the instant, on the clock of `run`, that lies `timeout_s` from now."""
        return self._timing.monotonic_s() + timeout_s

    async def run(
        self,
        attempt: Callable[[float], Awaitable[T]],
        deadline_s: float,
        *,
        has_effect: bool = False,
    ) -> T:
        """Return what the first successful attempt returns.

        Args:
            attempt: makes one attempt within the seconds given; raises FaultError to fail.
            deadline_s: when to stop, on this object's clock.
            has_effect: the attempt may change something. Then a definite fault after an indefinite
                one does not say what became of the earlier attempt, and the earlier one is raised.

        Raises:
            FaultError: the last one, or as `has_effect` says.
        """
        policy = self._policy
        doubt: FaultError | None = None
        last: FaultError = DefiniteFault(
            Fault(FaultCode.DEADLINE_EXCEEDED, "the deadline had passed before the call was made")
        )
        for number in range(policy.attempts_max):
            began_s = self._timing.monotonic_s()
            if began_s >= deadline_s:
                break
            try:
                return await attempt(min(deadline_s - began_s, policy.attempt_timeout_s))
            except FaultError as error:
                last = error
                if error.fault.indefinite:
                    doubt = error
                if not can_be_asked_again(error.fault):
                    break
            range_s = min(policy.backoff_max_s, policy.backoff_first_s * 2.0**number)
            pause_s = range_s * self._timing.random()
            now_s = self._timing.monotonic_s()
            # Cut off by the deadline, an attempt would put doubt in the place of a definite fault.
            needed_s = 0.0 if last.fault.indefinite else 2 * (now_s - began_s)
            if now_s + pause_s + needed_s >= deadline_s:
                break
            await self._timing.sleep(pause_s)
        if has_effect and doubt is not None and doubt is not last:
            raise doubt from last
        raise last
