"""Game servers: the real SDK on simulated channels, asking, asking again, and looking at answers.

Each keeps what it has not heard the end of, and asks for it again with the same id, now or later.
Whatever it hears goes to the oracle in the same moment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from doubloon import (
    AccountStatus,
    AsyncAdminClient,
    AsyncClient,
    DefiniteFault,
    EntryOrder,
    FaultError,
    GroupResult,
    IndefiniteFault,
    TransferResult,
)
from doubloon.channels import Routers
from doubloon.retry import Timing
from shard_node.books import HOUR_US
from tests.simulation.checks import must
from tests.whole_cluster.network import SimChannel
from tests.whole_cluster.oracle import CODES

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    import grpc

    from tests.whole_cluster.network import Network
    from tests.whole_cluster.oracle import Oracle
    from tests.whole_cluster.wishes import Accounts, Wish, Wishes
    from tests.whole_cluster.world import Process, World

KEPT: Final = 40
"""Wishes that a client remembers to ask for again though it knows how they ended."""

TRIES_MAX: Final = 60
"""More is not bad luck; once the faults are over a few are enough."""


@dataclass(frozen=True)
class Phase:
    """What clients do for a while.

    Attributes:
        until_s: when it ends, in the loop's time.
        think_s: between two questions of a client, on average.
        asks: the share of questions among what is asked.
    """

    until_s: float
    think_s: float
    asks: float


class SimRouters(Routers):
    """The SDK's routers, on simulated channels."""

    def __init__(
        self, network: Network, owner: Process, addresses: list[str], rng: random.Random
    ) -> None:
        super().__init__(addresses, None, rng.random)
        self._network = network
        self._owner = owner

    def _open(self, address: str) -> grpc.aio.Channel:
        channel: grpc.aio.Channel = SimChannel(self._network, self._owner, address)  # type: ignore[assignment] # all of one that stubs use
        return channel


def sdk(
    network: Network, owner: Process, addresses: list[str], rng: random.Random, timeout_s: float
) -> tuple[AsyncClient, AsyncAdminClient]:
    """The SDK's clients, on the loop's time."""
    timing = Timing(asyncio.get_running_loop().time, asyncio.sleep, rng.random)
    client = AsyncClient(addresses, timeout_s=timeout_s, timing=timing)
    admin = AsyncAdminClient(addresses, timeout_s=timeout_s, timing=timing)
    client._caller.routers = SimRouters(network, owner, addresses, rng)
    admin._caller.routers = SimRouters(network, owner, addresses, rng)
    return client, admin


