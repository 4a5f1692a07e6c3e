"""Deadlines to the microsecond: nothing begins at the deadline, and nothing is given up before."""

import pytest

from cluster.packed import Fate, Vote
from tests.support.crossing import (
    ANN,
    BOB,
    COMMITTED,
    NOTHING,
    OTHER,
    YES,
    Attempt,
    CrossingRig,
    Move,
    two_players,
)


def at_distance(left_us: int, move: Move) -> tuple[CrossingRig, Attempt]:
    """A shard, and a transaction whose deadline is so far away."""
    rig = two_players()
    return rig, Attempt(3, rig.stamp_us + left_us, (move,), 3)


@pytest.mark.parametrize(("left_us", "vote"), [(1, YES[0]), (0, Vote.LATE), (-1, Vote.LATE)])
def test_a_participant_prepares_up_to_the_deadline(left_us: int, vote: int) -> None:
    rig, it = at_distance(left_us, Move(OTHER, BOB, 40))
    assert rig.prepare(it)[0] == vote


@pytest.mark.parametrize(("left_us", "said"), [(1, COMMITTED), (0, NOTHING), (-1, NOTHING)])
def test_a_home_commits_up_to_the_deadline(left_us: int, said: tuple[int, int]) -> None:
    rig, it = at_distance(left_us, Move(ANN, OTHER, 40))
    assert rig.commit_home(it)[:2] == said


@pytest.mark.parametrize(
    ("left_us", "fate"), [(1, Fate.UNDECIDED), (0, Fate.ABORTED), (-1, Fate.ABORTED)]
)
def test_a_home_gives_up_at_the_deadline(left_us: int, fate: Fate) -> None:
    """From the instant on at which it would not commit any more, and not before."""
    rig, it = at_distance(left_us, Move(ANN, OTHER, 40))
    assert rig.resolve(it)[0] == fate
    decided = rig.commit_home(it)[:2] == COMMITTED
    assert decided == (fate is Fate.UNDECIDED)
