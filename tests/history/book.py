"""What all clients write into: the history, and what was asked for and is not known yet."""

from collections import Counter
from dataclasses import dataclass, field

from doubloon import (
    Fault,
    Group,
    GroupResult,
    RefusalReason,
    RetryClass,
    Transfer,
    TransferResult,
)
from tests.history.history import Fate, History, Key, Move, Try

Item = Transfer | Group
Result = TransferResult | GroupResult


def key_of(item: Item) -> Key:
    """Return the key."""
    if isinstance(item, Group):
        return item.transfers[0].source, item.group_id
    return item.source, item.transfer_id


def moves_of(item: Item) -> tuple[Move, ...]:
    """Return the body, as the checker knows it."""
    transfers = item.transfers if isinstance(item, Group) else (item,)
    return tuple(Move(t.source, t.destination, t.amount_minor, t.reference) for t in transfers)


def try_of(item: Item, invoked_ns: int, answered_ns: int, heard: Result | Fault) -> Try:
    """Write an answer down."""
    fault = heard if isinstance(heard, Fault) else heard.fault
    asked = (key_of(item), moves_of(item), invoked_ns, answered_ns)
    if fault is not None:
        return Try(*asked, Fate.UNKNOWN if fault.indefinite else Fate.NOTHING)
    assert isinstance(heard, TransferResult | GroupResult)
    if heard.refusal is None:
        fate = Fate.COMPLETED if heard.completed else Fate.COMMITTED
        return Try(*asked, fate, 0, 0, *_outcome(heard))
    if heard.refusal.reason is RefusalReason.KEY_REUSED:
        return Try(*asked, Fate.REUSED)
    if heard.refusal.retry_class is not RetryClass.NEW_KEY:
        return Try(*asked, Fate.NOTHING)
    member = heard.refused_index if isinstance(heard, GroupResult) else 0
    return Try(*asked, Fate.REFUSED, heard.refusal.reason, member, *_outcome(heard))


def _outcome(result: Result) -> tuple[bool, int, int]:
    return result.repeat, result.time_us, result.source_balance_after_minor


@dataclass
class Book:
    """What all clients share: the history, what was asked for, and what is not known yet.

    Attributes:
        items: everything, by key; the first body of each.
        doubts: what may have happened, or is not visible everywhere yet, by key and body.
        latest_us: the latest instant that a shard has told.
        faults: how many questions found no answer, by kind.
    """

    history: History = field(default_factory=History)
    items: list[Item] = field(default_factory=list)
    doubts: dict[tuple[Key, tuple[Move, ...]], Item] = field(default_factory=dict)
    latest_us: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def hear(self, item: Item, invoked_ns: int, answered_ns: int, heard: Result | Fault) -> None:
        """Write an answer down, and whether it leaves a doubt."""
        one = try_of(item, invoked_ns, answered_ns, heard)
        self.history.tries.append(one)
        if one.fate in {Fate.UNKNOWN, Fate.COMMITTED}:
            self.doubts[one.key, one.moves] = item
        elif one.fate is not Fate.NOTHING:
            self.doubts.pop((one.key, one.moves), None)
        if one.fate in {Fate.UNKNOWN, Fate.NOTHING}:
            self.faults[one.fate.value] += 1