class Client:
    """One game server.

    Attributes:
        open: wishes whose end it does not know.
        phases: what it shall do next.
        idle: set while it does nothing.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        oracle: Oracle,
        wishes: Wishes,
        accounts: Accounts,
        addresses: list[str],
        rng: random.Random,
    ) -> None:
        self.world = world
        self.open: deque[Wish] = deque()
        self.phases: asyncio.Queue[Phase] = asyncio.Queue()
        self.idle = asyncio.Event()
        self._network = network
        self._oracle = oracle
        self._wishes = wishes
        self._accounts = accounts
        self._addresses = addresses
        self._rng = rng
        self._known: deque[Wish] = deque(maxlen=KEPT)
        self._frozen: list[int] = []

    async def run(self, process: Process) -> None:
        """Its program."""
        timeout_s = self._rng.choice((2.0, 10.0))
        self._sdk, self._admin = sdk(self._network, process, self._addresses, self._rng, timeout_s)
        while True:
            phase = await self.phases.get()
            await self._play(phase)
            await self._settle()
            self.idle.set()

    async def _settle(self) -> None:
        """Asks until it knows how everything ended, and thaws what it has frozen."""
        while self.open:
            wish = self.open.popleft()
            must(wish.tries < TRIES_MAX, f"{wish.name} is not answered")
            await self._ask(wish)
        for account_id in self._frozen:
            await self._try(
                self._admin.change_account_status(account_id, AccountStatus.ACTIVE, "settled")
            )
        self._frozen.clear()

    async def _play(self, phase: Phase) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._rng.expovariate(1.0 / phase.think_s))
            if loop.time() >= phase.until_s:
                return
            if self._rng.random() < phase.asks:
                await self._rng.choice(
                    (self._balances, self._flows, self._series, self._entries, self._books)
                )()
            else:
                await self._want()

    # --- transfers ------------------------------------------------------------------------------

    async def _want(self) -> None:
        rng, drawn = self._rng, self._rng.random()
        if drawn < 0.5:
            await self._ask(self._wishes.transfer())
        elif drawn < 0.65:
            await self._ask(self._wishes.group())
        elif drawn < 0.75:
            await self._ask_together([self._wishes.transfer() for _ in range(rng.randint(2, 5))])
        elif drawn < 0.85 and self.open:
            await self._ask(self.open.popleft())
        elif drawn < 0.92 and self._known:
            await self._ask(rng.choice(self._known))
        elif drawn < 0.95 and self._known:
            await self._ask(self._wishes.differing(rng.choice(self._known)))
        else:
            await self._change_status()

    async def _ask(self, wish: Wish) -> None:
        wish.tries += 1
        result: TransferResult | GroupResult
        try:
            if wish.is_group:
                result = await self._sdk.transfer_group(wish.transfers, group_id=wish.transfer_id)
            else:
                (one,) = wish.transfers
                result = await self._sdk.transfer(
                    one.source,
                    one.destination,
                    one.currency,
                    one.amount_minor,
                    reference=one.reference,
                    metadata=one.metadata,
                    transfer_id=one.transfer_id,
                )
        except FaultError as error:
            self._faulted(wish, indefinite=isinstance(error, IndefiniteFault))
        else:
            self._heard(wish, result)

    async def _ask_together(self, wishes: list[Wish]) -> None:
        for wish in wishes:
            wish.tries += 1
        try:
            results = await self._sdk.transfer_batch([each.transfers[0] for each in wishes])
        except DefiniteFault:
            for wish in wishes:
                self._faulted(wish, indefinite=False)
            return
        for wish, result in zip(wishes, results, strict=True):
            if result.fault is not None:
                self._faulted(wish, indefinite=result.fault.indefinite)
            else:
                self._heard(wish, result)

    def _faulted(self, wish: Wish, *, indefinite: bool) -> None:
        self.world.note(f"{wish.name}: {'in doubt' if indefinite else 'not done'}")
        self.world.counts["asked in vain"] += 1
        if indefinite:
            wish.may_have_happened = True
        elif not wish.may_have_happened and not wish.is_known:
            self._oracle.never_happened(wish)
        if not wish.is_known:
            self.open.append(wish)

    def _heard(self, wish: Wish, result: TransferResult | GroupResult) -> None:
        status = result.status.name
        why = f" {result.refusal.reason.name}" if result.refusal else ""
        self.world.note(f"{wish.name}: {status}{why}{' again' if result.repeat else ''}")
        self.world.counts[f"answered {status}"] += 1
        self._oracle.answered(wish, result)
        if result.committed and not result.completed:
            wish.may_have_happened = True
            self.open.append(wish)
            return
        wish.is_known = True
        self._known.append(wish)

    async def _change_status(self) -> None:
        """Freezes a player, or thaws the one frozen first."""
        if self._frozen:
            await self._try(
                self._admin.change_account_status(
                    self._frozen.pop(0), AccountStatus.ACTIVE, "as drawn"
                )
            )
            return
        player = self._rng.choice(self._accounts.players)
        self._frozen.append(player)
        await self._try(self._admin.change_account_status(player, AccountStatus.FROZEN, "as drawn"))

    async def _try(self, asking: Awaitable[object]) -> None:
        try:
            await asking
        except FaultError as error:
            self.world.note(f"fault: {error.fault.code.name}")

    # --- questions ------------------------------------------------------------------------------

    def _instant(self) -> int | None:
        """Most often now; else some moment of the last hours."""
        if self._rng.random() < 0.6:
            return None
        return self.world.now_us - self._rng.randrange(1, self._rng.choice((10**7, 4 * HOUR_US)))

    async def _question(self, ask: Callable[[int, int | None], Awaitable[None]], name: str) -> None:
        account_id = self._rng.choice(self._accounts.all())
        try:
            await ask(account_id, self._instant())
        except FaultError as error:
            self.world.note(f"{name} of {account_id}: {error.fault.code.name}")
            self.world.counts["questions in vain"] += 1
        else:
            self.world.note(f"{name} of {account_id} right")
            self.world.counts[f"{name} right"] += 1

    def _since_us(self, account_id: int, as_of: int | None) -> int:
        return 0 if as_of is not None else self._oracle.acknowledged_us(account_id)

    async def _balances(self) -> None:
        async def ask(account_id: int, as_of: int | None) -> None:
            since_us, home = self._since_us(account_id, as_of), self._accounts.home(account_id)
            heard = await self._sdk.balances(account_id, as_of=as_of)
            self._oracle.balances(account_id, home, since_us, heard)

        await self._question(ask, "balances")

    async def _flows(self) -> None:
        window = self._rng.choice((None, HOUR_US, self._rng.randrange(1, 10**9)))

        async def ask(account_id: int, as_of: int | None) -> None:
            since_us, home = self._since_us(account_id, as_of), self._accounts.home(account_id)
            heard = await self._sdk.flows(account_id, as_of=as_of, window=window)
            self._oracle.flows(account_id, home, since_us, heard)

        await self._question(ask, "flows")

    async def _series(self) -> None:
        async def ask(account_id: int, as_of: int | None) -> None:
            since_us, home = self._since_us(account_id, as_of), self._accounts.home(account_id)
            start = (as_of or self.world.now_us) - self._rng.randrange(4 * HOUR_US)
            heard = await self._sdk.balance_series(
                account_id, CODES[1], from_time=start, to_time=as_of
            )
            self._oracle.series(account_id, home, since_us, heard)

        await self._question(ask, "series")

    async def _entries(self) -> None:
        async def ask(account_id: int, _: int | None) -> None:
            since_us, home = self._since_us(account_id, None), self._accounts.home(account_id)
            entries = self._sdk.entries(
                account_id,
                currency=CODES[1],
                order=EntryOrder.OLDEST_FIRST,
                page_size=self._rng.choice((50, 500)),
            )
            heard = [(each.time_us, each.change_minor) async for each in entries]
            self._oracle.entries(account_id, home, since_us, heard)

        await self._question(ask, "entries")

    async def _books(self) -> None:
        """An auditor's questions: what shards hold and owe each other must cancel, at any time."""
        try:
            if self._rng.random() < 0.5:
                audit = await self._admin.audit()
                must(audit.balanced, f"the audit finds {audit}")
            else:
                report = await self._admin.check_conservation()
                must(report.balanced, f"the books do not balance: {report}")
        except FaultError as error:
            self.world.note(f"audit: {error.fault.code.name}")
            self.world.counts["questions in vain"] += 1
        else:
            self.world.counts["audits right"] += 1
