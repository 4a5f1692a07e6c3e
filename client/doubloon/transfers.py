"""A transfer, and how it ended.

What a game server makes by the thousand, a transfer and its result, are structs of msgspec, which
are made in a third of the time that a frozen dataclass takes, and which the collector need not look
at: nothing in them leads back to them. Copies that differ: `msgspec.structs.replace`.
"""

from dataclasses import dataclass
from datetime import datetime

from msgspec import Struct, field

from doubloon.enums import RefusalReason, RetryClass, TransferStatus, TransferType
from doubloon.faults import Fault, Refused
from doubloon.ids import new_transfer_id
from doubloon.times import as_datetime


class Transfer(Struct, frozen=True, gc=False):
    """One amount of one currency from a source account to a destination account.

    It is named everywhere by (source, transfer_id). The id is made here, with the transfer, so that
    whoever asks again with the same object cannot pay twice.
    """

    source: int
    """The account that pays, 1 … 2^63 - 1."""
    destination: int
    """The account that is paid, 1 … 2^63 - 1."""
    currency: str
    """A registered currency's code, such as "GOLD"."""
    amount_minor: int
    """Minor units, 1 … 2^63 - 1."""
    type: TransferType = TransferType.TRANSFER
    """What it is for."""
    reference: int = 0
    """The application's own number (an order, a quest, a match), 0 … 2^64 - 1; 0 = none."""
    metadata: bytes = b""
    """The application's own bytes, at most 256."""
    import_time_us: int = 0
    """For operators' imports: when it happened, microseconds. 0 = an ordinary transfer."""
    transfer_id: bytes = field(default_factory=new_transfer_id)
    """16 bytes, unique per source account for ever."""

    @property
    def import_time(self) -> datetime | None:
        """`import_time_us` as an aware datetime; None for an ordinary transfer."""
        return as_datetime(self.import_time_us)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a transfer was refused."""

    reason: RefusalReason
    """The first reason that applies, by precedence."""
    retry_class: RetryClass
    """What a retry can change."""
    differing_field: str = ""
    """With KEY_REUSED: the first field that differs from the recorded one (the wire's name)."""


class TransferResult(Struct, frozen=True, gc=False):
    """The outcome of one transfer."""

    transfer_id: bytes
    """The id it was asked for with: (source, transfer_id) names it from now on."""
    status: TransferStatus
    """How it ended."""
    time_us: int = 0
    """When it was posted at the source (or a recorded refusal was made), microseconds; else 0."""
    source_balance_after_minor: int = 0
    """The source's balance right after it (or after a recorded refusal), minor units; else 0."""
    repeat: bool = False
    """True when this id had this outcome already: nothing happened now."""
    refusal: Refusal | None = None
    """Set exactly when `status` is REFUSED."""
    fault: Fault | None = None
    """Set exactly when `status` is FAULT. Only batches return faults; `transfer()` raises them."""

    @property
    def completed(self) -> bool:
        """Both accounts show it, durably."""
        return self.status is TransferStatus.COMPLETED

    @property
    def committed(self) -> bool:
        """The money has moved, for ever; COMMITTED_POSTING says that one account shows it soon."""
        return self.status in (TransferStatus.COMPLETED, TransferStatus.COMMITTED_POSTING)

    @property
    def refused(self) -> bool:
        """A business "no": nothing moved."""
        return self.status is TransferStatus.REFUSED

    @property
    def time(self) -> datetime | None:
        """`time_us` as an aware datetime; None when there is none."""
        return as_datetime(self.time_us)

    def raise_for_refusal(self) -> "TransferResult":
        """Return itself, unless it was refused.

        Raises:
            TransferRefused: it was.
        """
        if self.refusal is not None:
            raise TransferRefused(self, self.refusal)
        return self


class TransferRefused(Refused):
    """A transfer was refused, as `result` and `refusal` say."""

    def __init__(self, result: TransferResult, refusal: Refusal) -> None:
        super().__init__(result, refusal)
        self.result = result
        self.refusal = refusal

    def __str__(self) -> str:
        differing = self.refusal.differing_field
        return self.refusal.reason.name + (f" ({differing} differs)" if differing else "")


@dataclass(frozen=True, slots=True)
class RecordName:
    """The name of a record: valid for ever, wherever the account moves."""

    log_id: int
    """The log it is in."""
    sequence: int
    """Its place in that log, from 1."""


@dataclass(frozen=True, slots=True)
class RecordedTransfer:
    """A transfer that is on record, found by its name."""

    transfer: Transfer
    """As it was asked for. Of a group: its first, with the group's id."""
    result: TransferResult
    """COMPLETED; or COMMITTED_POSTING until the source's shard knows that every other shard has
    posted it; or REFUSED with a reason that is recorded. `repeat` is true."""
    record: RecordName
    """Where it is recorded."""
