"""One round: a fresh cluster, clients that never pause, faults; then everything is asked for again.

The history is checked against the logs, read once every process has stopped.
"""

from __future__ import annotations

import asyncio
import random
import time
import traceback
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Final

from doubloon import AsyncAdminClient, AsyncClient, Group, Timing, Transfer
from tests.history.book import Book
from tests.history.checker import check
from tests.history.clients import IMPATIENT, IMPATIENT_S, Client
from tests.history.clocks import Clocks
from tests.history.faults import CLOCK, COURSES, LONG_S, NETWORK, Faults
from tests.history.faulty_cluster import SHARDS, FaultyCluster, World
from tests.history.history import AT_REST
from tests.history.logs import read_ledger
from tests.history.namespaces import Namespaces
from tests.support.clusters import PATIENT_S, LiveCluster, settle_town, until_status

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence
    from pathlib import Path

    from tests.history.book import Item
    from tests.history.history import History, Ledger, Violation
    from tests.support.clusters import Town

PLAYERS: Final = 4  # few on each shard, so that much meets on the same accounts
CLIENTS: Final = 4
WRITERS, READERS = 6, 3  # tasks of each client
SETTLE_S: Final = 60.0  # clocks that were ahead, deadlines, sweeps, and a busy machine
AGAIN: Final = 50  # asked for again in one call
REPEATED: Final = 500  # old keys asked for once more in the end


@dataclass(frozen=True)
class Plan:
    """What a round shall be.

    Attributes:
        seed: of all that is random in it, but for what processes do.
        seconds: under load and faults; what comes before and after is not counted.
        kinds: of faults.
        long_s: see `Faults`.
        settle_s: how long it may take to come to rest.
        has_network, has_clocks: whether the processes get their own.
        bug: to plant; its name is in `MUTANTS`.
    """

    seed: int
    seconds: float
    kinds: tuple[str, ...] = tuple(COURSES)
    long_s: tuple[float, float] = LONG_S
    settle_s: float = SETTLE_S
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
        checked_s: how long the checker took, of one core.
        stuck: why it did not come to rest; "" = it did.
        checked_s: how long the checker took.
    """

    history: History
    ledger: Ledger
    faults: Counter[str]
    unanswered: Counter[str]
    said: list[str]
    stuck: str
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
    started_s = time.monotonic()
    try:
        cluster = FaultyCluster(folder, world)
        async with cluster:
            faults = Faults(
                cluster,
                rng,
                plan.possible,
                lambda what: said.append(f"{time.monotonic() - started_s:7.2f} s  {what}"),
                plan.long_s,
            )
            stuck = ""
            try:
                await _play(cluster, faults, book, plan)
            except Exception:  # noqa: BLE001 - whatever it is, it is told, and the history checked
                stuck = traceback.format_exc()
    finally:
        if world.network:
            world.network.close()
    ledger = read_ledger(
        cluster.name, {n: cluster.data_folder("shard", n) for n in range(1, SHARDS + 1)}
    )
    before_s = time.process_time()
    violations = check(book.history, ledger)
    checked_s = time.process_time() - before_s
    if stuck:
        violations = [each for each in violations if each.rule not in AT_REST]
    return Round(
        book.history, ledger, faults.counts, book.faults, said, stuck, violations, checked_s
    )


async def _play(cluster: FaultyCluster, faults: Faults, book: Book, plan: Plan) -> None:
    routers = cluster.routers
    async with (
        AsyncClient(routers, timeout_s=PATIENT_S) as wallet,
        AsyncAdminClient(routers, timeout_s=PATIENT_S) as admin,
    ):
        live = LiveCluster(cluster, wallet, admin)
        town = await settle_town(live, PLAYERS)
        faults.said("the load begins")
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
        await _settle(live, patient, plan.settle_s)
        faults.said("all is settled")
        await _look_at_everything(patient)
        faults.said("all has been read")


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


async def _settle(live: LiveCluster, patient: Client, settle_s: float) -> None:
    """Ask once more for much that is old, and for all that is not known until it is.

    Returns when nothing is in doubt anywhere.
    """
    items = patient.book.items
    async with asyncio.timeout(settle_s):
        await _ask_all(patient, patient.rng.sample(items, min(REPEATED, len(items))))
        while patient.book.doubts:
            await _ask_all(patient, list(patient.book.doubts.values()))
    await until_status(
        live,
        lambda s: not any(x.transactions_prepared + x.transactions_unfinished for x in s.shards),
        "nothing is in doubt or unfinished",
        settle_s,
    )


async def _ask_all(patient: Client, items: Sequence[Item]) -> None:
    """Ask for all, one call after the other: at once they would stand in each other's way."""
    for kind in (Transfer, Group):
        some = [each for each in items if isinstance(each, kind)]
        for at in range(0, len(some), AGAIN):
            await patient.ask(some[at : at + AGAIN])


async def _look_at_everything(patient: Client) -> None:
    """Read every account, and audit."""
    town = patient.town
    accounts = chain(town.treasuries.values(), *town.players.values())
    await asyncio.gather(*(patient.look_at(each) for each in accounts))
    await patient.compare_books()
