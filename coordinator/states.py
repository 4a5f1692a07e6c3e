"""Where a transaction may stand, what happens to it, and what may follow. Pure.

`two_phase` says what each state means, and decides which of the states that may follow does.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final


class State(IntEnum):
    """Where a transaction stands; the module's docstring says what each means."""

    WAITING = 0
    PREPARING = 1
    INQUIRING = 2
    DECIDING = 3
    POSTING = 4
    FOLLOWING = 5
    DECIDING_UNHEARD = 6
    POSTING_UNHEARD = 7
    ENDED = 8


class Event(IntEnum):
    """What happens to a transaction."""

    BEGIN = 0
    """A new attempt shall begin."""
    VOTE = 1
    """A participant has answered PREPARE."""
    UNREACHED = 2
    """A participant has not: whether it prepared is not known."""
    HOME_ANSWER = 3
    HOME_UNKNOWN = 4
    """The home has not answered: what it did is not known."""
    POSTED = 5
    """A participant has posted, durably."""
    POST_UNKNOWN = 6
    """A participant has not said so."""
    DEADLINE = 7
    """The client waits no longer."""


TRANSITIONS: Final[Mapping[tuple[State, Event], frozenset[State]]] = {
    (State.WAITING, Event.BEGIN): frozenset({State.PREPARING}),
    (State.WAITING, Event.DEADLINE): frozenset({State.ENDED}),
    (State.PREPARING, Event.VOTE): frozenset({State.PREPARING, State.INQUIRING, State.DECIDING}),
    (State.PREPARING, Event.UNREACHED): frozenset({State.PREPARING, State.INQUIRING}),
    (State.PREPARING, Event.DEADLINE): frozenset({State.ENDED}),
    (State.INQUIRING, Event.HOME_ANSWER): frozenset({State.WAITING, State.FOLLOWING, State.ENDED}),
    (State.INQUIRING, Event.HOME_UNKNOWN): frozenset({State.WAITING}),
    (State.INQUIRING, Event.DEADLINE): frozenset({State.ENDED}),
    (State.DECIDING, Event.HOME_ANSWER): frozenset(
        {State.WAITING, State.POSTING, State.FOLLOWING, State.ENDED}
    ),
    (State.DECIDING, Event.HOME_UNKNOWN): frozenset({State.DECIDING}),
    (State.DECIDING, Event.DEADLINE): frozenset({State.DECIDING_UNHEARD}),
    (State.POSTING, Event.POSTED): frozenset({State.POSTING, State.ENDED}),
    (State.POSTING, Event.POST_UNKNOWN): frozenset({State.POSTING}),
    (State.POSTING, Event.DEADLINE): frozenset({State.POSTING_UNHEARD}),
    (State.FOLLOWING, Event.POSTED): frozenset({State.FOLLOWING, State.ENDED}),
    (State.FOLLOWING, Event.POST_UNKNOWN): frozenset({State.FOLLOWING}),
    (State.FOLLOWING, Event.DEADLINE): frozenset({State.ENDED}),
    (State.DECIDING_UNHEARD, Event.HOME_ANSWER): frozenset({State.POSTING_UNHEARD, State.ENDED}),
    (State.DECIDING_UNHEARD, Event.HOME_UNKNOWN): frozenset({State.ENDED}),
    (State.POSTING_UNHEARD, Event.POSTED): frozenset({State.POSTING_UNHEARD, State.ENDED}),
    (State.POSTING_UNHEARD, Event.POST_UNKNOWN): frozenset({State.ENDED}),
    # Answers to questions asked before the client's time was over.
    (State.ENDED, Event.VOTE): frozenset({State.ENDED}),
    (State.ENDED, Event.UNREACHED): frozenset({State.ENDED}),
    (State.ENDED, Event.HOME_ANSWER): frozenset({State.ENDED}),
    (State.ENDED, Event.HOME_UNKNOWN): frozenset({State.ENDED}),
    (State.ENDED, Event.POSTED): frozenset({State.ENDED}),
    (State.ENDED, Event.POST_UNKNOWN): frozenset({State.ENDED}),
}
"""Every legal transition: state and event → the states that may follow."""
