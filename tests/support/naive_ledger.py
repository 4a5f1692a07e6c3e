"""The ledger as naively as it can be said: a list of entries, every answer a fold over all of them.

It shares no arithmetic, no row and no index with the shard node; only the words of the contract.
Far too slow to serve, and simple enough to be believed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.packed import DifferingField
from cluster.refusals import RefusalReason, RetryClass, retry_class

COMPLETED = 1
REFUSED = 3
PLAYER = 1
SYSTEM = 2
ACTIVE = 1
FROZEN = 2
CLOSED = 3
HOUR_US = 3_600_000_000
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Ask:
    """A transfer as asked for; amounts in minor units, times in microseconds."""

    transfer_id: bytes
    source: int
    destination: int
    amount_minor: int
    currency: int = 1
    type: int = 1
    reference: int = 0
    metadata: bytes = b""
    import_time_us: int = 0

    @property
    def key(self) -> tuple[bytes, int]:
        """What it is known under."""
        return self.transfer_id, self.source


class Result(NamedTuple):
    """A transfer's result, its fields in the order of the packed form."""

    status: int
    reason: int = 0
    differing: int = 0
    repeat: int = 0
    time_us: int = 0
    balance_minor: int = 0


class Entry(NamedTuple):
    """One leg of a transfer as one account sees it."""

    time_us: int
    sequence: int
    account_id: int
    currency: int
    amount_minor: int
    """Positive when the account was paid, negative when it paid."""
    balance_minor: int
    ask: Ask


class Totals(NamedTuple):
    """Lifetime sums, minor units, counts, and the latest entry's time (0 = none)."""

    incoming: int
    outgoing: int
    incoming_count: int
    outgoing_count: int
    last_time_us: int


@dataclass
class NaiveAccount:
    """An account's attributes."""

    kind: int
    floor_minor: int
    cap_minor: int
    status: int = ACTIVE


