"""What must be true: of every block that becomes durable, of every answer, and of the end.

The oracle reads the disks, as only an oracle can: it folds every record that is durable into the
naive model of `tests.simulation.books`, at the moment it becomes so. A durable record is never
taken back. So whatever a client hears can be judged when it hears it: what is COMPLETED is in both
logs, what a question is answered is what the naive model says of that instant, and the instant is
not before anything that was answered COMPLETED when the question was asked.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cluster.packed import BODY_BYTES, GROUP_RESULT, MEMBER_BODY
from shard_node.records import EFFECTS, HEADER, LEG, RecordKind
from tests.simulation.books import ShardBooks
from tests.simulation.checks import AnswerChecks, must
from tests.simulation.world import Violation
from tests.support import naive_ledger as naive
from tests.whole_cluster.disk import DiskLog

if TYPE_CHECKING:
    from collections.abc import Sequence

    from doubloon import Balances, BalanceSeries, FlowsWindow, GroupResult, TransferResult
    from shard_node.engine import Engine
    from shard_node.ledger import Ledger
    from shard_node.log import MemoryLog
    from tests.simulation.clients import Intent
    from tests.whole_cluster.disk import Disk
    from tests.whole_cluster.world import World

CODES: Final = {1: "GOLD", 2: "GEM"}
"""Currencies by number, in the order of their registration."""

LATEST_EPOCH: Final = 2**62
"""Of who only reads."""


@dataclass
class Books(ShardBooks):
    """The naive model, and when each leg was posted.

    Attributes:
        entries: by account and currency, in the order of the log.
    """

    entries: dict[tuple[int, int], list[naive.Entry]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def _fold(self, reader: Ledger | MemoryLog, record: bytes) -> None:
        super()._fold(reader, record)
        kind = record[BODY_BYTES]
        if kind == RecordKind.TRANSFER:
            effects = EFFECTS.unpack_from(record, BODY_BYTES)
            if not effects[1]:
                self._enter(record, effects[7], incoming=False)
                self._enter(record, effects[8], incoming=True)
        elif kind in (RecordKind.LEG_INCOMING, RecordKind.LEG_OUTGOING):
            time_us = LEG.unpack_from(record, BODY_BYTES)[5]
            self._enter(record, time_us, incoming=kind == RecordKind.LEG_INCOMING)

    def _enter(self, record: bytes, time_us: int, *, incoming: bool) -> None:
        transfer_id, source, destination, amount, _, _, currency, *_ = MEMBER_BODY.unpack_from(
            record
        )
        place = (destination if incoming else source), currency
        entries = self.entries[place]
        late = entries and time_us < entries[-1].time_us
        self.must(not late, f"account {place[0]} has an entry that is older than the one before")
        ask = naive.Ask(transfer_id, source, destination, amount, currency)
        change = amount if incoming else -amount
        balance = self.balances[place]
        entries.append(naive.Entry(time_us, self.sequence, *place, change, balance, ask))


class Watched:
    """One shard's books, as its disk has them."""

    def __init__(self, shard_id: int, disk: Disk) -> None:
        self.disk = disk
        self.books = Books(shard_id)
        self._reader = DiskLog(disk, LATEST_EPOCH)

    def durable_books(self) -> ShardBooks:
        """See `AnswerChecks`."""
        return self.books

    def fold(self) -> None:
        """Folds what has become durable."""
        blocks = self.disk.durable_blocks
        if blocks:
            header = HEADER.unpack_from(self.disk.values[blocks - 1])
            self.books.fold(self._reader, header[6] + header[7] - 1)  # type: ignore[arg-type] # reads as one


