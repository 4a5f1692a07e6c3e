"""The contract's enumerations, as Python spells them; numbers are the wire's (a test compares)."""

from enum import IntEnum
from typing import TypeVar

_EnumT = TypeVar("_EnumT", bound=IntEnum)


def member(kind: type[_EnumT], number: int) -> _EnumT:
    """Return the member of that number; UNSPECIFIED for one that a newer cluster has added."""
    try:
        return kind(number)
    except ValueError:
        return kind(0)


class AccountKind(IntEnum):
    """What an account is for, fixed when it is opened."""

    UNSPECIFIED = 0
    """Absent, or a kind that this version of the SDK does not know."""
    PLAYER = 1
    """A player's wallet: never goes below 0."""
    SYSTEM = 2
    """The studio's own account: may have a floor below 0, and so create money."""


class AccountStatus(IntEnum):
    """Whether an account takes part in transfers."""

    UNSPECIFIED = 0
    """Absent, or a status that this version of the SDK does not know."""
    ACTIVE = 1
    """Sends and receives."""
    FROZEN = 2
    """Neither sends nor receives until it is unfrozen."""
    CLOSED = 3
    """Ended for ever; its history stays readable."""


class TransferType(IntEnum):
    """What a transfer is for. Doubloon stores and shows it; no rule depends on it."""

    UNSPECIFIED = 0
    """Absent, or a type that this version of the SDK does not know."""
    TRANSFER = 1
    """Between two players, or anything without a better word."""
    PURCHASE = 2
    """A player buys from the game."""
    SALE = 3
    """A player sells to another player or to the game."""
    REWARD = 4
    """The game gives: a login, a quest, a prize."""
    FEE = 5
    """The game takes a share."""
    REFUND = 6
    """An earlier purchase is paid back."""
    ADJUSTMENT = 7
    """A correction by support."""


class TransferStatus(IntEnum):
    """How a transfer ended."""

    UNSPECIFIED = 0
    """Never received."""
    COMPLETED = 1
    """Both accounts show it, durably."""
    COMMITTED_POSTING = 2
    """Decided for ever, durably; one account does not show it yet. Ask again to wait for it."""
    REFUSED = 3
    """A business "no": nothing moved. See `TransferResult.refusal`."""
    FAULT = 4
    """Anything else that went wrong. See `TransferResult.fault`."""


class OpenAccountStatus(IntEnum):
    """How opening one account ended."""

    UNSPECIFIED = 0
    """Never received."""
    OPENED = 1
    """It is open, durably, with these attributes: opened now, or earlier (see `repeat`)."""
    REFUSED = 2
    """It was opened earlier with other attributes (see `differing_field`); nothing changed."""
    FAULT = 3
    """Something else went wrong (see `fault`)."""


class RefusalReason(IntEnum):
    """Why a transfer was refused, in descending precedence: the first that applies is answered."""

    UNSPECIFIED = 0
    """A reason that this version of the SDK does not know."""
    BAD_AMOUNT = 1
    SAME_ACCOUNT = 2
    UNKNOWN_CURRENCY = 3
    KEY_REUSED = 4
    """The key was used before with another body; `Refusal.differing_field` names the difference."""
    SOURCE_UNKNOWN = 5
    DESTINATION_UNKNOWN = 6
    SOURCE_CLOSED = 7
    DESTINATION_CLOSED = 8
    SOURCE_FROZEN = 9
    DESTINATION_FROZEN = 10
    IMPORT_IN_FUTURE = 11
    IMPORT_TOO_OLD = 12
    """The import's time lies more than an hour before the account's latest entry."""
    INSUFFICIENT_FUNDS = 13
    BALANCE_CAP_EXCEEDED = 14


class RetryClass(IntEnum):
    """What a retry of a refused transfer can change."""

    UNSPECIFIED = 0
    """A class that this version of the SDK does not know."""
    SAME_KEY = 1
    """The refusal left no record: the same transfer id may succeed later."""
    NEW_KEY = 2
    """The refusal is recorded under the id: every retry hears it again; a new id may succeed."""
    NEVER = 3
    """It depends on the request alone: no retry can succeed."""


class FaultCode(IntEnum):
    """The kinds of fault; each has the meaning of the gRPC status of that name."""

    UNSPECIFIED = 0
    """A kind that this version of the SDK does not know."""
    INVALID_ARGUMENT = 1
    FAILED_PRECONDITION = 2
    UNAVAILABLE = 3
    DEADLINE_EXCEEDED = 4
    RESOURCE_EXHAUSTED = 5
    UNIMPLEMENTED = 6
    PERMISSION_DENIED = 7
    NOT_FOUND = 8
    OUT_OF_RANGE = 9
    INTERNAL = 10
    UNAUTHENTICATED = 11
    ALREADY_EXISTS = 12


class EntryOrder(IntEnum):
    """In which order a statement is listed."""

    UNSPECIFIED = 0
    """Same as NEWEST_FIRST."""
    NEWEST_FIRST = 1
    OLDEST_FIRST = 2


class EntryDirection(IntEnum):
    """Which way money went, as the account sees it."""

    UNSPECIFIED = 0
    """A direction that this version of the SDK does not know."""
    INCOMING = 1
    """The account was paid."""
    OUTGOING = 2
    """The account paid."""


class TransactionState(IntEnum):
    """Where a transaction stands on a shard."""

    UNSPECIFIED = 0
    """A state that this version of the SDK does not know."""
    PREPARED = 1
    """This participant has reserved what it needs and waits for the decision."""
    COMMITTED = 2
    """This home has decided to commit; some participant may not have posted yet."""


class TransactionFate(IntEnum):
    """How a transaction ended."""

    UNSPECIFIED = 0
    """A fate that this version of the SDK does not know."""
    COMMITTED = 1
    """It happened, and every participant has posted it."""
    ABORTED = 2
    """It did not happen."""