@dataclass
class NaiveLedger:
    """A shard's books.

    Attributes:
        accounts: by id.
        entries: every leg ever posted, in the order of posting.
        outcomes: what is recorded under each key.
        sequence: how many records there are.
    """

    accounts: dict[int, NaiveAccount] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    outcomes: dict[tuple[bytes, int], tuple[Ask, Result]] = field(default_factory=dict)
    sequence: int = 0

    # --- commands -------------------------------------------------------------------------------

    def open_account(
        self, account_id: int, kind: int, floor_minor: int = 0, cap_minor: int = 0
    ) -> None:
        """Opens an account that is not open yet; cap 0 = 2^63 − 1."""
        self.accounts[account_id] = NaiveAccount(kind, floor_minor, cap_minor or INT64_MAX)
        self.sequence += 1

    def change_status(self, account_id: int, status: int) -> bool:
        """Whether the account may change so; if it may, it has."""
        account = self.accounts[account_id]
        holds = any(self.balance(account_id, each) for each in self.currencies(account_id))
        if account.status in {status, CLOSED} or (status == CLOSED and holds):
            return False
        account.status = status
        self.sequence += 1
        return True

    def transfer(self, ask: Ask, stamp_us: int) -> Result:
        """Decides a transfer at a time."""
        source_minor = self.balance(ask.source, ask.currency)
        destination_minor = self.balance(ask.destination, ask.currency)
        first = min(self._reasons(ask, stamp_us, source_minor, destination_minor), default=None)
        if ask.key in self.outcomes and (first is None or first >= RefusalReason.KEY_REUSED):
            recorded, outcome = self.outcomes[ask.key]
            differing = first_difference(recorded, ask)
            if differing:
                return Result(REFUSED, RefusalReason.KEY_REUSED, differing)
            return outcome._replace(repeat=1)
        if first is not None:
            result = Result(REFUSED, first)
            if retry_class(first) is RetryClass.NEW_KEY:
                result = result._replace(time_us=stamp_us, balance_minor=source_minor)
                self.sequence += 1
                self.outcomes[ask.key] = ask, result
            return result
        self.sequence += 1
        source_us = self._posting_time_us(ask.source, ask, stamp_us)
        destination_us = self._posting_time_us(ask.destination, ask, stamp_us)
        source_minor -= ask.amount_minor
        destination_minor += ask.amount_minor
        self._post(ask.source, -ask.amount_minor, source_minor, source_us, ask)
        self._post(ask.destination, ask.amount_minor, destination_minor, destination_us, ask)
        result = Result(COMPLETED, time_us=source_us, balance_minor=source_minor)
        self.outcomes[ask.key] = ask, result
        return result

    def _reasons(
        self, ask: Ask, stamp_us: int, source_minor: int, destination_minor: int
    ) -> Iterator[RefusalReason]:
        """Everything that speaks against a transfer, in no order that matters."""
        source, destination = (self.accounts.get(each) for each in (ask.source, ask.destination))
        if ask.amount_minor <= 0:
            yield RefusalReason.BAD_AMOUNT
        if ask.source == ask.destination:
            yield RefusalReason.SAME_ACCOUNT
        if not ask.currency:
            yield RefusalReason.UNKNOWN_CURRENCY
        if source is None:
            yield RefusalReason.SOURCE_UNKNOWN
        elif source.status != ACTIVE:
            closed = source.status == CLOSED
            yield RefusalReason.SOURCE_CLOSED if closed else RefusalReason.SOURCE_FROZEN
        if destination is None:
            yield RefusalReason.DESTINATION_UNKNOWN
        elif destination.status != ACTIVE:
            closed = destination.status == CLOSED
            yield RefusalReason.DESTINATION_CLOSED if closed else RefusalReason.DESTINATION_FROZEN
        if ask.import_time_us > stamp_us:
            yield RefusalReason.IMPORT_IN_FUTURE
        elif ask.import_time_us and any(
            self._posting_time_us(each, ask, stamp_us) - ask.import_time_us > HOUR_US
            for each in (ask.source, ask.destination)
        ):
            yield RefusalReason.IMPORT_TOO_OLD
        if source and source_minor - ask.amount_minor < source.floor_minor:
            yield RefusalReason.INSUFFICIENT_FUNDS
        if destination and destination_minor + ask.amount_minor > destination.cap_minor:
            yield RefusalReason.BALANCE_CAP_EXCEEDED

    def _posting_time_us(self, account_id: int, ask: Ask, stamp_us: int) -> int:
        """Now, or for an import the later of its own time and the account's latest entry."""
        if not ask.import_time_us:
            return stamp_us
        latest_us = max((each.time_us for each in self.entries_of(account_id)), default=0)
        return max(ask.import_time_us, latest_us)

    def _post(
        self, account_id: int, amount_minor: int, balance_minor: int, time_us: int, ask: Ask
    ) -> None:
        leg = (account_id, ask.currency, amount_minor, balance_minor, ask)
        self.entries.append(Entry(time_us, self.sequence, *leg))

    # --- answers --------------------------------------------------------------------------------

    def entries_of(self, account_id: int, currency: int | None = None) -> list[Entry]:
        """An account's entries, in one currency or in all, in the order of posting."""
        return [
            each
            for each in self.entries
            if each.account_id == account_id and currency in {None, each.currency}
        ]

    def currencies(self, account_id: int) -> list[int]:
        """The currencies in which an account has an entry, in order."""
        return sorted({each.currency for each in self.entries_of(account_id)})

    def balance(self, account_id: int, currency: int) -> int:
        """The balance now."""
        return sum(each.amount_minor for each in self.entries_of(account_id, currency))

    def totals_at(self, account_id: int, currency: int, instant_us: int) -> Totals:
        """The sums of the entries up to an instant, that instant's included."""
        return fold(self.entries_of(account_id, currency), instant_us)


def fold(entries: list[Entry], instant_us: int) -> Totals:
    """The sums of those entries that are not later than an instant."""
    until = [each for each in entries if each.time_us <= instant_us]
    incoming = [each.amount_minor for each in until if each.amount_minor > 0]
    outgoing = [-each.amount_minor for each in until if each.amount_minor < 0]
    last_us = max((each.time_us for each in until), default=0)
    return Totals(sum(incoming), sum(outgoing), len(incoming), len(outgoing), last_us)


def series(entries: list[Entry], first_hour_us: int, to_us: int) -> list[tuple[int, int, int, int]]:
    """(hour, balance at its end or at `to_us`, incoming, outgoing in it) for each hour."""
    hours = []
    for start_us in range(first_hour_us, to_us + 1, HOUR_US):
        end = fold(entries, min(start_us + HOUR_US - 1, to_us))
        before = fold(entries, start_us - 1)
        hours.append(
            (
                start_us,
                end.incoming - end.outgoing,
                end.incoming - before.incoming,
                end.outgoing - before.outgoing,
            )
        )
    return hours


def first_difference(recorded: Ask, ask: Ask) -> int:
    """The first field in which two bodies of one key differ, in the contract's order; 0 = none."""
    fields = {
        DifferingField.DESTINATION_ACCOUNT_ID: "destination",
        DifferingField.CURRENCY: "currency",
        DifferingField.AMOUNT_MINOR: "amount_minor",
        DifferingField.TYPE: "type",
        DifferingField.REFERENCE: "reference",
        DifferingField.METADATA: "metadata",
        DifferingField.IMPORT_TIME_US: "import_time_us",
    }
    differing = [
        each for each in fields if getattr(recorded, fields[each]) != getattr(ask, fields[each])
    ]
    return min(differing, default=0)
