"""One round: a fresh cluster, clients that never pause, faults; then everything is asked for again.

The history is checked against the logs, read once every process has stopped.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from doubloon import AsyncAdminClient, AsyncClient, Timing
from tests.history.book import Book
from tests.history.checker import check
from tests.history.clients import IMPATIENT, IMPATIENT_S, Client
from tests.history.clocks import Clocks
from tests.history.faults import CLOCK, COURSES, NETWORK, Faults
from tests.history.faulty_cluster import SHARDS, FaultyCluster, World
from tests.history.logs import read_ledger
from tests.history.namespaces import Namespaces
from tests.support.clusters import PATIENT_S, LiveCluster, settle_town, until_status

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from tests.history.history import History, Ledger, Violation
    from tests.support.clusters import Town

PLAYERS: Final = 4  # few on each shard, so that much meets on the same accounts
CLIENTS: Final = 4
WRITERS, READERS = 6, 3  # tasks of each client
SETTLE_S: Final = 90.0  # clocks that were ahead, deadlines, sweeps, and a busy machine
AGAIN: Final = 200  # asked for again in one call
REPEATED: Final = 400  # old keys asked for once more in the end


@dataclass(frozen=True)
class Plan:
    """What a round shall be.

    Attributes:
        seed: of all that is random in it, but for what processes do.
        seconds: under load and faults; what comes before and after is not counted.
        kinds: of faults.
        has_network, has_clocks: whether the processes get their own.
        bug: to plant; its name is in `MUTANTS`.
    """

    seed: int
    seconds: float
    kinds: tuple[str, ...] = tuple(COURSES)
    has_network: bool = False
    has_clocks: bool = False
    bug: str | None = None

    def next(self) -> Plan:
        """The plan of the next round."""
        return replace(self, seed=self.seed + 1)

    @property
    def possible(self) -> tuple[str, ...]:
        """The kinds of faults that it can have."""
        left_out = (frozenset() if self.has_network else NETWORK) | (
            frozenset() if self.has_clocks else CLOCK
        )
        return tuple(each for each in self.kinds if each not in left_out)


@dataclass
class Round:
    """What came of it.

    Attributes:
        said: what befell the cluster, and when.
        checked_s: how long the checker took.
    """

    history: History
    ledger: Ledger
    faults: Counter[str]
    unanswered: Counter[str]
    said: list[str]
    violations: list[Violation]
    checked_s: float


async def play(plan: Plan, folder: Path) -> Round:
    """Play a round in a folder of its own."""
    rng = random.Random(plan.seed)
    said: list[str] = []
    book = Book()
    world = World(
        Namespaces() if plan.has_network else None,
        Clocks(folder / "clocks") if plan.has_clocks else None,
        plan.bug,
    )
    try:
        cluster = FaultyCluster(folder, world)
        async with cluster:
            started_s = time.monotonic()
            faults = Faults(
                cluster,
                rng,
                plan.possible,
                lambda what: said.append(f"{time.monotonic() - started_s:7.2f} s  {what}"),
            )
            await _play(cluster, faults, book, plan)
    finally:
        if world.network:
            world.network.close()
    ledger = read_ledger(
        cluster.name, {n: cluster.data_folder("shard", n) for n in range(1, SHARDS + 1)}
    )
    before_s = time.monotonic()
    violations = check(book.history, ledger)
    checked_s = time.monotonic() - before_s
    return Round(book.history, ledger, faults.counts, book.faults, said, violations, checked_s)


async def _play(cluster: FaultyCluster, faults: Faults, book: Book, plan: Plan) -> None:
    routers = cluster.routers
    async with (
        AsyncClient(routers, timeout_s=PATIENT_S) as wallet,
        AsyncAdminClient(routers, timeout_s=PATIENT_S) as admin,
    ):
        live = LiveCluster(cluster, wallet, admin)
        town = await settle_town(live, PLAYERS)
        enough, over = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_load(routers, town, book, plan.seed, over))
            striking = tasks.create_task(faults.strike_until(enough))
            await asyncio.wait({striking}, timeout=plan.seconds)
            enough.set()
            await striking
            over.set()
        faults.said("the load has ended")
        patient = Client(wallet, admin, town, book, random.Random(plan.seed))
        await _settle(live, patient)
        faults.said("all is settled")
        await _look_at_everything(patient)


async def _load(
    routers: tuple[str, ...], town: Town, book: Book, seed: int, over: asyncio.Event
) -> None:
    """Clients, each with connections of its own, until it is over."""
    async with asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(_run_client(routers, town, book, seed * CLIENTS + number, over))


async def _run_client(
    routers: tuple[str, ...], town: Town, book: Book, seed: int, over: asyncio.Event
) -> None:
    rng = random.Random(seed)
    timing = Timing(random=rng.random)  # which also says at which router it begins
    async with (
        AsyncClient(routers, timeout_s=IMPATIENT_S, retry=IMPATIENT, timing=timing) as wallet,
        AsyncAdminClient(routers, timeout_s=IMPATIENT_S, timing=timing) as admin,
        asyncio.TaskGroup() as tasks,
    ):
        client = Client(wallet, admin, town, book, rng)
        loops = [client.write() for _ in range(WRITERS)]
        loops += [client.read() for _ in range(READERS)]
        for each in (*loops, client.audit()):
            tasks.create_task(each)
        await over.wait()
        client.stopping = True


async def _settle(live: LiveCluster, patient: Client) -> None:
    """Ask again for whatever is not known for certain, until it is, and nothing is in doubt."""
    book = patient.book
    async with asyncio.timeout(SETTLE_S):
        while book.doubts:
            some = [*book.doubts.values()][:AGAIN]
            kind = type(some[0])
            await patient.ask([each for each in some if type(each) is kind])
    await until_status(
        live,
        lambda s: not any(x.transactions_prepared + x.transactions_unfinished for x in s.shards),
        "nothing is in doubt or unfinished",
        SETTLE_S,
    )


async def _look_at_everything(patient: Client) -> None:
    """Ask for old keys once more, read every account, and audit."""
    items = patient.book.items
    for item in patient.rng.sample(items, min(REPEATED, len(items))):
        await patient.ask([item])
    town = patient.town
    for account in chain(town.treasuries.values(), *town.players.values()):
        await patient.whole_statement(account)
        await patient.look_at(account)
    await patient.compare_books()