class Oracle:
    """Knows all disks; see the module's docstring."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shards: dict[int, Watched] = {}
        self.checks = AnswerChecks(self.shards)
        self.intents: Sequence[Intent] = ()
        # By account: the time of its latest leg that was answered COMPLETED.
        self._acknowledged_us: dict[int, int] = defaultdict(int)

    def watch(self, shard_id: int, disk: Disk) -> None:
        """Follows a shard's disk from its beginning."""
        self.shards[shard_id] = Watched(shard_id, disk)

    def durable(self, shard_id: int) -> None:
        """A disk has got more."""
        try:
            self.shards[shard_id].fold()
        except Violation as violation:
            self.world.violated(violation)

    def recovered(self, shard_id: int, engine: Engine) -> None:
        """What a node has made of its disk must be what the log says."""
        books = self.shards[shard_id].books
        must(
            engine.ledger.sequence == books.sequence,
            f"shard {shard_id} recovered up to {engine.ledger.sequence}, "
            f"and {books.sequence} is durable",
        )
        books.compare(engine.ledger)

    # --- answers --------------------------------------------------------------------------------

    def answered(self, intent: Intent, result: TransferResult | GroupResult) -> None:
        """A client hears how it ended."""
        reason = result.refusal.reason if result.refusal else 0
        index = getattr(result, "refused_index", 0)
        packed = GROUP_RESULT.pack(
            result.status,
            reason,
            0,
            result.repeat,
            index,
            0,
            result.time_us,
            result.source_balance_after_minor,
        )
        intent.results.append(GROUP_RESULT.unpack(packed))
        self.checks.answered_by_shard(intent, packed)
        if result.completed:
            for shard_id, body, incoming in intent.legs():
                account_id = MEMBER_BODY.unpack(body)[2 if incoming else 1]
                self._acknowledge(self.shards[shard_id].books, account_id, body, incoming)

    def _acknowledge(self, books: Books, account_id: int, body: bytes, incoming: bool) -> None:  # noqa: FBT001 - as books have it
        sequence = books.posted[body, incoming]
        entries = books.entries[account_id, MEMBER_BODY.unpack(body)[6]]
        time_us = next(each.time_us for each in reversed(entries) if each.sequence == sequence)
        self._acknowledged_us[account_id] = max(self._acknowledged_us[account_id], time_us)

    def never_happened(self, intent: Intent) -> None:
        """A definite fault: nothing of it may be on record."""
        known = self.shards[intent.home].books.keys.get(intent.key)
        ours = known is not None and known.bodies == b"".join(intent.bodies)
        must(not ours, f"{intent.name} was said not to have happened, and is on record")

    def acknowledged_us(self, account_id: int) -> int:
        """No later question about an account may be answered for an earlier instant."""
        return self._acknowledged_us[account_id]

    def balances(self, account_id: int, home: int, since_us: int, heard: Balances) -> None:
        """A client hears balances; `since_us` is of the moment it asked, 0 = of the past."""
        must(heard.as_of_us >= since_us, f"account {account_id}: balances of before what it heard")
        known = {each.currency: each for each in heard.balances}
        for number, code in CODES.items():
            totals = self._totals(home, account_id, number, heard.as_of_us)
            must(
                (code in known) == bool(totals.last_time_us),
                f"account {account_id}: whether it held {code} at {heard.as_of_us}",
            )
            if code in known:
                minor, want = known[code].posted_minor, totals.incoming - totals.outgoing
                must(
                    minor == want,
                    f"account {account_id} had {want} {code} at {heard.as_of_us}, heard {minor}",
                )

    def flows(self, account_id: int, home: int, since_us: int, heard: FlowsWindow) -> None:
        """A client hears flows."""
        must(heard.to_us >= since_us, f"account {account_id}: flows up to before what it heard")
        known = {each.currency: each for each in heard.flows}
        for number, code in CODES.items():
            start = self._totals(home, account_id, number, heard.from_us)
            end = self._totals(home, account_id, number, heard.to_us)
            if code not in known:
                must(not end.last_time_us, f"account {account_id}: no flows of {code}")
                continue
            one = known[code]
            found = one.incoming_minor, one.outgoing_minor, one.incoming_count, one.outgoing_count
            want = tuple(after - before for before, after in zip(start[:4], end[:4], strict=True))
            must(found == want, f"account {account_id}: flows of {code} {found}, not {want}")

    def series(self, account_id: int, home: int, since_us: int, heard: BalanceSeries) -> None:
        """A client hears hours of GOLD."""
        must(heard.to_us >= since_us, f"account {account_id}: a series up to before what it heard")
        if not heard.hours:
            return
        entries = self.shards[home].books.entries[account_id, 1]
        want = naive.series(entries, heard.hours[0].hour_start_us, heard.to_us)
        found = [
            (each.hour_start_us, each.balance_minor, each.incoming_minor, each.outgoing_minor)
            for each in heard.hours
        ]
        must(found == want, f"account {account_id}: series {found}, not {want}")

    def entries(
        self, account_id: int, home: int, since_us: int, heard: list[tuple[int, int]]
    ) -> None:
        """A client hears all entries of GOLD, as (time, change)."""
        known = self.shards[home].books.entries[account_id, 1]
        want = [(each.time_us, each.amount_minor) for each in known]
        must(heard == want[: len(heard)], f"account {account_id}: entries {heard}, not {want}")
        missing = [time_us for time_us, _ in want[len(heard) :] if time_us <= since_us]
        must(not missing, f"account {account_id}: entries up to {since_us} are missing")

    def _totals(self, home: int, account_id: int, currency: int, at_us: int) -> naive.Totals:
        return naive.fold(self.shards[home].books.entries[account_id, currency], at_us)

    # --- the end --------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        """All promises, once nothing is in doubt."""
        books: dict[int, ShardBooks] = {each: one.books for each, one in self.shards.items()}
        self.checks.check_atomicity(books, list(self.intents))
        self.checks.check_clearing(books)
        for intent in self.intents:
            self.checks.check_results(books[intent.home], intent)
