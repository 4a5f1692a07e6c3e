"""A coordinator: the real transactions, taken through their rounds on virtual time; and its sweep.

What `coordinator.rounds` and `coordinator.recovery` do with an event loop is done here with events:
which call follows from which action or answer, what is sent again and when, and what counts as not
known. What they decide with is theirs: `Item` and the pure half of `recovery`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from cluster.clock import HybridClock
from cluster.packed import DECISION, RESOLUTION, VOTE, Vote
from coordinator.actions import (
    AbortPrepared,
    Answer,
    CommitHome,
    CommitPrepared,
    Finish,
    Prepare,
    Retry,
)
from coordinator.recovery import IN_DOUBT_US, SWEEP_PERIOD_S, plan, read_listings, to_finish
from coordinator.rounds import (
    CALL_TIMEOUT_S,
    RETRY_FIRST_S,
    RETRY_MAX_S,
    TRANSACTION_LIFE_US,
)
from coordinator.states import State
from coordinator.transactions import take_apart
from shard_node.transactions import Header, Request
from tests.simulation.world import MS, SECOND, Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sized

    from coordinator.actions import Actions
    from coordinator.transactions import Item
    from tests.simulation.clients import Intent
    from tests.simulation.shards import Listing, Shard
    from tests.simulation.world import Event, World

CALL_TIMEOUT_US: Final = int(CALL_TIMEOUT_S * SECOND)
PAUSE_MAX_US: Final = 300 * MS
"""Before what is not known is asked again."""

A = TypeVar("A", bound="Sized")


@dataclass(eq=False)
class Execution:
    """One call of a client, as one coordinator works on it.

    Attributes:
        intent: what is asked for.
        name: in the trace.
        item: how far it is.
        give: sends the result to the client.
        transaction_ids: of its attempts.
        deadline: when the client's time is over.
        result: packed; b"" = none yet.
    """

    intent: Intent
    name: str
    item: Item
    give: Callable[[bytes], None]
    transaction_ids: list[bytes] = field(default_factory=list)
    deadline: Event | None = None
    result: bytes = b""


class Coordinator(Process):
    """One coordinator.

    Args:
        world: what it is in.
        number: its name.
        shards: by id.
        resend: the chance that a call is sent again within its time, as the pool of shards does.
        on_answer: hears every answer at the moment it is given.

    Attributes:
        executions: all that this coordinator ever worked on.
    """

    def __init__(
        self,
        world: World,
        number: int,
        shards: dict[int, Shard],
        resend: float,
        on_answer: Callable[[Execution], None],
    ) -> None:
        super().__init__(world, f"coordinator {number}")
        self._shards = shards
        self._resend = resend
        self._on_answer = on_answer
        self.executions: list[Execution] = []

    def start(self) -> None:
        """Knows nothing, and begins to sweep."""
        super().start()
        self.clock = HybridClock(self)
        self._sweep_later()

    # --- transactions ---------------------------------------------------------------------------

    def execute(self, intent: Intent, time_us: int, give: Callable[[bytes], None]) -> None:
        """A client asks, and waits so long."""
        (item,) = take_apart(intent.members, intent.metadata)
        it = Execution(intent, f"{self.name}: {intent.name}", item, give)
        self.executions.append(it)
        it.deadline = self.world.after(time_us, f"{it.name} is over", lambda: self._over(it), self)
        self._begin(it)

    def _over(self, it: Execution) -> None:
        if not it.item.is_answered:
            self.apply(it, it.item.deadline())

    def _begin(self, it: Execution) -> None:
        if it.item.state is not State.WAITING:
            return
        transaction_id = self.world.rng.randbytes(16)
        it.transaction_ids.append(transaction_id)
        self.apply(it, it.item.begin(transaction_id, self.clock.tick() + TRANSACTION_LIFE_US))

    def apply(self, it: Execution, actions: Actions) -> None:
        """Does what an event called for."""
        item = it.item
        for action in actions:
            match action:
                case Prepare():
                    for shard in item.participants:
                        self._prepare(it, shard)
                case CommitHome(vote):
                    item.vote_asked = vote
                    self._commit_home(it)
                case CommitPrepared(decision, shards):
                    for shard in shards:
                        self._commit_prepared(it, shard, decision)
                case AbortPrepared(transaction, shards):
                    for shard in shards:
                        self._abort(shard, *DECISION.unpack(transaction))
                case Finish():
                    self._finish(item.home, [item.transaction_id])
                case Answer(result):
                    assert it.deadline, "it was set at the beginning"
                    it.deadline.cancel()
                    it.result = result
                    self._on_answer(it)
                    it.give(result)
                case Retry():
                    self._retry(it)

    def voted(self, it: Execution, shard: int, vote: tuple[int, int, int]) -> None:
        """A participant has answered PREPARE."""
        self.apply(it, it.item.vote(shard, *vote))

    def unreached(self, it: Execution, shard: int) -> None:
        """A participant has not answered PREPARE."""
        self.apply(it, it.item.unreached(shard))

    def _prepare(self, it: Execution, shard: int) -> None:
        header, members, metadata = it.item.for_participant(shard)
        request = Request(Header.unpack(header), members, metadata)
        clock_us = self.clock.tick()

        def handle(at: Shard, answer: Callable[[bytes], None]) -> None:
            at.observe(clock_us)
            at.prepare(request, answer)

        def unknown() -> None:
            self.unreached(it, shard)

        def then(vote: bytes) -> None:
            self.voted(it, shard, VOTE.unpack(vote))

        self.call(shard, "prepare", handle, then, unknown)

    def _commit_home(self, it: Execution) -> None:
        item = it.item
        request = Request(Header.unpack(item.header), item.members, item.metadata)
        vote, clock_us = VOTE.unpack(item.vote_asked), self.clock.tick()

        def handle(at: Shard, answer: Callable[[bytes], None]) -> None:
            at.observe(clock_us)
            at.commit_home(request, vote, answer)

        def then(answer: bytes) -> None:
            self.apply(it, it.item.home_answer(answer))

        def unknown() -> None:
            self._pause("ask again", lambda: self.apply(it, it.item.home_unknown()))

        self.call(item.home, f"commit home {Vote(vote[0]).name}", handle, then, unknown)

    def _commit_prepared(self, it: Execution, shard: int, decision: bytes) -> None:
        def then(_: bytes) -> None:
            self.apply(it, it.item.posted(shard))

        def unknown() -> None:
            self._pause("tell again", lambda: self.apply(it, it.item.post_unknown(shard)))

        transaction_id, decided_us = DECISION.unpack(decision)
        self._tell(shard, transaction_id, decided_us, then, unknown)

    def _retry(self, it: Execution) -> None:
        pause_s = min(RETRY_FIRST_S * 2 ** (it.item.attempts - 1), RETRY_MAX_S)
        pause_us = int(pause_s * SECOND * self.world.rng.uniform(0.5, 1.0))
        self.world.after(pause_us, f"{self.name} retries", lambda: self._begin(it), self)

    def _pause(self, what: str, action: Callable[[], None]) -> None:
        pause_us = self.world.rng.randrange(MS, PAUSE_MAX_US)
        self.world.after(pause_us, f"{self.name}: {what}", action, self)

    # --- single calls ---------------------------------------------------------------------------

    def _tell(
        self,
        shard: int,
        transaction_id: bytes,
        decided_us: int,
        then: Callable[[bytes], None],
        unknown: Callable[[], None],
    ) -> None:
        clock_us = self.clock.tick()

        def handle(at: Shard, answer: Callable[[bytes], None]) -> None:
            at.observe(clock_us)
            at.commit_prepared(transaction_id, decided_us, answer)

        self.call(shard, "commit", handle, then, unknown)

    def _abort(
        self,
        shard: int,
        transaction_id: bytes,
        deadline_us: int,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        def handle(at: Shard, answer: Callable[[bytes], None]) -> None:
            at.abort(transaction_id, deadline_us, answer)

        self.call(shard, "abort", handle, lambda _: done(), done)

    def _finish(self, home: int, transaction_ids: list[bytes]) -> None:
        def handle(at: Shard, answer: Callable[[bytes], None]) -> None:
            at.finish(transaction_ids, answer)

        self.call(home, "finish", handle, lambda _: None, lambda: None)

    def call(
        self,
        shard_id: int,
        what: str,
        handle: Callable[[Shard, Callable[[A], None]], None],
        then: Callable[[A], None],
        unknown: Callable[[], None],
    ) -> None:
        """Asks a shard: exactly one of `then` and `unknown` follows, unless we crash before."""
        shard, incarnation, world = self._shards[shard_id], self.incarnation, self.world
        label = f"{self.name} → {shard_id}: {what}"
        timers: list[Event] = []

        def settle(then: Callable[[], None]) -> None:
            if self.incarnation == incarnation and not timers[0].is_cancelled:
                for timer in timers:
                    timer.cancel()
                then()

        def answer(result: A) -> None:
            shown = result.hex() if isinstance(result, bytes) else str(len(result))
            clock_us = shard.clock.last_us

            def heard() -> None:
                self.clock.observe(clock_us)
                then(result)

            world.send(f"{label}: {shown}", self, lambda: settle(heard))

        def send() -> None:
            world.send(label, shard, lambda: handle(shard, answer))

        timeout = world.after(CALL_TIMEOUT_US, f"{label}: no answer", lambda: settle(unknown), self)
        timers.append(timeout)
        if world.chance(self._resend):
            again_us = world.rng.randrange(50 * MS, CALL_TIMEOUT_US)
            timers.append(world.after(again_us, f"{label}: again", send, self))
        send()

    # --- the sweep ------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        period_us = int(SWEEP_PERIOD_S * self.world.rng.uniform(0.5, 1.5) * SECOND)
        self.world.after(period_us, f"{self.name} sweeps", self._sweep, self)

    def _sweep(self) -> None:
        since_us = self.clock.tick() - IN_DOUBT_US
        listings: dict[int, Listing] = {}
        waits = Barrier(len(self._shards), lambda: self._resolve(listings))

        def ask(shard_id: int) -> None:
            def handle(at: Shard, answer: Callable[[Listing], None]) -> None:
                at.list_transactions(since_us, answer)

            def then(found: Listing) -> None:
                listings[shard_id] = found
                waits.arrive()

            self.call(shard_id, "list", handle, then, waits.arrive)

        for shard_id in self._shards:
            ask(shard_id)

    def _resolve(self, listings: Mapping[int, Listing]) -> None:
        in_doubt = read_listings(listings)
        resolutions: dict[bytes, tuple[int, int]] = {}
        asked = [(home, *each) for home, some in in_doubt.to_resolve().items() for each in some]

        def settle() -> None:
            steps = plan(in_doubt, resolutions)
            posted: dict[int, list[bytes]] = {}

            def finish() -> None:
                for home, ids in to_finish(in_doubt, posted).items():
                    self._finish(home, ids)
                self._sweep_later()

            commits = [
                (shard, *each) for shard, some in steps.commit.items() for each in some.items()
            ]
            aborts = [
                (shard, *each) for shard, some in steps.abort.items() for each in some.items()
            ]
            waits = Barrier(len(commits) + len(aborts), finish)
            self._settle(commits, aborts, posted, waits)

        waits = Barrier(len(asked), settle)
        for home, transaction_id, deadline_us in asked:
            self._ask_fate(home, transaction_id, deadline_us, resolutions, waits)

    def _ask_fate(
        self,
        home: int,
        transaction_id: bytes,
        deadline_us: int,
        resolutions: dict[bytes, tuple[int, int]],
        waits: Barrier,
    ) -> None:
        def handle(at: Shard, answer: Callable[[bytes], None]) -> None:
            at.resolve(transaction_id, deadline_us, answer)

        def then(answer: bytes) -> None:
            resolutions[transaction_id] = RESOLUTION.unpack(answer)
            waits.arrive()

        self.call(home, "resolve", handle, then, waits.arrive)

    def _settle(
        self,
        commits: Iterable[tuple[int, bytes, int]],
        aborts: Iterable[tuple[int, bytes, int]],
        posted: dict[int, list[bytes]],
        waits: Barrier,
    ) -> None:
        for shard, transaction_id, decided_us in commits:

            def then(_: bytes, shard: int = shard, transaction_id: bytes = transaction_id) -> None:
                posted.setdefault(shard, []).append(transaction_id)
                waits.arrive()

            self._tell(shard, transaction_id, decided_us, then, waits.arrive)
        for shard, transaction_id, deadline_us in aborts:
            self._abort(shard, transaction_id, deadline_us, waits.arrive)


class Barrier:
    """Goes on when so many have arrived; at once when none is awaited."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._left = count
        self._then = then
        if not count:
            then()

    def arrive(self) -> None:
        """One of them."""
        self._left -= 1
        if not self._left:
            self._then()
