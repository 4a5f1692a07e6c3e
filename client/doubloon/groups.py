"""A group of transfers that all happen or none do, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from doubloon.enums import TransferStatus
from doubloon.faults import Fault, Refused
from doubloon.ids import new_transfer_id
from doubloon.times import as_datetime
from doubloon.transfers import Refusal, Transfer


@dataclass(frozen=True, slots=True)
class Group:
    """1 … 16 transfers that all happen or none do: the price to the seller, the fee to the house.

    It is named everywhere by (first transfer's source, group_id), its transfers by their index. The
    id is made here, with the group, so that whoever asks again with the same object cannot pay
    twice.
    """

    transfers: Sequence[Transfer]
    """Each account's legs apply in this order. Their own `transfer_id` is not used;
    `import_time_us` must be the same in all."""
    group_id: bytes = field(default_factory=new_transfer_id)
    """16 bytes, unique per first source for ever, and unlike every transfer id of that account."""


@dataclass(frozen=True, slots=True)
class GroupResult:
    """The outcome of one group."""

    group_id: bytes
    """The id it was asked for with: (first source, group_id) names it from now on."""
    status: TransferStatus
    """How it ended, for all its transfers."""
    time_us: int = 0
    """When its first transfer was posted at the source (or a recorded refusal was made),
    microseconds; else 0."""
    source_balance_after_minor: int = 0
    """The first source's balance right after it (or after a recorded refusal), minor units;
    else 0."""
    repeat: bool = False
    """True when this id had this outcome already: nothing happened now."""
    refusal: Refusal | None = None
    """Set exactly when `status` is REFUSED."""
    refused_index: int = 0
    """With REFUSED: the index of the transfer that the reason is about."""
    fault: Fault | None = None
    """Set exactly when `status` is FAULT. `transfer_group()` raises it instead."""

    @property
    def completed(self) -> bool:
        """Every account shows it, durably."""
        return self.status is TransferStatus.COMPLETED

    @property
    def committed(self) -> bool:
        """The money has moved, for ever; COMMITTED_POSTING says that some account shows it soon."""
        return self.status in (TransferStatus.COMPLETED, TransferStatus.COMMITTED_POSTING)

    @property
    def refused(self) -> bool:
        """A business "no": nothing moved."""
        return self.status is TransferStatus.REFUSED

    @property
    def time(self) -> datetime | None:
        """`time_us` as an aware datetime; None when there is none."""
        return as_datetime(self.time_us)

    def raise_for_refusal(self) -> "GroupResult":
        """Return itself, unless it was refused.

        Raises:
            GroupRefused: it was.
        """
        if self.refusal is not None:
            raise GroupRefused(self, self.refusal)
        return self


class GroupRefused(Refused):
    """A group was refused, as `result` and `refusal` say."""

    def __init__(self, result: GroupResult, refusal: Refusal) -> None:
        super().__init__(result, refusal)
        self.result = result
        self.refusal = refusal

    def __str__(self) -> str:
        differing = self.refusal.differing_field
        why = self.refusal.reason.name + (f" ({differing} differs)" if differing else "")
        return f"transfer {self.result.refused_index} of the group: {why}"
