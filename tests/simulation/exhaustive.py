"""Every single fault: one transfer over two shards, one group over three, and one thing goes wrong.

A first run without faults tells how many events and messages there are. Then each event is followed
by a crash of each process in turn, and each message is lost, arrives twice, or arrives when its
transaction's deadline is over. And since a late COMMIT meets a home that has promised not to commit
any more, that one comes late and twice, with a crash of the home at each event that sets its clock
back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.simulation.clients import LAZY_US, PROMPT_US
from tests.simulation.scenario import RIGHT, Parts, Schedule, Setting, account_id
from tests.simulation.shards import Shape
from tests.simulation.world import NO_FAULTS, NO_PLAN, SECOND, Plan, Violation

if TYPE_CHECKING:
    from collections.abc import Iterator

SET_BACK_US: Final = 4 * SECOND


@dataclass(frozen=True)
class Case:
    """What the one client wants, and in which surroundings.

    Attributes:
        shards: how many.
        transfers: each from the bank or player of a shard to that of another; one = no group.
        resend: see `Coordinator`: always or never.
        pauses_us: see `Clients`.
    """

    shards: int
    transfers: tuple[tuple[int, int, int], ...]
    resend: float
    pauses_us: tuple[int, int]

    def schedule(self, plan: Plan, parts: Parts) -> Schedule:
        """It, with a plan."""
        shape = Shape(checkpoint=0.1)
        setting = Setting(
            self.shards, 2, 1, NO_FAULTS, 30 * SECOND, shape, self.resend, self.pauses_us
        )
        schedule = Schedule(1, setting, plan, parts)
        if len(self.transfers) == 1:
            intent = schedule.transfer("the transfer", *self.transfers[0])
        else:
            intent = schedule.group("the group", *self.transfers)
        schedule.clients.want(intent, 1_000)
        return schedule


# Between accounts that are never refused anything.
_GROUP: Final = (
    (account_id(1, 0), account_id(2, 0), 7),
    (account_id(2, 0), account_id(3, 0), 5),
    (account_id(3, 0), account_id(1, 0), 3),
)

CASES: Final = {
    f"{what}, {calls}, {clients}": Case(shards, transfers, resend, pauses_us)
    for what, shards, transfers in (("transfer", 2, _GROUP[:1]), ("group", 3, _GROUP))
    for calls, resend in (("calls sent again", 1.0), ("calls given up", 0.0))
    for clients, pauses_us in (("client asks again", PROMPT_US), ("client is lazy", LAZY_US))
}


def plans(case: Case) -> Iterator[Plan]:
    """Every single fault, and late COMMITs to a home that crashed."""
    right = case.schedule(NO_PLAN, RIGHT)
    outcome = right.play()
    assert outcome.committed, "without faults it succeeds"
    for event in range(1, outcome.events + 1):
        for process in right.world.processes:
            yield Plan({event: process})
    for number in range(1, outcome.messages + 1):
        some = frozenset({number})
        yield Plan({}, lost=some)
        yield Plan({}, doubled=some)
        yield Plan({}, late=some)
    yield from overdue_plans(case)


def overdue_plans(case: Case) -> Iterator[Plan]:
    """COMMIT to the home is late, and comes twice; the home crashes before, between or after."""
    right = case.schedule(NO_PLAN, RIGHT)
    right.play()
    for number, label in enumerate(right.world.sent, 1):
        if "commit home" not in label or label.count(":") > 1:
            continue  # another message, or the answer to this one
        some = frozenset({number})
        late = case.schedule(Plan({}, doubled=some, late=some), RIGHT)
        for event in range(1, late.play().events + 1):
            yield Plan({event: "shard 1"}, doubled=some, late=some, set_back_us=SET_BACK_US)


def run(case: Case, plan: Plan, parts: Parts = RIGHT) -> None:
    """Plays a case with a plan.

    Raises:
        Violation: naming the plan.
    """
    try:
        case.schedule(plan, parts).play()
    except AssertionError as error:
        raise Violation(f"{error}, with {plan}") from error
