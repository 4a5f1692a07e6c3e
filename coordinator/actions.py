"""What a transaction calls for: actions for the shards, and results for the client. Pure data.

An action is never changed once it is made. They are not frozen because making a frozen one takes
three times as long, and every transaction makes several.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from cluster.packed import GROUP_RESULT


@dataclass(slots=True, unsafe_hash=True)
class Prepare:
    """Send PREPARE of this attempt to every participant, in any order."""


@dataclass(slots=True, unsafe_hash=True)
class CommitHome:
    """Send COMMIT with this vote to the home. Never with two different votes in one attempt.

    Attributes:
        vote: packed, 8 bytes.
    """

    vote: bytes


@dataclass(slots=True, unsafe_hash=True)
class CommitPrepared:
    """Send COMMIT of this decision to these participants. Only ever follows the home's answer.

    Attributes:
        decision: packed, 24 bytes: the transaction that committed, which may be another attempt's.
        shards: the participants that have not said yet that they posted it.
    """

    decision: bytes
    shards: tuple[int, ...]


@dataclass(slots=True, unsafe_hash=True)
class AbortPrepared:
    """Send ABORT of the attempt that has just ended to these participants; nobody waits for it.

    After this, COMMIT for that attempt is never sent to its home.

    Attributes:
        transaction: packed, 24 bytes: id and deadline.
        shards: the participants that may hold a reservation for it.
    """

    transaction: bytes
    shards: tuple[int, ...]


@dataclass(slots=True, unsafe_hash=True)
class Finish:
    """Tell the home, any time, that all participants have posted this attempt."""


@dataclass(slots=True, unsafe_hash=True)
class Answer:
    """Tell the client. Exactly once for each transaction; it need not wait for other actions.

    Attributes:
        result: packed, 24 bytes.
    """

    result: bytes


@dataclass(slots=True, unsafe_hash=True)
class Retry:
    """Begin another attempt after a pause."""


Action = Prepare | CommitHome | CommitPrepared | AbortPrepared | Finish | Answer | Retry
Actions = tuple[Action, ...]


class Status(IntEnum):
    """`doubloon.v1.TransferStatus`; a test compares them."""

    COMPLETED = 1
    COMMITTED_POSTING = 2
    REFUSED = 3
    FAULT = 4


class FaultKind(IntEnum):
    """Those of `doubloon.v1.FaultCode` that a transaction may end in; a test compares them."""

    UNAVAILABLE = 3
    DEADLINE_EXCEEDED = 4
    INTERNAL = 10


def fault(code: FaultKind, *, indefinite: bool) -> bytes:
    """Return the packed result of a transaction at fault."""
    return GROUP_RESULT.pack(Status.FAULT, code, 0, 0, 0, indefinite, 0, 0)


NOT_IN_TIME: Final = fault(FaultKind.UNAVAILABLE, indefinite=False)
"""Nothing of it has happened, and nothing will."""
NOT_KNOWN_IN_TIME: Final = fault(FaultKind.DEADLINE_EXCEEDED, indefinite=True)
NOT_UNDERSTOOD: Final = fault(FaultKind.INTERNAL, indefinite=True)
"""A shard's answer broke the protocol."""
