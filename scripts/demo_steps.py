"""What the demo does to a running cluster, step by step, and what it checks of the answers.

Every check compares with the game's own naive books: which transfers completed, balances, flows,
hourly balances. A check that fails is a finding, never an exception, so that all are seen.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.topology import Topology
from doubloon import (
    AccountKind,
    AccountSpec,
    AsyncAdminClient,
    AsyncClient,
    BalanceSeries,
    Entry,
    FlowsWindow,
    Group,
    TransferType,
)
from scripts import naive
from scripts.economy import GOLD, HOUSE, SCALES, Economy, EconomyConfig
from scripts.latency import Latencies
from scripts.naive import DAY_US, HOUR_US, Books
from scripts.playing import Result, Send, Tally, make, play
from scripts.progress import Advance
from scripts.schedule import BATCH_TRANSFERS_MAX, Item, batches, transfers_of

REFUSED_SHARE_MAX = 0.03
"""A few players try to buy what they cannot pay for; more would not be the month as made."""

_SINGLE_TRANSFERS = 300  # enough for a p99 that is not the worst, and a second or two
_QUERIES = 300  # the same
_ACCOUNTS_COMPARED = 100  # besides the game's own and the busiest player
_STATEMENT_ENTRIES = 10
_HISTORY_HOURS = 720
_FORGETTING_TRIES, _FORGETTING_S = 20, 0.25


@dataclass(frozen=True)
class Check:
    """Something that must hold, and whether it does."""

    name: str
    passed: bool
    detail: str


@dataclass
class Findings:
    """All that the demo found out.

    Attributes:
        tally: what became of the month's transfers and groups.
        transfers: how many transfers they are in all.
        crossing: how many of these are between shards.
        groups: how many groups.
        batches: how many batches that took.
        opening_s: seconds to open all accounts.
        playing_s: seconds to play the month.
        batch, single, flows_query, series_query: how long calls took.
        checks: what was compared.
    """

    tally: Tally = field(default_factory=Tally)
    transfers: int = 0
    crossing: int = 0
    groups: int = 0
    batches: int = 0
    accounts: int = 0
    opening_s: float = 0.0
    playing_s: float = 0.0
    batch: Latencies = field(default_factory=Latencies)
    single: Latencies = field(default_factory=Latencies)
    flows_query: Latencies = field(default_factory=Latencies)
    series_query: Latencies = field(default_factory=Latencies)
    checks: list[Check] = field(default_factory=list)

    def check(self, name: str, detail: str, *, passed: bool) -> None:
        """Note what was compared."""
        self.checks.append(Check(name, passed, detail))

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class BusyPlayer:
    """What the cluster says of the busiest player as the month ends."""

    account_id: int
    flows: FlowsWindow
    series: BalanceSeries
    statement: Sequence[Entry]


class Demo:
    """One month played on one cluster.

    Args:
        wallet: a client of its routers.
        admin: the same, for operators.
        config: what month.
        topology: says what is between shards; the game itself does not know.
        findings: filled as it goes.
    """

    def __init__(
        self,
        wallet: AsyncClient,
        admin: AsyncAdminClient,
        config: EconomyConfig,
        topology: Topology,
        findings: Findings,
    ) -> None:
        self._wallet = wallet
        self._admin = admin
        self._config = config
        self._topology = topology
        self._findings = findings
        self._random = random.Random(config.seed)
        self.economy = Economy(config)
        self.month = list(self.economy.play())

    async def register_currencies(self) -> None:
        """Register the game's currencies."""
        for code, scale in SCALES.items():
            await self._admin.register_currency(code, scale=scale, name=code.capitalize())

    async def open_accounts(self, advance: Advance) -> None:
        """Open the game's own accounts and every player's."""
        floors = self.economy.floors_minor
        specs = [
            *(AccountSpec(a, AccountKind.SYSTEM, floors.get(a, 0)) for a in self.economy.hubs),
            *(AccountSpec(player) for player in self.economy.players),
        ]
        opened = 0
        start_s = time.perf_counter()
        for start in range(0, len(specs), BATCH_TRANSFERS_MAX):
            part = specs[start : start + BATCH_TRANSFERS_MAX]
            results = await self._wallet.open_accounts(part)
            opened += sum(result.opened and not result.repeat for result in results)
            advance(len(part))
        self._findings.opening_s = time.perf_counter() - start_s
        self._findings.accounts = opened
        self._findings.check(
            "accounts opened", f"{opened:,} of {len(specs):,}", passed=opened == len(specs)
        )

    async def play_month(self, advance: Advance) -> None:
        """Play the month, each account's transfers in order."""
        findings = self._findings
        transfers = [transfer for played in self.month for transfer in played.transfers]
        shard_of = self._topology.shard_of
        findings.transfers = len(transfers)
        findings.crossing = sum(shard_of(t.source) != shard_of(t.destination) for t in transfers)
        findings.groups = sum(isinstance(played.item, Group) for played in self.month)
        unexpected: list[str] = []
        start_s = time.perf_counter()
        line = batches((played.item for played in self.month), self.economy.hubs)
        await play(self._sending(unexpected), line, findings.tally, advance)
        findings.playing_s = time.perf_counter() - start_s
        findings.batches = len(findings.batch.durations_s)
        self._check_month(unexpected)

    def _sending(self, unexpected: list[str]) -> Send[Item]:
        """Return what sends a batch, times it, and notes results that the game did not expect."""
        refused = {_id_of(p.item) for p in self.month if not p.completes}

        async def send(batch: Sequence[Item]) -> Sequence[Result]:
            results = await self._findings.batch.timed(make(self._wallet, batch))
            for item, result in zip(batch, results, strict=True):
                if result.repeat or result.committed == (_id_of(item) in refused):
                    route = [f"{t.source} → {t.destination}" for t in transfers_of(item)]
                    unexpected.append(f"{', '.join(route)}: {result.status.name}")
            return results

        return send

    def _check_month(self, unexpected: Sequence[str]) -> None:
        tally, total = self._findings.tally, len(self.month)
        refused = tally.refused.total()
        detail = (
            f"{tally.completed:,} completed, {refused:,} refused, {total - tally.sent:,} unsent"
        )
        if tally.faulted or tally.stopped:
            detail += f", {tally.faulted.total():,} faulted; {tally.stopped}"
        sent = tally.completed + refused == total
        self._findings.check("the month was played", detail, passed=sent)
        share = refused / total
        self._findings.check(
            "few refusals", f"{share:.2%}, at most {REFUSED_SHARE_MAX:.0%}",
            passed=share <= REFUSED_SHARE_MAX,
        )  # fmt: skip
        detail = f"{len(unexpected):,} differ" + (
            f", such as {unexpected[0]}" if unexpected else ""
        )
        self._findings.check("every outcome as the game's books", detail, passed=not unexpected)

    async def ask_busy_player(self) -> BusyPlayer:
        """Ask both queries and a statement of the busiest player, and compare with naive folds."""
        player, end_us = self.economy.busiest, self._config.end_us
        flows = await self._wallet.flows(player, currency=GOLD, as_of=end_us)
        series = await self._wallet.balance_series(player, GOLD, to_time=end_us)
        page = await self._wallet.entries_page(player, page_size=_STATEMENT_ENTRIES)
        history = [
            transfer
            for played in self.month
            if played.completes
            for transfer in played.transfers
            if player in {transfer.source, transfer.destination}
        ]
        expected = naive.flows(history, player, GOLD, end_us - DAY_US, end_us)
        got = flows.of(GOLD)
        same = expected == (
            got.incoming_minor, got.outgoing_minor, got.incoming_count, got.outgoing_count,
        )  # fmt: skip
        detail = f"{sum(expected[2:]):,} entries in 24 hours"
        self._findings.check("query 1 equals a naive fold", detail, passed=same)
        from_us = end_us // HOUR_US * HOUR_US - (_HISTORY_HOURS - 1) * HOUR_US
        hourly = naive.hourly_balances(history, player, GOLD, from_us, end_us)
        same = hourly == [hour.balance_minor for hour in series.hours]
        detail = f"{len(series.hours):,} hours, {len(history):,} entries"
        self._findings.check("query 2 equals a naive fold", detail, passed=same)
        return BusyPlayer(player, flows, series, page.entries)

    async def compare_balances(self) -> None:
        """Compare balances with the game's books: its own accounts' and many players'."""
        books = Books(self.economy.floors_minor)
        for played in self.month:
            books.apply(*played.transfers)
        some = self._random.sample(
            self.economy.players, min(_ACCOUNTS_COMPARED, len(self.economy.players))
        )
        accounts = [*sorted(self.economy.hubs), self.economy.busiest, *some]
        different = []
        for account_id in accounts:
            held = await self._wallet.balances(account_id, as_of=self._config.end_us)
            for code in SCALES:
                balance = held.of(code)
                posted_minor = balance.posted_minor if balance else 0
                if posted_minor != books.balance_minor(account_id, code):
                    different.append(f"{account_id} {code}")
        detail = f"{len(accounts):,} accounts compared, {len(different):,} balances differ"
        self._findings.check("balances as the game's books", detail, passed=not different)

    async def measure(self) -> None:
        """Time single transfers and both queries, one call at a time."""
        player, end_us = self.economy.busiest, self._config.end_us
        for _ in range(_SINGLE_TRANSFERS):
            lucky = self._random.choice(self.economy.players)
            call = self._wallet.transfer(
                HOUSE.treasury, lucky, GOLD, 1, type=TransferType.ADJUSTMENT
            )
            (await self._findings.single.timed(call)).raise_for_refusal()
        for _ in range(_QUERIES):
            asked = self._random.choice((player, self._random.choice(self.economy.players)))
            as_of = end_us - self._random.randrange(10 * DAY_US)
            await self._findings.flows_query.timed(self._wallet.flows(asked, as_of=as_of))
            call_series = self._wallet.balance_series(asked, GOLD, to_time=end_us)
            await self._findings.series_query.timed(call_series)

    async def check_conservation(self) -> None:
        """Check promise 1 on every shard."""
        report = await self._admin.check_conservation()
        held = sum(books.accounts for books in report.books)
        detail = f"{len(report.books)} books, {held:,} balances"
        complete = len(report.books) == len(SCALES) * len(self._topology.shards)
        self._findings.check("promise 1, conservation", detail, passed=report.balanced and complete)

    async def audit(self) -> None:
        """Check promise 1 between shards, and that nothing is left in doubt."""
        report = await self._admin.audit()
        detail = f"{len(report.pairs)} positions of two shards each, {report.in_doubt} in doubt"
        clean = report.balanced and not report.in_doubt
        self._findings.check("the audit between shards", detail, passed=clean)
        left = await self._admin.in_doubt()
        for _ in range(_FORGETTING_TRIES):
            if left.is_nothing:
                break
            await asyncio.sleep(_FORGETTING_S)  # homes forget what is finished in their own time
            left = await self._admin.in_doubt()
        self._findings.check(
            "nothing is in doubt",
            f"{len(left.transactions)} transactions listed",
            passed=left.is_nothing,
        )


def _id_of(item: Item) -> bytes:
    return item.group_id if isinstance(item, Group) else item.transfer_id
