"""A schedule: what there is, who wants what, and how bad it gets; all of it drawn from one seed."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from cluster.packed import MEMBER, MEMBER_BODY
from shard_node.ledger import KIND_SYSTEM
from tests.simulation.books import ACTIVE, CLOSED, FROZEN
from tests.simulation.checks import Checks
from tests.simulation.clients import LAZY_US, PROMPT_US, Clients, Intent
from tests.simulation.coordinators import Coordinator
from tests.simulation.shards import Shape, Shard
from tests.simulation.world import (
    MS,
    NO_PLAN,
    SECOND,
    START_US,
    Faults,
    Plan,
    Violation,
    World,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from shard_node.ledger import Ledger

PLAYER: Final = 1
BANK_FLOOR_MINOR: Final = -1_000_000
REPLAY: Final = "python -m tests.simulation --seed {seed} --schedules 1 --trace"
OVERDUE: Final = 0.2
"""How many schedules are about deadlines."""
SETTLE_US: Final = 60 * SECOND
"""After the faults: clients ask again, deadlines pass, sweeps sweep. It takes some ten seconds."""


@dataclass(frozen=True)
class Parts:
    """What a schedule is played with; others than these are wrong on purpose.

    Attributes:
        install: puts a wrong part into each ledger.
        shard, coordinator: the classes.
    """

    install: Callable[[Ledger], None] | None = None
    shard: type[Shard] = Shard
    coordinator: type[Coordinator] = Coordinator


RIGHT: Final = Parts()


@dataclass(frozen=True)
class Setting:
    """What is drawn, or fixed, before anything happens.

    Attributes:
        shards, coordinators: how many.
        players: on each shard.
        faults, faults_us: how bad, and for how long.
        shape: of shards.
        resend: see `Coordinator`.
        pauses_us: see `Clients`.
        changes: how many accounts change their status on the way.
        intents: how much is wanted.
        imports: how much of it bears a time of its own, which may be still to come.
    """

    shards: int
    coordinators: int
    players: int
    faults: Faults
    faults_us: int
    shape: Shape
    resend: float
    pauses_us: tuple[int, int] = PROMPT_US
    changes: int = 0
    intents: int = 0
    imports: float = 0.0


@dataclass
class Outcome:
    """What a schedule came to, for people and for comparing."""

    seed: int
    trace_hash: str
    events: int
    messages: int
    crashes: int
    transactions: int
    committed: int
    counts: Counter[str]
    lines: list[str] = field(default_factory=list)


def draw_setting(rng: random.Random) -> Setting:
    """How bad a schedule is: each kind of fault may be absent, rare or frequent."""

    def level(*levels: float) -> float:
        return rng.choice((0.0, *levels))

    faults = Faults(
        lost=level(0.03, 0.2),
        doubled=level(0.05, 0.3),
        late=level(0.05, 0.3),
        late_max_us=rng.choice((200 * MS, 2 * SECOND, 7 * SECOND)),
        crash=level(0.005, 0.03),
        down_max_us=rng.choice((50 * MS, 2 * SECOND, 6 * SECOND)),
        skew_us=rng.choice((0, 20 * MS, 900 * MS, 2_500 * MS)),
        slow_sync=level(0.05, 0.5),
    )
    shape = Shape(
        accounts_max=rng.choice((1, 2, 1_000)), checkpoint=level(0.05, 0.3), tight=level(0.02)
    )
    drawn = Setting(
        shards=rng.choice((2, 2, 3)),
        coordinators=rng.choice((1, 2)),
        players=rng.randint(1, 3),
        faults=faults,
        faults_us=rng.choice((300 * MS, 2 * SECOND, 8 * SECOND)),
        shape=shape,
        resend=rng.choice((0.0, 0.5, 1.0)),
        pauses_us=rng.choice((PROMPT_US, PROMPT_US, LAZY_US)),
        changes=rng.choice((0, 0, 3)),
        intents=rng.randint(3, 8),
        imports=rng.choice((0.0, 0.0, 0.1, 0.6)),
    )
    return draw_overdue(rng, drawn) if rng.random() < OVERDUE else drawn


def draw_overdue(rng: random.Random, drawn: Setting) -> Setting:
    """A schedule about deadlines.

    What is late comes about its deadline, to a process that is not the one it was sent to and whose
    clock was set back, while nobody has asked again.
    """
    late_what = rng.choice(("", "prepare", "commit", "commit home", "commit home"))
    faults = Faults(
        lost=rng.choice((0.0, 0.05)),
        late=rng.choice((0.5, 1.0)) if late_what else 0.5,
        late_what=late_what,
        late_min_us=4 * SECOND,
        late_max_us=7 * SECOND,
        crash=rng.choice((0.05, 0.2)),
        crash_at=rng.choice(("", "answers")),
        down_max_us=50 * MS,
        skew_us=3 * SECOND,
        stepped=1.0,
        slow_sync=rng.choice((0.0, 0.5)),
    )
    return replace(
        drawn,
        faults=faults,
        faults_us=10 * SECOND,
        resend=0.0,
        pauses_us=LAZY_US,
        changes=0,
        intents=rng.randint(1, 2),
    )


class Schedule:
    """One schedule, ready to be played.

    Args:
        seed: of all chance.
        setting: None = drawn.
        plan: what happens besides.
        parts: see there.
        keep_lines: whether to keep the trace.
    """

    def __init__(
        self,
        seed: int,
        setting: Setting | None = None,
        plan: Plan = NO_PLAN,
        parts: Parts = RIGHT,
        *,
        keep_lines: bool = False,
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.setting = setting or draw_setting(self.rng)
        self.world = World(self.rng, self.setting.faults, plan, keep_lines=keep_lines)
        self.shards = {
            each: parts.shard(self.world, each, self.setting.shape, parts.install)
            for each in range(1, self.setting.shards + 1)
        }
        self.checks = Checks(self.shards)
        self.coordinators = [
            parts.coordinator(
                self.world, each, self.shards, self.setting.resend, self.checks.answered
            )
            for each in range(1, self.setting.coordinators + 1)
        ]
        self.clients = Clients(
            self.world,
            self.shards,
            self.coordinators,
            self.checks.answered_by_shard,
            self.setting.pauses_us,
        )
        self._transfer_ids = 0
        for process in (*self.shards.values(), *self.coordinators):
            self.world.add(process, self.world.skew_us())
            process.start()
        for shard in self.shards.values():
            self._open_accounts(shard)

    def play(self) -> Outcome:
        """Plays it to its end, and checks everything.

        Raises:
            Violation: something that must be true is not.
        """
        if not self.clients.intents:
            self.draw_wishes()
        world = self.world
        world.run(self._is_quiet, world.now_us + self.setting.faults_us)
        world.heal()
        quiet = world.run(self._is_quiet, world.now_us + SETTLE_US)
        if not quiet:
            raise Violation(f"not settled: {self._what_is_left()}")
        self.checks.at_the_end(self.clients.intents, self.coordinators)
        executions = [it for each in self.coordinators for it in each.executions]
        return Outcome(
            self.seed,
            world.trace_hash,
            world.events,
            len(world.sent),
            world.crashes,
            sum(len(each.transaction_ids) for each in executions),
            sum(len(each.books.committed) for each in self.shards.values()),
            world.counts,
            world.lines,
        )

    def _is_quiet(self) -> bool:
        return (
            self.clients.are_done
            and not self.world.faults.crash
            and all(each.is_up and not each.is_in_doubt for each in self.shards.values())
        )

    def _what_is_left(self) -> str:
        left = [
            f"{each.name} is not answered" for each in self.clients.intents if not each.is_known
        ]
        left += [f"{each.name} is in doubt" for each in self.shards.values() if each.is_in_doubt]
        return ", ".join(left)

    # --- what there is and what is wanted -------------------------------------------------------

    def _open_accounts(self, shard: Shard) -> None:
        rng, bank = self.rng, account_id(shard.shard_id, 0)
        shard.open(bank, KIND_SYSTEM, BANK_FLOOR_MINOR, 0)
        for number in range(1, self.setting.players + 1):
            player = account_id(shard.shard_id, number)
            cap_minor = rng.choice((0, 25, 40))
            shard.open(player, PLAYER, 0, cap_minor)
            funds = rng.randint(0, 25)
            if funds:
                shard.fund(self._body(bank, player, funds))
        shard.sync_now()

    def draw_wishes(self) -> None:
        """What clients want, and which accounts are frozen, thawed or closed meanwhile."""
        rng = self.rng
        span_us = rng.choice((MS, 50 * MS, SECOND))
        for number in range(1, self.setting.intents + 1):
            is_group = rng.random() < 0.4
            is_local = rng.random() < 0.2
            intent = self._intent(number, is_group=is_group, is_local=is_local)
            self.clients.want(intent, rng.randrange(span_us))
            if rng.random() < 0.1:
                self.clients.want(self._differing(intent), rng.randrange(span_us))
        for _ in range(self.setting.changes):
            shard = rng.choice(list(self.shards.values()))
            player = account_id(shard.shard_id, rng.randint(1, self.setting.players))
            status = rng.choice((FROZEN, ACTIVE, CLOSED))
            self._change_later(shard, player, status, rng.randrange(2 * span_us))

    def _change_later(self, shard: Shard, player: int, status: int, delay_us: int) -> None:
        self.world.after(
            delay_us,
            f"account {player} becomes {status}",
            lambda: shard.change_status(player, status) if shard.is_up else None,
        )

    def transfer(self, name: str, source: int, destination: int, amount: int) -> Intent:
        """A transfer from one account to another."""
        return self._make(name, [(source, destination, amount)], is_group=False)

    def group(self, name: str, *transfers: tuple[int, int, int]) -> Intent:
        """A group of (source, destination, amount)."""
        return self._make(name, list(transfers), is_group=True)

    def _make(
        self,
        name: str,
        transfers: list[tuple[int, int, int]],
        *,
        is_group: bool,
        import_us: int = 0,
        metadata_bytes: int = 0,
    ) -> Intent:
        self._transfer_ids += 1
        transfer_id = self._transfer_ids.to_bytes(16, "big")
        members = []
        for index, (source, destination, amount) in enumerate(transfers):
            body = MEMBER_BODY.pack(
                transfer_id,
                source,
                destination,
                amount,
                0,
                import_us,
                1,
                metadata_bytes,
                1,
                index,
                len(transfers) if is_group else 0,
            )
            members.append(MEMBER.pack(body, shard_of(source), shard_of(destination)))
        metadata = bytes(range(metadata_bytes)) * len(transfers)
        return Intent(name, b"".join(members), metadata, is_group)

    def _intent(self, number: int, *, is_group: bool, is_local: bool) -> Intent:
        rng = self.rng
        shards = [rng.choice(list(self.shards))] if is_local else list(self.shards)
        size = rng.randint(1, 5) if is_group else 1
        while True:
            transfers = [self._pair(shards) for _ in range(size)]
            touched = {shard_of(each) for source, to, _ in transfers for each in (source, to)}
            if (len(touched) == 1) == is_local:
                break
        kind = "group" if is_group else "transfer"
        is_import = rng.random() < self.setting.imports
        import_us = START_US + rng.randint(-SECOND, 3 * SECOND) if is_import else 0
        intent = self._make(
            f"{kind} {number}",
            transfers,
            is_group=is_group,
            import_us=import_us,
            metadata_bytes=rng.choice((0, 0, 3)),
        )
        intent.repeats = rng.choice((0, 0, 0, 1))
        return intent

    def _pair(self, shards: list[int]) -> tuple[int, int, int]:
        rng, players = self.rng, self.setting.players
        while True:
            # Now and then one that was never opened.
            numbers = [99 if rng.random() < 0.01 else rng.randint(0, players) for _ in range(2)]
            source, destination = (account_id(rng.choice(shards), each) for each in numbers)
            if source != destination:
                return source, destination, rng.randint(1, 20)

    def _differing(self, intent: Intent) -> Intent:
        """Another body under the same key."""
        body, *shards = MEMBER.unpack_from(intent.members)
        fields = list(MEMBER_BODY.unpack(body))
        fields[3] += 1
        first = MEMBER.pack(MEMBER_BODY.pack(*fields), *shards)
        members = first + intent.members[MEMBER.size :]
        return Intent(f"{intent.name}, differing", members, intent.metadata, intent.is_group)

    def _body(self, source: int, destination: int, amount: int) -> bytes:
        body: bytes = MEMBER.unpack(self.transfer("funds", source, destination, amount).members)[0]
        return body


def account_id(shard_id: int, number: int) -> int:
    """The account of this number on a shard; 0 is its bank."""
    return shard_id * 100 + number


def shard_of(account: int) -> int:
    """The shard of an account."""
    return account // 100


def play(
    seed: int, parts: Parts = RIGHT, setting: Setting | None = None, *, keep_lines: bool = False
) -> Outcome:
    """Draws and plays a schedule; whatever goes wrong says how to play it again."""
    schedule = Schedule(seed, setting, parts=parts, keep_lines=keep_lines)
    try:
        return schedule.play()
    except Exception as error:
        error.add_note(f"`{REPLAY.format(seed=seed)}` plays this schedule again")
        if keep_lines:
            error.add_note("\n".join(schedule.world.lines))
        raise
