"""Why a transfer is refused, and what a retry can change: the contract's enums as plain Python.

Pure, and free of protobuf, so that the ledger can decide with it. The numbers are those of the wire
contract (a test compares every member), and a smaller number takes precedence: where several
reasons apply, the smallest is answered.
"""

from enum import IntEnum
from typing import assert_never


class RefusalReason(IntEnum):
    """The reasons in descending precedence; the contract says beside each what it means."""

    BAD_AMOUNT = 1
    SAME_ACCOUNT = 2
    UNKNOWN_CURRENCY = 3
    KEY_REUSED = 4
    SOURCE_UNKNOWN = 5
    DESTINATION_UNKNOWN = 6
    SOURCE_CLOSED = 7
    DESTINATION_CLOSED = 8
    SOURCE_FROZEN = 9
    DESTINATION_FROZEN = 10
    IMPORT_IN_FUTURE = 11
    IMPORT_TOO_OLD = 12
    INSUFFICIENT_FUNDS = 13
    BALANCE_CAP_EXCEEDED = 14


class RetryClass(IntEnum):
    """What a retry of a refused transfer can change."""

    SAME_KEY = 1
    """The refusal leaves no record: the same key may succeed later."""
    NEW_KEY = 2
    """The refusal is recorded and every retry hears it again; a new key may succeed."""
    NEVER = 3
    """It depends on the request alone, or on what can only get worse. It leaves no record."""


def retry_class(reason: RefusalReason) -> RetryClass:
    """Return what a retry can change after a refusal for this reason."""
    match reason:
        case RefusalReason.UNKNOWN_CURRENCY | RefusalReason.IMPORT_IN_FUTURE:
            return RetryClass.SAME_KEY
        case (
            RefusalReason.SOURCE_UNKNOWN
            | RefusalReason.DESTINATION_UNKNOWN
            | RefusalReason.SOURCE_CLOSED
            | RefusalReason.DESTINATION_CLOSED
            | RefusalReason.SOURCE_FROZEN
            | RefusalReason.DESTINATION_FROZEN
            | RefusalReason.INSUFFICIENT_FUNDS
            | RefusalReason.BALANCE_CAP_EXCEEDED
        ):
            return RetryClass.NEW_KEY
        case (
            RefusalReason.BAD_AMOUNT
            | RefusalReason.SAME_ACCOUNT
            | RefusalReason.KEY_REUSED
            | RefusalReason.IMPORT_TOO_OLD
        ):
            return RetryClass.NEVER
        case _:
            assert_never(reason)


def is_recorded(reason: RefusalReason) -> bool:
    """Return whether a refusal for this reason is recorded under the key.

    Exactly what could turn out otherwise later is: every retry must hear the same, and no late
    packet may execute what its sender was told did not happen.
    """
    return retry_class(reason) is RetryClass.NEW_KEY
